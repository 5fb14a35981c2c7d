//! What the owner of the local sockets orders (PROTOCOL.md §5, §8).

use super::{Event, OpenRefused, Role, Session};
use crate::flow::{Flow, Purpose, Stage};
use crate::framer::{Framer, longest_message};
use crate::id::{FlowId, Offset};
use crate::time::Instant;
use crate::wire::frame::{Control, FlowCode, HandOff, OnExpiry, Open, OpenError, Protocol};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;

/// Where the owner wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is carried.
    pub protocol: Protocol,
    /// The application's address.
    pub source: SocketAddr,
    /// The origin's.
    pub destination: SocketAddr,
    /// How long an outage it shall outlive.
    pub grace: Duration,
    /// What becomes of its bytes after that.
    pub on_expiry: OnExpiry,
    /// Bytes are taken from the local socket at once, before the origin has answered.
    pub accept_early: bool,
}

impl Session {
    /// Client: asks for an origin.
    ///
    /// # Errors
    ///
    /// At the smaller of both ends' `max_flows`, after the session has ended, and while a flow
    /// that may be stored finds no room for a whole message.
    pub fn open_flow(&mut self, target: &Target, now: Instant) -> Result<FlowId, OpenRefused> {
        self.open(target, None, now)
    }

    pub(super) fn open(
        &mut self,
        target: &Target,
        hand_off: Option<Box<HandOff>>,
        now: Instant,
    ) -> Result<FlowId, OpenRefused> {
        let on_expiry = self.possible(target.on_expiry);
        let mut flow = self.next_flow(target.grace, now)?;
        let id = flow.id;
        flow.mapping = Self::mapping_for(target.protocol, id);
        if flow.mapping.is_some() && !self.has_datagrams() {
            return Err(OpenRefused::NotAgreed);
        }
        flow.is_early = target.accept_early;
        let messages = hand_off.as_ref();
        let messages = messages.map(|hand_off| Framer::of_hand_off(hand_off, Offset(0)));
        flow.rx.release_what_drains(messages);
        if let OnExpiry::Store(framing) = on_expiry {
            flow.purpose = Purpose::Stored(framing);
            flow.intake_reserve = longest_message(framing) + 2;
            flow.tx.keep_messages(Some(Framer::new(framing)));
            let (share, bytes) = (&mut flow.intake_share, flow.intake_reserve);
            if !self.intake.reserve(share, bytes) {
                return Err(OpenRefused::NoRoom);
            }
        }
        let limit = self.begin_flow(flow);
        self.lane.say(Control::Open(Open {
            flow: id,
            protocol: target.protocol,
            source: target.source,
            destination: target.destination,
            limit,
            grace: target.grace,
            on_expiry,
            hand_off,
        }));
        if target.accept_early {
            self.first_intake(id);
        }
        Ok(id)
    }

    /// Client: a flow under the next id, if there may be one more.
    pub(super) fn next_flow(&self, grace: Duration, now: Instant) -> Result<Flow, OpenRefused> {
        if self.ended.is_some() {
            return Err(OpenRefused::Ended);
        }
        let most = self.most_flows();
        if u64::try_from(self.flows.len()).is_ok_and(|n| n >= most) {
            return Err(OpenRefused::TooManyFlows);
        }
        Ok(Flow::new(FlowId(self.last_flow.0 + 1), grace, now))
    }

    /// Client: the flow that was made last begins; its first credit.
    pub(super) fn begin_flow(&mut self, mut flow: Flow) -> Offset {
        self.last_flow = flow.id;
        let limit = self.first_credit(&mut flow);
        self.add_flow(flow);
        limit
    }

    /// Keeps a flow that has just begun. In an outage it has all of its grace before it (rule 11).
    pub(super) fn add_flow(&mut self, mut flow: Flow) {
        if let Some(since) = self.detached_since {
            let at = flow.expires_at(since) + self.extra();
            flow.expiry = Some(at);
            self.expiries.insert((at, flow.id));
        }
        self.live_flows += 1;
        self.mappings += usize::from(flow.mapping.is_some());
        self.flows.insert(flow.id, flow);
    }

    /// Server: C is connected.
    pub fn accept_flow(&mut self, id: FlowId, now: Instant) {
        let Some(mut flow) = self.flows.remove(&id) else {
            return;
        };
        if flow.stage == Stage::Open || flow.detached_socket || self.role != Role::Server {
            self.flows.insert(id, flow);
            return;
        }
        flow.stage = Stage::Open;
        flow.progress_at = now;
        let limit = self.first_credit(&mut flow);
        let grace = flow.grace;
        self.flows.insert(id, flow);
        self.lane.say(Control::OpenOk {
            flow: id,
            limit,
            grace,
        });
        self.first_intake(id);
    }

    /// Server: C could not be had; the flow is forgotten.
    pub fn refuse_flow(&mut self, id: FlowId, error: OpenError, now: Instant) {
        let Some(flow) = self.flows.get(&id) else {
            return;
        };
        if flow.stage == Stage::Opening && !flow.done_sent {
            self.lane.say(Control::OpenErr { flow: id, error });
            self.forget(id, now);
        }
    }

    /// Hands bytes of the local socket over; the caller stays within [`intake`](Self::intake).
    pub fn write(&mut self, id: FlowId, bytes: Bytes, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if bytes.is_empty() || flow.send_done || flow.tx.has_fin() || flow.reset_sent.is_some() {
            return;
        }
        self.traffic.taken += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        flow.tx.push(bytes);
        debug_assert!(
            flow.tx.end() <= flow.intake_limit,
            "the owner wrote beyond its intake"
        );
        flow.progress_at = flow.progress_at.max(now);
        self.schedule(id);
        self.extend_intake(id);
    }

