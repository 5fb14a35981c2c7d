//! One file on its way: records out of it into a flow, and what becomes of it.

use super::lane::{Outcome, STALLED_AFTER};
use super::{Dead, FileId, FileState, RecordRead, Spool, SpoolOrder};
use crate::policy::Policies;
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{FlowCode, OpenError};
use tund_session::{DeliverTarget, FlowId, Instant, Session};

/// Deliveries at once, each to another destination. Chosen: each may hold a record of 1 MiB.
const DELIVERIES_MAX: usize = 16;
/// When a delivery is asked for again for which the session had no room.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// When one is asked for again for which the server had no room, or whose stream is still on its
/// way there by another flow. Chosen: the other ends within a round trip or two.
const EXHAUSTED_FOR: Duration = Duration::from_secs(10);

/// A file on its way.
#[derive(Debug)]
pub(super) struct Delivery {
    file: FileId,
    destination: SocketAddr,
    /// The record that is read next.
    next: u32,
    /// How many there are, or how many are whole.
    records: u32,
    is_reading: bool,
    is_damaged: bool,
    /// The disk does not give a record away.
    has_failed: bool,
    is_finished: bool,
    /// What was read and the session has not taken.
    pending: Bytes,
    written: u64,
    /// When it began, or something of it was released; in an outage the clock stands still.
    moved_at: Instant,
    /// What became of it, while its flow still ends.
    outcome: Option<Outcome>,
}

impl Spool {
    /// Begins what may begin on a session that is attached and delivers.
    pub(crate) fn begin(&mut self, session: &mut Session, policies: &Policies, now: Instant) {
        while self.deliveries.len() < DELIVERIES_MAX
            && let Some((destination, id)) = self.next_turn()
        {
            let Some(head) = self.files.get(&id).map(|file| file.head) else {
                self.end_turn(destination, Outcome::Interrupted, now);
                continue;
            };
            let target = DeliverTarget {
                session: head.session,
                origin_flow: head.flow,
                user: head.user,
                destination,
                framing: head.framing,
                grace: policies.rules(destination).grace,
            };
            let Ok(flow) = session.deliver(&target, now) else {
                self.end_turn(destination, Outcome::Postponed(AGAIN_AFTER), now);
                continue;
            };
            self.set_state(id, FileState::Delivering);
            let delivery = Delivery {
                file: id,
                destination,
                next: 0,
                records: head.records,
                is_reading: false,
                is_damaged: false,
                has_failed: false,
                is_finished: false,
                pending: Bytes::new(),
                written: 0,
                moved_at: now,
                outcome: None,
            };
            self.deliveries.insert(flow, delivery);
        }
    }

    /// This flow is a delivery.
    pub(crate) fn owns(&self, flow: FlowId) -> bool {
        self.deliveries.contains_key(&flow)
    }

    /// Moves what there is into the flow, and has more read.
    pub(crate) fn pump(&mut self, flow: FlowId, session: &mut Session, now: Instant) {
        let Some(delivery) = self.deliveries.get_mut(&flow) else {
            return;
        };
        if delivery.outcome.is_some() {
            return;
        }
        let room = usize::try_from(session.intake(flow)).unwrap_or(usize::MAX);
        let some = delivery.pending.len().min(room);
        if some > 0 {
            delivery.written += u64::try_from(some).unwrap_or(0);
            session.write(flow, delivery.pending.split_to(some), now);
        }
        if !delivery.pending.is_empty() || delivery.is_reading {
            return;
        }
        if delivery.next < delivery.records {
            delivery.is_reading = true;
            self.orders.push_back(SpoolOrder::Read {
                file: delivery.file,
                record: delivery.next,
            });
        } else if !delivery.is_finished {
            delivery.is_finished = true;
            session.finish(flow, now);
        }
    }

    /// The driver has read a record, or could not.
    pub(crate) fn handle_record(&mut self, (file, record): (FileId, u32), read: RecordRead) {
        let mut reading = self.deliveries.values_mut();
        let Some(delivery) = reading.find(|d| d.file == file && d.is_reading && d.next == record)
        else {
            return;
        };
        delivery.is_reading = false;
        match read {
            RecordRead::Whole(bytes) => {
                delivery.pending = bytes;
                delivery.next += 1;
            }
            RecordRead::Damaged => {
                delivery.is_damaged = true;
                delivery.records = delivery.next;
            }
            RecordRead::Failed => delivery.has_failed = true,
        }
    }

    /// The flow of a file that is being read.
    pub(crate) fn flow_of(&self, file: FileId) -> Option<FlowId> {
        let found = self.deliveries.iter().find(|(_, d)| d.file == file);
        found.map(|(flow, _)| *flow)
    }

