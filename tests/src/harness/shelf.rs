//! What the client has stored, and how it delivers that in later sessions.

use super::coverage::Situation;
use super::records::{Kept, Whose, cut};
use super::socket::wide;
use super::world::{CLIENT, Who, World};
use std::collections::BTreeMap;
use std::time::Duration;
use tund_session::wire::frame::{FlowCode, Framing, OpenError};
use tund_session::{
    DeliverTarget, Delivery, Event, FlowId, OpenRefused, Remainder, Session, SessionId,
};

/// Bytes of messages in one record: enough for several records, and for several messages in each.
const RECORD_TEXT: usize = 60;
/// Deliveries at once: more than one, and fewer than there may be files.
const AT_ONCE: usize = 2;

/// Whose the bytes are, and where they go.
const USER: u32 = 1000;
const COLLECTOR: ([u8; 4], u16) = ([192, 0, 2, 1], 514);

/// A run of whole messages on the client's disk: it outlives the daemon.
#[derive(Debug)]
struct File {
    session: SessionId,
    flow: FlowId,
    unit: usize,
    kept: Kept,
    under_way: Option<Outgoing>,
}

/// A delivery of it.
#[derive(Debug)]
struct Outgoing {
    flow: FlowId,
    written: usize,
    is_finished: bool,
    /// There may be room: the driver was told.
    due: bool,
    /// An outage began since.
    was_cut: bool,
}

/// The files in the order in which they were stored.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    files: Vec<File>,
    /// Sessions that never had a name lend none.
    nameless: u64,
    /// The flow of the world behind each stored stream.
    units: BTreeMap<(SessionId, FlowId), usize>,
}

impl Shelf {
    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whose bytes a stored stream is.
    pub(super) fn unit(&self, session: SessionId, flow: FlowId) -> Option<usize> {
        self.units.get(&(session, flow)).copied()
    }

    fn of_flow(&mut self, flow: FlowId) -> Option<&mut File> {
        let is_it = |file: &&mut File| file.under_way.as_ref().is_some_and(|o| o.flow == flow);
        self.files.iter_mut().find(is_it)
    }

    fn interrupt(&mut self) -> bool {
        let under_way = self.files.iter_mut().map(|file| file.under_way.take());
        under_way.filter(Option::is_some).count() > 0
    }
}

impl World {
    /// The client puts on its disk what is left of a flow.
    pub(super) fn shelve(&mut self, unit: usize, flow: FlowId, remainder: &Remainder) {
        let session = self.client.as_ref().and_then(|client| client.session.id());
        let session = session.unwrap_or_else(|| {
            self.shelf.nameless += 1;
            let mut name = [0xff; 16];
            name[8..].copy_from_slice(&self.shelf.nameless.to_be_bytes());
            SessionId(name)
        });
        let whose = Whose {
            session,
            flow,
            user: USER,
            destination: COLLECTOR.into(),
        };
        let kept = cut(remainder, RECORD_TEXT, &whose);
        if kept.records.is_empty() {
            return;
        }
        let (start, end) = (remainder.start.0, kept.end);
        self.tell(|| format!("u{unit}: {start} to {end} are stored, FIN {}", kept.fin));
        self.shelf.units.insert((session, flow), unit);
        self.stored_from(unit, start);
        self.shelf.files.push(File {
            session,
            flow,
            unit,
            kept,
            under_way: None,
        });
    }

    /// The client's session, or daemon, is gone; what was stored is not.
    pub(super) fn stop_delivering(&mut self, is_crash: bool) {
        if self.shelf.interrupt() {
            self.met(Situation::DeliveryInterrupted);
        }
        if is_crash && !self.shelf.is_empty() {
            self.met(Situation::ClientRestartStored);
        }
    }

