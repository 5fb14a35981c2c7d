//! Delivery after grace: stored streams to their origins, and the journal of how far they came.

use super::Server;
use super::flows::{Fate, OriginSlot, READ_TURN_BYTES, code_of};
use super::origin::ReadBuffer;
use super::recorder::Recorder;
use std::net::{Ipv4Addr, SocketAddr};
use std::task::{Context, Poll};
use tund_daemon::clock;
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::journal::Journal;
use tund_daemon::seal::{Bound, Opener};
use tund_server_core::delivery::{Binding, Deliveries, Delivery, Progress, Step, StoredFlow, Turn};
use tund_session::wire::frame::{
    Deliver, FlowCode, OnExpiry, Open, OpenError, Protocol, capability,
};
use tund_session::{Delivery as End, FlowId, Instant, LinkId, Offset, Session, SessionId};

/// All that delivering needs beside the flows themselves.
pub(super) struct Deliverer {
    pub(super) running: Deliveries,
    /// None where nothing can be written down.
    recorder: Option<Recorder>,
    opener: Opener,
    /// Of the loop; all deliveries share it.
    turn: Turn,
}

impl Deliverer {
    pub(super) fn new(journal: Option<Journal>, key: &PrivateKey) -> Self {
        Self {
            running: Deliveries::default(),
            recorder: journal.map(Recorder::new),
            opener: Opener::new(key),
            turn: Turn::default(),
        }
    }

    /// What clients are offered: without a journal nothing could be delivered exactly once. What is
    /// handed on is in memory only.
    pub(super) fn capabilities(&self) -> u64 {
        let delivery = self.recorder.as_ref().map_or(0, |_| capability::DELIVERY);
        delivery | capability::HAND_OFF
    }

    /// A new turn of the loop.
    pub(super) fn next_turn(&mut self) {
        self.turn = Turn::default();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.recorder.as_ref().and_then(Recorder::poll_timeout)
    }

    /// Progress is on disk that nobody adds to.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorder.as_ref().is_none_or(Recorder::is_idle)
    }
}

/// DELIVER connects like OPEN.
fn as_open(deliver: &Deliver) -> Open {
    Open {
        flow: deliver.flow,
        protocol: Protocol::Tcp,
        source: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        destination: deliver.destination,
        limit: deliver.limit,
        grace: deliver.grace,
        on_expiry: OnExpiry::Reset,
        hand_off: None,
    }
}

impl Server {
    /// A client wants to deliver.
    pub(super) fn begin_delivery(
        &mut self,
        session: SessionId,
        deliver: Deliver,
        link: LinkId,
        now: Instant,
    ) {
        let flow = deliver.flow;
        let recorder = self.deliverer.recorder.as_ref();
        let has_failed = recorder.is_none_or(Recorder::has_failed);
        let key = self.registry.key(session).filter(|_| !has_failed);
        if key.is_some_and(|key| self.deliverer.running.begin(session, key, deliver)) {
            self.ask_origin(session, as_open(&deliver), link, now);
        } else {
            self.registry.with(session, now, |s| {
                s.refuse_flow(flow, OpenError::Exhausted, now);
            });
        }
    }

    /// Nothing more of a flow that may be stored goes to its origin by its own connection.
    pub(super) fn note_final(&mut self, of: StoredFlow, (taken, released): (Offset, Offset)) {
        let slot = self.origins.get(&(of.session, of.flow));
        let unacknowledged = slot.and_then(|slot| slot.origin.unsent().ok());
        let known = unacknowledged.map_or(released, |count| {
            Offset(taken.0.saturating_sub(wide(count))).max(released)
        });
        self.note_progress(of, known);
    }

    fn note_progress(&mut self, of: StoredFlow, offset: Offset) {
        let at = clock::time_of_day().as_secs();
        let progress = Progress { of, offset, at };
        if self.registry.delivered_mut().note(&progress)
            && let Some(recorder) = &mut self.deliverer.recorder
        {
            recorder.note(progress);
        }
    }

    /// What a socket has brought so far of a flow that may be stored; true if more is to come.
    pub(super) fn settle_stored(&mut self, session: SessionId, flow: FlowId, now: Instant) -> bool {
        let Some(slot) = self.origins.get(&(session, flow)) else {
            return false;
        };
        let Ok(unacknowledged) = slot.origin.unsent() else {
            return false;
        };
        let (mut news, mut waits) = (None, false);
        self.registry.with(session, now, |s| {
            let offset = Offset(s.taken(flow).0.saturating_sub(wide(unacknowledged)));
            s.settle_to(flow, offset, now);
            waits = s.awaits_release(flow);
            // The client cannot be told: should this daemon die now, the journal knows.
            news = (!s.is_attached()).then_some(offset);
        });
        if let (Some(offset), Some(client)) = (news, self.registry.key(session)) {
            let of = StoredFlow {
                client,
                session,
                flow,
            };
            self.note_progress(of, offset);
        }
        waits
    }

