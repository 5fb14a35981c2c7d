//! What the netstack tells its owner, and what it can be told about a held SYN.

use std::fmt;
use std::net::SocketAddr;

use crate::packet::{Reason, Unreachable};

/// Names a connection; its place in a table may be used again, the name never is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}.{}", self.index, self.generation)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What happened to a connection.
///
/// In this order: `Syn`; then `SynGone`, or, once accepted, `Readable`, `Writable` and `Drained` as
/// they come, `Finished`, `ResetByApp`, `Closed`. Each comes at most once, but for `Readable` and
/// `Writable`, and but for `Drained` if `finish` is followed by `reset_when_drained`. After `SynGone` and `Closed`, and after the owner called `refuse` or `reset`, the name
/// means nothing: calls with it do nothing, and no event bears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// Nothing is left: both directions have ended and all was read.
    Closed {
        /// Which.
        connection: ConnectionId,
    },
    /// After `finish`: the application's kernel has everything and the FIN. After
    /// `reset_when_drained`: it has everything, and the RST is sent.
    Drained {
        /// Which.
        connection: ConnectionId,
    },
    /// The application has closed its sending side, and all before that has been read.
    Finished {
        /// Which.
        connection: ConnectionId,
    },
    /// There is more to read than when this was last said.
    Readable {
        /// Which.
        connection: ConnectionId,
    },
    /// The application has reset the connection, or its host has not answered for minutes, and all
    /// that came before has been read.
    ResetByApp {
        /// Which.
        connection: ConnectionId,
    },
    /// An application asks for a connection; it waits for `accept` or `refuse`.
    Syn {
        /// Which.
        connection: ConnectionId,
        /// The application's address and port.
        source: SocketAddr,
        /// What it wants to reach.
        destination: SocketAddr,
    },
    /// The application no longer asks.
    SynGone {
        /// Which.
        connection: ConnectionId,
    },
    /// The application's kernel has acknowledged more of what `send` took: there is more room, and
    /// `unsent` is less, than when this was last said; or for the first time.
    Writable {
        /// Which.
        connection: ConnectionId,
    },
}

/// How a held SYN is turned down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RST: the application sees `ECONNREFUSED`.
    Reset,
    /// No answer, to retransmissions neither, until the application gives up.
    Silence,
    /// ICMP or ICMPv6 "destination unreachable".
    Unreachable(Unreachable),
}

/// Why `accept` did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// The SYN is not held any more.
    #[error("the application no longer asks for this connection")]
    Gone,
    /// The arena has no slot left.
    #[error("no memory for the rings of another connection")]
    NoMemory,
}

/// Counters since the start; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets that came from the device.
    pub packets_in: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes_in: u64,
    /// Packets given to the sink.
    pub packets_out: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes_out: u64,
    /// Of these, packets that stand for several segments.
    pub gso_out: u64,
    /// Times a connection was asked for packets: the work that a flush costs.
    pub egress_polls: u64,
    /// Packets sent only because a window opened.
    pub window_updates: u64,
    /// Resets that were sent for segments of no known connection.
    pub stray_resets: u64,
    /// ICMP messages sent.
    pub icmp_out: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// SYNs turned down by `refuse`.
    pub refused: u64,
    /// Held SYNs that the application gave up.
    pub syns_gone: u64,
    /// Connections ended because the application's host answered nothing any more.
    pub given_up: u64,
    /// Times a connection was helped that waited for an answer it had stopped asking for.
    pub rescued: u64,
    /// Times the pages of an idle slot were given back.
    pub slots_idled: u64,
    untaken: [u64; Reason::COUNT],
}

impl Stats {
    /// Packets that did not become part of a connection for this reason.
    pub const fn untaken(&self, reason: Reason) -> u64 {
        self.untaken[reason.index()]
    }

    pub(crate) const fn count(&mut self, reason: Reason) {
        self.untaken[reason.index()] += 1;
    }
}
