//! `Session`: what outlives links. STUB of the contract; bodies follow.
#![allow(missing_docs, unused, clippy::all, reason = "contract first")]
use crate::id::*;
use crate::time::Instant;
use crate::wire::frame::*;
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    /// This daemon's start.
    pub instance: Instance,
    /// Bytes of buffer per direction.
    pub buffer_bytes: u64,
    /// Flows at once (floors of all of them are set aside).
    pub max_flows: u64,
    /// Server: cap on what OPEN asks.
    pub max_grace: Duration,
}

/// Bytes for one link, in order; cleared and refilled, so that nothing is allocated per frame.
#[derive(Debug, Default)]
pub struct Outbox {
    _private: (),
}
impl Outbox {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn clear(&mut self) {}
    pub fn len(&self) -> usize {
        0
    }
    pub fn is_empty(&self) -> bool {
        true
    }
    /// Slices in the order of the wire.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }
}

/// What the kernel says of a link's transport connection (TCP_INFO): growth is progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_acked: u64,
    pub bytes_received: u64,
}

/// How the peer's direction of a flow goes on after the bytes now readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// More may come.
    Open,
    /// FIN: shut the local socket's sending side down once `readable` is all written, then call `end_delivered`.
    Fin,
    /// RST once the local socket has sent everything (SIOCOUTQ = 0, or tx ring empty), then call `end_delivered`.
    Reset,
    /// Nothing is to be delivered any more.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDeath {
    /// The driver said so.
    Transport,
    /// No answer.
    Silent,
    /// RETIRE, or LINK_DOWN by the peer.
    Retired,
    /// The peer said LINK_CLOSE.
    PeerClosed,
    /// Never confirmed in time / attach refused.
    AttachFailed,
    /// Session has ended.
    SessionEnded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Asked for on this side.
    Local(CloseCode),
    /// SESSION_CLOSE by the peer.
    Peer(CloseCode),
    /// RESUME_REJECT.
    Rejected(RejectReason),
    /// 10 min without flows and link (rule 15).
    Abandoned,
    /// The peer broke the protocol, `what` says how.
    Violation { what: &'static str },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link joined. `first` on the session's first (WELCOME).
    Attached { link: LinkId, number: LinkNumber, first: bool },
    /// No working link is left; flows wait.
    Detached,
    /// A link that was suspect answered again and the session is attached by it.
    Reattached { link: LinkId },
    /// The driver shall close that transport connection (send out what poll_transmit still has, at most briefly).
    LinkDead { link: LinkId, death: LinkDeath },
    /// Call `handle_progress` with TCP_INFO of that link.
    WantProgress { link: LinkId },
    /// Client: HELLO answered by KEY_IN_USE (final; needs a person).
    KeyInUse,
    /// Client: the server cannot serve now (RejectReason::Busy / Version); retry hint.
    AttachRefused { reason: RejectReason, retry_after: Duration },
    /// The session is destroyed; the owner resets every local socket at once.
    Ended { reason: EndReason },
    /// Server: the client asks for this origin; answer with `accept_flow` or `refuse_flow`.
    FlowOpened { open: Open },
    /// Client: the origin has answered.
    FlowAccepted { flow: FlowId },
    /// Client: the origin cannot be had; the flow is forgotten.
    FlowRefused { flow: FlowId, error: OpenError },
    /// `readable`, or `delivery`, has changed.
    FlowReadable { flow: FlowId },
    /// `intake` has grown from zero (or by much).
    FlowWritable { flow: FlowId },
    /// RST the local socket at once; nothing more of this flow is to be delivered.
    FlowAborted { flow: FlowId, code: FlowCode },
    /// Both ends are done; the id is forgotten; release all that hangs on it.
    FlowForgotten { flow: FlowId },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenRefused {
    TooManyFlows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Any,
}

#[derive(Debug)]
pub struct Session {
    _private: (),
}

impl Session {
    /// Client: before any link. Flows can be opened at once; the caller dials.
    pub fn new_client(config: &Config, now: Instant) -> Self {
        todo!()
    }

    /// Server: on HELLO at `link`; WELCOME is the first thing `poll_transmit(link)` yields.
    pub fn new_server(
        config: &Config,
        id: SessionId,
        hello: &Hello,
        link: LinkId,
        secret: Secret,
        now: Instant,
    ) -> Self {
        todo!()
    }

    // ---- the world tells

    /// Client: a transport connection to the pinned server is up; HELLO or RESUME goes out on it.
    pub fn handle_link_up(&mut self, link: LinkId, secret: Secret, now: Instant) {
        todo!()
    }

    /// Server: checks the proof of RESUME and adds the link; RESUME_OK and FLOW_STATE go out on it.
    pub fn handle_resume(
        &mut self,
        link: LinkId,
        resume: &Resume,
        secret: Secret,
        now: Instant,
    ) -> Result<(), RejectReason> {
        todo!()
    }

    /// Bytes of a link, in any pieces. A violation ends this session (`Event::Ended`).
    pub fn handle_bytes(&mut self, link: LinkId, bytes: Bytes, now: Instant) {
        todo!()
    }

    /// The transport connection is gone.
    pub fn handle_link_down(&mut self, link: LinkId, now: Instant) {
        todo!()
    }

    /// Answer to `Event::WantProgress`.
    pub fn handle_progress(&mut self, link: LinkId, progress: Progress, now: Instant) {
        todo!()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }

    // ---- the owner orders

    /// Client: asks for an origin (`flow`, `limit` of `open` are filled in by the session).
    pub fn open_flow(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        grace: Duration,
        on_expiry: OnExpiry,
        now: Instant,
    ) -> Result<FlowId, OpenRefused> {
        todo!()
    }

    /// Server: C is connected.
    pub fn accept_flow(&mut self, flow: FlowId, now: Instant) {
        todo!()
    }

    /// Server: C could not be had. The flow is forgotten.
    pub fn refuse_flow(&mut self, flow: FlowId, error: OpenError, now: Instant) {
        todo!()
    }

    /// How many bytes the owner may take from the local socket and `write`. For a window that is
    /// promised ahead: bytes up to `intake` are reserved for this flow and are never taken back.
    pub fn intake(&self, flow: FlowId) -> u64 {
        todo!()
    }

    /// Hands bytes from the local socket over; at most `intake(flow)`.
    pub fn write(&mut self, flow: FlowId, bytes: Bytes, now: Instant) {
        todo!()
    }

    /// The local socket's peer has closed its sending side (FIN), after all that was written.
    pub fn finish(&mut self, flow: FlowId, now: Instant) {
        todo!()
    }

    /// The local socket was reset by its peer (or failed): what was written is still delivered,
    /// then the far socket is reset. Ends both directions here; the local socket is gone.
    pub fn reset(&mut self, flow: FlowId, code: FlowCode, now: Instant) {
        todo!()
    }

    /// Aborts the flow: the far socket is reset at once (also: cancels an OPEN not yet answered).
    pub fn abort(&mut self, flow: FlowId, code: FlowCode, now: Instant) {
        todo!()
    }

    /// Bytes to be written to the local socket, in order.
    pub fn readable(&self, flow: FlowId) -> impl Iterator<Item = &Bytes> {
        std::iter::empty()
    }

    /// So many of `readable` were taken by the local socket.
    pub fn release(&mut self, flow: FlowId, count: usize, now: Instant) {
        todo!()
    }

    /// What comes once `readable` is empty.
    pub fn delivery(&self, flow: FlowId) -> Delivery {
        todo!()
    }

    /// The end that `delivery` named has been carried out on the local socket.
    pub fn end_delivered(&mut self, flow: FlowId, now: Instant) {
        todo!()
    }

    /// While `delivery` is `Reset` and the socket still sends: it has made progress (its queue
    /// shrank). Without progress for 5 s the session aborts the flow by `FlowAborted`.
    pub fn drain_progress(&mut self, flow: FlowId, now: Instant) {
        todo!()
    }

    /// Ends the session: SESSION_CLOSE goes out where a link is; then `Event::Ended`.
    pub fn close(&mut self, code: CloseCode, now: Instant) {
        todo!()
    }

    /// Global memory bound: no flow may make this session hold more than so many bytes per
    /// direction beyond its floors (dynamic threshold; what is held stays held).
    pub fn set_growth_bound(&mut self, bytes: u64) {
        todo!()
    }

    // ---- the core answers; drain in this order

    /// Appends frames for `link` until about `budget` bytes are in `out`; false if nothing is due.
    pub fn poll_transmit(
        &mut self,
        link: LinkId,
        budget: usize,
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        todo!()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }

    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        todo!()
    }

    // ---- questions

    pub fn id(&self) -> Option<SessionId> {
        todo!()
    }
    /// At least one live link is not suspect.
    pub fn is_attached(&self) -> bool {
        todo!()
    }
    /// Flows exist, or control messages are not acknowledged: a link is wanted.
    pub fn wants_link(&self) -> bool {
        todo!()
    }
    pub fn flow_count(&self) -> usize {
        todo!()
    }
    /// Bytes retained for the peer, and bytes waiting for local sockets.
    pub fn buffered(&self) -> (u64, u64) {
        todo!()
    }
}
