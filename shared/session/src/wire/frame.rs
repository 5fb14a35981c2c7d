//! The frames of the protocol as values; their bytes are in `codec.rs`, their meaning in PROTOCOL.md.

use crate::id::{FlowId, Instance, LinkNumber, Offset, SessionId};
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// One frame on a link (PROTOCOL.md §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Client asks for a new session; first frame on a link.
    Hello(Hello),
    /// Server's answer to HELLO.
    Welcome(Welcome),
    /// Server's answer to HELLO: another live client uses this key.
    KeyInUse,
    /// Client adds this link to its session; first frame on a link.
    Resume(Resume),
    /// Server's answer to RESUME.
    ResumeOk(ResumeOk),
    /// Server's answer to RESUME or HELLO that it cannot serve.
    ResumeReject(ResumeReject),
    /// One message of the reliable, numbered control lane.
    Control {
        /// Counts from 1 in each direction.
        number: u64,
        /// What is said.
        message: Control,
    },
    /// Every control message up to and with this number has been taken.
    ControlAck {
        /// Cumulative.
        number: u64,
    },
    /// Bytes of one flow.
    Data(Data),
    /// What of one flow the sender of this frame has.
    Ack(Ack),
    /// The same of many flows, when a link has been added.
    FlowState(Vec<Ack>),
    /// Is this link alive?
    Ping {
        /// Comes back in the PONG; unique within the session.
        nonce: u64,
    },
    /// Yes; on the link of its PING.
    Pong {
        /// That of the PING.
        nonce: u64,
    },
    /// The sender closes this link alone; the session goes on.
    LinkClose {
        /// Why.
        reason: LinkCloseReason,
    },
    /// An unreliable message of a UDP or ICMP mapping.
    Datagram(Datagram),
    /// What became of a datagram, for the application's kernel.
    DatagramError(DatagramError),
    /// Part of a datagram that is too long for one frame.
    DatagramPiece(DatagramPiece),
}

/// A message of the control lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Client: connect to an origin; OPEN, or OPEN_HAND_OFF.
    Open(Open),
    /// Server: the origin has answered.
    OpenOk {
        /// Which flow.
        flow: FlowId,
        /// Highest offset the client may send, initially.
        limit: Offset,
        /// Grace as capped by the server.
        grace: Duration,
    },
    /// Server: the origin cannot be had. Counts as DONE from both ends.
    OpenErr {
        /// Which flow.
        flow: FlowId,
        /// Why.
        error: OpenError,
    },
    /// My application or origin reset its connection; what lies before `end` is delivered first.
    Reset {
        /// Which flow.
        flow: FlowId,
        /// Nothing is sent from here on.
        end: Offset,
        /// Why.
        code: FlowCode,
    },
    /// Abort: both sockets are reset at once.
    Stop {
        /// Which flow.
        flow: FlowId,
        /// Why.
        code: FlowCode,
    },
    /// Both directions are complete at the sender of this.
    Done {
        /// Which flow.
        flow: FlowId,
        /// All that was released, FIN included.
        released: Offset,
    },
    /// Client: links numbered lower are to be closed.
    Retire {
        /// The first that stays.
        older_than: LinkNumber,
    },
    /// The sender holds that link dead.
    LinkDown {
        /// Which.
        link: LinkNumber,
    },
    /// The session ends; every connection is reset at once.
    SessionClose {
        /// Why.
        code: CloseCode,
    },
    /// Client: connect to an origin, and deliver there what was stored.
    Deliver(Deliver),
    /// Client: nothing that the server holds will be asked for.
    Forget,
}

/// HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest protocol version spoken.
    pub versions: (u64, u64),
    /// Bits of [`capability`].
    pub capabilities: u64,
    /// This start of the client daemon.
    pub instance: Instance,
    /// What the client holds.
    pub limits: Limits,
}

/// WELCOME. The link that carries it has number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version chosen.
    pub version: u64,
    /// Bits of [`capability`] that both know.
    pub capabilities: u64,
    /// The session's name.
    pub session: SessionId,
    /// This start of the server daemon.
    pub instance: Instance,
    /// What the server holds.
    pub limits: Limits,
}

/// What an end holds for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows at once.
    pub max_flows: u64,
    /// Bytes of buffer in each direction.
    pub buffer_bytes: u64,
    /// Credit that each end grants with OPEN and OPEN_OK at least; ≥ 1.
    pub floor_bytes: u64,
}

/// RESUME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Lowest and highest protocol version spoken.
    pub versions: (u64, u64),
    /// Which session.
    pub session: SessionId,
    /// The server start that made it.
    pub instance: Instance,
    /// The link whose secret is proved.
    pub proved: LinkNumber,
    /// HMAC-SHA256 over session and this link's exporter, keyed with that link's secret.
    pub proof: [u8; 32],
}