    /// More of a delivery is recorded at the server: with the last of it, the file goes.
    pub(crate) fn on_released(&mut self, flow: FlowId, released: u64, now: Instant) {
        let Some(delivery) = self.deliveries.get_mut(&flow) else {
            return;
        };
        delivery.moved_at = now;
        if delivery.is_finished && delivery.outcome.is_none() && released >= delivery.written {
            delivery.outcome = Some(Outcome::Done);
            let (file, is_damaged) = (delivery.file, delivery.is_damaged);
            if is_damaged {
                self.bury(file, Dead::Damaged);
            } else {
                self.remove(file);
            }
        }
    }

    /// The origin cannot be had.
    pub(crate) fn on_refused(&mut self, flow: FlowId, error: OpenError, now: Instant) {
        let outcome = match error {
            OpenError::Denied(_) => Outcome::Done,
            OpenError::TooManyFlows => Outcome::Postponed(AGAIN_AFTER),
            OpenError::Exhausted => Outcome::Postponed(EXHAUSTED_FOR),
            OpenError::Cancelled
            | OpenError::HostUnreachable
            | OpenError::NetworkUnreachable
            | OpenError::Other(_)
            | OpenError::Refused
            | OpenError::TimedOut => Outcome::Failed,
        };
        if outcome == Outcome::Done
            && let Some(delivery) = self.deliveries.get(&flow)
        {
            self.bury(delivery.file, Dead::Denied);
        }
        self.end_delivery(flow, outcome, now);
    }

    /// The flow was aborted by the server or by time.
    pub(crate) fn on_aborted(&mut self, flow: FlowId, code: FlowCode, now: Instant) {
        let Some(delivery) = self.deliveries.get(&flow) else {
            return;
        };
        let outcome = match code {
            FlowCode::Unsealable if delivery.outcome.is_none() => {
                self.bury(delivery.file, Dead::Unsealable);
                Outcome::Done
            }
            FlowCode::Expired => Outcome::Interrupted,
            FlowCode::Asked
            | FlowCode::Cancelled
            | FlowCode::Idle
            | FlowCode::PeerReset
            | FlowCode::SocketError
            | FlowCode::Unsealable => Outcome::Failed,
        };
        self.end_delivery(flow, outcome, now);
    }

    /// The flow has ended at both ends: if the file is not done with, the origin did not take it.
    pub(crate) fn on_forgotten(&mut self, flow: FlowId, now: Instant) {
        self.end_delivery(flow, Outcome::Failed, now);
    }

    /// There is a link again.
    pub(crate) fn resume(&mut self, now: Instant) {
        for delivery in self.deliveries.values_mut() {
            delivery.moved_at = now;
        }
    }

    /// While there is a link: when a delivery has failed that does not move.
    pub(crate) fn stalls_at(&self) -> Option<Instant> {
        let moved = self.deliveries.values().map(|delivery| delivery.moved_at);
        moved.min().map(|at| at + STALLED_AFTER)
    }

    /// A delivery whose file cannot be read at present has failed, and its flow is to be aborted.
    pub(crate) fn fail_unread(&mut self, now: Instant) -> Option<FlowId> {
        let mut all = self.deliveries.iter();
        let flow = *all.find(|(_, delivery)| delivery.has_failed)?.0;
        self.end_delivery(flow, Outcome::Failed, now);
        Some(flow)
    }

    /// While there is a link: a delivery that has not moved for too long has failed, and its flow is
    /// to be aborted.
    pub(crate) fn fail_stalled(&mut self, now: Instant) -> Option<FlowId> {
        let mut all = self.deliveries.iter();
        let (flow, _) = all.find(|(_, delivery)| delivery.moved_at + STALLED_AFTER <= now)?;
        let flow = *flow;
        self.end_delivery(flow, Outcome::Stalled, now);
        Some(flow)
    }

    fn end_delivery(&mut self, flow: FlowId, outcome: Outcome, now: Instant) {
        let Some(delivery) = self.deliveries.remove(&flow) else {
            return;
        };
        let is_left = self.files.get(&delivery.file).map(|file| file.state);
        if is_left == Some(FileState::Delivering) {
            self.wait_again(delivery.file, now);
        }
        self.end_turn(
            delivery.destination,
            delivery.outcome.unwrap_or(outcome),
            now,
        );
    }

    /// The session is over: what was on its way waits again.
    pub(crate) fn on_session_ended(&mut self, now: Instant) {
        while let Some((flow, _)) = self.deliveries.first_key_value() {
            self.end_delivery(*flow, Outcome::Interrupted, now);
        }
    }

    /// A person drops a file: the flow by which it was being delivered, to be aborted; none if it
    /// was not. Nothing if there is no such file.
    pub(crate) fn drop_file(&mut self, id: FileId, now: Instant) -> Option<Option<FlowId>> {
        let state = self.files.get(&id)?.state;
        if state == FileState::Storing {
            return None;
        }
        let flow = self.flow_of(id);
        self.remove(id);
        if let Some(flow) = flow {
            self.end_delivery(flow, Outcome::Interrupted, now);
        }
        Some(flow)
    }
}
