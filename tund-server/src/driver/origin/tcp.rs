//! `Origin`: connection C over TCP, a socket without a task of its own.

use super::ReadBuffer;
use crate::sys::queue;
use bytes::{Buf as _, Bytes};
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::task::unconstrained;

/// Most pieces that one write takes.
pub(super) const WRITE_PIECES: usize = 64;

/// Idle time after which the kernel asks the origin whether it is there, and the time between two
/// such questions: DESIGN asks for at most 60 s, so that no middlebox forgets C within a grace.
const KEEPALIVE: Duration = Duration::from_secs(45);

/// Questions without an answer until the origin counts as gone: as long as the kernel would
/// retransmit data (`tcp_retries2`, about 15 minutes), so that an idle flow bears no less.
const KEEPALIVE_RETRIES: u32 = 20;

/// A TCP connection to an origin.
///
/// Polled, with the waker of its own, by the loop that owns it: first [`Origin::poll_connected`]
/// until it is ready, then [`Origin::poll_read`] and [`Origin::poll_write`] as the session has
/// room and bytes. After each `Pending` its waker is woken when it is worth asking again.
///
/// Dropped before both directions have ended it resets the connection, and so does a crash:
/// `SO_LINGER` is 0 from before the SYN until bytes and FIN of both sides are taken. A stream
/// that was cut short never looks as if it were complete.
#[derive(Debug)]
pub(crate) struct Origin {
    stream: TcpStream,
    /// The first error of the socket. Linux reports each once, and then an end of the stream.
    failure: Option<Errno>,
    /// The origin's FIN was read.
    has_ended: bool,
    /// Our FIN was sent.
    is_finished: bool,
    /// What goes out before the first byte of the flow, as far as it has not.
    preface: Bytes,
}

impl Origin {
    /// Begins to connect to `destination`; `preface` is sent first, and is not the flow's.
    ///
    /// # Errors
    ///
    /// What is wrong at once: no route, no address, no file descriptor left.
    pub(crate) fn connect(destination: SocketAddr, preface: Bytes) -> io::Result<Self> {
        Self::connect_socket(destination, preface, |_| Ok(()))
    }