/// RESUME_OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeOk {
    /// This link's number.
    pub number: LinkNumber,
}

/// RESUME_REJECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeReject {
    /// Why.
    pub reason: RejectReason,
    /// With `Expired`: what the server had released of each flow of the tombstone.
    pub released: Vec<(FlowId, Offset)>,
    /// The client should wait so long before its next attempt.
    pub retry_after: Duration,
}

/// Why an attach was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The proof is not that of any link that counts.
    Proof,
    /// The server has started anew since the session was made.
    Restarted,
    /// The session's grace had passed.
    Expired,
    /// A newer session of this key has taken its place.
    Superseded,
    /// The session was closed, or never existed.
    Ended,
    /// No common protocol version.
    Version,
    /// The server has no room for another session, or drains.
    Busy,
}

/// OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The flow's name.
    pub flow: FlowId,
    /// What it carries.
    pub protocol: Protocol,
    /// The application's address.
    pub source: SocketAddr,
    /// The origin's.
    pub destination: SocketAddr,
    /// Highest offset the server may send, initially.
    pub limit: Offset,
    /// How long an outage this flow outlives.
    pub grace: Duration,
    /// What becomes of its bytes after that.
    pub on_expiry: OnExpiry,
    /// Bytes for the application outlive it at the server; makes it OPEN_HAND_OFF.
    pub hand_off: Option<Box<HandOff>>,
}

/// What OPEN_HAND_OFF says beyond OPEN: the server holds what the application does not get, for the
/// next connection of its user to that destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// Whose connection it is: a user of the client's host.
    pub user: u32,
    /// Where messages from the origin end.
    pub framing: Framing,
    /// How long they are worth having.
    pub retain: Duration,
    /// What earlier connections have left, the oldest first; at most
    /// [`MAX_TAKES`](crate::wire::codec::MAX_TAKES).
    pub takes: Vec<Take>,
}

/// What is held of a flow that has expired, as its client asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Take {
    /// Its session.
    pub session: SessionId,
    /// Which it was.
    pub flow: FlowId,
    /// Everything before it was acknowledged by the application's TCP.
    pub delivered: Offset,
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A byte stream each way.
    Tcp,
    /// A mapping of datagrams: of those that come in, only those from addresses that it has sent to
    /// reach the application.
    Udp,
    /// The same, and anybody's reach it.
    UdpAny,
    /// A mapping of echo requests: an identifier stands in place of the application's port, a sequence
    /// number in place of the remote's.
    Icmp,
}

/// Stands for the server's resolver as a destination or remote (PROTOCOL.md §5.6): nobody has that
/// address, and it is no origin's.
pub const fn resolver(is_v4: bool) -> SocketAddr {
    const DNS_PORT: u16 = 53;
    if is_v4 {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DNS_PORT)
    } else {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), DNS_PORT)
    }
}

/// DELIVER: a flow whose client half is a run of sealed records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// The flow's name.
    pub flow: FlowId,
    /// The session in which the bytes were taken.
    pub session: SessionId,
    /// The flow of that session.
    pub origin_flow: FlowId,
    /// Whose they are: a user of the client's host.
    pub user: u32,
    /// The origin's address.
    pub destination: SocketAddr,
    /// Where messages end.
    pub framing: Framing,
    /// Highest offset the server may send, initially.
    pub limit: Offset,
    /// How long an outage this flow outlives.
    pub grace: Duration,
}

/// What becomes of a flow's undelivered bytes when its grace is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExpiry {
    /// Counted and reported.
    Reset,
    /// Kept for delivery in a later session, in whole messages.
    Store(Framing),
}

/// Where the messages of a stream end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Framing {
    /// All up to FIN is one message.
    Whole,
    /// A newline ends each.
    Line,
    /// Each is preceded by its length (RFC 6587 §3.4.1).
    OctetCount,
}

impl Framing {
    /// Its number on the wire (PROTOCOL.md §10.7), also where records are bound to it.
    pub const fn number(self) -> u8 {
        match self {
            Self::Whole => 1,
            Self::Line => 2,
            Self::OctetCount => 3,
        }
    }

    /// The framing of that number, if it has one.
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [Self::Whole, Self::Line, Self::OctetCount];
        all.into_iter().find(|framing| framing.number() == number)
    }
}

