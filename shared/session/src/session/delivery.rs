//! What outlives grace: flows whose messages are kept (PROTOCOL.md §5.7), and flows that deliver
//! them later (§5.8).

use super::receive::Taken;
use super::{EndReason, Event, OpenRefused, Remainder, Role, Session};
use crate::budget::Budget;
use crate::flow::{Flow, Purpose, Stage};
use crate::framer::longest_message;
use crate::id::{FlowId, LinkId, Offset, SessionId};
use crate::limits;
use crate::time::Instant;
use crate::wire::frame::{CloseCode, Control, Deliver, FlowCode, Framing, OnExpiry, capability};
use std::net::SocketAddr;
use std::time::Duration;

/// What the owner wants to deliver, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverTarget {
    /// The session in which the bytes were taken.
    pub session: SessionId,
    /// The flow of that session.
    pub origin_flow: FlowId,
    /// Whose they are.
    pub user: u32,
    /// The origin's address.
    pub destination: SocketAddr,
    /// Where messages end.
    pub framing: Framing,
    /// How long an outage the delivery shall outlive.
    pub grace: Duration,
}

/// How far a flow that may be stored has got at the server, if that is worth remembering.
pub(super) fn final_offset(flow: &Flow) -> Option<Event> {
    let is_stored = matches!(flow.purpose, Purpose::Stored(_));
    let (taken, released) = (flow.rx.taken(), flow.rx.released());
    (is_stored && taken > Offset(0)).then_some(Event::FlowFinal {
        flow: flow.id,
        taken,
        released,
    })
}

impl Session {
    /// Both ends know how to deliver after grace.
    pub fn has_delivery(&self) -> bool {
        self.agreed
            .is_some_and(|agreed| agreed & capability::DELIVERY != 0)
    }

