//! A link: one TLS connection over TCP that carries a session for a while, driven by polling.
//!
//! Nothing here runs by itself. The task that owns a link polls it with the waker of its token
//! (see [`crate::ready`]); what it polls is woken when the socket has news.

mod error;
mod handshake;
mod inbox;
mod outbox;
mod record;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod tuning;
mod up;

pub use error::{Impostor, LinkError};
pub use socket::{SocketOptions, TcpInfo, prepare_listener};
pub use tls::{ALPN, ClientKeys, ClientTls, ServerTls};
pub use up::Wear;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use rustls::AlertDescription;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tund_session::{Instant, Progress, Secret};

use self::handshake::{Handshake, Keys};
use self::inbox::Inbox;
use self::outbox::Outbox;
use self::record::{RECORD_PLAIN_BYTES, RECORD_WIRE_BYTES, WornOut};
use self::tls::UnknownKey;
use self::up::{Ending, Up, wide};
use crate::clock;
use crate::identity::PublicKey;

/// What the other side may send before it has proved its key; a handshake needs 2 to 3 KiB.
pub const HANDSHAKE_BYTES_MAX: usize = 16 << 10;
/// What a refused client may still send while it reads the refusal; beyond, it is cut off.
const REFUSED_BYTES_MAX: usize = 64 << 10;
/// Encrypted bytes that wait for the kernel. Chosen: enough for one large write, little enough
/// that the session decides late what goes next.
const OUTBOX_BYTES_MAX: usize = 8 * RECORD_WIRE_BYTES;
const WORN_OUT: LinkError = LinkError::Limit(
    "one link's keys have protected as many records as they may; a new link takes over",
);
const LONG_HANDSHAKE: LinkError =
    LinkError::Limit("the other side sent 16 KiB without completing its handshake");

/// What a complete handshake proved.
#[derive(Debug)]
pub struct Established {
    /// The other side's key, proved.
    pub peer: PublicKey,
    /// The resume secret of this link, equal at both ends and at no other link.
    pub secret: Secret,
}

/// One transport connection, from the SYN to its end.
///
/// First [`Link::poll_handshake`] until it is ready; then [`Link::send`] and [`Link::poll_flush`],
/// and [`Link::poll_recv`], in any order. After an error the link is ended: drop it.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    remote: SocketAddr,
    side: Side,
    state: State,
    inbox: Inbox,
    /// At most [`OUTBOX_BYTES_MAX`] if the owner heeds [`Link::room`].
    outbox: Outbox,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

#[derive(Debug)]
enum State {
    /// The SYN is not answered.
    Connecting(Box<Handshake>),
    Handshaking {
        tls: Box<Handshake>,
        received_bytes: usize,
    },
    /// Server: the client is told that its key is not listed, and given time to read it.
    Refusing {
        key: PublicKey,
        discard_bytes: usize,
    },
    Up(Box<Up>),
    Ended,
}

impl Link {
    /// Dials `address` from a socket that the caller has bound and marked as it likes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses at once, as without a route.
    pub fn connect(
        socket: Socket,
        address: SocketAddr,
        tls: &ClientTls,
        options: &SocketOptions,
    ) -> Result<Self, LinkError> {
        socket::set_options(&socket, options)?;
        let handshake = Handshake::client(tls).map_err(LinkError::Tls)?;
        socket::start_connect(&socket, address)?;
        let stream = TcpStream::from_std(socket.into())?;
        Ok(Self::new(
            stream,
            address,
            Side::Client,
            State::Connecting(Box::new(handshake)),
        ))
    }