    /// The client notes that its links are gone in the middle of a delivery.
    pub(super) fn note_delivery_cut(&mut self) {
        let under_way = self.shelf.files.iter_mut();
        for outgoing in under_way.filter_map(|file| file.under_way.as_mut()) {
            outgoing.was_cut = true;
        }
    }

    /// Begins what may begin, and moves what can be moved, at most `chunk` bytes of each; true if
    /// anything happened.
    pub(super) fn deliver_stored(&mut self, chunk: usize) -> bool {
        let is_possible = |session: &Session| session.is_attached() && session.has_delivery();
        let mut acted = false;
        if self.session(Who::Client).is_some_and(is_possible) {
            acted |= self.begin_deliveries();
        }
        for index in 0..self.shelf.files.len() {
            acted |= self.pump_file(index, chunk);
        }
        self.drain();
        acted
    }

    fn begin_deliveries(&mut self) -> bool {
        let mut begun = false;
        for index in 0..self.shelf.files.len() {
            let running = self.shelf.files.iter().filter(|f| f.under_way.is_some());
            let file = &self.shelf.files[index];
            // First in, first out of each destination, and each flow has one of its own.
            let unit = file.unit;
            let earlier = self.shelf.files[..index].iter();
            if file.under_way.is_some()
                || running.count() >= AT_ONCE
                || earlier.clone().any(|file| file.unit == unit)
            {
                continue;
            }
            let target = DeliverTarget {
                session: file.session,
                origin_flow: file.flow,
                user: USER,
                destination: COLLECTOR.into(),
                framing: Framing::Line,
                grace: Duration::from_secs(if unit.is_multiple_of(4) { 60 } else { 300 }),
            };
            let now = self.now;
            let flow = self.with(Who::Client, |session| session.deliver(&target, now));
            let flow = match flow {
                Some(Ok(flow)) => flow,
                Some(Err(OpenRefused::NoRoom)) => {
                    self.met(Situation::DeliveryNoRoom);
                    return begun;
                }
                Some(Err(_)) | None => return begun,
            };
            self.tell(|| format!("client delivers u{unit} by {flow}"));
            self.shelf.files[index].under_way = Some(Outgoing {
                flow,
                written: 0,
                is_finished: false,
                due: false,
                was_cut: false,
            });
            begun = true;
        }
        begun
    }

    fn pump_file(&mut self, index: usize, chunk: usize) -> bool {
        let (now, file) = (self.now, &mut self.shelf.files[index]);
        let records = file.kept.records.clone();
        let Some(mut outgoing) = file.under_way.take() else {
            return false;
        };
        let mut acted = false;
        self.with(Who::Client, |session| {
            if !outgoing.due {
                return;
            }
            let room = super::socket::narrow(session.intake(outgoing.flow)).min(chunk);
            let some = room.min(records.len() - outgoing.written);
            if some > 0 {
                let piece = records.slice(outgoing.written..outgoing.written + some);
                session.write(outgoing.flow, piece, now);
                outgoing.written += some;
                acted = true;
            }
            outgoing.due = outgoing.written < records.len() && session.intake(outgoing.flow) > 0;
            if outgoing.written == records.len() && !outgoing.is_finished {
                outgoing.is_finished = true;
                session.finish(outgoing.flow, now);
                acted = true;
            }
        });
        self.shelf.files[index].under_way = Some(outgoing);
        acted
    }

