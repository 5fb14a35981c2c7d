//! Signals, as something that a poll loop can poll.

use std::io;
use std::task::{Context, Poll};

use tokio::signal::unix::{self, SignalKind};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM or SIGINT: end in order.
    Stop,
}

/// The signals that a daemon obeys. From its creation on they no longer kill the process.
#[derive(Debug)]
pub struct Signals {
    hangup: unix::Signal,
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    /// Starts to listen; must be called within a tokio runtime with I/O enabled.
    ///
    /// # Errors
    ///
    /// The system call's.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: unix::signal(SignalKind::hangup())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
        })
    }

    /// The next signal. Stop goes before reload; several of one kind may come as one.
    pub fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        let stop = [&mut self.terminate, &mut self.interrupt]
            .into_iter()
            .any(|signal| signal.poll_recv(cx).is_ready());
        if stop {
            return Poll::Ready(Signal::Stop);
        }
        if self.hangup.poll_recv(cx).is_ready() {
            return Poll::Ready(Signal::Reload);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    async fn next(signals: &mut Signals) -> Signal {
        let signal = poll_fn(|cx| signals.poll_signal(cx));
        tokio::time::timeout(Duration::from_secs(5), signal)
            .await
            .expect("a signal in time")
    }

    #[tokio::test]
    async fn signals_arrive_as_what_they_ask_for() {
        let mut signals = Signals::new().expect("listening");

        raise(Number::SIGHUP).expect("raised");
        assert_eq!(next(&mut signals).await, Signal::Reload);
        raise(Number::SIGTERM).expect("raised");
        assert_eq!(next(&mut signals).await, Signal::Stop);
        raise(Number::SIGINT).expect("raised");
        assert_eq!(next(&mut signals).await, Signal::Stop);
    }
}
