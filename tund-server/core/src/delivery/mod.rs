//! Delivery after grace: what of a stored stream still goes to its origin, and what is recorded.

mod delivered;
mod record;
#[cfg(test)]
mod tests;

pub use delivered::{Delivered, FLOWS_PER_KEY, Progress, StoredFlow};
pub use record::{Binding, HEADER_BYTES, Record};

use crate::registry::ClientKey;
use bytes::{Buf, Bytes};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tund_session::framer::{Framer, longest_message};
use tund_session::wire::frame::Deliver;
use tund_session::{FlowId, Offset, SessionId};

/// Bytes of a record before it is sealed, unless it is a single longer message.
const RECORD_TEXT: u64 = 16 * 1024;

/// Bytes written to an origin that are not recorded as acknowledged: with so many, the next record
/// waits. A server that is killed delivers them again. Chosen: about 1 MB/s, with 10 ms until a
/// socket is asked again and a disk that takes as long.
const UNRECORDED_BYTES: u64 = 16 * 1024;

/// Records that are taken up and not released: with so many, the next one waits. It bounds memory
/// where each is a byte. Chosen: more than 16 KiB of records of usual length ever are.
const UNRECORDED_RECORDS: usize = 256;

/// Records that are taken up in one turn of the owner's loop, by all deliveries together: to open one
/// takes up to 0.25 ms, and a client that sends many short ones must not silence the links of the
/// others. Chosen; a record of usual length is more than a turn may write anyway.
const RECORDS_PER_TURN: usize = 16;

/// What all deliveries together may still do in this turn of the owner's loop.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    records: usize,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            records: RECORDS_PER_TURN,
        }
    }
}

/// What is to be done next with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next record is not here yet, or waits until more is recorded.
    Wait,
    /// The next record waits for the next turn of the owner's loop.
    Yield,
    /// [`Delivery::text`] is to be written to the origin.
    Write,
    /// A record is over with: so many bytes of the flow were taken.
    Take(usize),
    /// What came is no record, or does not open: STOP(`Unsealable`). Why.
    Broken(&'static str),
}

/// One delivery under way (PROTOCOL.md §5.8).
///
/// The owner asks for the next [`step`](Self::step), writes, tells what was written, and what the
/// origin's TCP has [`acknowledged`](Self::acknowledged); notes that in [`Delivered`]; and once it
/// outlasts a crash, learns by [`recorded`](Self::recorded) how much of the flow is released.
#[derive(Debug)]
pub struct Delivery {
    /// Whose stream, and which.
    of: StoredFlow,
    deliver: Deliver,
    /// The last record ended here in the stored stream.
    end: Offset,
    /// It was the last of all.
    is_last: bool,
    /// Bytes of the delivering flow that belong to records before this one.
    taken: u64,
    /// Bytes written to the origin.
    written: u64,
    current: Option<Current>,
    /// Records not released, in order; the last of them may be the current one.
    unreleased: VecDeque<Stretch>,
    /// The sum of their `bytes`.
    unrecorded: u64,
}

/// The record that is being written.
#[derive(Debug)]
struct Current {
    /// What is left of it.
    text: Bytes,
    /// Bytes of the delivering flow that it takes.
    len: usize,
}

/// A record's place in three streams.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// It ends here in the delivering flow.
    flow_end: Offset,
    /// In what is written to the origin, from `written` on there are `bytes` of it.
    written: u64,
    bytes: u64,
    /// It ends here in the stored stream, FIN counted.
    end: Offset,
    has_fin: bool,
}

impl Delivery {
    fn new(of: StoredFlow, deliver: Deliver) -> Self {
        Self {
            of,
            deliver,
            end: Offset(0),
            is_last: false,
            taken: 0,
            written: 0,
            current: None,
            unreleased: VecDeque::new(),
            unrecorded: 0,
        }
    }

    /// Whose stream, and which.
    pub fn of(&self) -> StoredFlow {
        self.of
    }

    /// As asked for.
    pub fn deliver(&self) -> &Deliver {
        &self.deliver
    }