    /// Client: what the server knows, too.
    pub(super) fn agree(&mut self, capabilities: u64, now: Instant) {
        self.agreed = Some(capabilities & self.config.capabilities);
        let impossible = |framing| self.possible(OnExpiry::Store(framing)) == OnExpiry::Reset;
        let stored = self
            .flows
            .values()
            .filter(|flow| matches!(flow.purpose, Purpose::Stored(framing) if impossible(framing)));
        for id in stored.map(|flow| flow.id).collect::<Vec<_>>() {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.purpose = Purpose::Plain;
                flow.intake_reserve = 0;
                flow.tx.keep_messages(None);
            }
            self.extend_intake(id);
        }
        let mut lane = std::mem::take(&mut self.lane);
        lane.unstore(|framing| self.possible(OnExpiry::Store(framing)) != OnExpiry::Reset);
        self.lane = lane;
        self.begin_mappings(now);
        self.agree_hand_off();
    }

    /// What can be done of what is wanted: to store, both ends must know how, and have buffers
    /// that could ever hold a message. What the server can is not known before WELCOME.
    pub(super) fn possible(&self, wanted: OnExpiry) -> OnExpiry {
        let OnExpiry::Store(framing) = wanted else {
            return wanted;
        };
        let message = longest_message(framing) + 2;
        let known = self.agreed.unwrap_or(self.config.capabilities);
        let has_room = |limits: crate::wire::frame::Limits| {
            Budget::new(limits.buffer_bytes, limits.max_flows).could_hold(message)
        };
        let is_possible = known & capability::DELIVERY != 0
            && self.intake.could_hold(message)
            && self.peer_limits.is_none_or(has_room);
        if is_possible { wanted } else { OnExpiry::Reset }
    }

    /// Client: asks for an origin, to deliver there what was stored. The records are written to
    /// the flow like the bytes of any other; nothing comes back but the end.
    ///
    /// # Errors
    ///
    /// As [`open_flow`](Self::open_flow), and where the server does not deliver; without room for
    /// the longest record, a part of one could wait here for its own release.
    pub fn deliver(&mut self, target: &DeliverTarget, now: Instant) -> Result<FlowId, OpenRefused> {
        let mut flow = self.next_flow(target.grace, now)?;
        if !self.has_delivery() {
            return Err(OpenRefused::NotAgreed);
        }
        let id = flow.id;
        flow.purpose = Purpose::Delivery;
        flow.intake_reserve = longest_message(target.framing) + limits::RECORD_EXTRA;
        let (share, bytes) = (&mut flow.intake_share, flow.intake_reserve);
        if !self.intake.reserve(share, bytes) {
            return Err(OpenRefused::NoRoom);
        }
        let limit = self.begin_flow(flow);
        self.lane.say(Control::Deliver(Deliver {
            flow: id,
            session: target.session,
            origin_flow: target.origin_flow,
            user: target.user,
            destination: target.destination,
            framing: target.framing,
            limit,
            grace: target.grace,
        }));
        Ok(id)
    }

    /// Server: the client wants to deliver.
    pub(super) fn on_deliver(&mut self, link: LinkId, mut deliver: Deliver, now: Instant) -> Taken {
        if !self.has_delivery() {
            return Err("DELIVER without the capability");
        }
        deliver.grace = deliver.grace.min(self.config.max_grace);
        let mut flow = Flow::new(deliver.flow, deliver.grace, now);
        flow.purpose = Purpose::Delivery;
        flow.credit_reserve = longest_message(deliver.framing) + limits::RECORD_EXTRA;
        flow.rx.be_told(None);
        self.admit(flow, deliver.limit, Event::DeliverOpened { deliver, link })
    }

    /// More of a delivery may have been released.
    pub(super) fn tell_released(&mut self, id: FlowId, before: Offset) {
        let Some(flow) = self.flows.get(&id) else {
            return;
        };
        let released = flow.tx.released();
        let is_told = self.role == Role::Client && flow.purpose == Purpose::Delivery;
        if is_told && released > before {
            self.events
                .push_back(Event::FlowReleased { flow: id, released });
        }
    }

    /// Everything before it was released by the peer; with a delivery, recorded at the server as
    /// having reached the origin.
    pub fn released(&self, id: FlowId) -> Offset {
        self.flows
            .get(&id)
            .map_or(Offset(0), |flow| flow.tx.released())
    }

    /// Server: everything before it was taken by the local socket; FIN counts.
    pub fn taken(&self, id: FlowId) -> Offset {
        self.flows
            .get(&id)
            .map_or(Offset(0), |flow| flow.rx.taken())
    }

    /// Server: the client's half has arrived to its end.
    pub fn has_all(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_some_and(|flow| flow.rx.has_all())
    }

    /// Server: the flow may be stored.
    pub fn is_stored(&self, id: FlowId) -> bool {
        let flow = self.flows.get(&id);
        flow.is_some_and(|flow| matches!(flow.purpose, Purpose::Stored(_)))
    }

    /// Server: the session is told what of this flow is released, and something that was taken is
    /// not yet.
    pub fn awaits_release(&self, id: FlowId) -> bool {
        let waits = |flow: &Flow| !flow.receive_done && flow.rx.is_unreleased();
        self.flows.get(&id).is_some_and(waits)
    }

    /// Server: of a flow that may be stored, or a delivery, everything before `offset` is
    /// released: the origin's TCP has acknowledged it, and with a delivery it is recorded.
    pub fn settle_to(&mut self, id: FlowId, offset: Offset, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.receive_done || !flow.rx.settle_to(offset) {
            return;
        }
        flow.progress_at = now;
        let is_over = flow.rx.is_fin_released() && flow.reset_received.is_none();
        self.owe_ack(id);
        if is_over {
            self.end_receiving(id, now);
        }
    }

    /// The grace of a flow is over: what becomes of its bytes.
    pub(super) fn expire(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if self.role == Role::Server {
            self.hold(id);
        } else if flow.is_storable() {
            flow.detached_socket = true;
            let remainder = flow.hand_over();
            self.events.push_back(Event::FlowExpired {
                flow: id,
                remainder,
            });
            return;
        }
        if let Some(flow) = self.flows.get_mut(&id) {
            self.lost += flow.at_stake();
            flow.abandon_sending();
        }
        self.abort_socket(id, FlowCode::Expired);
    }

    /// The session ends: what of its flows is to be stored or asked for again, what is lost, and
    /// at the server how far each had got.
    pub(super) fn keep_remainders(&mut self, reason: EndReason) {
        if self.role == Role::Server {
            let is_stored = |flow: &&Flow| matches!(flow.purpose, Purpose::Stored(_));
            let stored = self.flows.values().filter(is_stored);
            self.released_at_end = stored.map(|flow| (flow.id, flow.rx.released())).collect();
            self.events
                .extend(self.flows.values().filter_map(final_offset));
        }
        let is_wanted = !matches!(
            reason,
            EndReason::Local(_) | EndReason::Peer(CloseCode::KeyRemoved)
        );
        for (id, flow) in &mut self.flows {
            let is_unasked = flow.stage == Stage::Opening && flow.is_early && !flow.send_done;
            let is_storable = self.role == Role::Client && flow.is_storable();
            if is_wanted && (is_storable || is_unasked) {
                self.remainders.push((*id, flow.hand_over()));
            } else {
                self.lost += flow.at_stake();
            }
            flow.abandon_sending();
            if flow.lost > 0 {
                self.lost_by_flow.insert(*id, flow.lost);
            }
        }
    }

    /// Client, after the end: what is held of each flow that is to be stored, and of each whose
    /// bytes were taken before its origin had answered. Nothing where the user has disconnected,
    /// or the key was removed.
    pub fn take_remainders(&mut self) -> Vec<(FlowId, Remainder)> {
        std::mem::take(&mut self.remainders)
    }

    /// The server says how far it had got before the session expired.
    pub(super) fn trim(&mut self, released: &[(FlowId, Offset)]) {
        for (id, offset) in released {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.tx.release_at_most(*offset);
            }
        }
    }
}
