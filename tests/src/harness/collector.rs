//! The server's driver with deliveries: connections to collectors.

use super::coverage::Situation;
use super::records::unseal;
use super::rng::Rng;
use super::socket::{narrow, wide};
use super::world::{CLIENT, KEY, SERVER, Who, World};
use tund_server_core::delivery::{Binding, Step, Turn};
use tund_session::wire::frame::{Deliver, OpenError};
use tund_session::{Delivery as End, Event, FlowId, Session, SessionId};

/// A connection to a collector.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pub(super) unit: usize,
    pub(super) accepted: bool,
    /// FlowReadable was told.
    pub(super) due: bool,
    /// Bytes written to it, a FIN counted.
    pub(super) put: u64,
    /// How many of them its TCP has acknowledged, as far as the driver has asked.
    pub(super) acknowledged: u64,
    pub(super) has_fin: bool,
    /// What was written: the first place of each run among all that was written, and in the stream.
    pub(super) runs: Vec<(u64, u64)>,
    /// The place in the stream behind the last byte written.
    pub(super) at: u64,
    /// The record that was opened last: its ends, and that nothing was written of it. None once it is
    /// over.
    pub(super) record: Option<(u64, u64, bool)>,
}

impl Collector {
    /// The place in the stream behind the first `count` bytes written.
    fn place(&self, count: u64) -> u64 {
        let count = count.min(self.put - u64::from(self.has_fin));
        let run = self.runs.iter().rev().find(|(put, _)| *put < count);
        run.map_or(0, |(put, place)| place + count - put)
    }
}

/// How fast a turn goes.
pub(super) enum Pace<'a> {
    /// As fast as may be.
    Whole,
    /// As chance has it.
    Random(&'a mut Rng),
}

impl Pace<'_> {
    fn chunk(&mut self) -> usize {
        match self {
            Self::Whole => 70_000,
            Self::Random(rng) => rng.pick(&[1, 3, 9, 20, 500, 70_000]),
        }
    }

    fn chance(&mut self, percent: usize) -> bool {
        match self {
            Self::Whole => true,
            Self::Random(rng) => rng.chance(percent),
        }
    }

    fn part(&mut self, of: u64) -> u64 {
        match self {
            Self::Whole => of,
            Self::Random(rng) => wide(rng.below(narrow(of) + 1)),
        }
    }
}

impl World {
    /// How much of a stream its origin has, by whatever connection, and whether FIN is there.
    pub(super) fn reached(&self, unit: usize) -> (u64, bool) {
        let origin = self.units[unit].sockets[SERVER].as_ref();
        let (put, fin) = origin.map_or((0, false), |origin| (origin.put, origin.has_fin()));
        let delivered = self.desk.reached.get(&unit).copied().unwrap_or(0);
        (put.max(delivered), fin || self.desk.ended.contains(&unit))
    }

    /// A client wants to deliver.
    fn on_deliver_opened(&mut self, id: SessionId, deliver: Deliver) {
        let flow = deliver.flow;
        let Some(unit) = self.shelf.unit(deliver.session, deliver.origin_flow) else {
            self.fault("something is delivered that was never stored");
            return;
        };
        if !self.desk.running.begin(id, KEY, deliver) {
            let now = self.now;
            self.with(Who::Server(id), |session| {
                session.refuse_flow(flow, OpenError::Exhausted, now);
            });
            return;
        }
        let connection = Collector {
            unit,
            ..Collector::default()
        };
        self.desk.connections.insert((id, flow), connection);
    }

    /// What a server session tells of a delivery; false if it is of something else.
    pub(super) fn on_desk_event(&mut self, id: SessionId, event: &Event) -> bool {
        if let Event::DeliverOpened { deliver, .. } = event {
            self.on_deliver_opened(id, *deliver);
            return true;
        }
        if let Event::Ended { .. } = event {
            self.close_collectors(id);
            return false;
        }
        let (Event::FlowReadable { flow }
        | Event::FlowWritable { flow }
        | Event::FlowAborted { flow, .. }
        | Event::FlowForgotten { flow, .. }) = event
        else {
            return false;
        };
        let Some(connection) = self.desk.connections.get_mut(&(id, *flow)) else {
            return false;
        };
        if matches!(
            event,
            Event::FlowReadable { .. } | Event::FlowWritable { .. }
        ) {
            connection.due = true;
            return true;
        }
        self.close_collector(id, *flow);
        if let Event::FlowAborted { code, .. } = event {
            self.on_delivery_aborted(Who::Server(id), *code);
            self.strand(Who::Server(id), *flow);
        }
        true
    }

