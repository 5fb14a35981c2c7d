//! What an owner gives a session and learns from it: configuration, events, answers.

use super::Held;
use crate::id::{FlowId, Instance, LinkId, LinkNumber, Offset};
use crate::limits;
use crate::wire::frame::{CloseCode, Deliver, FlowCode, Open, OpenError, RejectReason};
use bytes::Bytes;
use std::time::Duration;

/// Which end of connection B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens flows, dials links.
    Client,
    /// Answers.
    Server,
}

/// What a session is made with; checked by whoever reads the configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// This daemon's start.
    pub instance: Instance,
    /// Bytes of buffer per direction: the most this end holds of the session's bytes, each way.
    pub buffer_bytes: u64,
    /// Flows at once; a floor of the buffer is set aside for each of them.
    pub max_flows: u64,
    /// Server: the longest grace a client gets.
    pub max_grace: Duration,
    /// What this end offers or agrees to: bits of
    /// [`capability`](crate::wire::frame::capability).
    pub capabilities: u64,
    /// Datagrams that have waited for longer are dropped when they would be written.
    pub datagram_age: Duration,
}

/// What is held of a half that the other end has not released, from the last message boundary on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remainder {
    /// The place of the first byte.
    pub start: Offset,
    /// The bytes, in order.
    pub bytes: Vec<Bytes>,
    /// FIN stands behind the last.
    pub fin: bool,
}

impl Remainder {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes.iter().map(Bytes::len).sum()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.iter().all(Bytes::is_empty)
    }
}

/// What the kernel says of a link's transport connection (`TCP_INFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// `tcpi_bytes_acked`.
    pub bytes_acked: u64,
    /// `tcpi_bytes_received`.
    pub bytes_received: u64,
    /// How long ago the kernel heard anything of the peer's, acknowledgements too; none where it
    /// does not say. On a slow path they come so seldom that the counts stand still in between.
    pub heard_ago: Option<Duration>,
    /// How long an answer takes at most as the kernel has it, from every acknowledgement
    /// (`tcpi_rtt` + 4 × `tcpi_rttvar`); none where it does not say.
    pub round_trip: Option<Duration>,
}

impl Progress {
    /// If no count has moved since `before`: how long until nothing was heard lately.
    pub(crate) fn quiet_in(&self, before: &Self) -> Option<Duration> {
        let counts = |of: &Self| (of.bytes_acked, of.bytes_received);
        let heard_ago = self.heard_ago.unwrap_or(limits::KERNEL_QUIET);
        (counts(self) == counts(before)).then(|| limits::KERNEL_QUIET.saturating_sub(heard_ago))
    }
}

/// What comes behind the bytes that are readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// More may come.
    Open,
    /// All was released, FIN is next: shut down the local socket's sending side, then call
    /// `end_delivered`.
    Fin,
    /// All was released, RST is next: once the local socket has sent everything, reset it, then
    /// call `end_delivered`.
    Reset,
    /// Nothing comes any more.
    Ended,
}

/// Why a link is to be closed by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDeath {
    /// The driver said so.
    Transport,
    /// No answer for too long, or suspect when another link came.
    Silent,
    /// RETIRE, or LINK_DOWN by the peer.
    Retired,
    /// LINK_CLOSE by the peer.
    PeerClosed,
    /// The attach was refused, came too late, or was never confirmed.
    AttachFailed,
    /// The session has ended.
    SessionEnded,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Asked for on this side.
    Local(CloseCode),
    /// SESSION_CLOSE by the peer.
    Peer(CloseCode),
    /// RESUME_REJECT.
    Rejected(RejectReason),
    /// An outage outlasted the grace of the last flow (rule 11).
    Expired,
    /// No flow and no link for too long (rule 15), or never confirmed (rule 9).
    Abandoned,
    /// The peer broke the protocol.
    Violation {
        /// How.
        what: &'static str,
    },
}

