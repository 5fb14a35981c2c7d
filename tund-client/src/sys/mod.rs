//! What the daemon changes in the system, and what it asks the kernel: device, addresses, guard,
//! routes, link sockets, memory.
//!
//! Nothing here knows sessions or flows. Every failure is an [`error::SystemError`] that says
//! what was tried, what was found and what to do; its kind tells a missing privilege (exit
//! code 77) from the rest.

pub mod address;
pub mod arena;
pub mod error;
pub mod guard;
pub mod netlink;
pub mod route;
pub mod socket;
#[cfg(test)]
mod testing;
pub mod tun;
