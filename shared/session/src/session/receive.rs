//! Frames that come in (PROTOCOL.md §3 to §5, §8).

use super::{Delivery, EndReason, Event, LinkDeath, Role, Session};
use crate::flow::{Flow, Purpose, Stage};
use crate::framer::{Framer, longest_message};
use crate::id::{FlowId, LinkId, Offset};
use crate::limits;
use crate::link::Phase;
use crate::time::Instant;
use crate::wire::frame::{
    Ack, CloseCode, Control, Data, FlowCode, Frame, OnExpiry, Open, OpenError,
};
use bytes::Bytes;
use std::time::Duration;

/// A frame at odds with what was said before: how.
pub(super) type Taken = Result<(), &'static str>;

impl Session {
    /// Bytes of a link, in any pieces. A violation ends this session, or, before the attach is
    /// complete, this link only.
    pub fn handle_bytes(&mut self, id: LinkId, mut bytes: Bytes, now: Instant) {
        while self.ended.is_none() {
            let Some(link) = self.links.get_mut(&id) else {
                return;
            };
            let phase = link.phase;
            let taken = match link.next_frame(&mut bytes) {
                Ok(None) => return,
                Ok(Some(frame)) => self.on_frame(id, phase, frame, now),
                Err(what) => Err(what),
            };
            let Err(what) = taken else { continue };
            if matches!(phase, Phase::Live | Phase::Unconfirmed) {
                self.end(
                    EndReason::Violation { what },
                    Some(CloseCode::Violation),
                    now,
                );
            } else {
                self.kill_link(id, LinkDeath::AttachFailed, now);
            }
        }
    }

    fn on_frame(&mut self, id: LinkId, phase: Phase, frame: Frame, now: Instant) -> Taken {
        match phase {
            Phase::HelloSent | Phase::ResumeSent { .. } => {
                return self.on_answer(id, phase, frame, now);
            }
            Phase::Unconfirmed => {
                // It may have been sent with RESUME, and so says nothing of RESUME_OK.
                if let Frame::FlowState(acks) = frame {
                    self.heard_at = now;
                    self.defer_expiries(now);
                    return self.on_flow_state(id, acks, now);
                }
                self.confirm(id, now);
            }
            Phase::Live => {}
        }
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        let was_suspect = link.heard(&frame, now);
        let is_lost = link.is_lost();
        self.heard_at = now;
        if is_lost || (was_suspect && self.hear_half(id, &frame)) {
            self.defer_expiries(now);
        } else if was_suspect {
            self.reattach(id, now);
        } else {
            self.bury_suspects(now);
        }
        self.note_following(id, &frame, now);
        match frame {
            Frame::Data(data) => self.on_data(data, now),
            Frame::Ack(ack) => self.on_ack(id, ack, true, now),
            Frame::FlowState(acks) => self.on_flow_state(id, acks, now),
            Frame::Control { number, message } => self.on_control(id, number, message, now),
            Frame::ControlAck { number } => self.lane.acknowledge(number),
            Frame::Ping { nonce } => {
                let link = self.links.get_mut(&id).ok_or("link gone")?;
                link.queue(Frame::Pong { nonce })
                    .then_some(())
                    .ok_or("PINGs without reading PONGs")
            }
            Frame::Pong { nonce } => {
                let link = self.links.get_mut(&id).ok_or("link gone")?;
                if let Some(asked_at) = link.pong(nonce, was_suspect, now) {
                    self.on_answered(id, (nonce, asked_at), now);
                }
                Ok(())
            }
            Frame::LinkClose { .. } => {
                self.kill_link(id, LinkDeath::PeerClosed, now);
                Ok(())
            }
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::KeyInUse
            | Frame::Resume(_)
            | Frame::ResumeOk(_)
            | Frame::ResumeReject(_) => Err("an attach frame on an attached link"),
            Frame::Datagram(datagram) => self.on_datagram(datagram, now),
            Frame::DatagramPiece(piece) => self.on_datagram_piece(&piece, id, now),
            Frame::DatagramError(error) => self.on_datagram_error(&error),
        }
    }