    /// From here on the client cannot be told how far its stored flows come.
    pub(super) fn settle_all_stored(&mut self, session: SessionId, now: Instant) {
        let range = (session, FlowId(0))..=(session, FlowId(u64::MAX));
        let flows = self.origins.range(range).map(|((_, flow), _)| *flow);
        for flow in flows.collect::<Vec<_>>() {
            let known = self.registry.session(session);
            if known.is_some_and(|known| known.is_stored(flow)) {
                self.settle_stored(session, flow, now);
            }
        }
    }

    /// What a socket has brought so far of a delivery is noted, and what is recorded is released;
    /// true if more is to come.
    pub(super) fn settle_delivery(
        &mut self,
        session: SessionId,
        flow: FlowId,
        now: Instant,
    ) -> bool {
        let key = (session, flow);
        let (Some(slot), Some(delivery)) = (
            self.origins.get(&key),
            self.deliverer.running.get_mut(session, flow),
        ) else {
            return false;
        };
        let Ok(unacknowledged) = slot.origin.unsent() else {
            return false;
        };
        let (of, has_sent_fin) = (delivery.of(), slot.origin.is_finished());
        if let Some(offset) = delivery.acknowledged(wide(unacknowledged), has_sent_fin) {
            self.note_progress(of, offset);
        }
        let recorder = self.deliverer.recorder.as_ref();
        if recorder.is_some_and(|recorder| recorder.has_written(&of)) {
            let offset = self.registry.delivered().offset(&of);
            self.release_recorded(session, flow, offset, now);
        }
        unacknowledged > 0
    }

    /// Everything of a stored stream before `offset` is on disk.
    fn release_recorded(&mut self, session: SessionId, flow: FlowId, offset: Offset, now: Instant) {
        let Some(slot) = self.origins.get(&(session, flow)) else {
            return;
        };
        let has_fin_arrived =
            slot.origin.is_finished() && slot.origin.unsent().is_ok_and(|n| n == 0);
        let delivery = self.deliverer.running.get_mut(session, flow);
        let Some(released) = delivery.and_then(|d| d.recorded(offset, has_fin_arrived)) else {
            return;
        };
        self.registry.with(session, now, |s| {
            s.settle_to(flow, released, now);
            if has_fin_arrived && s.taken(flow) <= released {
                // The origin has it all; whether it ever answers is its own business.
                s.finish(flow, now);
            }
        });
        if let Some(slot) = self.origins.get(&(session, flow)) {
            // A record may have waited for that.
            slot.waker.wake_by_ref();
            if has_fin_arrived {
                slot.origin.let_go();
            }
        }
    }

    /// Takes up what has been written to the journal, and writes the next batch.
    pub(super) fn record_deliveries(&mut self, cx: &mut Context<'_>, now: Instant) {
        loop {
            let Some(recorder) = &mut self.deliverer.recorder else {
                return;
            };
            let written = recorder.poll_written(cx, self.registry.delivered(), now);
            let has_failed = recorder.has_failed();
            let Poll::Ready(written) = written else {
                if has_failed {
                    self.stop_deliveries(now);
                }
                return;
            };
            let running: Vec<_> = self.deliverer.running.running().collect();
            for (session, flow, of) in running {
                if let Ok(at) = written.binary_search_by_key(&of, |progress| progress.of)
                    && let Some(progress) = written.get(at)
                {
                    self.release_recorded(session, flow, progress.offset, now);
                }
            }
        }
    }

    /// Nothing can be recorded: a delivery would stand still and hold new connections back, as no
    /// other would begin. Clients try again later.
    fn stop_deliveries(&mut self, now: Instant) {
        for (session, flow, _) in self.deliverer.running.running().collect::<Vec<_>>() {
            self.opens.forget(session, flow);
            self.end_delivery(session, flow);
            self.reset_origin(session, flow);
            self.registry.with(session, now, |s| {
                // The first where the origin has not answered, else the second.
                s.refuse_flow(flow, OpenError::Exhausted, now);
                s.abort(flow, FlowCode::SocketError, now);
            });
        }
    }

    /// The flow of a delivery is over, or its socket.
    pub(super) fn end_delivery(&mut self, session: SessionId, flow: FlowId) {
        let Some(delivery) = self.deliverer.running.end(session, flow) else {
            return;
        };
        let slot = self.origins.get(&(session, flow));
        if let Some(slot) = slot
            && let Ok(unacknowledged) = slot.origin.unsent()
            && let Some(offset) =
                delivery.acknowledged(wide(unacknowledged), slot.origin.is_finished())
        {
            self.note_progress(delivery.of(), offset);
        }
    }