    fn close_collectors(&mut self, id: SessionId) {
        let range = (id, FlowId(0))..=(id, FlowId(u64::MAX));
        let open = self.desk.connections.range(range);
        for flow in open.map(|((_, flow), _)| *flow).collect::<Vec<_>>() {
            self.close_collector(id, flow);
        }
        self.desk.running.end_session(id);
    }

    /// One turn of the server's driver for all deliveries; true if anything happened.
    pub(super) fn collect(&mut self, mut pace: Pace<'_>) -> bool {
        let mut acted = false;
        for (id, flow) in self.desk.connections.keys().copied().collect::<Vec<_>>() {
            if pace.chance(60) {
                acted |= self.collect_one(id, flow, &mut pace);
                self.drain();
            }
        }
        if pace.chance(40) {
            acted |= self.record();
            for (id, flow, of) in self.desk.running.running().collect::<Vec<_>>() {
                acted |= self.release_recorded(id, flow, of);
            }
            self.drain();
        }
        acted
    }

    fn collect_one(&mut self, id: SessionId, flow: FlowId, pace: &mut Pace<'_>) -> bool {
        let (now, who) = (self.now, Who::Server(id));
        let Some(mut connection) = self.desk.connections.remove(&(id, flow)) else {
            return false;
        };
        if !connection.accepted {
            let refuses = matches!(pace, Pace::Random(_)) && pace.chance(10);
            connection.accepted = !refuses;
            if refuses {
                self.desk.running.end(id, flow);
                self.with(who, |s| s.refuse_flow(flow, OpenError::Refused, now));
            } else {
                self.desk.connections.insert((id, flow), connection);
                self.with(who, |s| s.accept_flow(flow, now));
            }
            return true;
        }
        let mut acted = false;
        if connection.due {
            acted |= self.write_records((id, flow), &mut connection, pace.chunk());
        }
        let told = pace.part(connection.put - connection.acknowledged);
        connection.acknowledged += told;
        acted |= told > 0;
        self.arrived(&connection, connection.acknowledged);
        if let Some(delivery) = self.desk.running.get_mut(id, flow) {
            let of = delivery.of();
            let unacknowledged = connection.put - connection.acknowledged;
            let offset = delivery.acknowledged(unacknowledged, connection.has_fin);
            self.desk.connections.insert((id, flow), connection);
            if let Some(offset) = offset {
                self.note(of, offset);
            }
            if self.desk.waiting.is_empty() {
                acted |= self.release_recorded(id, flow, of);
            }
        }
        acted
    }

    fn write_records(
        &mut self,
        (id, flow): (SessionId, FlowId),
        connection: &mut Collector,
        chunk: usize,
    ) -> bool {
        let now = self.now;
        let mut running = std::mem::take(&mut self.desk.running);
        let Some(delivery) = running.get_mut(id, flow) else {
            self.desk.running = running;
            return false;
        };
        let delivered = self.registry.delivered().offset(&delivery.of());
        let (mut left, mut acted, mut finishes, mut wrong) = (chunk, false, false, None);
        let (mut writes, mut situations, mut turn) = (Vec::new(), Vec::new(), Turn::default());
        self.registry.with(id, now, |session: &mut Session| {
            loop {
                let arrived = (session.readable(flow), session.has_all(flow));
                let current = &mut connection.record;
                let open = |binding: &Binding, sealed: &[u8]| {
                    let record = &binding.record;
                    *current = Some((record.start.0, record.end.0, true));
                    unseal(binding, sealed)
                };
                match delivery.step(arrived, delivered, &mut turn, open) {
                    Step::Write if left == 0 => break,
                    // `due` stays: there is another turn.
                    Step::Yield => break,
                    Step::Write => {
                        let text = delivery.text().cloned().unwrap_or_default();
                        let count = text.len().min(left);
                        let (start, end, is_new) = connection.record.unwrap_or_default();
                        let place = end - wide(text.len());
                        if is_new && place > start {
                            situations.push(Situation::RecordTrimmed);
                        }
                        connection.record = Some((start, end, false));
                        writes.push((place, text.slice(..count)));
                        delivery.wrote(count);
                        left -= count;
                    }
                    Step::Take(count) => {
                        if connection.record.take().is_none() {
                            situations.push(Situation::RecordSkipped);
                        }
                        session.release(flow, count, now);
                    }
                    Step::Wait => {
                        connection.due = false;
                        break;
                    }
                    Step::Broken(what) => {
                        wrong = Some(what);
                        break;
                    }
                }
                acted = true;
            }
            finishes =
                session.delivery(flow) == End::Fin && session.readable(flow).next().is_none();
            if finishes {
                session.end_delivered(flow, now);
            }
        });
        self.desk.running = running;
        situations.into_iter().for_each(|it| self.met(it));
        if let Some(what) = wrong {
            self.fault(format!("u{}: {what}", connection.unit));
        }
        for (place, bytes) in writes {
            self.take_written(connection, place, &bytes);
        }
        if finishes {
            connection.has_fin = true;
            connection.put += 1;
        }
        acted || finishes
    }

