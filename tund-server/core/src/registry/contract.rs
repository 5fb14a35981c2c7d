//! What the registry is made with, and what its driver learns of it.

use super::TurnedAway;
use tund_session::{Config, Event, FlowId, LinkId, Offset, SessionId};

/// A client's public key, as proved by TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientKey(pub [u8; 32]);

/// What the registry is made with.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// For every session.
    pub session: Config,
    /// Sessions at once. A key that has one already may have provisional ones beside it.
    pub max_sessions: usize,
    /// Bytes that all sessions together may hold beyond the floors of their flows (INV-5). The
    /// floors are at most a 32nd of the buffer for each session and direction, and 128 KiB for
    /// datagrams.
    pub memory_bytes: u64,
}

/// What the driver learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// Of one session.
    Session {
        /// Which.
        session: SessionId,
        /// What.
        event: Event,
    },
    /// No more of a flow that may be stored reaches its origin by this flow, and perhaps the
    /// session is gone when the driver hears of it.
    Final {
        /// Whose.
        key: ClientKey,
        /// Of which session.
        session: SessionId,
        /// Which.
        flow: FlowId,
        /// Everything before it was handed to the socket.
        taken: Offset,
        /// Everything before it is known to have been acknowledged by the origin.
        released: Offset,
    },
    /// A flow has left something that is held for its user's next connection. What its socket still
    /// has to read belongs behind that, if [`Registry::room_for_rest`](super::Registry::room_for_rest) says so; the event that has
    /// the socket reset comes later.
    Held {
        /// Of which session.
        session: SessionId,
        /// Which.
        flow: FlowId,
    },
    /// A link that belongs to no session is to be closed once its answer is out.
    TurnedAway {
        /// Which.
        link: LinkId,
        /// What it was told.
        reason: TurnedAway,
    },
}
