//! What the server asks of the system beyond what the standard library offers.

pub(crate) mod epoll;
pub(crate) mod icmp;
pub(crate) mod queue;