/// All that an owner learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link has joined.
    Attached {
        /// The driver's handle.
        link: LinkId,
        /// Its number.
        number: LinkNumber,
        /// By HELLO, not by RESUME.
        first: bool,
    },
    /// No working link is left; flows wait.
    Detached,
    /// A suspect link has answered, and the session works again by it.
    Reattached {
        /// Which.
        link: LinkId,
    },
    /// Server: the client has confirmed the session; it is provisional no longer.
    Confirmed,
    /// The driver shall send what is left for that link and close it.
    LinkDead {
        /// Which.
        link: LinkId,
        /// Why.
        death: LinkDeath,
    },
    /// The driver shall call `handle_progress` for that link at once.
    WantProgress {
        /// Which.
        link: LinkId,
    },
    /// Client: another live client uses our key; needs a person.
    KeyInUse,
    /// Client: the server cannot serve; try again after the hint.
    AttachRefused {
        /// Why.
        reason: RejectReason,
        /// Not sooner.
        retry_after: Duration,
    },
    /// The session is destroyed; every local socket is to be reset at once.
    Ended {
        /// Why.
        reason: EndReason,
    },
    /// Server: the client asks for an origin; answer by `accept_flow` or `refuse_flow`.
    FlowOpened {
        /// As asked, grace capped.
        open: Open,
        /// The link on which OPEN came, or the message before it that it had waited for.
        link: LinkId,
    },
    /// Server: the client asks for an origin, to deliver there what was stored; answer as for
    /// `FlowOpened`.
    DeliverOpened {
        /// As asked, grace capped.
        deliver: Deliver,
        /// As with `FlowOpened`.
        link: LinkId,
    },
    /// Client: the origin has answered; of a flow that is handed on also where it is given up by now.
    FlowAccepted {
        /// Which.
        flow: FlowId,
    },
    /// Client: the origin cannot be had; the flow is forgotten.
    FlowRefused {
        /// Which.
        flow: FlowId,
        /// Why.
        error: OpenError,
        /// What was taken before the origin had answered, of a flow that may do so.
        remainder: Option<Remainder>,
    },
    /// Client: the grace of a flow that is to be stored is over; comes in place of `FlowAborted`.
    /// The local socket is to be reset once the remainder is safe.
    FlowExpired {
        /// Which.
        flow: FlowId,
        /// What is not known to have reached the origin.
        remainder: Remainder,
    },
    /// Client: the server has released more of a delivery: what it says is recorded there.
    FlowReleased {
        /// Which.
        flow: FlowId,
        /// Everything before it.
        released: Offset,
    },
    /// Server: nothing more of the client's half of a flow that may be stored reaches its origin
    /// by this flow. Comes before the event that has the socket reset.
    FlowFinal {
        /// Which.
        flow: FlowId,
        /// Everything before it was handed to the socket.
        taken: Offset,
        /// Everything before it is known to have been acknowledged by the origin.
        released: Offset,
    },
    /// Server: a flow has expired, or its session, and what its application did not get is to be held
    /// for the next one of its user. Comes before the event that has the socket reset: what that
    /// still has to read belongs behind it.
    FlowHeld {
        /// Which.
        flow: FlowId,
        /// What is left of it.
        held: Box<Held>,
    },
    /// Server: nothing that is held for this client will be asked for.
    ForgetHeld,
    /// `readable` or `delivery` has changed; of a mapping, `datagram` or `take_datagram_error`.
    FlowReadable {
        /// Which.
        flow: FlowId,
    },
    /// `intake` has grown.
    FlowWritable {
        /// Which.
        flow: FlowId,
    },
    /// The local socket is to be reset at once. The server's owner says first, by
    /// [`Session::strand`](super::Session::strand), what is thrown away with it: DONE waits for that.
    FlowAborted {
        /// Which.
        flow: FlowId,
        /// Why.
        code: FlowCode,
    },
    /// Both ends are done; nothing of the flow is left.
    FlowForgotten {
        /// Which.
        flow: FlowId,
        /// Bytes that were taken here and dropped before the peer had released them.
        lost: u64,
        /// Bytes that had come and were dropped before the local socket had taken them.
        dropped: u64,
    },
}

/// A flow cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    /// As many flows as either end may hold.
    #[error("the session has as many flows as it may")]
    TooManyFlows,
    /// The session has ended.
    #[error("the session has ended")]
    Ended,
    /// No room for a whole message of one more flow that may be stored.
    #[error("the buffer has no room for a message of one more flow that may be stored")]
    NoRoom,
    /// The server does not deliver, or carries no datagrams.
    #[error("the server does not know of such flows")]
    NotAgreed,
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Datagrams that have waited for too long.
    Datagrams,
    /// A PING, an overdue PONG, a silent link or an attach without confirmation.
    Link,
    /// Grace of a flow.
    Grace,
    /// A reset that a stuck reader holds up.
    ResetStall,
    /// A session nobody confirmed, or without flows and link.
    Abandoned,
}
