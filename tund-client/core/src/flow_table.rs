//! Which connection A belongs to which flow, and how bytes get from one to the other.

use crate::account::{self, End, EndedBy, FlowAccount, HowEnded, LostBytes, Recent, Silence};
use crate::client::{Client, ClientEvent};
use crate::netstack::{ConnectionId, NetEvent, Netstack};
use crate::policy::{HandOff, Store};
use bytes::BytesMut;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::FlowCode;
use tund_session::{Delivery, FlowId, Instant, Session};

/// The user of whom nothing is known, as everywhere in Linux.
pub(crate) const NOBODY: u32 = 65_534;
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
    /// Connection A is open: the origin has answered, or a policy does not wait for it.
    pub is_open: bool,
    /// What becomes of bytes that are left behind grace.
    pub(crate) store: Option<Store>,
    /// What becomes of bytes that the application does not get before.
    pub(crate) hand_off: Option<HandOff>,
    /// The user whose application this is, once asked about.
    pub(crate) user: Option<u32>,
    /// The last of what its user's connections have left that this one has asked for.
    pub(crate) asked_to: u64,
    /// The origin has answered, as far as the policy hands off.
    pub(crate) is_answered: bool,
    /// What the application did not get is held for its next one.
    pub(crate) is_left: bool,
    /// Outages it has lived through.
    pub outages: u64,
    /// Bytes from the application.
    pub up_bytes: u64,
    /// Bytes to the application.
    pub down_bytes: u64,
    /// Bytes in the send ring that are not yet counted as drained.
    in_ring: u64,
    /// RST waits for the send ring; what it will mean.
    resetting: Option<End>,
    /// Whose FIN came first.
    first_fin: Option<EndedBy>,
    silence: Silence,
}

impl ClientFlow {
    pub(crate) const fn new(
        connection: ConnectionId,
        source: SocketAddr,
        destination: SocketAddr,
        since: Instant,
    ) -> Self {
        Self {
            connection,
            source,
            destination,
            since,
            is_open: false,
            store: None,
            hand_off: None,
            user: None,
            asked_to: 0,
            is_answered: false,
            is_left: false,
            outages: 0,
            up_bytes: 0,
            down_bytes: 0,
            in_ring: 0,
            resetting: None,
            first_fin: None,
            silence: Silence::new(since),
        }
    }

    /// The user whose application this is, as far as that is known.
    pub(crate) fn whose(&self) -> u32 {
        self.user.unwrap_or(NOBODY)
    }

    /// The longest time in which no byte of it moved here, up to now.
    pub fn longest_silence(&self, now: Instant) -> Duration {
        self.silence.longest(now)
    }

    /// How it ends when both directions have come to theirs.
    const fn own_end(&self) -> End {
        match (self.resetting, self.first_fin) {
            (Some(end), _) => end,
            (None, Some(by)) => (by, HowEnded::Closed),
            (None, None) => (EndedBy::Origin, HowEnded::Reset),
        }
    }

    /// Its connection ends with these bytes in its rings: the application has got the one part
    /// acknowledged, and has not acknowledged the other.
    pub(crate) const fn count_rings(&mut self, in_rings: LostBytes) {
        self.up_bytes += in_rings.up;
        self.down_bytes = self.down_bytes.saturating_sub(in_rings.down);
    }
}

/// All flows of the current session.
#[derive(Debug, Default)]
pub struct FlowTable {
    flows: BTreeMap<FlowId, ClientFlow>,
    by_connection: FxHashMap<ConnectionId, FlowId>,
    /// Flows whose connection A is gone and whose last bytes are still on their way.
    leaving: BTreeMap<FlowId, (ClientFlow, End, LostBytes)>,
    recent: Recent,
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

