//! The session protocol of tund, pure: bytes and times in, bytes, events and deadlines out.
#![forbid(unsafe_code)]

mod budget;
mod contacts;
mod control_lane;
mod datagram_queue;
mod flow;
pub mod framer;
pub mod id;
pub mod limits;
mod link;
mod mapping;
mod outbox;
mod receive_buffer;
mod send_buffer;
pub mod session;
#[cfg(test)]
mod tests;
pub mod time;
pub mod wire;

pub use contacts::{Contacts, Strangers};
pub use datagram_queue::DatagramCounts;
pub use framer::Framer;
pub use id::{FlowId, Instance, LinkId, LinkNumber, Offset, Secret, SessionId};
pub use mapping::MappingError;
pub use outbox::Outbox;
pub use session::{
    Config, DeliverTarget, Delivery, EndReason, Event, Held, LinkDeath, OpenRefused, Progress,
    Remainder, Role, Session, Target, Timer, Traffic,
};
pub use time::Instant;