    /// The flow of a frame, or none if it is forgotten.
    fn known(&mut self, id: FlowId) -> Result<Option<&mut Flow>, &'static str> {
        if id > self.last_flow {
            return Err("a frame of a flow that was never opened");
        }
        Ok(self.flows.get_mut(&id))
    }

    fn on_data(&mut self, data: Data, now: Instant) -> Taken {
        let id = data.flow;
        let may_share = self.may_share();
        let Some(flow) = self.known(id)? else {
            return Ok(());
        };
        if flow.mapping.is_some() {
            return Err("DATA of a mapping");
        }
        if data.payload.is_empty() && !data.fin {
            return Err("DATA without bytes and without FIN");
        }
        if flow.receive_done {
            self.owe_ack(id);
            return Ok(());
        }
        let before = (flow.rx.short_pieces(), flow.rx.slices());
        let in_order = flow
            .rx
            .insert(data.offset, data.payload, data.fin, may_share)?;
        if in_order {
            flow.progress_at = now;
        }
        let after = (flow.rx.short_pieces(), flow.rx.slices());
        self.short_pieces = self.short_pieces - before.0 + after.0;
        self.slices = self.slices - before.1 + after.1;
        if self.short_pieces > limits::PIECES_OUT_OF_ORDER {
            return Err("too many short pieces out of order");
        }
        if in_order {
            self.watch_reset(id);
            self.tell_readable(id);
        }
        self.owe_ack(id);
        Ok(())
    }

    /// Few payloads keep what they were read into. Junk between them would make a session whose
    /// readers stand still hold many times its buffer.
    fn may_share(&self) -> bool {
        let most = limits::SLICES.max(self.config.buffer_bytes / limits::READ_BUFFER);
        u64::try_from(self.slices).is_ok_and(|slices| slices < most)
    }

    fn on_flow_state(&mut self, link: LinkId, acks: Vec<Ack>, now: Instant) -> Taken {
        acks.into_iter()
            .try_for_each(|ack| self.on_ack(link, ack, false, now))
    }

    fn on_ack(&mut self, link: LinkId, ack: Ack, strict: bool, now: Instant) -> Taken {
        let Some(flow) = self.known(ack.flow)? else {
            return Ok(());
        };
        if let Some((on, last)) = flow.last_ack
            && strict
            && on == link
            && (ack.accepted < last.accepted
                || ack.released < last.released
                || ack.limit < last.limit)
        {
            return Err("an ACK that takes something back");
        }
        flow.last_ack = Some((link, ack));
        if ack.released > ack.accepted {
            return Err("released is beyond accepted");
        }
        let before = flow.tx.released();
        flow.tx.raise_limit(ack.limit);
        if !flow.send_done {
            flow.tx.acknowledge(ack.accepted, ack.released)?;
        }
        self.tell_released(ack.flow, before);
        self.schedule(ack.flow);
        self.extend_intake(ack.flow);
        self.settle(ack.flow, now);
        self.feed_starved();
        Ok(())
    }

    fn on_control(&mut self, link: LinkId, number: u64, message: Control, now: Instant) -> Taken {
        self.lane.receive(number, message)?;
        while self.ended.is_none() {
            let Some(message) = self.lane.next_in_order() else {
                break;
            };
            self.on_message(link, message, now)?;
        }
        Ok(())
    }

    fn on_message(&mut self, link: LinkId, message: Control, now: Instant) -> Taken {
        let client = self.role == Role::Client;
        match message {
            Control::Open(open) if !client => self.on_open(link, open, now),
            Control::Deliver(deliver) if !client => self.on_deliver(link, deliver, now),
            Control::OpenOk { flow, limit, grace } if client => self.on_open_ok(flow, limit, grace),
            Control::OpenErr { flow, error } if client => self.on_open_err(flow, error, now),
            Control::Reset { flow, end, code } => self.on_reset(flow, end, code, now),
            Control::Stop { flow, code } => self.on_stop(flow, code, now),
            Control::Done { flow, released } => {
                if let Some(known) = self.known(flow)? {
                    let before = known.tx.released();
                    if !known.send_done {
                        known.tx.release_at_most(released);
                    }
                    known.settle_lost(released);
                    known.done_received = true;
                    known.send_done = true;
                    known.tx.abandon();
                    self.tell_released(flow, before);
                    self.extend_intake(flow);
                    self.settle(flow, now);
                }
                Ok(())
            }
            Control::Retire { older_than } if !client => {
                if older_than > self.confirmed_number {
                    return Err("RETIRE by a link that was never confirmed");
                }
                self.bury_older(older_than, now);
                Ok(())
            }
            Control::LinkDown { link: down } => {
                let named = self
                    .links
                    .values()
                    .find(|l| l.number == Some(down))
                    .map(|l| l.id);
                if let Some(id) = named {
                    self.kill_link(id, LinkDeath::Retired, now);
                }
                Ok(())
            }
            Control::SessionClose { code } => {
                self.end(EndReason::Peer(code), None, now);
                Ok(())
            }
            Control::Forget if !client => {
                if !self.has_hand_off() {
                    return Err("FORGET without the capability");
                }
                self.events.push_back(Event::ForgetHeld);
                Ok(())
            }
            Control::Open(_)
            | Control::Deliver(_)
            | Control::Forget
            | Control::OpenOk { .. }
            | Control::OpenErr { .. }
            | Control::Retire { .. } => Err("a control message of the other role"),
        }
    }

    fn on_stop(&mut self, id: FlowId, code: FlowCode, now: Instant) -> Taken {
        if self.known(id)?.is_none() {
            return Ok(());
        }
        if code == FlowCode::Expired {
            // The peer's clock was first: what is to be stored or held is, all the same.
            self.expire(id);
        } else {
            // Who cancels may have been given something ahead of the answer.
            if self.role == Role::Server && code == FlowCode::Cancelled {
                self.hold(id);
            }
            self.abort_socket(id, code);
        }
        self.drop_both(id);
        self.settle(id, now);
        Ok(())
    }

    fn on_open_ok(&mut self, id: FlowId, limit: Offset, grace: Duration) -> Taken {
        let Some(flow) = self.known(id)?.filter(|flow| flow.stage == Stage::Opening) else {
            return Ok(());
        };
        flow.stage = Stage::Open;
        flow.grace = grace;
        flow.tx.raise_limit(limit);
        // What a flow was given that is gone is held for the next one, and the owner knows why.
        let is_told = !flow.detached_socket || flow.rx.watched().is_some();
        self.first_intake(id);
        if is_told {
            self.events.push_back(Event::FlowAccepted { flow: id });
        }
        self.schedule(id);
        Ok(())
    }

    fn on_open_err(&mut self, id: FlowId, error: OpenError, now: Instant) -> Taken {
        let Some(flow) = self.known(id)? else {
            return Ok(());
        };
        let gone = flow.detached_socket;
        let (lost, dropped) = (flow.lost, flow.dropped);
        let remainder = (flow.is_early && !flow.send_done).then(|| flow.hand_over());
        self.forget(id, now);
        self.events.push_back(if gone {
            Event::FlowForgotten {
                flow: id,
                lost,
                dropped,
            }
        } else {
            Event::FlowRefused {
                flow: id,
                error,
                remainder,
            }
        });
        Ok(())
    }

    fn on_open(&mut self, link: LinkId, mut open: Open, now: Instant) -> Taken {
        if !self.has_delivery() {
            open.on_expiry = OnExpiry::Reset;
        }
        if open.hand_off.is_some() && !self.has_hand_off() {
            return Err("OPEN_HAND_OFF without the capability");
        }
        open.grace = open.grace.min(self.config.max_grace);
        let mut flow = Flow::new(open.flow, open.grace, now);
        flow.mapping = Self::mapping_for(open.protocol, open.flow);
        flow.is_asked = true;
        if flow.mapping.is_some() {
            open.on_expiry = OnExpiry::Reset;
            open.hand_off = None;
        }
        if let OnExpiry::Store(framing) = open.on_expiry {
            flow.purpose = Purpose::Stored(framing);
            flow.credit_reserve = longest_message(framing) + 2;
            flow.rx.be_told(Some(Framer::new(framing)));
        }
        self.note_hand_off(&mut flow, &mut open);
        self.admit(flow, open.limit, Event::FlowOpened { open, link })
    }

    /// A flow that the client asks for, if there is room.
    pub(super) fn admit(&mut self, mut flow: Flow, limit: Offset, event: Event) -> Taken {
        let id = flow.id;
        if id <= self.last_flow {
            return Err("OPEN of a flow id that was used before");
        }
        self.last_flow = id;
        // A flow that is refused is forgotten at once, its OPEN_ERR is not: who never acknowledges
        // would make the lane grow without end.
        let most = self.unacknowledged_most();
        if self.lane.outstanding() > most.saturating_add(limits::CONTROL_WINDOW * 2) {
            return Err("OPENs without acknowledging what they were answered");
        }
        let full = u64::try_from(self.flows.len()).is_ok_and(|n| n >= self.config.max_flows);
        let refused = if full {
            Some(OpenError::TooManyFlows)
        } else if let Some(error) = self.refuses_mapping(&flow) {
            Some(error)
        } else if !self.reserve(&mut flow) {
            Some(OpenError::Exhausted)
        } else {
            None
        };
        if let Some(error) = refused {
            self.lane.say(Control::OpenErr { flow: id, error });
            return Ok(());
        }
        flow.tx.raise_limit(limit);
        self.add_flow(flow);
        self.events.push_back(event);
        Ok(())
    }

    /// Room for the longest message each way, where such are kept whole; all or nothing.
    fn reserve(&mut self, flow: &mut Flow) -> bool {
        let (credit, intake) = (flow.credit_reserve, flow.intake_reserve);
        if !self.credit.reserve(&mut flow.credit_share, credit) {
            return false;
        }
        let has_room = self.intake.reserve(&mut flow.intake_share, intake);
        if !has_room {
            self.credit.resize(&mut flow.credit_share, 0);
        }
        has_room
    }

    /// How many messages may be without acknowledgement before the peer's are acknowledged no
    /// more (PROTOCOL.md §4). A flow has at most four at the server; at the client nothing that the
    /// server says is answered without end.
    pub(super) fn unacknowledged_most(&self) -> u64 {
        match self.role {
            Role::Client => u64::MAX,
            Role::Server => self.config.max_flows.saturating_mul(4),
        }
    }

    /// Rule 13: acts on the socket even after FIN, delivers what lies before, ends the reverse.
    fn on_reset(&mut self, id: FlowId, end: Offset, code: FlowCode, now: Instant) -> Taken {
        let Some(flow) = self.known(id)? else {
            return Ok(());
        };
        if flow.mapping.is_some() {
            return Err("RESET of a mapping");
        }
        if flow.reset_received.is_some() {
            return Ok(());
        }
        if end < flow.rx.accepted() {
            return Err("RESET before what was sent already");
        }
        flow.reset_code = Some(code);
        flow.reset_received = Some(end);
        let is_readable = flow.rx.cut(end);
        flow.progress_at = now;
        flow.abandon_sending();
        self.drop_prologue(id);
        self.extend_intake(id);
        let Some(flow) = self.flows.get_mut(&id) else {
            return Ok(());
        };
        if flow.reset_sent.is_some() || flow.detached_socket {
            self.end_receiving(id, now);
        } else if flow.receive_done {
            if !flow.done_sent {
                flow.reset_due = true;
                self.watch_reset(id);
                self.tell_readable(id);
            }
            self.settle(id, now);
        } else {
            self.watch_reset(id);
            self.extend_credit(id);
            if is_readable || self.delivery(id) == Delivery::Reset {
                self.tell_readable(id);
            }
        }
        Ok(())
    }

    pub(super) fn tell_readable(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.readable_told
            && !flow.detached_socket
        {
            flow.readable_told = true;
            self.events.push_back(Event::FlowReadable { flow: id });
        }
    }

    pub(super) fn owe_ack(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.ack_due
        {
            flow.ack_due = true;
            self.acks.push_back(id);
        }
    }

    /// Bytes to be written to the local socket, in order.
    pub fn readable(&self, id: FlowId) -> impl Iterator<Item = &Bytes> + Clone {
        self.flows
            .get(&id)
            .into_iter()
            .flat_map(|flow| flow.rx.queue())
    }

    /// Why the peer has reset the flow; none while it has not.
    pub fn reset_code(&self, id: FlowId) -> Option<FlowCode> {
        self.flows.get(&id).and_then(|flow| flow.reset_code)
    }

    /// What comes once `readable` is empty.
    pub fn delivery(&self, id: FlowId) -> Delivery {
        self.flows.get(&id).map_or(Delivery::Ended, Flow::delivery)
    }
}
