//! An epoll instance that tokio watches: a second one, for events that tokio does not tell of.

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An epoll instance as tokio wants it.
#[derive(Debug)]
pub(crate) struct Instance(Epoll);

impl Instance {
    /// The instance itself.
    pub(crate) const fn epoll(&self) -> &Epoll {
        &self.0
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Makes an instance; it is readable while it has an event.
///
/// # Errors
///
/// When the process has no file descriptor left.
#[expect(unsafe_code, reason = "a watched descriptor has to stay what it is")]
pub(crate) fn watched() -> io::Result<AsyncFd<Instance>> {
    let instance = Instance(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
    // SAFETY: `Instance` owns its descriptor, names no other, and does not let it out.
    Ok(unsafe { AsyncFd::register_with_interest(instance, Interest::READABLE) }?)
}