    /// The local socket's peer has sent FIN behind all that was written.
    pub fn finish(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.send_done || flow.reset_sent.is_some() {
            return;
        }
        flow.tx.finish();
        self.schedule(id);
        self.extend_intake(id);
        self.settle(id, now);
    }

    /// The local socket was reset by its peer, or failed, behind all that was written: the far
    /// socket gets it all and is reset then. The local socket is gone.
    pub fn reset(&mut self, id: FlowId, code: FlowCode, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.stage == Stage::Opening {
            self.abort(id, code, now);
            return;
        }
        flow.detached_socket = true;
        let finished = flow.send_done && flow.receive_done;
        if !finished && flow.reset_sent.is_none() && flow.reset_received.is_none() {
            flow.tx.withdraw_unsent_fin();
            let end = flow.tx.send_end();
            flow.reset_sent = Some(end);
            self.lane.say(Control::Reset {
                flow: id,
                end,
                code,
            });
        }
        self.end_receiving(id, now);
        self.extend_intake(id);
        self.settle(id, now);
    }

    /// The local socket was reset by its peer, and has bytes that came before: they may be taken
    /// as far as the pool goes, so that the reset behind them is not held by a reader far away.
    pub fn fail(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.is_failing
        {
            flow.is_failing = true;
            self.extend_intake(id);
        }
    }

    /// Server: the local socket has failed, or is given up after
    /// [`Event::FlowAborted`], and still had so many of the bytes that
    /// were released: its peer never acknowledged them. A FIN counts as one.
    pub fn strand(&mut self, id: FlowId, bytes: u64, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.stranded = bytes;
            flow.awaits_stranded = false;
            self.settle(id, now);
        }
    }

    /// Aborts a flow: the far socket is reset at once; an OPEN not yet answered is cancelled, or
    /// never sent.
    pub fn abort(&mut self, id: FlowId, code: FlowCode, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.stage == Stage::Opening && self.lane.unsay_open(id) {
            // The peer never heard of it.
            self.lost += flow.at_stake();
            flow.abandon_sending();
            let lost = flow.lost;
            self.forget(id, now);
            self.events.push_back(Event::FlowForgotten {
                flow: id,
                lost,
                dropped: 0,
            });
            return;
        }
        flow.detached_socket = true;
        if !flow.done_sent {
            self.lane.say(Control::Stop { flow: id, code });
        }
        self.drop_both(id);
        self.settle(id, now);
    }

    /// So many bytes of `readable` were taken by the local socket. Where the session is told what
    /// is released, that comes by [`settle_to`](Self::settle_to) later.
    pub fn release(&mut self, id: FlowId, count: usize, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let before = flow.rx.slices();
        let taken = flow.rx.release(count);
        self.slices = self.slices - before + flow.rx.slices();
        if taken == 0 {
            return;
        }
        self.traffic.released += taken;
        flow.progress_at = now;
        if self.role == Role::Server {
            flow.rx.drain(taken);
        }
        self.owe_ack(id);
        self.extend_credit(id);
        if self
            .flows
            .get(&id)
            .is_some_and(|flow| flow.rx.queue().next().is_none())
        {
            self.tell_end(id);
        }
    }

    /// Client: so many released bytes have left the ring of connection A. Credit counts from here,
    /// so that what lies in rings is within the buffer too.
    pub fn drained(&mut self, id: FlowId, count: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let before = flow.rx.released();
        flow.rx.drain(count);
        flow.progress_at = now;
        if flow.rx.released() > before {
            self.owe_ack(id);
        }
        self.extend_credit(id);
        self.feed_starved();
    }

    /// While [`Delivery::Reset`](super::Delivery::Reset) waits for the local socket to send everything: its queue shrank.
    pub fn drain_progress(&mut self, id: FlowId, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.progress_at = now;
        }
    }

    /// What [`delivery`](Self::delivery) named was carried out on the local socket.
    pub fn end_delivered(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        match flow.delivery() {
            super::Delivery::Fin => {
                flow.rx.release_fin();
                flow.progress_at = now;
                let is_reset = flow.reset_received.is_some();
                let waits = flow.rx.is_unreleased();
                self.owe_ack(id);
                if is_reset {
                    self.tell_end(id);
                } else if !waits {
                    self.end_receiving(id, now);
                }
            }
            super::Delivery::Reset => {
                flow.detached_socket = true;
                flow.reset_due = false;
                let taken = flow.rx.taken();
                flow.rx.settle_to(taken);
                self.end_receiving(id, now);
            }
            super::Delivery::Open | super::Delivery::Ended => {}
        }
    }

    fn tell_end(&mut self, id: FlowId) {
        let delivery = self.delivery(id);
        if matches!(delivery, super::Delivery::Fin | super::Delivery::Reset) {
            self.tell_readable(id);
        }
    }

    /// How many bytes may be taken from the local socket and written. They are reserved for this
    /// flow, so a window of that size may be promised; it is never taken back.
    pub fn intake(&self, id: FlowId) -> u64 {
        self.flows.get(&id).map_or(0, |flow| {
            if flow.send_done || flow.tx.has_fin() || !flow.may_take() || !flow.prologue.is_empty()
            {
                return 0;
            }
            flow.intake_limit.since(flow.tx.end())
        })
    }

    /// The place up to which bytes may be taken from the local socket, counted from its first.
    pub fn intake_limit(&self, id: FlowId) -> Offset {
        self.flows
            .get(&id)
            .map_or(Offset(0), |flow| flow.intake_limit)
    }
}
