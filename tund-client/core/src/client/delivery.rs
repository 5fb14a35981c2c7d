//! Stored files on their way to their origins, and connections that wait behind them.

use super::Client;
use crate::flow_table::ClientFlow;
use crate::netstack::ConnectionId;
use crate::spool::{FileId, FileRow, Found, RecordRead};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::FlowCode;
use tund_session::{Delivery, Event, FlowId, Instant, Session};

/// Connections that are accepted while they wait behind a drain. Chosen: their bytes are in rings,
/// beside the buffer.
const ACCEPTED_MAX: usize = 64;
/// How long they wait at least, whatever the grace. Chosen: with no grace at all they would be
/// accepted only to be reset.
const WAIT_LEAST: Duration = Duration::from_secs(1);
/// Bytes that each of them may send meanwhile: its ring.
const ACCEPTED_BYTES: u64 = 256 * 1024;

/// Connections that wait until what is stored for their destination is delivered: held SYNs, at
/// most as many as the netstack holds, and a few that were accepted.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// In the order in which they asked, each with how long it waits if it was accepted.
    queues: BTreeMap<SocketAddr, VecDeque<(ClientFlow, Instant)>>,
    places: FxHashMap<ConnectionId, SocketAddr>,
    accepted: usize,
    /// No accepted connection has waited for too long before that.
    next_expiry: Option<Instant>,
}

impl Behind {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn add(&mut self, waiting: ClientFlow, until: Instant) {
        if waiting.is_open {
            self.accepted += 1;
            self.next_expiry = Some(self.next_expiry.map_or(until, |next| next.min(until)));
        }
        self.places.insert(waiting.connection, waiting.destination);
        let queue = self.queues.entry(waiting.destination).or_default();
        queue.push_back((waiting, until));
    }

    pub(super) fn find(&mut self, connection: ConnectionId) -> Option<&mut ClientFlow> {
        let destination = self.places.get(&connection)?;
        let mut queue = self.queues.get_mut(destination)?.iter_mut();
        let found = queue.find(|(waiting, _)| waiting.connection == connection);
        found.map(|(waiting, _)| waiting)
    }

    pub(super) fn remove(&mut self, connection: ConnectionId) -> Option<ClientFlow> {
        let destination = self.places.remove(&connection)?;
        let queue = self.queues.get_mut(&destination)?;
        let place = queue
            .iter()
            .position(|(waiting, _)| waiting.connection == connection)?;
        let (waiting, _) = queue.remove(place)?;
        if queue.is_empty() {
            self.queues.remove(&destination);
        }
        self.accepted -= usize::from(waiting.is_open);
        Some(waiting)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = ClientFlow> + use<> {
        self.places.clear();
        self.accepted = 0;
        self.next_expiry = None;
        let queues = std::mem::take(&mut self.queues).into_values();
        queues.flatten().map(|(waiting, _)| waiting)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next_expiry
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let queued: usize = self.queues.values().map(VecDeque::len).sum();
        queued.max(self.places.len())
    }
}

impl Client {
    /// What the spool's directory held when the daemon started.
    pub fn load_spool(&mut self, found: &[Found], now: Instant) {
        self.spool.load(found, now);
    }

    /// The answer to [`SpoolOrder::Read`](crate::spool::SpoolOrder::Read).
    pub fn handle_record(&mut self, file: FileId, record: u32, read: RecordRead, now: Instant) {
        self.spool.handle_record((file, record), read);
        let failed = self.spool.fail_unread(now);
        if let (Some(flow), Some(session)) = (failed, &mut self.session) {
            session.abort(flow, FlowCode::Cancelled, now);
        }
        if let (Some(flow), Some(session)) = (self.spool.flow_of(file), &mut self.session) {
            self.spool.pump(flow, session, now);
        }
    }

    /// Stored files in the order of their names.
    pub fn spool_rows(&self, after: Option<FileId>, most: usize, now: Instant) -> Vec<FileRow> {
        self.spool.rows(after, most, now)
    }

    /// Names of all files that can be tried again or dropped.
    pub fn spool_files(&self) -> Vec<FileId> {
        self.spool.kept()
    }

    /// Files that wait, files that are kept for a person, and the bytes of all.
    pub fn spool_totals(&self) -> (usize, usize, u64) {
        self.spool.totals()
    }

    /// A person wants a file tried again now; false if there is none.
    pub fn retry_file(&mut self, file: FileId, now: Instant) -> bool {
        self.is_parted = false;
        self.is_undeliverable = false;
        self.spool.retry(file, now)
    }

    /// A person drops a file; false if there is none.
    pub fn drop_file(&mut self, file: FileId, now: Instant) -> bool {
        let Some(flow) = self.spool.drop_file(file, now) else {
            return false;
        };
        if let (Some(flow), Some(session)) = (flow, &mut self.session) {
            session.abort(flow, FlowCode::Asked, now);
        }
        true
    }

    /// Something waits that a session is worth being made for.
    pub(super) fn wants_delivery(&self) -> bool {
        self.spool.is_wanting() && !self.is_parted && !self.is_undeliverable
    }

    /// A session is attached: does its server deliver?
    pub(super) fn note_delivery(&mut self) {
        let delivers = self.session.as_ref().is_some_and(Session::has_delivery);
        self.is_undeliverable = !delivers;
        if self.is_undeliverable && self.spool.is_wanting() {
            self.events.push_back(super::ClientEvent::Undeliverable);
        }
    }

