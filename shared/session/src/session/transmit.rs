//! What goes out, on which link, in which order: control, acknowledgements, flows that send
//! little, the others in turns.

use super::Session;
use crate::flow::Turn;
use crate::id::{FlowId, LinkId, Offset};
use crate::limits;
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::wire::codec;
use crate::wire::frame::{Control, Frame};

/// As [`limits::LEAST_PIECE`], in the first records of a link.
const LEAST_FIRST_PIECE: usize = 256;

impl Session {
    /// Appends frames for `link` to `out` until about `budget` bytes are in it; false if nothing
    /// was due. A frame, once here, counts as sent: what is not written must end the link.
    pub fn poll_transmit(
        &mut self,
        link: LinkId,
        budget: usize,
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        let (before, start) = (out.frames(), out.len());
        if let Some(own) = self.links.get_mut(&link) {
            while out.len() < budget
                && let Some(frame) = own.take_frame(now)
            {
                out.push(&frame);
            }
        }
        if self.carrier() == Some(link) {
            self.send_control(link, budget, out, now);
            self.send_acks(link, budget, out, now);
            self.send_data(link, budget, out, now);
        }
        if let Some(own) = self.links.get_mut(&link) {
            let bytes = own.early_bytes + (out.len() - start);
            own.early_bytes = bytes.min(limits::FIRST_BYTES);
        }
        out.frames() > before
    }

    /// Something would go out on this link at once.
    pub fn has_transmit(&self, link: LinkId) -> bool {
        let own = self
            .links
            .get(&link)
            .is_some_and(crate::link::Link::has_frames);
        let queued = !self.acks.is_empty() || !self.fresh.is_empty() || !self.bulk.is_empty();
        let said = || self.lane.is_ready(self.unacknowledged_most());
        own || ((queued || said()) && self.carrier() == Some(link))
    }

    fn count(&mut self, link: LinkId, now: Instant) -> u64 {
        self.links
            .get_mut(&link)
            .map_or(0, |link| link.count_frame(now))
    }

    /// The acknowledgement goes first: a server that is asked for more flows before it hears that
    /// its answers to the last ones have arrived would take its client for one that never says so.
    fn send_control(&mut self, link: LinkId, budget: usize, out: &mut Outbox, now: Instant) {
        if let Some(number) = self.lane.take_ack(link, self.unacknowledged_most()) {
            self.count(link, now);
            out.push(&Frame::ControlAck { number });
        }
        while out.len() < budget
            && let Some((number, message)) = self.lane.take(link)
        {
            self.count(link, now);
            if let Control::Open(open) = &message {
                self.note_asked(open.flow);
            }
            out.push(&Frame::Control { number, message });
        }
    }

    /// After an attach the ACKs go packed, as FLOW_STATE.
    fn send_acks(&mut self, link: LinkId, budget: usize, out: &mut Outbox, now: Instant) {
        let packed = self
            .links
            .get_mut(&link)
            .is_some_and(|l| std::mem::take(&mut l.flow_state));
        while out.len() < budget && !self.acks.is_empty() {
            let position = self.count(link, now);
            let mut batch = Vec::new();
            let most = if packed { codec::MAX_ACKS } else { 1 };
            while batch.len() < most
                && let Some(id) = self.acks.pop_front()
            {
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.ack_due = false;
                    flow.ack_on = Some((link, position));
                    let ack = flow.ack();
                    if !packed {
                        out.push(&Frame::Ack(ack));
                        break;
                    }
                    batch.push(ack);
                }
            }
            if !batch.is_empty() {
                out.push(&Frame::FlowState(batch));
            }
        }
    }

    /// Puts a flow in line if it has something to send and is not there yet.
    pub(super) fn schedule(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.turn != Turn::Idle || !flow.is_ready() {
            return;
        }
        if flow.deficit > 0 {
            flow.turn = Turn::Fresh;
            self.fresh.push_back(id);
        } else {
            flow.deficit += limits::QUANTUM;
            flow.turn = Turn::Bulk;
            self.bulk.push_back(id);
        }
    }

    /// After an outage everybody's first turn is a short one, so that all applications that have
    /// waited have something before one of them gets more.
    pub(super) fn shorten_first_turns(&mut self) {
        if self.detached_since.is_none() {
            return;
        }
        for id in self.fresh.iter().chain(&self.bulk) {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.deficit = flow.deficit.min(limits::FIRST_QUANTUM);
            }
        }
    }

    fn send_data(&mut self, link: LinkId, budget: usize, out: &mut Outbox, now: Instant) {
        let early_bytes = self.links.get(&link).map_or(0, |own| own.early_bytes);
        while out.len() < budget {
            let Some(id) = self.fresh.pop_front().or_else(|| self.bulk.pop_front()) else {
                return;
            };
            let mut sent = self.send_mapping(id, (link, budget), out, now);
            let Some(flow) = self.flows.get_mut(&id) else {
                continue;
            };
            while flow.mapping.is_none()
                && flow.deficit > 0
                && flow.is_ready()
                && out.len() < budget
                && let Some(piece) = {
                    let most = piece_bytes(flow.deficit);
                    let room = |start| payload_room(early_bytes, out.len(), id, start).min(most);
                    flow.tx.take(link, room)
                }
            {
                flow.deficit -= i64::try_from(piece.payload.len()).unwrap_or(limits::QUANTUM) + 32;
                out.push_data(id, piece);
                sent += 1;
            }
            if !flow.is_ready() {
                flow.turn = Turn::Idle;
            } else if flow.deficit <= 0 {
                flow.deficit += limits::QUANTUM;
                flow.turn = Turn::Bulk;
                self.bulk.push_back(id);
            } else if flow.turn == Turn::Fresh {
                self.fresh.push_front(id);
            } else {
                self.bulk.push_front(id);
            }
            for _ in 0..sent {
                self.count(link, now);
            }
        }
    }
}

/// How much payload the next DATA should carry, `len` bytes being in the outbox of a link that was given
/// `early` before: as much as ends with the record that the link will make of it, so that the peer finds
/// whole frames in its records and need not put them together. What is left of a record may be too little
/// to be worth a frame.
fn payload_room(early: usize, len: usize, flow: FlowId, start: Offset) -> usize {
    let header = codec::data_header_bytes(flow, start);
    // A link begins a record with each outbox.
    let small = limits::FIRST_BYTES
        .saturating_sub(early)
        .next_multiple_of(limits::FIRST_RECORD);
    let (left, spared, whole) = match len.checked_sub(small) {
        None => {
            let left = limits::FIRST_RECORD - len % limits::FIRST_RECORD;
            (
                left,
                LEAST_FIRST_PIECE,
                left + limits::FIRST_RECORD - header,
            )
        }
        Some(len) => {
            let left = limits::RECORD - len % limits::RECORD;
            (left, limits::LEAST_PIECE, codec::MAX_PAYLOAD)
        }
    };
    if left < header + spared {
        whole
    } else {
        left - header
    }
}

/// The most that one frame of a flow carries in its turn.
fn piece_bytes(deficit: i64) -> usize {
    if deficit > limits::FIRST_QUANTUM {
        return codec::MAX_PAYLOAD;
    }
    usize::try_from(limits::FIRST_QUANTUM).unwrap_or(codec::MAX_PAYLOAD)
}