    /// What comes next, within this `turn`. `arrived` is what the session holds of the flow, and
    /// whether nothing comes behind it; `delivered` is how far the stored stream is known to have
    /// been acknowledged; `open` unseals a record.
    pub fn step<'a>(
        &mut self,
        (arrived, is_all): (impl Iterator<Item = &'a Bytes> + Clone, bool),
        delivered: Offset,
        turn: &mut Turn,
        open: impl FnOnce(&Binding, &[u8]) -> Option<Vec<u8>>,
    ) -> Step {
        if self.current.is_none() {
            if self.is_held() {
                return Step::Wait;
            }
            if turn.records == 0 {
                return Step::Yield;
            }
            let is_cut_off = is_all && arrived.clone().next().is_some();
            match self.next_record(arrived, delivered, open) {
                Ok(true) => turn.records -= 1,
                Ok(false) if is_cut_off => return Step::Broken("a record that is cut off"),
                Ok(false) => return Step::Wait,
                Err(what) => return Step::Broken(what),
            }
        }
        match self.current.take_if(|current| current.text.is_empty()) {
            Some(current) => Step::Take(current.len),
            None => Step::Write,
        }
    }

    /// Enough is written that is not recorded.
    fn is_held(&self) -> bool {
        self.unrecorded >= UNRECORDED_BYTES || self.unreleased.len() >= UNRECORDED_RECORDS
    }

    /// Takes up the next record; false if it is not here yet.
    fn next_record<'a>(
        &mut self,
        arrived: impl Iterator<Item = &'a Bytes> + Clone,
        delivered: Offset,
        open: impl FnOnce(&Binding, &[u8]) -> Option<Vec<u8>>,
    ) -> Result<bool, &'static str> {
        let Some(header) = record::gather(arrived.clone(), 0, HEADER_BYTES) else {
            return Ok(false);
        };
        let record = self.check(Record::parse(&header)?)?;
        let Some(sealed) = record::gather(arrived, HEADER_BYTES, record.sealed_len()) else {
            return Ok(false);
        };
        let text = if record.end_with_fin() <= delivered {
            Bytes::new()
        } else {
            let text = open(&self.binding(record), &sealed).ok_or("a record does not open")?;
            self.undelivered(&record, text, delivered)?
        };
        self.begin(&record, text);
        Ok(true)
    }

    fn binding(&self, record: Record) -> Binding {
        Binding {
            of: self.of,
            user: self.deliver.user,
            destination: self.deliver.destination,
            framing: self.deliver.framing,
            record,
        }
    }

    fn check(&self, record: Record) -> Result<Record, &'static str> {
        let most = longest_message(self.deliver.framing).max(RECORD_TEXT);
        if self.is_last {
            return Err("a record behind the last one");
        }
        if record.start < self.end {
            return Err("a record that begins before the end of the one before");
        }
        if record.end.since(record.start) > most {
            return Err("a record with more than a message may have");
        }
        Ok(record)
    }

    /// What of an opened record has not been delivered: whole messages.
    fn undelivered(
        &self,
        record: &Record,
        text: Vec<u8>,
        delivered: Offset,
    ) -> Result<Bytes, &'static str> {
        let text = Bytes::from(text);
        if wide(text.len()) != record.end.since(record.start) {
            return Err("a record that opens to another length");
        }
        let known = usize::try_from(delivered.since(record.start)).unwrap_or(usize::MAX);
        let (before, behind) = text.split_at(known.min(text.len()));
        let mut framer = Framer::resume(self.deliver.framing, record.start);
        framer.feed(before);
        let boundary = framer.boundary();
        framer.feed(behind);
        if framer.is_opaque() {
            return Err("a record that is no run of messages");
        }
        if framer.boundary() < record.end && !record.has_fin {
            return Err("a record that ends within a message");
        }
        let skip = usize::try_from(boundary.since(record.start)).unwrap_or(usize::MAX);
        Ok(text.slice(skip.min(text.len())..))
    }

    fn begin(&mut self, record: &Record, text: Bytes) {
        let len = HEADER_BYTES.saturating_add(record.sealed_len());
        self.taken += wide(len);
        self.end = record.end;
        self.is_last = record.has_fin;
        let stretch = Stretch {
            flow_end: Offset(self.taken),
            written: self.written,
            bytes: wide(text.len()),
            end: record.end_with_fin(),
            has_fin: record.has_fin,
        };
        self.unrecorded += stretch.bytes;
        match self.unreleased.back_mut() {
            // Of records that are left out, one after the other, the last speaks for all: what was
            // delivered before is recorded soon, and all at once.
            Some(last) if last.bytes == 0 && stretch.bytes == 0 => *last = stretch,
            _ => self.unreleased.push_back(stretch),
        }
        self.current = Some(Current { text, len });
    }

    /// What is to be written to the origin next.
    pub fn text(&self) -> Option<&Bytes> {
        let text = self.current.as_ref().map(|current| &current.text);
        text.filter(|text| !text.is_empty())
    }

    /// So many bytes of it were written.
    pub fn wrote(&mut self, count: usize) {
        if let Some(current) = &mut self.current {
            let count = count.min(current.text.len());
            current.text.advance(count);
            self.written += wide(count);
        }
    }

    /// The origin's TCP has all but so many of the bytes written, a FIN counted where one was
    /// sent: how far that is in the stored stream, if it is anywhere.
    pub fn acknowledged(&self, unacknowledged: u64, has_sent_fin: bool) -> Option<Offset> {
        let sent = self.written + u64::from(has_sent_fin);
        let arrived = sent.saturating_sub(unacknowledged);
        self.unreleased
            .iter()
            .take_while(|stretch| stretch.written <= arrived)
            .filter_map(|stretch| stretch.acknowledged(arrived))
            .last()
    }

    /// Everything of the stored stream before `offset` is recorded, come what may: everything of
    /// the delivering flow before the place that is given back is released. Its FIN is, once the
    /// origin has acknowledged ours and nothing is left. If there is such a place, the next step may
    /// be another one.
    pub fn recorded(&mut self, offset: Offset, has_fin_arrived: bool) -> Option<Offset> {
        let mut released = None;
        while let Some(first) = self.unreleased.front()
            && first.end <= offset
        {
            released = Some(first.flow_end);
            self.unrecorded -= first.bytes;
            self.unreleased.pop_front();
        }
        if has_fin_arrived && self.unreleased.is_empty() && self.current.is_none() {
            released = Some(Offset(self.taken + 1));
        }
        released
    }
}

