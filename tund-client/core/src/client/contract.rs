//! What an owner gives a client and learns from it: configuration, events, states.

use super::NotStored;
use crate::account::FlowAccount;
use crate::dialer::PathId;
use crate::mappings::MappingConfig;
use crate::netstack::{ConnectionId, NetstackConfig};
use crate::policy::Policies;
use crate::spool::SpoolOrder;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tund_session::wire::frame::{self, DeniedBy};
use tund_session::{Config, EndReason, LinkId, LinkNumber};

/// What a client is made with.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// For every session.
    pub session: Config,
    /// Mappings of datagrams.
    pub mappings: MappingConfig,
    /// Connection A.
    pub netstack: NetstackConfig,
    /// What holds for which destination.
    pub policies: Policies,
    /// Where applications ask for names: what is sent there, to port 53, goes to the server's
    /// resolver.
    pub stub: Option<IpAddr>,
    /// How long a session without flows is kept; none: for ever, and dialled at once.
    pub linger: Option<Duration>,
    /// How much may be stored.
    pub spool_bytes: u64,
    /// Keep a second link while flows are active, where it is not metered.
    pub standby: bool,
    /// For jitter.
    pub seed: u64,
}

impl ClientConfig {
    /// Whether nothing is there: at the stub only names can be asked for.
    pub(super) fn is_nothing_at(&self, destination: SocketAddr) -> bool {
        let resolver = frame::resolver(destination.is_ipv4());
        self.stub == Some(destination.ip()) && destination.port() != resolver.port()
    }

    /// Where an application's destination is as the server knows it.
    pub(super) fn for_server(&self, destination: SocketAddr) -> SocketAddr {
        let resolver = frame::resolver(destination.is_ipv4());
        let is_stub = self.stub == Some(destination.ip()) && destination.port() == resolver.port();
        if is_stub { resolver } else { destination }
    }

    /// The reverse.
    pub(super) fn of_server(&self, remote: SocketAddr) -> SocketAddr {
        let is_resolver = remote == frame::resolver(remote.is_ipv4());
        let stub = self
            .stub
            .filter(|ip| is_resolver && ip.is_ipv4() == remote.is_ipv4());
        stub.map_or(remote, |stub| SocketAddr::new(stub, remote.port()))
    }
}

/// What the driver shall do, or may tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// Find the ways to the server, and call [`Client::handle_paths`](super::Client::handle_paths).
    FindPaths,
    /// Dial.
    Dial {
        /// The name of the attempt, and of the link it becomes.
        link: LinkId,
        /// Where.
        path: PathId,
    },
    /// Close a link or an attempt, after its last words if there are any.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Whether `poll_transmit` may still yield something for it.
        has_last_words: bool,
    },
    /// Call [`Client::handle_progress`](super::Client::handle_progress) for that link.
    WantProgress {
        /// Which.
        link: LinkId,
    },
    /// The session is attached.
    Attached {
        /// The link that attached.
        link: LinkId,
        /// Its number.
        number: LinkNumber,
    },
    /// The server does not connect to what an application wanted.
    Denied {
        /// What it wanted.
        destination: SocketAddr,
        /// The setting that forbids it.
        by: DeniedBy,
    },
    /// No link works.
    Detached,
    /// The session is over; applications were reset.
    Ended {
        /// Why.
        reason: EndReason,
        /// Flows that were reset.
        flows: usize,
        /// Bytes taken from applications that the origin never got, as far as is known.
        lost_bytes: u64,
    },
    /// A flow has ended.
    FlowEnded(FlowAccount),
    /// The server lets nobody with our key in, or another client uses it.
    Refused(Refused),
    /// Call [`Client::handle_user`](super::Client::handle_user) with the user whose socket this is,
    /// or none: a connection may wait for that.
    FindUser {
        /// Which connection A.
        connection: ConnectionId,
        /// The application's end.
        source: SocketAddr,
        /// The origin.
        destination: SocketAddr,
    },
    /// Something is to be done with stored files.
    Spool(SpoolOrder),
    /// A connection was reset after its grace; a policy wants stored what was left of it.
    Stored {
        /// The origin.
        destination: SocketAddr,
        /// Bytes that are on the disk.
        stored_bytes: u64,
        /// Bytes that are not, an unfinished message among them.
        lost_bytes: u64,
        /// Why, if it is more than that.
        why: Option<NotStored>,
    },
    /// Something waits for delivery, and the server does not deliver.
    Undeliverable,
}

/// An error that needs a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another live client uses our key.
    KeyInUse,
    /// Our key is not on the server's list.
    KeyNotListed,
    /// No common protocol version.
    Version,
}

/// What the daemon is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No session, and no need for one.
    Ready,
    /// Dials for a new session.
    Connecting,
    /// A link works.
    Attached,
    /// A session without a working link.
    Detached,
    /// Needs a person.
    Refused,
}

/// Outages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// How many are over.
    pub count: u64,
    /// From the last byte before to the first byte after the last one.
    pub last_gap: Option<Duration>,
    /// From the successful dial's first packet to attached.
    pub last_resume: Option<Duration>,
}
