//! The server's resolver without I/O: what a client may ask, what of an answer it gets, how often, and
//! which name server is asked.
//!
//! Questions and answers pass as the bytes that they are, so that whatever an application and a name
//! server know of DNS and this daemon does not (options, record types, cookies) works.

mod allowance;
mod answers;
mod message;
mod names;
mod question;
mod servers;
#[cfg(test)]
mod tests;

pub use allowance::Allowance;
pub use question::{QUESTION_BYTES, Question, Verdict, judge};
pub use servers::{Silence, Tries};

use std::net::SocketAddr;
use tund_session::wire::frame;

/// Where a resolver that listens at `listens` is reached by a client that asks for `destination`;
/// none if that is not the resolver's name.
pub fn at(listens: Option<SocketAddr>, destination: SocketAddr) -> Option<SocketAddr> {
    let is_asked = destination == frame::resolver(destination.is_ipv4());
    listens.filter(|_| is_asked)
}