    /// Takes a connection that a listener accepted.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn accept(
        stream: TcpStream,
        tls: &ServerTls,
        options: &SocketOptions,
    ) -> Result<Self, LinkError> {
        let remote = stream.peer_addr()?;
        socket::set_options(&stream, options)?;
        socket::ask_when_idle(&stream)?;
        let handshake = Handshake::server(tls).map_err(LinkError::Tls)?;
        let state = State::Handshaking {
            tls: Box::new(handshake),
            received_bytes: 0,
        };
        Ok(Self::new(stream, remote, Side::Server, state))
    }

    fn new(stream: TcpStream, remote: SocketAddr, side: Side, state: State) -> Self {
        Self {
            stream,
            remote,
            side,
            state,
            inbox: Inbox::new(),
            outbox: Outbox::default(),
        }
    }

    /// Whether the SYN was answered.
    pub const fn is_connected(&self) -> bool {
        !matches!(self.state, State::Connecting(_))
    }

    /// Whether bytes can be sent and received.
    pub const fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Drives the link until both directions have their keys.
    ///
    /// A client is done one round trip before the server has judged its key: it may send at once,
    /// and learns of a refusal from [`Link::poll_recv`] or [`Link::poll_flush`]. What is left to
    /// send then goes out with the first [`Link::poll_flush`].
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<Established, LinkError>> {
        let result = ready!(self.drive_handshake(cx));
        if result.is_err() {
            self.state = State::Ended;
        }
        Poll::Ready(result)
    }

    fn drive_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<Established, LinkError>> {
        loop {
            match &mut self.state {
                State::Connecting(_) => {
                    ready!(self.poll_connected(cx))?;
                    if let State::Connecting(tls) = take_state(&mut self.state) {
                        self.state = State::Handshaking {
                            tls,
                            received_bytes: 0,
                        };
                    }
                }
                State::Handshaking {
                    tls,
                    received_bytes,
                } => {
                    match tls.advance(&mut self.inbox.bytes, &mut self.outbox) {
                        Ok(true) => match self.finish_handshake() {
                            Ok(None) => continue,
                            Ok(Some(established)) => return Poll::Ready(Ok(established)),
                            Err(error) => return Poll::Ready(Err(error)),
                        },
                        Ok(false) if *received_bytes >= HANDSHAKE_BYTES_MAX => {
                            return Poll::Ready(Err(self.too_long()));
                        }
                        Ok(false) => {}
                        Err(error) => {
                            if let Err(error) = self.refuse(error, cx) {
                                return Poll::Ready(Err(error));
                            }
                            continue;
                        }
                    }
                    if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                        return Poll::Ready(Err(error.into()));
                    }
                    let count = ready!(self.inbox.poll_fill(&mut self.stream, cx))?;
                    if count == 0 {
                        return Poll::Ready(Err(LinkError::PeerClosed));
                    }
                    if let State::Handshaking { received_bytes, .. } = &mut self.state {
                        *received_bytes += count;
                    }
                }
                State::Refusing { .. } => return self.poll_refusal(cx).map(Err),
                State::Up(_) | State::Ended => return Poll::Ready(Err(not_up())),
            }
        }
    }

    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
            // Writable without a peer is a false alarm, which this clears.
            let peer = self
                .stream
                .try_io(Interest::WRITABLE, || match self.stream.peer_addr() {
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                        Err(io::ErrorKind::WouldBlock.into())
                    }
                    answered => answered,
                });
            match peer {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answered => return Poll::Ready(answered.map(drop)),
            }
        }
    }

    /// None when the peer's key was taken off the list meanwhile, and it is to be told so.
    fn finish_handshake(&mut self) -> Result<Option<Established>, LinkError> {
        let State::Handshaking { tls, .. } = take_state(&mut self.state) else {
            return Err(not_up());
        };
        let Keys {
            sealer,
            opener,
            peer,
            is_listed,
            secret,
        } = tls.finish().map_err(|error| self.tls_error(error))?;
        self.state = State::Up(Box::new(Up::new(sealer, opener, clock::now())));
        self.tune();
        if is_listed {
            return Ok(Some(Established { peer, secret }));
        }
        self.finish_with(2, AlertDescription::AccessDenied);
        self.state = State::Refusing {
            key: peer,
            discard_bytes: REFUSED_BYTES_MAX,
        };
        Ok(None)
    }

    /// Tells the other side that its handshake failed; a client of ours, so that it reads it.
    fn refuse(&mut self, error: rustls::Error, cx: &mut Context<'_>) -> Result<(), LinkError> {
        match (self.side, UnknownKey::find(&error)) {
            (Side::Server, Some(UnknownKey(key))) => {
                self.state = State::Refusing {
                    key,
                    discard_bytes: REFUSED_BYTES_MAX,
                };
                Ok(())
            }
            (Side::Server | Side::Client, _) => {
                // As much as goes out at once; the failure itself is the news.
                let _told: Poll<io::Result<()>> = self.poll_drain(cx);
                Err(self.tls_error(error))
            }
        }
    }

    /// Sends the refusal and waits for the client to close: closing first, with bytes of it
    /// unread, would send a RST that may overtake the refusal.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        let State::Refusing {
            key,
            mut discard_bytes,
        } = self.state
        else {
            return Poll::Ready(not_up());
        };
        let refused = LinkError::KeyNotListed(Some(key));
        if ready!(self.poll_drain(cx)).is_err() {
            return Poll::Ready(refused);
        }
        if ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).is_err() {
            return Poll::Ready(refused);
        }
        let closed = self
            .inbox
            .poll_discard(&mut self.stream, cx, &mut discard_bytes);
        self.state = State::Refusing { key, discard_bytes };
        closed.map(|_either_way| refused)
    }

    fn too_long(&self) -> LinkError {
        match self.side {
            Side::Server => LONG_HANDSHAKE,
            Side::Client => LinkError::NotOurServer(Impostor::NotTund(
                rustls::InvalidMessage::MessageTooLarge.into(),
            )),
        }
    }

    /// Before the handshake is complete, nothing that a client hears is from its server.
    fn tls_error(&self, error: rustls::Error) -> LinkError {
        match (self.side, UnknownKey::find(&error)) {
            (Side::Server, Some(UnknownKey(key))) => LinkError::KeyNotListed(Some(key)),
            (Side::Server, None) => LinkError::Tls(error),
            (Side::Client, Some(UnknownKey(key))) => {
                LinkError::NotOurServer(Impostor::AnotherKey(key))
            }
            (Side::Client, None) => LinkError::NotOurServer(Impostor::NotTund(error)),
        }
    }

    /// The next bytes from the peer, at most `max` (at least one); `None` after its orderly end.
    ///
    /// They share memory with what came in the same read: copy what is kept for long. Pending ends
    /// a turn, after half a megabyte or some hundreds of small records even where more is there:
    /// then it wakes by itself, and the owner serves its other links first.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, LinkError>> {
        let State::Up(up) = &mut self.state else {
            return Poll::Ready(Err(not_up()));
        };
        let result = ready!(up.poll_data(&mut self.inbox, &mut self.stream, cx));
        match result {
            Ok(Some(mut data)) => {
                if data.len() > max {
                    up.rest = data.split_off(max.max(1));
                }
                Poll::Ready(Ok(Some(data)))
            }
            Ok(None) => Poll::Ready(Ok(None)),
            Err(error) => Poll::Ready(Err(self.end(error))),
        }
    }

    /// How many bytes [`Link::send`] should be given now: whole records' worth, or none.
    pub const fn room(&self) -> usize {
        match &self.state {
            State::Up(up) if matches!(up.ending, Ending::Open) => {
                let free = OUTBOX_BYTES_MAX.saturating_sub(self.outbox.len());
                free / RECORD_WIRE_BYTES * RECORD_PLAIN_BYTES
            }
            State::Up(_)
            | State::Connecting(_)
            | State::Handshaking { .. }
            | State::Refusing { .. }
            | State::Ended => 0,
        }
    }

    /// Encrypts all of the slices, gathered into full records; [`Link::poll_flush`] sends them.
    ///
    /// # Errors
    ///
    /// When the link is not up, or its keys are worn out.
    pub fn send<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>) -> Result<(), LinkError> {
        let State::Up(up) = &mut self.state else {
            return Err(not_up());
        };
        if up.ending != Ending::Open {
            return Err(not_up());
        }
        match up.sealer.seal_data(slices, &mut self.outbox) {
            Ok(count) => {
                up.sent_bytes = up.sent_bytes.saturating_add(wide(count));
                Ok(())
            }
            Err(WornOut) => Err(self.end(WORN_OUT)),
        }
    }

    /// Hands what is encrypted to the kernel; ready when it has all of it.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if let Err(error) = ready!(self.poll_drain(cx)) {
            let last = self.last_words(cx).unwrap_or(LinkError::Transport(error));
            return Poll::Ready(Err(self.end(last)));
        }
        let State::Up(up) = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        if up.ending == Ending::Asked {
            let closed = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
            up.ending = Ending::Done;
            // The peer may have closed first.
            if let Err(error) = closed
                && error.kind() != io::ErrorKind::NotConnected
            {
                return Poll::Ready(Err(self.end(error.into())));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction in order: with the next flushes the peer reads everything, then the end.
    pub fn shutdown(&mut self) {
        self.finish_with(1, AlertDescription::CloseNotify);
    }

    fn finish_with(&mut self, level: u8, alert: AlertDescription) {
        let State::Up(up) = &mut self.state else {
            return;
        };
        if up.ending == Ending::Open {
            up.ending = Ending::Asked;
            if up
                .sealer
                .seal_alert(level, alert, &mut self.outbox)
                .is_err()
            {
                tracing::debug!("a worn-out link ends without saying so");
            }
        }
    }

    /// After a failed write: a refusal that arrived before the RST is the better reason.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Option<LinkError> {
        let State::Up(up) = &mut self.state else {
            return None;
        };
        while let Poll::Ready(read) = up.poll_data(&mut self.inbox, &mut self.stream, cx) {
            match read {
                Ok(Some(_)) => {}
                Err(refused @ LinkError::KeyNotListed(_)) => return Some(refused),
                Ok(None) | Err(_) => return None,
            }
        }
        None
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = self
                .outbox
                .with_slices(|slices| stream.poll_write_vectored(cx, slices));
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    self.outbox.advance(count);
                    if let State::Up(up) = &mut self.state
                        && up.tuning.sent(count)
                    {
                        self.tune();
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Looks at the path, and has the socket follow.
    fn tune(&mut self) {
        let (State::Up(up), Ok(info)) = (&mut self.state, socket::tcp_info(&self.stream)) else {
            return;
        };
        if let Some(advice) = up.tuning.look(&info)
            && let Err(error) = socket::follow(&self.stream, advice)
        {
            tracing::debug!(%error, "a link keeps the settings that it has");
        }
    }

    fn end(&mut self, why: LinkError) -> LinkError {
        self.state = State::Ended;
        self.outbox.clear();
        why
    }

    /// Ends the connection at once: the peer sees a reset, and the kernel keeps nothing of it.
    pub fn reset(self) {
        if let Err(error) = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a link ends in order in place of at once");
        }
    }

    /// How much this link's keys have been used, for its replacement in time.
    pub fn wear(&self, now: Instant) -> Wear {
        match &self.state {
            State::Up(up) => up.wear(now),
            State::Connecting(_)
            | State::Handshaking { .. }
            | State::Refusing { .. }
            | State::Ended => Wear::NONE,
        }
    }

    /// What the kernel has seen acknowledged and received: growth is progress.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn progress(&self) -> io::Result<Progress> {
        Ok(self.tcp_info()?.progress)
    }

    /// Progress and round-trip times, as the kernel sees them.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        socket::tcp_info(&self.stream)
    }

    /// The congestion control in use, such as `bbr`.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn congestion_control(&self) -> io::Result<String> {
        socket::congestion_control(&self.stream)
    }

    /// Our end of the connection.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// The other end of the connection.
    pub const fn remote_addr(&self) -> SocketAddr {
        self.remote
    }
}

fn take_state(state: &mut State) -> State {
    std::mem::replace(state, State::Ended)
}

fn not_up() -> LinkError {
    LinkError::Transport(io::ErrorKind::NotConnected.into())
}
