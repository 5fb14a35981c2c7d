//! Mappings: datagrams to and from the owner's socket (PROTOCOL.md §5.6).

use super::receive::Taken;
use super::{Event, Role, Session};
use crate::datagram_queue::{DatagramCounts, Dropped, Room, Waiting};
use crate::flow::Flow;
use crate::id::{FlowId, LinkId};
use crate::limits;
use crate::mapping::{Mapping, MappingError, Out};
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::wire::codec::{MAX_DATAGRAM, MAX_PAYLOAD};
use crate::wire::frame::{
    Datagram, DatagramError, DatagramHead, DatagramPiece, Frame, OpenError, Protocol, capability,
};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;

/// Which way datagrams go that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the local socket.
    In,
    /// To the peer.
    Out,
}

/// EPROTONOSUPPORT: the server knows of no such flows.
const NOT_SUPPORTED: OpenError = OpenError::Other(93);

impl Session {
    /// Both ends carry datagrams; a client takes it for granted until the server has answered.
    pub fn has_datagrams(&self) -> bool {
        let known = self.agreed.unwrap_or(self.config.capabilities);
        known & capability::DATAGRAM != 0
    }

    /// What became of all datagrams of the session.
    pub fn datagram_counts(&self) -> DatagramCounts {
        self.datagrams
    }