    pub(crate) fn insert(&mut self, id: FlowId, flow: ClientFlow) {
        self.by_connection.insert(flow.connection, id);
        self.flows.insert(id, flow);
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<ClientFlow> {
        let flow = self.flows.remove(&id)?;
        self.by_connection.remove(&flow.connection);
        Some(flow)
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&ClientFlow> {
        self.flows.get(&id)
    }

    /// What the application does not get of the others is held nowhere.
    pub(crate) fn hand_off_only(&mut self, is_handed_off: impl Fn(FlowId) -> bool) {
        for (id, flow) in &mut self.flows {
            flow.hand_off = flow.hand_off.filter(|_| is_handed_off(*id));
        }
    }

    /// The flow of a connection.
    pub(crate) fn find(&mut self, connection: ConnectionId) -> Option<&mut ClientFlow> {
        let id = self.by_connection.get(&connection)?;
        self.flows.get_mut(id)
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut ClientFlow> {
        self.flows.get_mut(&id)
    }

    /// Forgets the connection of a flow; its account stays open until the session has forgotten the
    /// flow, too.
    pub(crate) fn leave(&mut self, id: FlowId, end: End, lost: LostBytes) -> Option<ClientFlow> {
        let mut flow = self.remove(id)?;
        flow.count_rings(lost);
        self.leaving.insert(id, (flow, end, lost));
        Some(flow)
    }

    /// Forgets a flow whose connection A is gone already, account and all.
    pub(crate) fn take_leaving(&mut self, id: FlowId) -> Option<(ClientFlow, End)> {
        let (flow, end, _) = self.leaving.remove(&id)?;
        Some((flow, end))
    }

    /// The account of a flow that the session has forgotten, having lost so many bytes of it. What
    /// an application that has gone itself had not read is not lost: it did not want it.
    pub(crate) fn settle(
        &mut self,
        id: FlowId,
        in_session: LostBytes,
        now: Instant,
    ) -> Option<FlowAccount> {
        let (flow, end, mut lost) = match self.leaving.remove(&id) {
            Some(left) => left,
            None => {
                let flow = self.remove(id)?;
                (flow, flow.own_end(), LostBytes::default())
            }
        };
        lost.up += in_session.up;
        if end.0 != EndedBy::Application {
            lost.down += in_session.down;
        }
        Some(FlowAccount::new(id, &flow, end, lost, now))
    }

    /// Forgets all flows that have a connection.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (FlowId, ClientFlow)> + use<> {
        self.by_connection.clear();
        std::mem::take(&mut self.flows).into_iter()
    }

    /// Those that have none any more.
    pub(crate) fn leaving(&self) -> Vec<FlowId> {
        self.leaving.keys().copied().collect()
    }

    /// Accounts of flows that ended of late, the oldest first: at most 1,024, and 512 of mappings.
    pub fn ended(&self) -> impl Iterator<Item = &FlowAccount> {
        self.recent.iter()
    }

    /// The flows whose origin has not answered.
    pub(crate) fn held(&self) -> Vec<(FlowId, ConnectionId)> {
        let held = self.flows.iter().filter(|(_, flow)| !flow.is_open);
        held.map(|(id, flow)| (*id, flow.connection)).collect()
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        let live = self.flows.len().max(self.by_connection.len());
        live + self.leaving.len()
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
            self.on_event_without_flow(event, connection);
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
                self.with_session(|session| session.end_delivered(flow, now));
            }
            NetEvent::Finished { .. } => self.on_finished(flow, now),
            NetEvent::ResetByApp { .. } => {
                let end = (EndedBy::Application, HowEnded::Reset);
                let is_asking = |flow: &ClientFlow| flow.hand_off.is_some() && !flow.is_answered;
                if self.table.get(flow).is_some_and(is_asking) {
                    // As if it had not been accepted early: what it asks for it may have been given.
                    self.give_up(flow, end, now);
                } else {
                    self.table.leave(flow, end, LostBytes::default());
                    self.with_session(|session| session.reset(flow, FlowCode::PeerReset, now));
                }
            }
            NetEvent::SynGone { .. } => {
                let end = (EndedBy::Application, HowEnded::Cancelled);
                self.give_up(flow, end, now);
            }
            NetEvent::Closed { .. } | NetEvent::Syn { .. } => {
                self.count_drained(flow, now);
            }
        }
    }

    /// The application does not wait for the origin's answer any more.
    fn give_up(&mut self, flow: FlowId, end: End, now: Instant) {
        self.leave_one(flow, now);
        self.table.leave(flow, end, LostBytes::default());
        self.with_session(|session| session.abort(flow, FlowCode::Cancelled, now));
    }

    /// The application has sent FIN, and nothing stands before it.
    pub(crate) fn on_finished(&mut self, flow: FlowId, now: Instant) {
        if let Some(known) = self.table.flows.get_mut(&flow) {
            known.first_fin.get_or_insert(EndedBy::Application);
        }
        self.with_session(|session| session.finish(flow, now));
    }

    /// A flow has ended: its account is told and kept.
    pub(crate) fn account(&mut self, account: FlowAccount) {
        self.table.recent.add(account);
        self.events.push_back(ClientEvent::FlowEnded(account));
    }

    fn with_session(&mut self, work: impl FnOnce(&mut Session)) {
        if let Some(session) = &mut self.session {
            work(session);
        }
    }

    /// From the application to the session, as much as the session takes.
    pub(crate) fn pump_up(&mut self, flow: FlowId, now: Instant) {
        let (Some(known), Some(session)) = (self.table.flows.get_mut(&flow), &mut self.session)
        else {
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
            let taken = self
                .netstack
                .recv(connection, most, |bytes| piece.extend_from_slice(bytes));
            if taken == 0 {
                break;
            }
            known.up_bytes += u64::try_from(taken).unwrap_or(0);
            known.silence.end(now);
            session.write(flow, piece.freeze(), now);
        }
        self.netstack.set_intake(connection, session.intake(flow));
    }

    /// From the session to the application, as much as the ring takes.
    pub(crate) fn pump_down(&mut self, flow: FlowId, now: Instant) {
        let (Some(known), Some(session)) = (self.table.flows.get_mut(&flow), &mut self.session)
        else {
            return;
        };
        if !known.is_open {
            // What comes ahead of the origin's answer waits: there is nobody to tell of its FIN.
            return;
        }
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
            known.silence.end(now);
            session.release(flow, taken, now);
        }
        if session.readable(flow).next().is_some() {
            return;
        }
        // Either is delivered when `Drained` says so: until then the ring is part of the buffer,
        // and the flow is not over.
        match session.delivery(flow) {
            Delivery::Fin => {
                self.netstack.finish(connection);
                known.first_fin.get_or_insert(EndedBy::Origin);
            }
            Delivery::Reset => {
                known.resetting = Some(account::of_reset(session.reset_code(flow)));
                self.netstack.reset_when_drained(connection);
            }
            Delivery::Open | Delivery::Ended => {}
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