    /// Moves what can be moved of a delivery.
    pub(super) fn deliver(&mut self, session: SessionId, flow: FlowId, now: Instant) -> Fate {
        let (Some(slot), Some(delivery)) = (
            self.origins.get_mut(&(session, flow)),
            self.deliverer.running.get_mut(session, flow),
        ) else {
            return Fate::Lives;
        };
        let delivered = self.registry.delivered().offset(&delivery.of());
        let (opener, turn) = (&self.deliverer.opener, &mut self.deliverer.turn);
        let buffer = &mut self.read_buffer;
        let mut fate = Fate::Lives;
        self.registry.with(session, now, |s| {
            fate = slot.write_records(s, delivery, (delivered, opener, turn), now);
            if matches!(fate, Fate::Lives) {
                fate = slot.discard_in(s, flow, buffer, now);
            }
        });
        fate
    }
}

fn unseal(opener: &Opener, binding: &Binding, sealed: &[u8]) -> Option<Vec<u8>> {
    let bound = Bound {
        client: PublicKey::from_bytes(binding.of.client.0).ok()?,
        session: binding.of.session,
        flow: binding.of.flow,
        user: binding.user,
        destination: binding.destination,
        framing: binding.framing.number(),
        start: binding.record.start.0,
        end: binding.record.end.0,
        flags: binding.record.flags(),
    };
    opener.open(&bound, sealed).ok()
}

impl OriginSlot {
    /// From records to the origin.
    fn write_records(
        &mut self,
        session: &mut Session,
        delivery: &mut Delivery,
        (delivered, opener, turn): (Offset, &Opener, &mut Turn),
        now: Instant,
    ) -> Fate {
        let mut cx = Context::from_waker(&self.waker);
        let flow = delivery.deliver().flow;
        loop {
            let open = |binding: &Binding, sealed: &[u8]| unseal(opener, binding, sealed);
            let arrived = (session.readable(flow), session.has_all(flow));
            match delivery.step(arrived, delivered, turn, open) {
                Step::Wait => return self.end_records(session, flow, now),
                Step::Yield => {
                    self.waker.wake_by_ref();
                    return Fate::Lives;
                }
                Step::Take(count) => session.release(flow, count, now),
                Step::Broken(what) => {
                    tracing::warn!(what, "stored messages cannot be delivered");
                    session.abort(flow, FlowCode::Unsealable, now);
                    return Fate::Gone;
                }
                Step::Write => match self.origin.poll_write(&mut cx, delivery.text().into_iter()) {
                    Poll::Pending => return Fate::Lives,
                    Poll::Ready(Ok(count)) => delivery.wrote(count),
                    Poll::Ready(Err(error)) => {
                        session.reset(flow, code_of(&error), now);
                        return Fate::Gone;
                    }
                },
            }
        }
    }

    /// What comes behind the last record.
    fn end_records(&mut self, session: &mut Session, flow: FlowId, now: Instant) -> Fate {
        match session.delivery(flow) {
            End::Open | End::Ended => Fate::Lives,
            End::Fin => {
                if let Err(error) = self.origin.finish() {
                    if !self.is_read_over {
                        // It shows at the next read, too.
                        return Fate::Lives;
                    }
                    session.reset(flow, code_of(&error), now);
                    return Fate::Gone;
                }
                session.end_delivered(flow, now);
                Fate::Lives
            }
            End::Reset => {
                session.end_delivered(flow, now);
                Fate::Gone
            }
        }
    }

    /// What the origin answers has no reader.
    fn discard_in(
        &mut self,
        session: &mut Session,
        flow: FlowId,
        buffer: &mut ReadBuffer,
        now: Instant,
    ) -> Fate {
        let mut cx = Context::from_waker(&self.waker);
        let mut left = usize::try_from(READ_TURN_BYTES).unwrap_or(usize::MAX);
        while !self.is_read_over {
            if left == 0 {
                self.waker.wake_by_ref();
                return Fate::Lives;
            }
            match self.origin.poll_read(&mut cx, buffer, left) {
                Poll::Pending => return Fate::Lives,
                Poll::Ready(Ok(bytes)) => {
                    self.is_read_over = bytes.is_empty();
                    left = left.saturating_sub(bytes.len());
                }
                Poll::Ready(Err(error)) => {
                    session.reset(flow, code_of(&error), now);
                    return Fate::Gone;
                }
            }
        }
        Fate::Lives
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
