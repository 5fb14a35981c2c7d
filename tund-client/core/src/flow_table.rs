//! Which connection A belongs to which flow, and how bytes get from one to the other.

use crate::client::{Client, State};
use crate::netstack::{AcceptError, ConnectionId, NetEvent, Netstack, Refusal};
use crate::packet::Unreachable;
use bytes::BytesMut;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tund_session::wire::frame::{DeniedBy, FlowCode, OnExpiry, OpenError, Protocol};
use tund_session::{Delivery, FlowId, Instant, Session, Target};

/// Bytes taken out of a receive ring in one piece: the ring.
const PIECE_BYTES: u64 = 256 * 1024;

/// One flow as the client knows it.
#[derive(Clone, Copy, Debug)]
pub struct ClientFlow {
    pub(crate) connection: ConnectionId,
    /// The application's address.
    pub source: SocketAddr,
    /// The origin's.
    pub destination: SocketAddr,
    /// When the application asked for it.
    pub since: Instant,
    /// The origin has answered.
    pub is_open: bool,
    /// Outages it has lived through.
    pub outages: u64,
    /// Bytes from the application.
    pub up_bytes: u64,
    /// Bytes to the application.
    pub down_bytes: u64,
    /// Bytes in the send ring that are not yet counted as drained.
    in_ring: u64,
    /// RST waits for the send ring.
    is_resetting: bool,
}

/// All flows of the current session.
#[derive(Debug, Default)]
pub struct FlowTable {
    flows: BTreeMap<FlowId, ClientFlow>,
    by_connection: FxHashMap<ConnectionId, FlowId>,
}

impl FlowTable {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &ClientFlow)> {
        self.flows.iter().map(|(id, flow)| (*id, flow))
    }

    fn insert(&mut self, id: FlowId, flow: ClientFlow) {
        self.by_connection.insert(flow.connection, id);
        self.flows.insert(id, flow);
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<ClientFlow> {
        let flow = self.flows.remove(&id)?;
        self.by_connection.remove(&flow.connection);
        Some(flow)
    }

    /// Forgets all flows; their connections.
    pub(crate) fn drain(&mut self) -> Vec<ConnectionId> {
        self.by_connection.clear();
        std::mem::take(&mut self.flows)
            .into_values()
            .map(|flow| flow.connection)
            .collect()
    }

    /// An outage is over.
    pub(crate) fn survived(&mut self) {
        self.flows.values_mut().for_each(|flow| flow.outages += 1);
    }

    /// Bytes in the rings: from applications, to applications.
    pub(crate) fn buffered(&self, netstack: &mut Netstack) -> (u64, u64) {
        let mut sums = (0, 0);
        for flow in self.flows.values() {
            sums.0 += u64::try_from(netstack.readable(flow.connection)).unwrap_or(0);
            sums.1 += u64::try_from(netstack.unsent(flow.connection)).unwrap_or(0);
        }
        sums
    }
}

impl Client {
    pub(crate) fn on_net_event(&mut self, event: NetEvent, now: Instant) {
        if let NetEvent::Syn {
            connection,
            source,
            destination,
        } = event
        {
            self.on_syn(connection, source, destination, now);
            return;
        }
        let (NetEvent::Closed { connection }
        | NetEvent::Drained { connection }
        | NetEvent::Finished { connection }
        | NetEvent::Readable { connection }
        | NetEvent::ResetByApp { connection }
        | NetEvent::SynGone { connection }
        | NetEvent::Writable { connection }
        | NetEvent::Syn { connection, .. }) = event;
        let Some(flow) = self.table.by_connection.get(&connection).copied() else {
            return;
        };
        match event {
            NetEvent::Readable { .. } => {
                self.dialer.hurry(now);
                self.pump_up(flow, now);
            }
            NetEvent::Writable { .. } => {
                self.count_drained(flow, now);
                self.pump_down(flow, now);
            }
            NetEvent::Drained { .. } => {
                self.count_drained(flow, now);
                if self
                    .table
                    .flows
                    .get(&flow)
                    .is_some_and(|known| known.is_resetting)
                {
                    self.with_session(|session| session.end_delivered(flow, now));
                }
            }
            NetEvent::Finished { .. } => self.with_session(|session| session.finish(flow, now)),
            NetEvent::ResetByApp { .. } => {
                self.table.remove(flow);
                self.with_session(|session| session.reset(flow, FlowCode::PeerReset, now));
            }
            NetEvent::SynGone { .. } => {
                self.table.remove(flow);
                self.with_session(|session| session.abort(flow, FlowCode::Cancelled, now));
            }
            NetEvent::Closed { .. } | NetEvent::Syn { .. } => {
                self.count_drained(flow, now);
            }
        }
    }

    fn with_session(&mut self, work: impl FnOnce(&mut Session)) {
        if let Some(session) = &mut self.session {
            work(session);
        }
    }