    fn take_written(&mut self, connection: &mut Collector, place: u64, bytes: &[u8]) {
        self.check_written(connection, place, bytes);
        if connection.runs.is_empty() || place != connection.at {
            connection.runs.push((connection.put, place));
        }
        connection.put += wide(bytes.len());
        connection.at = place + wide(bytes.len());
    }

    /// What a collector gets must be what was written, without a gap, from a boundary on, and no more
    /// of what the server knows to be there than the message that is cut.
    fn check_written(&mut self, connection: &Collector, place: u64, bytes: &[u8]) {
        let unit = connection.unit;
        let Some(app) = self.units[unit].sockets[CLIENT].as_ref() else {
            return;
        };
        let is_first = connection.runs.is_empty();
        let (reached, _) = self.reached(unit);
        let known = self.desk.known.get(&unit).map_or(0, |known| known.now);
        let least = if known > app.taken() {
            app.taken()
        } else {
            self.boundary(unit, known)
        };
        let is_true = bytes
            .iter()
            .zip(place..)
            .all(|(byte, at)| *byte == app.written_at(at));
        if !is_true {
            self.fault(format!(
                "u{unit}: wrong bytes are delivered from {place} on"
            ));
        } else if place > reached.max(connection.at) {
            self.fault(format!("u{unit}: {reached} to {place} are missing"));
        } else if !is_first && place < connection.at {
            let at = connection.at;
            self.fault(format!("u{unit}: {place} is delivered behind {at}"));
        } else if is_first && self.boundary(unit, place) != place {
            self.fault(format!(
                "u{unit}: a delivery begins within a message, at {place}"
            ));
        } else if is_first && place < least {
            self.fault(format!(
                "u{unit}: delivered again from {place} on, and {known} were known to be there"
            ));
        }
        if is_first && place < reached {
            self.met(Situation::MessageDoubled);
        }
    }

    /// So much of what was written to a collector has come.
    fn arrived(&mut self, connection: &Collector, count: u64) {
        let place = connection.place(count);
        let reached = self.desk.reached.entry(connection.unit).or_default();
        *reached = place.max(*reached);
        if connection.has_fin && count == connection.put {
            self.desk.ended.insert(connection.unit);
        }
    }

    /// The flow of a delivery is over: its kernel is asked once more.
    fn close_collector(&mut self, id: SessionId, flow: FlowId) {
        let Some(delivery) = self.desk.running.end(id, flow) else {
            self.cut_collector(id, flow);
            return;
        };
        let Some(connection) = self.desk.connections.get_mut(&(id, flow)) else {
            return;
        };
        let rest = connection.put - connection.acknowledged;
        connection.acknowledged += wide(Rng::of(self.seed, flow.0).below(narrow(rest) + 1));
        let unacknowledged = connection.put - connection.acknowledged;
        let offset = delivery.acknowledged(unacknowledged, connection.has_fin);
        self.cut_collector(id, flow);
        if let Some(offset) = offset {
            self.note(delivery.of(), offset);
        }
    }

    /// A connection is reset: of what was not acknowledged, some has come and some has not.
    pub(super) fn cut_collector(&mut self, id: SessionId, flow: FlowId) {
        let Some(connection) = self.desk.connections.remove(&(id, flow)) else {
            return;
        };
        let rest = narrow(connection.put - connection.acknowledged);
        let name = wide(rest) ^ (flow.0 << 20);
        let come = connection.acknowledged + wide(Rng::of(self.seed, name).below(rest + 1));
        self.arrived(&connection, come);
    }
}