    /// A datagram of the local socket's, to or from `remote`. Where there is no room for it, the
    /// mapping that holds most makes some.
    pub fn send_datagram(&mut self, id: FlowId, remote: SocketAddr, payload: Bytes, now: Instant) {
        if payload.len() > MAX_DATAGRAM {
            self.datagrams.crowded_out += 1;
            return;
        }
        self.make_room(Way::Out, payload.len(), now);
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.send_done) else {
            return;
        };
        let Some(mapping) = flow.mapping.as_deref_mut() else {
            return;
        };
        self.traffic.taken += count(payload.len());
        let mut dropped = Dropped::default();
        let datagram = Waiting::new(remote, payload, Duration::ZERO, now);
        mapping.tx.push(datagram, &mut self.tx_room, &mut dropped);
        flow.lost += dropped.bytes;
        self.datagrams.add(dropped.counts);
        self.schedule(id);
    }

    /// So many wait for local sockets that their owner should take them before it reads on.
    pub fn has_datagrams_waiting(&self) -> bool {
        self.rx_room.count() >= limits::DATAGRAMS_WAITING
    }

    /// So much waits to be sent that it should be before more is read.
    pub fn has_datagrams_backed_up(&self) -> bool {
        self.tx_room.is_half_full()
    }

    /// An error that a datagram of the peer's met at the local socket.
    pub fn send_datagram_error(&mut self, id: FlowId, error: MappingError) {
        let flow = self.flows.get_mut(&id).filter(|flow| !flow.send_done);
        if let Some(mapping) = flow.and_then(|flow| flow.mapping.as_deref_mut()) {
            mapping.say_error(error);
            self.schedule(id);
        }
    }

    /// The next datagram for the local socket; what has waited for too long is dropped before.
    /// Once the socket has it, or will never have it, [`datagram_taken`](Self::datagram_taken).
    pub fn datagram(&mut self, id: FlowId, now: Instant) -> Option<(SocketAddr, &Bytes)> {
        let flow = self.flows.get_mut(&id)?;
        let mapping = flow.mapping.as_deref_mut()?;
        let mut dropped = Dropped::default();
        let age = (self.config.datagram_age, now);
        mapping.rx.drop_stale(age, &mut self.rx_room, &mut dropped);
        flow.dropped += dropped.bytes;
        self.datagrams.add(dropped.counts);
        let first = mapping.rx.front()?;
        Some((first.remote, &first.payload))
    }

    /// The local socket has taken what [`datagram`](Self::datagram) yielded.
    pub fn datagram_taken(&mut self, id: FlowId) {
        let mapping = self
            .flows
            .get_mut(&id)
            .and_then(|f| f.mapping.as_deref_mut());
        if let Some(datagram) = mapping.and_then(|mapping| mapping.rx.pop(&mut self.rx_room)) {
            self.traffic.released += count(datagram.payload.len());
            self.datagrams.delivered += 1;
        }
    }

    /// The local socket is not given what [`datagram`](Self::datagram) yielded.
    pub fn datagram_refused(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let mapping = flow.mapping.as_deref_mut();
        if let Some(datagram) = mapping.and_then(|mapping| mapping.rx.pop(&mut self.rx_room)) {
            flow.dropped += count(datagram.payload.len());
            self.datagrams.unwanted += 1;
        }
    }

    /// The next error that a datagram of ours met.
    pub fn take_datagram_error(&mut self, id: FlowId) -> Option<MappingError> {
        let flow = self.flows.get_mut(&id)?;
        flow.mapping.as_deref_mut()?.take_error()
    }

    /// Client: whether OPEN of that flow has gone out, so that the server may know of it.
    pub fn is_asked(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_some_and(|flow| flow.is_asked)
    }

    /// Something of that mapping waits to be sent, if only an empty datagram.
    pub fn has_datagram_to_send(&self, id: FlowId) -> bool {
        let mapping = self.flows.get(&id).and_then(|flow| flow.mapping.as_deref());
        mapping.is_some_and(Mapping::is_ready)
    }

    /// Whether the flow is a mapping; a stream, or unknown, if not.
    pub fn is_mapping(&self, id: FlowId) -> bool {
        self.flows
            .get(&id)
            .is_some_and(|flow| flow.mapping.is_some())
    }

    /// How many of the flows are mappings, of either kind.
    pub fn mapping_count(&self) -> usize {
        self.mappings
    }

    /// How many of the mappings are for echo requests.
    pub fn echo_count(&self) -> usize {
        self.flows.values().filter(|flow| flow.is_echo()).count()
    }

    /// Flows at once, as far as is known: the smaller of what both ends allow.
    pub fn most_flows(&self) -> u64 {
        let peer = self.peer_limits.map_or(u64::MAX, |limits| limits.max_flows);
        peer.min(self.config.max_flows)
    }

    /// What a flow of that protocol has beside its halves.
    pub(super) fn mapping_for(protocol: Protocol, flow: FlowId) -> Option<Box<Mapping>> {
        match protocol {
            Protocol::Tcp => None,
            Protocol::Udp | Protocol::UdpAny | Protocol::Icmp => {
                let is_echo = protocol == Protocol::Icmp;
                Some(Box::new(Mapping::new(flow, is_echo)))
            }
        }
    }

    /// Client: OPEN has gone out, and datagrams may follow it.
    pub(super) fn note_asked(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.is_asked
        {
            flow.is_asked = true;
            self.schedule(id);
        }
    }

    /// How long datagrams wait. The first link of a session takes its time, and the first datagram of
    /// an application is often the reason for it: until then they wait for as long as an attach may.
    fn datagram_age(&self) -> Duration {
        if self.agreed.is_none() {
            self.config.datagram_age.max(limits::UNCONFIRMED)
        } else {
            self.config.datagram_age
        }
    }

    /// Client: the first attach is done. What waited for it, and not for too long, is as good as new.
    fn begin_datagrams(&mut self, now: Instant) {
        self.sweep((self.config.datagram_age.max(limits::UNCONFIRMED), now));
        for flow in self.flows.values_mut() {
            if let Some(mapping) = flow.mapping.as_deref_mut() {
                mapping.begin(now);
            }
        }
        self.sweep_at = now + self.datagram_age();
    }

    fn has_room(&self, way: Way, len: usize) -> bool {
        match way {
            Way::In => self.rx_room.has(len),
            Way::Out => self.tx_room.has(len),
        }
    }

    /// Sees to it that a datagram of that length finds room: what is stale goes first, then the
    /// oldest of the mapping that holds most. So none keeps the others out.
    fn make_room(&mut self, way: Way, len: usize, now: Instant) {
        self.begin_sweeping(now);
        if !self.has_room(way, len) && self.swept_at + limits::SWEEP_LEAST <= now {
            self.sweep((self.datagram_age(), now));
        }
        while !self.has_room(way, len) {
            let room = match way {
                Way::In => &mut self.rx_room,
                Way::Out => &mut self.tx_room,
            };
            let heaviest = room.heaviest().and_then(|id| self.flows.get_mut(&id));
            let Some(flow) = heaviest else { return };
            let Some(mapping) = flow.mapping.as_deref_mut() else {
                return;
            };
            let mut dropped = Dropped::default();
            match way {
                Way::In => {
                    mapping.shed_in(room, &mut dropped);
                    flow.dropped += dropped.bytes;
                }
                Way::Out => {
                    mapping.shed_out(room, &mut dropped);
                    flow.lost += dropped.bytes;
                }
            }
            self.datagrams.add(dropped.counts);
        }
    }

    /// Client: it is known whether the server carries datagrams, and it was asked for mappings before.
    pub(super) fn begin_mappings(&mut self, now: Instant) {
        if self.has_datagrams() {
            self.begin_datagrams(now);
            return;
        }
        let mappings = self.flows.values().filter(|flow| flow.mapping.is_some());
        let mappings: Vec<FlowId> = mappings.map(|flow| flow.id).collect();
        for flow in mappings {
            self.lane.unsay_open(flow);
            self.forget(flow, now);
            self.events.push_back(Event::FlowRefused {
                flow,
                error: NOT_SUPPORTED,
                remainder: None,
            });
        }
    }

    /// The mapping of a frame; none if it is over, or is not known here yet: its OPEN may come by
    /// another link.
    fn known_mapping(&mut self, id: FlowId) -> Result<Option<&mut Flow>, &'static str> {
        if !self.has_datagrams() {
            return Err("a frame of a capability that was not agreed");
        }
        if id > self.last_flow && self.role == Role::Client {
            return Err("a datagram of a flow that was never opened");
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return Ok(None);
        };
        if flow.mapping.is_none() {
            return Err("a datagram of a stream");
        }
        Ok(Some(flow).filter(|flow| !flow.receive_done))
    }

    pub(super) fn on_datagram(&mut self, datagram: Datagram, now: Instant) -> Taken {
        if self.known_mapping(datagram.head.flow)?.is_some() {
            self.receive_datagram(&datagram.head, datagram.payload, now);
        }
        Ok(())
    }

    pub(super) fn on_datagram_piece(
        &mut self,
        piece: &DatagramPiece,
        link: LinkId,
        now: Instant,
    ) -> Taken {
        if self.known_mapping(piece.head.flow)?.is_none() {
            return Ok(());
        }
        if piece.offset == 0 {
            let whole = usize::try_from(piece.whole).unwrap_or(usize::MAX);
            self.make_room(Way::In, whole, now);
        }
        let Some(flow) = self.flows.get_mut(&piece.head.flow) else {
            return Ok(());
        };
        let Some(mapping) = flow.mapping.as_deref_mut() else {
            return Ok(());
        };
        let mut dropped = Dropped::default();
        let whole = mapping.join(piece, (link, now), &mut self.rx_room, &mut dropped);
        flow.dropped += dropped.bytes;
        self.datagrams.add(dropped.counts);
        if let Some(payload) = whole {
            self.receive_datagram(&piece.head, payload, now);
        }
        Ok(())
    }

    fn receive_datagram(&mut self, head: &DatagramHead, payload: Bytes, now: Instant) {
        self.make_room(Way::In, payload.len(), now);
        // Few keep the buffer that their link was read into: datagrams that nobody takes must not
        // hold many times their size.
        let is_slice =
            payload.len() <= MAX_PAYLOAD && self.rx_room.count() >= limits::DATAGRAM_SLICES;
        let payload = if is_slice {
            Bytes::copy_from_slice(&payload)
        } else {
            payload
        };
        // How long datagrams of applications may wait at the client is the client's to say.
        let age = match self.role {
            Role::Client => head.age,
            Role::Server => Duration::ZERO,
        };
        let Some(flow) = self.flows.get_mut(&head.flow) else {
            return;
        };
        let Some(mapping) = flow.mapping.as_deref_mut() else {
            return;
        };
        let mut dropped = Dropped::default();
        let datagram = Waiting::new(head.remote, payload, age, now);
        mapping.rx.push(datagram, &mut self.rx_room, &mut dropped);
        flow.dropped += dropped.bytes;
        self.datagrams.add(dropped.counts);
        self.tell_readable(head.flow);
    }

    pub(super) fn on_datagram_error(&mut self, error: &DatagramError) -> Taken {
        let Some(flow) = self.known_mapping(error.flow)? else {
            return Ok(());
        };
        if let Some(mapping) = flow.mapping.as_deref_mut() {
            mapping.hear_error(MappingError {
                remote: error.remote,
                errno: error.errno,
                info: error.info,
            });
            self.tell_readable(error.flow);
        }
        Ok(())
    }

    /// Sends what a mapping may in its turn; returns how many frames that were.
    pub(super) fn send_mapping(
        &mut self,
        id: FlowId,
        (link, budget): (LinkId, usize),
        out: &mut Outbox,
        now: Instant,
    ) -> usize {
        let age = (self.config.datagram_age, now);
        let Some(flow) = self.flows.get_mut(&id) else {
            return 0;
        };
        let Some(mapping) = flow.mapping.as_deref_mut() else {
            return 0;
        };
        let mut dropped = Dropped::default();
        let mut sent = 0;
        while flow.deficit > 0
            && out.len() < budget
            && let Some(next) = mapping.take(link, age, &mut self.tx_room, &mut dropped)
        {
            sent += 1;
            match next {
                Out::Error(error) => {
                    flow.deficit -= 32;
                    out.push(&Frame::DatagramError(DatagramError {
                        flow: id,
                        remote: error.remote,
                        errno: error.errno,
                        info: error.info,
                    }));
                }
                Out::Datagram {
                    remote,
                    age,
                    place,
                    payload,
                } => {
                    let len = payload.len();
                    flow.deficit -= i64::try_from(len).unwrap_or(limits::QUANTUM) + 32;
                    let is_last = place.is_none_or(|(offset, whole)| {
                        usize::try_from(whole - offset).is_ok_and(|left| left <= len)
                    });
                    self.datagrams.sent += u64::from(is_last);
                    let flow = id;
                    out.push_datagram(&DatagramHead { flow, remote, age }, place, payload);
                }
            }
        }
        flow.lost += dropped.bytes;
        self.datagrams.add(dropped.counts);
        sent
    }

    /// What waits in a mapping that has ended.
    pub(super) fn drop_datagrams(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        abandon(
            flow,
            (&mut self.tx_room, &mut self.rx_room),
            &mut self.datagrams,
        );
    }

    /// The session has ended.
    pub(super) fn drop_all_datagrams(&mut self) {
        for flow in self.flows.values_mut() {
            abandon(
                flow,
                (&mut self.tx_room, &mut self.rx_room),
                &mut self.datagrams,
            );
        }
    }

    fn begin_sweeping(&mut self, now: Instant) {
        if self.tx_room.is_empty() && self.rx_room.is_empty() {
            self.sweep_at = now + self.datagram_age();
        }
    }

    /// When what waits is looked through for what has waited for too long: nobody writes it while
    /// there is no link, or while the local socket takes nothing.
    pub(super) fn sweeps_at(&self) -> Option<Instant> {
        let is_any = !(self.tx_room.is_empty() && self.rx_room.is_empty());
        is_any.then_some(self.sweep_at)
    }

    pub(super) fn sweep_if_due(&mut self, now: Instant) {
        if self.sweeps_at().is_some_and(|at| at <= now) {
            self.sweep((self.datagram_age(), now));
        }
    }

    fn sweep(&mut self, (most, now): (Duration, Instant)) {
        self.sweep_at = now + most.max(limits::SWEEP_LEAST);
        self.swept_at = now;
        for flow in self.flows.values_mut() {
            let Some(mapping) = flow.mapping.as_deref_mut() else {
                continue;
            };
            let rooms = (&mut self.tx_room, &mut self.rx_room);
            let (up, down) = mapping.sweep((most, now), rooms);
            flow.lost += up.bytes;
            flow.dropped += down.bytes;
            self.datagrams.add(up.counts);
            self.datagrams.add(down.counts);
        }
    }

    /// Server: why a flow that carries datagrams may not be asked for.
    pub(super) fn refuses_mapping(&self, flow: &Flow) -> Option<OpenError> {
        (flow.mapping.is_some() && !self.has_datagrams()).then_some(NOT_SUPPORTED)
    }
}

fn abandon(flow: &mut Flow, (tx, rx): (&mut Room, &mut Room), counts: &mut DatagramCounts) {
    if let Some(mapping) = flow.mapping.as_deref_mut() {
        let (up, down) = mapping.abandon(tx, rx);
        flow.lost += up.bytes;
        flow.dropped += down.bytes;
        counts.add(up.counts);
        counts.add(down.counts);
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