    /// What the client's session tells of a delivery; false if it is of something else.
    pub(super) fn on_shelf_event(&mut self, event: &Event) -> bool {
        let (Event::FlowAccepted { flow }
        | Event::FlowRefused { flow, .. }
        | Event::FlowReleased { flow, .. }
        | Event::FlowReadable { flow }
        | Event::FlowWritable { flow }
        | Event::FlowAborted { flow, .. }
        | Event::FlowForgotten { flow, .. }) = event
        else {
            return false;
        };
        if let Event::FlowReadable { flow } = event {
            return self.end_answer(*flow);
        }
        let is_local = self.is_local(*flow);
        let Some(file) = self.shelf.of_flow(*flow) else {
            // Of a file that went with its last record, the flow still ends.
            if !is_local && let Event::FlowAborted { code, .. } = event {
                self.on_delivery_aborted(Who::Client, *code);
            }
            return !is_local;
        };
        if let Event::FlowReleased { released, .. } = event {
            let all = wide(file.kept.records.len());
            let outgoing = file.under_way.as_ref();
            if outgoing.is_some_and(|outgoing| outgoing.is_finished && released.0 >= all) {
                self.remove_file(*flow);
            }
        } else if let Event::FlowRefused { error, .. } = event {
            file.under_way = None;
            self.on_delivery_refused(*error);
        } else if let Event::FlowAborted { code, .. } = event {
            file.under_way = None;
            self.on_delivery_aborted(Who::Client, *code);
        } else if let Event::FlowForgotten { .. } = event {
            file.under_way = None;
        } else if let Some(outgoing) = &mut file.under_way {
            // The origin has answered, or there is room again.
            outgoing.due = true;
        }
        true
    }

    /// It is a flow of an application.
    fn is_local(&self, flow: FlowId) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|client| client.books.locals.contains_key(&flow))
    }

    /// The other half of a delivery carries nothing but its end.
    fn end_answer(&mut self, flow: FlowId) -> bool {
        if self.is_local(flow) {
            return false;
        }
        let now = self.now;
        self.with(Who::Client, |session| {
            if matches!(session.delivery(flow), Delivery::Fin | Delivery::Reset) {
                session.end_delivered(flow, now);
            }
        });
        true
    }

    fn on_delivery_refused(&mut self, error: OpenError) {
        if error == OpenError::Refused {
            self.met(Situation::DeliveryRefused);
        } else if error == OpenError::Exhausted {
            self.met(Situation::DeliveryNoRoom);
        } else if error == OpenError::TooManyFlows {
            self.met(Situation::TooManyFlows);
        } else {
            self.fault(format!("a delivery was refused with {error:?}"));
        }
    }

    /// The flow of a delivery was aborted at one end.
    pub(super) fn on_delivery_aborted(&mut self, who: Who, code: FlowCode) {
        let now = self.now;
        if code != FlowCode::Expired {
            self.fault(format!("{who:?}: a delivery was aborted with {code:?}"));
        }
        self.met(Situation::DeliveryInterrupted);
        if let Some(books) = self.books(who) {
            books.expired_at = Some(now);
        }
    }

    /// The client hears that all of a file is recorded, and removes it: then it must be there.
    fn remove_file(&mut self, flow: FlowId) {
        let Some(file) = self.shelf.of_flow(flow) else {
            return;
        };
        let (unit, end, fin) = (file.unit, file.kept.end, file.kept.fin);
        let was_cut = file.under_way.as_ref().is_some_and(|o| o.was_cut);
        self.shelf
            .files
            .retain(|file| file.under_way.as_ref().is_none_or(|o| o.flow != flow));
        self.tell(|| format!("client removes what it had stored of u{unit}"));
        self.met(Situation::StoredDelivered);
        if was_cut {
            self.met(Situation::DeliveryResumed);
        }
        let (reached, has_fin) = self.reached(unit);
        if reached < end || (fin && !has_fin) {
            self.fault(format!(
                "u{unit}: the client removes bytes up to {end}, FIN {fin}; the origin has {reached}, \
                 FIN {has_fin}"
            ));
        }
    }

    /// The last line boundary at or before `place` of what the application of `unit` writes.
    pub(super) fn boundary(&self, unit: usize, place: u64) -> u64 {
        let app = self.units[unit].sockets[CLIENT].as_ref();
        let ends = |at: &u64| *at == 0 || app.is_some_and(|app| app.written_at(at - 1) == b'\n');
        (0..=place).rev().find(ends).unwrap_or(0)
    }
}
