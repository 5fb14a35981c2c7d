//! What the server knows of stored streams: in memory, and on its disk.

use super::collector::Collector;
use super::coverage::Situation;
use super::rng::Rng;
use super::socket::{Socket, narrow, wide};
use super::world::{KEY, SERVER, Who, World};
use std::collections::{BTreeMap, BTreeSet};
use tund_server_core::delivery::{Deliveries, Progress, StoredFlow};
use tund_session::{FlowId, Offset, SessionId};

/// What is known of a stream: to the daemon, and to the next one if this one dies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) now: u64,
    pub(super) recorded: u64,
}

/// Everything about deliveries at the server.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) running: Deliveries,
    pub(super) connections: BTreeMap<(SessionId, FlowId), Collector>,
    /// Noted, and not on the disk.
    pub(super) waiting: BTreeMap<StoredFlow, Progress>,
    pub(super) disk: BTreeMap<StoredFlow, Progress>,
    /// Of each flow of the world: how far its stream has come to its collectors, and whether FIN has.
    pub(super) reached: BTreeMap<usize, u64>,
    pub(super) ended: BTreeSet<usize>,
    pub(super) known: BTreeMap<usize, Known>,
}

impl Desk {
    /// Nothing is delivered, and nothing is to be written down.
    pub(super) fn is_idle(&self) -> bool {
        self.connections.is_empty() && self.waiting.is_empty()
    }
}

impl World {
    /// What is stored begins there: the server has said that all before it is acknowledged.
    pub(super) fn stored_from(&mut self, unit: usize, start: u64) {
        let known = self.desk.known.entry(unit).or_default();
        known.now = known.now.max(start);
        known.recorded = known.recorded.max(start);
    }

    pub(super) fn note(&mut self, of: StoredFlow, offset: Offset) {
        let at = 0;
        let progress = Progress { of, offset, at };
        if self.registry.delivered_mut().note(&progress) {
            self.desk.waiting.insert(of, progress);
        }
        if let Some(unit) = self.unit_of(of) {
            let known = self.desk.known.entry(unit).or_default();
            known.now = known.now.max(offset.0);
        }
    }

    fn unit_of(&self, of: StoredFlow) -> Option<usize> {
        let local = |id: &SessionId| Some(self.books.get(id)?.locals.get(&of.flow)?.unit);
        local(&of.session).or_else(|| self.shelf.unit(of.session, of.flow))
    }

    /// Nothing more of a flow that may be stored reaches its origin by itself.
    pub(super) fn note_final(&mut self, id: SessionId, flow: FlowId, ends: (Offset, Offset)) {
        let (taken, released) = ends;
        let of = StoredFlow {
            client: KEY,
            session: id,
            flow,
        };
        let local = self
            .books
            .get(&id)
            .and_then(|books| books.locals.get(&flow));
        let told = local.map_or(0, |local| local.acknowledged);
        let origin = local.and_then(|local| self.units[local.unit].sockets[SERVER].as_ref());
        let there = origin.map_or(0, Socket::there);
        // Its kernel is asked once more, and has heard of some of the rest meanwhile.
        let rest = taken.0.min(there).saturating_sub(told.max(released.0));
        let more = wide(Rng::of(self.seed, flow.0).below(narrow(rest) + 1));
        self.note(of, Offset(told.max(released.0) + more));
    }

    /// What is known while the client cannot be told is written down.
    pub(super) fn note_detached(&mut self, id: SessionId, flow: FlowId) {
        let local = self
            .books
            .get(&id)
            .and_then(|books| books.locals.get(&flow));
        let detached = self.registry.session(id).is_some_and(|s| !s.is_attached());
        if let Some(local) = local.filter(|local| local.stored && detached) {
            let offset = Offset(local.acknowledged);
            let of = StoredFlow {
                client: KEY,
                session: id,
                flow,
            };
            self.note(of, offset);
        }
    }

    /// A batch is on the disk.
    pub(super) fn record(&mut self) -> bool {
        let batch = std::mem::take(&mut self.desk.waiting);
        for (of, progress) in &batch {
            self.desk.disk.insert(*of, *progress);
            if let Some(unit) = self.unit_of(*of) {
                let known = self.desk.known.entry(unit).or_default();
                known.recorded = known.recorded.max(progress.offset.0);
            }
        }
        !batch.is_empty()
    }

    /// The server daemon is gone: its sockets are reset, and what is on its disk is left.
    pub(super) fn restart_desk(&mut self) {
        let open: Vec<_> = self.desk.connections.keys().copied().collect();
        if !open.is_empty() {
            self.met(Situation::DeliveryInterrupted);
        }
        for (id, flow) in open {
            self.cut_collector(id, flow);
        }
        if !self.desk.waiting.is_empty() {
            self.met(Situation::NotRecorded);
        }
        self.desk.waiting.clear();
        self.desk.running = Deliveries::default();
        for known in self.desk.known.values_mut() {
            known.now = known.recorded;
        }
        for progress in self.desk.disk.values() {
            self.registry.delivered_mut().note(progress);
        }
    }

    /// Everything that is on the disk is released.
    pub(super) fn release_recorded(&mut self, id: SessionId, flow: FlowId, of: StoredFlow) -> bool {
        let offset = self
            .desk
            .disk
            .get(&of)
            .map_or(Offset(0), |known| known.offset);
        let Some(connection) = self.desk.connections.get(&(id, flow)) else {
            return false;
        };
        let has_fin_arrived = connection.has_fin && connection.acknowledged == connection.put;
        let delivery = self.desk.running.get_mut(id, flow);
        let Some(released) = delivery.and_then(|d| d.recorded(offset, has_fin_arrived)) else {
            return false;
        };
        if let Some(connection) = self.desk.connections.get_mut(&(id, flow)) {
            // A record may have waited for that.
            connection.due = true;
        }
        let now = self.now;
        let done = self.with(Who::Server(id), |session| {
            let before = session.awaits_release(flow);
            session.settle_to(flow, released, now);
            let is_over = has_fin_arrived && session.taken(flow) <= released;
            if is_over {
                session.finish(flow, now);
            }
            before
        });
        done == Some(true)
    }
}
