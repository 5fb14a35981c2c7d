//! What the daemon changes in the system, and what it asks the kernel: device, addresses, guard,
//! routes and rules, link sockets, memory, whose socket one is, news of the network.
//!
//! Nothing here knows sessions or flows. Every failure is an [`error::SystemError`] that says
//! what was tried, what was found and what to do; its kind tells a missing privilege (exit
//! code 77) from the rest.

pub(crate) mod address;
pub(crate) mod arena;
pub(crate) mod error;
pub(crate) mod guard;
pub(crate) mod names;
pub(crate) mod netlink;
mod nft;
pub(crate) mod resolve;
pub(crate) mod route;
pub(crate) mod socket;
pub(crate) mod steer;
#[cfg(test)]
mod testing;
pub(crate) mod tun;
pub(crate) mod user;
pub(crate) mod watch;
