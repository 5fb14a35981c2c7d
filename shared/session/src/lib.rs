//! The session protocol of tund, pure: bytes and times in, bytes, events and deadlines out.
#![forbid(unsafe_code)]

pub mod id;
pub mod session;
pub mod time;
pub mod wire;

pub use id::{FlowId, Instance, LinkId, LinkNumber, Offset, Secret, SessionId};
pub use session::{
    Config, Delivery, EndReason, Event, LinkDeath, OpenRefused, Outbox, Progress, Role, Session,
    Timer,
};
pub use time::Instant;