    /// The one verdict on a SYN: hold it until the origin has answered, or refuse it.
    fn on_syn(
        &mut self,
        connection: ConnectionId,
        source: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) {
        let state = self.state();
        if state == State::Refused {
            self.netstack
                .refuse(connection, Refusal::Unreachable(Unreachable::Prohibited));
            return;
        }
        if state == State::Detached && self.config.refuse_during_outage {
            self.netstack
                .refuse(connection, Refusal::Unreachable(Unreachable::Host));
            return;
        }
        let target = Target {
            protocol: Protocol::Tcp,
            source,
            destination,
            grace: self.config.grace,
            on_expiry: OnExpiry::Reset,
        };
        let config = &self.config.session;
        let session = self
            .session
            .get_or_insert_with(|| Session::new_client(config, now));
        let Ok(flow) = session.open_flow(&target, now) else {
            self.netstack.refuse(connection, Refusal::Silence);
            return;
        };
        self.dialer.hurry(now);
        let known = ClientFlow {
            connection,
            source,
            destination,
            since: now,
            is_open: false,
            outages: 0,
            up_bytes: 0,
            down_bytes: 0,
            in_ring: 0,
            is_resetting: false,
        };
        self.table.insert(flow, known);
    }

    /// The origin has answered: so does connection A.
    pub(crate) fn accept(&mut self, flow: FlowId, now: Instant) {
        let Some(known) = self.table.flows.get_mut(&flow) else {
            return;
        };
        let Some(session) = &mut self.session else {
            return;
        };
        known.is_open = true;
        let connection = known.connection;
        self.netstack.set_intake(connection, session.intake(flow));
        match self.netstack.accept(connection) {
            Ok(()) => {}
            Err(AcceptError::Gone) => {
                self.table.remove(flow);
                session.abort(flow, FlowCode::Cancelled, now);
            }
            Err(AcceptError::NoMemory) => {
                self.table.remove(flow);
                self.netstack.refuse(connection, Refusal::Silence);
                session.abort(flow, FlowCode::SocketError, now);
            }
        }
    }

    /// The origin cannot be had: the application is told as its own kernel would tell it.
    pub(crate) fn turn_down(&mut self, flow: FlowId, error: OpenError) {
        if let Some(known) = self.table.remove(flow) {
            self.netstack.refuse(known.connection, refusal(error));
        }
    }

    /// From the application to the session, as much as the session takes.
    pub(crate) fn pump_up(&mut self, flow: FlowId, now: Instant) {
        let Some(known) = self.table.flows.get_mut(&flow) else {
            return;
        };
        let Some(session) = &mut self.session else {
            return;
        };
        let connection = known.connection;
        loop {
            let waiting = u64::try_from(self.netstack.readable(connection)).unwrap_or(0);
            let count = waiting.min(session.intake(flow)).min(PIECE_BYTES);
            let Ok(most) = usize::try_from(count) else {
                break;
            };
            if most == 0 {
                break;
            }
            let mut piece = BytesMut::with_capacity(most);
            self.netstack
                .recv(connection, most, |bytes| piece.extend_from_slice(bytes));
            known.up_bytes += count;
            session.write(flow, piece.freeze(), now);
        }
        self.netstack.set_intake(connection, session.intake(flow));
    }

    /// From the session to the application, as much as the ring takes.
    pub(crate) fn pump_down(&mut self, flow: FlowId, now: Instant) {
        let Some(known) = self.table.flows.get_mut(&flow) else {
            return;
        };
        let Some(session) = &mut self.session else {
            return;
        };
        let connection = known.connection;
        let mut taken = 0;
        for piece in session.readable(flow) {
            let count = self.netstack.send(connection, piece);
            taken += count;
            if count < piece.len() {
                break;
            }
        }
        if taken > 0 {
            let count = u64::try_from(taken).unwrap_or(u64::MAX);
            known.in_ring += count;
            known.down_bytes += count;
            session.release(flow, taken, now);
        }
        if session.readable(flow).next().is_some() {
            return;
        }
        if session.delivery(flow) == Delivery::Fin {
            self.netstack.finish(connection);
            session.end_delivered(flow, now);
        }
        if session.delivery(flow) == Delivery::Reset && !known.is_resetting {
            known.is_resetting = true;
            self.netstack.reset_when_drained(connection);
        }
    }

    /// What has left the send ring makes room for more credit.
    fn count_drained(&mut self, flow: FlowId, now: Instant) {
        let Some(known) = self.table.flows.get_mut(&flow) else {
            return;
        };
        let left = u64::try_from(self.netstack.unsent(known.connection)).unwrap_or(0);
        let drained = known.in_ring.saturating_sub(left);
        if drained > 0 {
            known.in_ring = left;
            self.with_session(|session| session.drained(flow, drained, now));
        }
    }
}

/// The one table: what became of the connect at the server → what the application sees.
const fn refusal(error: OpenError) -> Refusal {
    match error {
        OpenError::Refused => Refusal::Reset,
        OpenError::NetworkUnreachable => Refusal::Unreachable(Unreachable::Network),
        OpenError::HostUnreachable | OpenError::Other(_) => Refusal::Unreachable(Unreachable::Host),
        OpenError::Denied(DeniedBy::Never | DeniedBy::Default | DeniedBy::Deny) => {
            Refusal::Unreachable(Unreachable::Prohibited)
        }
        // The origin says nothing, or the server may have room when the SYN comes again.
        OpenError::TimedOut
        | OpenError::Exhausted
        | OpenError::TooManyFlows
        | OpenError::Cancelled => Refusal::Silence,
    }
}
