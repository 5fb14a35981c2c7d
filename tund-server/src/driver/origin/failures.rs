//! Which origins have failed: an RST is learnt of also while nothing is read from its socket.

use crate::sys::epoll;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::task::unconstrained;

/// Most failures taken in one go; the rest comes with the next.
const BATCH: usize = 64;

/// Watches origins for errors alone.
///
/// Tokio tells a reader of an error, and a writer; a socket whose flow may take no more bytes, or
/// that has sent its FIN, has neither. A second epoll instance hears of errors only, so a socket
/// that works never wakes it. The kernel removes a socket when it is closed.
#[derive(Debug)]
pub(crate) struct Failures {
    epoll: AsyncFd<epoll::Instance>,
    events: Vec<EpollEvent>,
}

impl Failures {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// When the process has no file descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::watched()?,
            events: vec![EpollEvent::empty(); BATCH],
        })
    }

    /// Watches `origin` from here on; `token` is what [`Failures::poll_failed`] calls it.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory, or `fs.epoll.max_user_watches` is reached.
    pub(crate) fn watch(&self, origin: &impl AsFd, token: u64) -> io::Result<()> {
        // Errors and hang-ups are reported whatever is asked for, here nothing more; each once.
        let event = EpollEvent::new(EpollFlags::EPOLLET, token);
        Ok(self.epoll.get_ref().epoll().add(origin, event)?)
    }

    /// Appends the tokens of origins that have failed, or that both sides have finished, to `out`.
    ///
    /// Ask [`Origin::failure`](super::Origin::failure) which it is. A token may come once more after its origin is gone.
    pub(crate) fn poll_failed(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u64>,
    ) -> Poll<io::Result<()>> {
        loop {
            let readable = poll_fn(|cx| self.epoll.poll_read_ready(cx));
            let mut guard = ready!(pin!(unconstrained(readable)).poll(cx))?;
            let found = guard
                .get_inner()
                .epoll()
                .wait(&mut self.events, EpollTimeout::ZERO)?;
            if found < BATCH {
                guard.clear_ready();
            }
            if found > 0 {
                out.extend(self.events.iter().take(found).map(EpollEvent::data));
                return Poll::Ready(Ok(()));
            }
        }
    }
}
