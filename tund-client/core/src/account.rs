//! The account of a flow: what it carried, what it lived through, how and by whom it ended.

use crate::flow_table::ClientFlow;
use crate::mappings::ClientMapping;
use crate::packet::DatagramKind;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, FlowCode, OpenError, Protocol, RejectReason};
use tund_session::{EndReason, FlowId, Instant};

/// Accounts kept for whoever asks; of more, the oldest are forgotten.
const RECENT_MAX: usize = 1024;
/// The same of mappings.
const RECENT_MAPPINGS_MAX: usize = 512;

/// Who brought a flow to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The application that asked for it.
    Application,
    /// This daemon.
    Client,
    /// The origin, or the network before it.
    Origin,
    /// The server daemon, or who runs it.
    Server,
    /// Whoever asked this daemon to disconnect, or to stop.
    User,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowEnded {
    /// The application gave up before the origin had answered.
    Cancelled,
    /// FIN both ways; whoever said it first counts as the one who ended it.
    Closed,
    /// The session was ended because somebody asked.
    Disconnected,
    /// The outage outlasted the flow's grace.
    Expired,
    /// The origin is not heard any more, or a daemon could not go on with it: memory, the protocol.
    Failed,
    /// The origin could not be had, or is not allowed.
    Refused,
    /// Its application had sent nothing for long enough.
    Idle,
    /// One side reset its connection.
    Reset,
    /// The server daemon has started anew and knows of no session.
    Restarted,
}

/// Who and how.
pub(crate) type End = (EndedBy, HowEnded);

/// How long nothing has moved, at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// When something moved last.
    since: Instant,
    /// Before that.
    longest: Duration,
}

impl Silence {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            longest: Duration::ZERO,
        }
    }

    /// That of this moment.
    pub(crate) const fn lasts(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// The longest, up to now.
    pub(crate) fn longest(&self, now: Instant) -> Duration {
        self.longest.max(self.lasts(now))
    }

    pub(crate) fn end(&mut self, now: Instant) {
        self.longest = self.longest(now);
        self.since = now;
    }
}

/// Bytes of a flow that were taken and never handed on, as far as this end knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostBytes {
    /// Taken from the application, and not known to have reached the origin: of what the server's
    /// kernel had, only what is left there when the connection to the origin fails.
    pub up: u64,
    /// Come from the origin, and not taken by the application's kernel; none where the application
    /// itself has ended the flow.
    pub down: u64,
}

/// What is left of a flow when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowAccount {
    /// Its id within its session.
    pub id: FlowId,
    /// What it carried.
    pub protocol: Protocol,
    /// The application's address.
    pub source: SocketAddr,
    /// The origin's; of a mapping, the first remote.
    pub destination: SocketAddr,
    /// From the application's asking to the end.
    pub age: Duration,
    /// Outages it had lived through.
    pub outages: u64,
    /// The longest time in which no byte of it moved here.
    pub longest_silence: Duration,
    /// Bytes from the application: its kernel has got them acknowledged.
    pub up_bytes: u64,
    /// Bytes to the application: its kernel has acknowledged them.
    pub down_bytes: u64,
    /// Bytes that did not arrive.
    pub lost: LostBytes,
    /// Bytes from the application that are on the disk, to be delivered later.
    pub stored_bytes: u64,
    /// Bytes that had come from the origin and that the server holds for its user's next connection;
    /// what had not come is not known here.
    pub held_bytes: u64,
    /// Who ended it.
    pub by: EndedBy,
    /// How.
    pub how: HowEnded,
}

impl FlowAccount {
    pub(crate) fn new(
        id: FlowId,
        flow: &ClientFlow,
        (by, how): End,
        mut lost: LostBytes,
        now: Instant,
    ) -> Self {
        let held_bytes = if flow.is_left {
            std::mem::take(&mut lost.down)
        } else {
            0
        };
        Self {
            id,
            protocol: Protocol::Tcp,
            source: flow.source,
            destination: flow.destination,
            age: now.saturating_duration_since(flow.since),
            outages: flow.outages,
            longest_silence: flow.longest_silence(now),
            up_bytes: flow.up_bytes,
            down_bytes: flow.down_bytes,
            lost,
            stored_bytes: 0,
            held_bytes,
            by,
            how,
        }
    }

    /// Of a mapping; what is lost are datagrams that were dropped at this end.
    pub(crate) fn of_mapping(
        id: FlowId,
        mapping: &ClientMapping,
        (by, how): End,
        lost: LostBytes,
        now: Instant,
    ) -> Self {
        Self {
            id,
            protocol: match mapping.kind {
                DatagramKind::Echo => Protocol::Icmp,
                DatagramKind::Udp => Protocol::Udp,
            },
            source: mapping.source,
            destination: mapping.destination,
            age: now.saturating_duration_since(mapping.since),
            outages: mapping.outages,
            longest_silence: mapping.longest_silence(now),
            up_bytes: mapping.up_bytes,
            down_bytes: mapping.down_bytes,
            lost,
            stored_bytes: 0,
            held_bytes: 0,
            by,
            how,
        }
    }
}