    /// Begins what can be delivered, and lets go of who waited behind what was; true if there was
    /// anybody.
    pub(super) fn deliver(&mut self, now: Instant) -> bool {
        let is_possible = |session: &&mut Session| session.is_attached() && session.has_delivery();
        if !self.is_parted
            && let Some(session) = self.session.as_mut().filter(is_possible)
        {
            self.spool.begin(session, &self.config.policies, now);
        }
        let free = self.behind.queues.keys().copied();
        let free: Vec<_> = free.filter(|to| !self.is_draining(*to)).collect();
        let is_any = !free.is_empty();
        for destination in free {
            let queue = self.behind.queues.remove(&destination).unwrap_or_default();
            for (waiting, _) in queue {
                self.behind.places.remove(&waiting.connection);
                self.behind.accepted -= usize::from(waiting.is_open);
                self.ask(waiting, now);
            }
        }
        is_any
    }

    /// When a delivery has failed that does not move.
    pub(super) fn delivery_stalls_at(&self) -> Option<Instant> {
        let is_attached = self.session.as_ref().is_some_and(Session::is_attached);
        self.spool.stalls_at().filter(|_| is_attached)
    }

    /// Gives up deliveries that do not move: an origin that takes nothing, or a server that cannot
    /// record what it took, holds nobody back for ever.
    pub(super) fn fail_stalled(&mut self, now: Instant) {
        while let Some(session) = self.session.as_mut().filter(|s| s.is_attached())
            && let Some(flow) = self.spool.fail_stalled(now)
        {
            session.abort(flow, FlowCode::Cancelled, now);
        }
    }

    /// New connections to this destination wait: older bytes for it come first.
    pub(super) fn is_draining(&self, destination: SocketAddr) -> bool {
        self.spool.is_draining(destination) && !self.is_undeliverable
    }

    /// A connection waits behind a drain. Where its policy says so, and there is no link, it is
    /// accepted meanwhile.
    pub(super) fn wait_behind(&mut self, mut waiting: ClientFlow, is_early: bool, now: Instant) {
        if is_early && !waiting.is_open && self.behind.accepted < ACCEPTED_MAX {
            self.netstack.set_intake(waiting.connection, ACCEPTED_BYTES);
            waiting.is_open = self.netstack.accept(waiting.connection).is_ok();
        }
        self.find_user(&waiting);
        let grace = self.config.policies.rules(waiting.destination).grace;
        self.behind.add(waiting, now + grace.max(WAIT_LEAST));
    }

    /// Connections that were accepted and have waited for their grace.
    pub(super) fn expire_behind(&mut self, now: Instant) {
        if self.behind.next_expiry.is_none_or(|at| at > now) {
            return;
        }
        let accepted = self.behind.queues.values().flatten();
        let accepted = accepted.filter(|(waiting, _)| waiting.is_open);
        let all: Vec<_> = accepted
            .map(|(waiting, until)| (waiting.connection, *until))
            .collect();
        let later = all.iter().map(|(_, at)| *at);
        self.behind.next_expiry = later.filter(|at| *at > now).min();
        for (connection, at) in all {
            if at <= now
                && let Some(waiting) = self.behind.remove(connection)
            {
                self.keep_unasked(&waiting, now);
            }
        }
    }

    /// What the session tells of a delivery; gives back what is of no delivery.
    pub(super) fn on_delivery_event(&mut self, event: Event, now: Instant) -> Option<Event> {
        let flow = flow_of(&event).filter(|flow| self.spool.owns(*flow));
        let Some(flow) = flow else {
            return Some(event);
        };
        if let Event::FlowReleased { released, .. } = event {
            self.spool.on_released(flow, released.0, now);
        } else if let Event::FlowRefused { error, .. } = event {
            self.spool.on_refused(flow, error, now);
        } else if let Event::FlowAborted { code, .. } = event {
            self.spool.on_aborted(flow, code, now);
        } else if let Event::FlowForgotten { .. } = event {
            self.spool.on_forgotten(flow, now);
        } else if let Event::FlowReadable { .. } = event {
            self.discard(flow, now);
        } else if let Some(session) = &mut self.session {
            // The origin has answered, or there is room again.
            self.spool.pump(flow, session, now);
        }
        None
    }

    /// What the origin answers to stored messages has nobody to go to.
    fn discard(&mut self, flow: FlowId, now: Instant) {
        let Some(session) = &mut self.session else {
            return;
        };
        let waiting: usize = session.readable(flow).map(Bytes::len).sum();
        if waiting > 0 {
            session.release(flow, waiting, now);
            session.drained(flow, u64::try_from(waiting).unwrap_or(u64::MAX), now);
        }
        if matches!(session.delivery(flow), Delivery::Fin | Delivery::Reset) {
            session.end_delivered(flow, now);
        }
    }
}

/// The flow that an event is about.
const fn flow_of(event: &Event) -> Option<FlowId> {
    match event {
        Event::FlowAccepted { flow }
        | Event::FlowRefused { flow, .. }
        | Event::FlowExpired { flow, .. }
        | Event::FlowReleased { flow, .. }
        | Event::FlowFinal { flow, .. }
        | Event::FlowHeld { flow, .. }
        | Event::FlowReadable { flow }
        | Event::FlowWritable { flow }
        | Event::FlowAborted { flow, .. }
        | Event::FlowForgotten { flow, .. } => Some(*flow),
        Event::Attached { .. }
        | Event::Detached
        | Event::Reattached { .. }
        | Event::Confirmed
        | Event::ForgetHeld
        | Event::LinkDead { .. }
        | Event::WantProgress { .. }
        | Event::KeyInUse
        | Event::AttachRefused { .. }
        | Event::Ended { .. }
        | Event::FlowOpened { .. }
        | Event::DeliverOpened { .. } => None,
    }
}