/// Why the origin could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// ECONNREFUSED.
    Refused,
    /// ENETUNREACH.
    NetworkUnreachable,
    /// EHOSTUNREACH.
    HostUnreachable,
    /// ETIMEDOUT: the origin says nothing.
    TimedOut,
    /// The server's configuration forbids it.
    Denied(DeniedBy),
    /// EADDRNOTAVAIL, EMFILE, ENOMEM …: the server has run out of something.
    Exhausted,
    /// The session has as many flows as it may.
    TooManyFlows,
    /// Cancelled by the client before there was an answer.
    Cancelled,
    /// Anything else, with its errno.
    Other(u32),
}

/// Which setting forbids a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeniedBy {
    /// Never allowed: unspecified, multicast, reserved, broadcast.
    Never,
    /// Denied by default; an `allow` entry opens it.
    Default,
    /// A `deny` entry.
    Deny,
}

impl DeniedBy {
    /// Its number on the wire (PROTOCOL.md §10.2).
    pub const fn number(self) -> u32 {
        match self {
            Self::Never => 5,
            Self::Default => 6,
            Self::Deny => 7,
        }
    }

    /// The setting of that number; an unknown one is a denial all the same.
    pub const fn of_number(number: u32) -> Self {
        match number {
            5 => Self::Never,
            7 => Self::Deny,
            _ => Self::Default,
        }
    }
}

/// DATA: `payload` from `offset` on; at most 16 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Which flow.
    pub flow: FlowId,
    /// Place of the first byte.
    pub offset: Offset,
    /// FIN stands behind the last byte, and takes one offset.
    pub fin: bool,
    /// The bytes; empty only with FIN.
    pub payload: Bytes,
}

/// ACK: accepted ≥ released; limit counts from released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which flow.
    pub flow: FlowId,
    /// Everything before it has arrived.
    pub accepted: Offset,
    /// Everything before it was handed on, and may be freed.
    pub released: Offset,
    /// The highest offset that may be sent.
    pub limit: Offset,
}

/// DATAGRAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What it is, but for its payload.
    pub head: DatagramHead,
    /// Its bytes.
    pub payload: Bytes,
}

/// DATAGRAM_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramError {
    /// The mapping.
    pub flow: FlowId,
    /// The far end's address.
    pub remote: SocketAddr,
    /// As in `IP_RECVERR`: the errno.
    pub errno: u32,
    /// With EMSGSIZE the path's MTU; with EACCES the number of a [`DeniedBy`]; with
    /// EHOSTUNREACH 1 where the path has too many hops; else 0.
    pub info: u32,
}

/// DATAGRAM_PIECE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatagramPiece {
    /// What the whole datagram is, but for its payload.
    pub head: DatagramHead,
    /// Where in it this piece begins.
    pub offset: u32,
    /// Bytes of the whole.
    pub whole: u32,
    /// Bytes of this piece; not empty.
    pub payload: Bytes,
}

/// What DATAGRAM and DATAGRAM_PIECE say of a datagram beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramHead {
    /// The mapping.
    pub flow: FlowId,
    /// The far end's address.
    pub remote: SocketAddr,
    /// How long it has waited.
    pub age: Duration,
}

/// Why a flow ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowCode {
    /// The application or the origin reset its connection.
    PeerReset,
    /// An error of the socket.
    SocketError,
    /// The flow's grace passed.
    Expired,
    /// The application gave up before the origin answered.
    Cancelled,
    /// A person or an administrator asked for it.
    Asked,
    /// A stored record does not open, or is none.
    Unsealable,
    /// A mapping by which its application has sent nothing for long enough.
    Idle,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// The user asked to disconnect, or the daemon stops.
    Asked,
    /// Nothing had been under way for `linger`.
    Idle,
    /// The key was removed from the server's list.
    KeyRemoved,
    /// A newer instance of the client has taken over.
    Superseded,
    /// The peer broke the protocol.
    Violation,
    /// An internal error: a bug of the sender.
    Internal,
}

/// Why one link was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkCloseReason {
    /// Retired, or not needed.
    Unneeded,
    /// The daemon stops.
    Stopping,
    /// The peer broke the protocol.
    Violation,
    /// Keys of this link are old enough.
    KeysOld,
}

/// Capability bits of HELLO and WELCOME: what later releases add without a new version.
pub mod capability {
    /// Delivery after grace (`on_expiry = "store"`).
    pub const DELIVERY: u64 = 1 << 0;
    /// Bytes for an application reach its next connection.
    pub const HAND_OFF: u64 = 1 << 1;
    /// Objects served while offline.
    pub const OFFLINE_OBJECTS: u64 = 1 << 2;
    /// DATAGRAM and mappings.
    pub const DATAGRAM: u64 = 1 << 3;
}