/// Accounts of flows that ended of late. Mappings have their own: there are many of them, one for
/// each question to a name server.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    streams: VecDeque<(u64, FlowAccount)>,
    mappings: VecDeque<(u64, FlowAccount)>,
    /// How many there have been.
    count: u64,
}

impl Recent {
    pub(crate) fn add(&mut self, account: FlowAccount) {
        self.count += 1;
        let (ring, most) = match account.protocol {
            Protocol::Tcp => (&mut self.streams, RECENT_MAX),
            Protocol::Udp | Protocol::UdpAny | Protocol::Icmp => {
                (&mut self.mappings, RECENT_MAPPINGS_MAX)
            }
        };
        if ring.len() >= most {
            ring.pop_front();
        }
        ring.push_back((self.count, account));
    }

    /// The oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &FlowAccount> {
        let mut all: Vec<_> = self.streams.iter().chain(&self.mappings).collect();
        all.sort_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, account)| account)
    }
}

/// What an origin that cannot be had means.
pub(crate) const fn of_refusal(error: OpenError) -> End {
    match error {
        OpenError::Refused
        | OpenError::NetworkUnreachable
        | OpenError::HostUnreachable
        | OpenError::TimedOut
        | OpenError::Other(_) => (EndedBy::Origin, HowEnded::Refused),
        OpenError::Denied(_) | OpenError::Exhausted | OpenError::TooManyFlows => {
            (EndedBy::Server, HowEnded::Refused)
        }
        OpenError::Cancelled => (EndedBy::Application, HowEnded::Cancelled),
    }
}

/// What a reset means that comes from the origin's side.
pub(crate) const fn of_reset(code: Option<FlowCode>) -> End {
    match code {
        Some(FlowCode::PeerReset) | None => (EndedBy::Origin, HowEnded::Reset),
        Some(
            FlowCode::SocketError
            | FlowCode::Expired
            | FlowCode::Cancelled
            | FlowCode::Idle
            | FlowCode::Asked
            | FlowCode::Unsealable,
        ) => (EndedBy::Origin, HowEnded::Failed),
    }
}

/// What an abort means, told by the session.
pub(crate) const fn of_abort(code: FlowCode) -> End {
    match code {
        FlowCode::PeerReset => (EndedBy::Origin, HowEnded::Reset),
        FlowCode::SocketError => (EndedBy::Server, HowEnded::Failed),
        FlowCode::Expired => (EndedBy::Client, HowEnded::Expired),
        FlowCode::Cancelled => (EndedBy::Application, HowEnded::Cancelled),
        FlowCode::Asked => (EndedBy::Server, HowEnded::Disconnected),
        FlowCode::Idle => (EndedBy::Server, HowEnded::Idle),
        FlowCode::Unsealable => (EndedBy::Server, HowEnded::Failed),
    }
}

/// What the end of the session means for its flows.
pub(crate) const fn of_session(reason: EndReason) -> End {
    match reason {
        EndReason::Local(CloseCode::Asked) => (EndedBy::User, HowEnded::Disconnected),
        EndReason::Local(_) => (EndedBy::Client, HowEnded::Disconnected),
        EndReason::Peer(_)
        | EndReason::Rejected(RejectReason::Ended | RejectReason::Superseded) => {
            (EndedBy::Server, HowEnded::Disconnected)
        }
        EndReason::Rejected(RejectReason::Restarted) => (EndedBy::Server, HowEnded::Restarted),
        EndReason::Rejected(RejectReason::Expired) => (EndedBy::Server, HowEnded::Expired),
        EndReason::Rejected(RejectReason::Proof | RejectReason::Version | RejectReason::Busy) => {
            (EndedBy::Server, HowEnded::Failed)
        }
        EndReason::Expired | EndReason::Abandoned => (EndedBy::Client, HowEnded::Expired),
        EndReason::Violation { .. } => (EndedBy::Client, HowEnded::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::ConnectionId;

    #[test]
    fn only_the_most_recent_accounts_are_kept() {
        let connection = ConnectionId {
            index: 0,
            generation: 0,
        };
        let address: SocketAddr = "192.0.2.1:1".parse().expect("an address");
        let flow = ClientFlow::new(connection, address, address, Instant::default());
        let end = (EndedBy::Origin, HowEnded::Closed);
        let mut recent = Recent::default();

        for id in 0..=1024 {
            let lost = LostBytes::default();
            recent.add(FlowAccount::new(
                FlowId(id),
                &flow,
                end,
                lost,
                Instant::default(),
            ));
        }

        let mut of_mapping = *recent.iter().next().expect("an account");
        of_mapping.protocol = Protocol::Udp;
        for id in 2000..=2512 {
            of_mapping.id = FlowId(id);
            recent.add(of_mapping);
        }

        assert_eq!(recent.iter().count(), RECENT_MAX + RECENT_MAPPINGS_MAX);
        let last = recent.iter().last().map(|account| account.id);
        assert_eq!(last, Some(FlowId(2512)));
        let ids = || recent.iter().map(|account| account.id);
        assert!(!ids().any(|id| id == FlowId(2000)));
        assert_eq!(
            recent.iter().next().map(|account| account.id),
            Some(FlowId(1))
        );
    }
}