    /// Begins to connect to `destination` on this host, once `introduce` knows from which port.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub(crate) fn connect_introduced(
        destination: SocketAddr,
        introduce: impl FnOnce(u16),
    ) -> io::Result<Self> {
        Self::connect_socket(destination, Bytes::new(), |socket| {
            let any_port = SocketAddr::new(destination.ip(), 0);
            socket.bind(&any_port.into())?;
            let port = socket.local_addr()?.as_socket().map(|from| from.port());
            introduce(port.unwrap_or(0));
            Ok(())
        })
    }

    fn connect_socket(
        destination: SocketAddr,
        preface: Bytes,
        prepare: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<Self> {
        let domain = Domain::for_address(destination);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEPALIVE)
                .with_interval(KEEPALIVE)
                .with_retries(KEEPALIVE_RETRIES),
        )?;
        prepare(&socket)?;
        if let Err(error) = socket.connect(&destination.into())
            && error.raw_os_error() != Some(Errno::EINPROGRESS as i32)
        {
            return Err(error);
        }
        let stream = TcpStream::from_std(socket.into())?;
        Ok(Self {
            stream,
            failure: None,
            has_ended: false,
            is_finished: false,
            preface,
        })
    }

    /// Whether the origin has answered, and the preface is out; the error is what the origin, or the
    /// network, answered.
    pub(crate) fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answered(cx))?;
        while !self.preface.is_empty() {
            let preface = self.preface.clone();
            let written = ready!(self.poll_write(cx, std::iter::once(&preface)))?;
            self.preface.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let writable = poll_fn(|cx| self.stream.poll_write_ready(cx));
            ready!(pin!(unconstrained(writable)).poll(cx))?;
            if let Some(error) = self.failure() {
                return Poll::Ready(Err(error));
            }
            // Readiness alone is no proof (mio): only with a peer is the socket connected.
            let connected =
                self.stream
                    .try_io(Interest::WRITABLE, || match self.stream.peer_addr() {
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                            Err(io::ErrorKind::WouldBlock.into())
                        }
                        other => other.map(drop),
                    });
            match connected {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Reads at most `max` bytes. No bytes are the origin's FIN, after all it has sent.
    ///
    /// With `max` 0 nothing is read and nobody is woken, except by [`super::Failures`].
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuffer,
        max: usize,
    ) -> Poll<io::Result<Bytes>> {
        let read = ready!(into.poll_read(&mut self.stream, cx, max));
        Poll::Ready(match (read, self.failure) {
            (Ok(bytes), Some(failure)) if bytes.is_empty() => Err(failure.into()),
            (Ok(bytes), _) => {
                if bytes.is_empty() {
                    self.has_ended = true;
                    self.let_go_if_complete()?;
                }
                Ok(bytes)
            }
            (Err(error), _) => Err(self.remember(error)),
        })
    }

    /// Writes the beginning of `pieces`, as much as the socket takes, and says how much that was.
    pub(crate) fn poll_write<'a>(
        &mut self,
        cx: &mut Context<'_>,
        pieces: impl Iterator<Item = &'a Bytes>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); WRITE_PIECES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        let Some(slices) = slices.get(..count).filter(|slices| !slices.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let stream = &mut self.stream;
        let write = poll_fn(|cx| Pin::new(&mut *stream).poll_write_vectored(cx, slices));
        pin!(unconstrained(write))
            .poll(cx)
            .map_err(|error| self.remember(error))
    }

    /// Sends FIN behind all that was written.
    ///
    /// # Errors
    ///
    /// When the connection has failed; nothing can be delivered any more.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let shut = SockRef::from(&self.stream).shutdown(Shutdown::Write);
        shut.map_err(|error| self.remember(error))?;
        self.is_finished = true;
        self.let_go_if_complete()
    }

    /// Once both directions have ended, a close leaves the rest to the kernel: what was written
    /// and not yet acknowledged still arrives.
    fn let_go_if_complete(&self) -> io::Result<()> {
        if self.has_ended && self.is_finished {
            SockRef::from(&self.stream).set_linger(None)?;
        }
        Ok(())
    }

    /// Our FIN was sent.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Leaves the rest to the kernel, whether or not the origin ever ends its direction.
    pub(crate) fn let_go(&self) {
        // It can fail only on a connection that is gone, and then nothing is left.
        drop(SockRef::from(&self.stream).set_linger(None));
    }

    /// Bytes written that the origin has not acknowledged; a FIN counts as one.
    ///
    /// # Errors
    ///
    /// Whatever the system call fails with; it cannot on a TCP socket.
    pub(crate) fn unsent(&self) -> io::Result<usize> {
        queue::unacknowledged(&self.stream)
    }

    /// Bytes that have come and were not read.
    ///
    /// # Errors
    ///
    /// Whatever the system call fails with; it cannot on a TCP socket.
    pub(crate) fn unread(&self) -> io::Result<usize> {
        queue::unread(&self.stream)
    }

    /// Sends RST at once and throws away what the socket holds.
    pub(crate) fn reset(self) {
        // It can fail only on a connection that is gone, and then there is nothing to reset.
        drop(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)));
    }

    /// The first error of the socket, if it has had one.
    ///
    /// Bytes that had come before it can still be read. Until it is asked for, or met by a read
    /// or write, the kernel keeps it.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        if self.failure.is_none()
            && let Err(error) | Ok(Some(error)) = self.stream.take_error()
        {
            self.remember(error);
        }
        self.failure.map(io::Error::from)
    }

    fn remember(&mut self, error: io::Error) -> io::Error {
        if let Some(errno) = error.raw_os_error() {
            self.failure.get_or_insert_with(|| Errno::from_raw(errno));
        }
        error
    }
}

impl AsFd for Origin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