impl Stretch {
    /// How far in the stored stream it is to have `arrived` bytes of what was written.
    fn acknowledged(&self, arrived: u64) -> Option<Offset> {
        let text_end = Offset(self.end.0.saturating_sub(u64::from(self.has_fin)));
        let of_this = arrived - self.written;
        if of_this > self.bytes && self.has_fin {
            return Some(self.end);
        }
        if of_this >= self.bytes {
            return (self.bytes > 0).then_some(text_end);
        }
        // Less than all: what was left out at the beginning had been acknowledged before.
        (of_this > 0).then(|| Offset(text_end.0.saturating_sub(self.bytes - of_this)))
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// All deliveries under way.
#[derive(Debug, Default)]
pub struct Deliveries {
    running: BTreeMap<(SessionId, FlowId), Delivery>,
    /// What they deliver: nothing by two at once.
    streams: BTreeSet<StoredFlow>,
}

impl Deliveries {
    /// A client wants to deliver; false while another flow delivers the same stream.
    pub fn begin(&mut self, session: SessionId, client: ClientKey, deliver: Deliver) -> bool {
        let of = StoredFlow {
            client,
            session: deliver.session,
            flow: deliver.origin_flow,
        };
        let is_new = self.streams.insert(of);
        if is_new {
            let key = (session, deliver.flow);
            self.running.insert(key, Delivery::new(of, deliver));
        }
        is_new
    }

    /// One of them.
    pub fn get_mut(&mut self, session: SessionId, flow: FlowId) -> Option<&mut Delivery> {
        self.running.get_mut(&(session, flow))
    }

    /// The flow is over.
    pub fn end(&mut self, session: SessionId, flow: FlowId) -> Option<Delivery> {
        let delivery = self.running.remove(&(session, flow))?;
        self.streams.remove(&delivery.of);
        Some(delivery)
    }

    /// A session has ended, and all its deliveries with it.
    pub fn end_session(&mut self, session: SessionId) {
        let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
        let flows = self.running.range(range).map(|((_, flow), _)| *flow);
        for flow in flows.collect::<Vec<_>>() {
            self.end(session, flow);
        }
    }

    /// The flows that deliver.
    pub fn running(&self) -> impl Iterator<Item = (SessionId, FlowId, StoredFlow)> {
        let running = self.running.iter();
        running.map(|((session, flow), delivery)| (*session, *flow, delivery.of))
    }

    /// None is left.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}
