//! What outlives a flow at the server: bytes for an application, held for its user's next
//! connection (PROTOCOL.md §5.9).

use super::{EndReason, Event, OpenRefused, Remainder, Role, Session, Target};
use crate::budget::Budget;
use crate::flow::{Flow, Stage};
use crate::framer::{Framer, longest_message};
use crate::id::{FlowId, Offset};
use crate::time::Instant;
use crate::wire::frame::{CloseCode, Control, Framing, HandOff, Limits, Open, capability};
use bytes::Bytes;
use std::net::SocketAddr;

/// What is left of the server's half of a flow that has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Where it led.
    pub destination: SocketAddr,
    /// Whose it was, where its messages end, and how long they are worth having.
    pub hand_off: HandOff,
    /// What its application is not known to have, from the last boundary on.
    pub remainder: Remainder,
    /// What stands before this place it was given of others: whole messages.
    pub given: Offset,
}

/// What a server remembers of OPEN_HAND_OFF.
#[derive(Debug)]
pub(crate) struct HandedOff {
    destination: SocketAddr,
    hand_off: HandOff,
}

impl Session {
    /// Both ends know how to hand on what an application did not get.
    pub fn has_hand_off(&self) -> bool {
        self.agreed
            .is_some_and(|agreed| agreed & capability::HAND_OFF != 0)
    }

    /// Client: asks for an origin as [`open_flow`](Self::open_flow) does, and that what the
    /// application does not get of it is held for its user's next connection, if that can be had.
    ///
    /// # Errors
    ///
    /// As `open_flow`.
    pub fn open_handed_off(
        &mut self,
        target: &Target,
        hand_off: HandOff,
        now: Instant,
    ) -> Result<FlowId, OpenRefused> {
        let hand_off = self.can_hold(hand_off.framing).then(|| Box::new(hand_off));
        self.open(target, hand_off, now)
    }

    /// Client: nothing that the server holds for this client will be asked for.
    pub fn forget_held(&mut self) {
        if self.has_hand_off() && self.ended.is_none() {
            self.lane.say(Control::Forget);
        }
    }

    /// Client: the server may have heard of this flow, also once the session has ended.
    pub fn was_asked(&self, id: FlowId) -> bool {
        !self.lane.has_unsaid_open(id)
    }

    /// Client: what the application does not get of this flow is to be held, and as far as is known
    /// the server can.
    pub fn is_handed_off(&self, id: FlowId) -> bool {
        let flow = self.flows.get(&id);
        flow.is_some_and(|flow| flow.rx.watched().is_some())
    }

    /// Client: what has come of this flow is no run of messages, and so nothing of it is held; also
    /// once the session has ended.
    pub fn is_opaque(&self, id: FlowId) -> bool {
        let live = self.flows.get(&id).map(has_opaque);
        live.unwrap_or_else(|| self.opaque_at_end.contains(&id))
    }

    /// Both ends know how to, messages end before FIN, and the server could ever hold one. What the
    /// server can is not known before WELCOME.
    fn can_hold(&self, framing: Framing) -> bool {
        let message = longest_message(framing) + 2;
        let known = self.agreed.unwrap_or(self.config.capabilities);
        let holder = match self.role {
            Role::Client => self.peer_limits,
            Role::Server => Some(self.limits()),
        };
        let has_room =
            |limits: Limits| Budget::new(limits.buffer_bytes, limits.max_flows).could_hold(message);
        let ends_within = framing != Framing::Whole;
        known & capability::HAND_OFF != 0 && ends_within && holder.is_none_or(has_room)
    }

    /// Client: the server is known by now. Flows that it cannot hold anything of are like others.
    pub(super) fn agree_hand_off(&mut self) {
        let mut lane = std::mem::take(&mut self.lane);
        let can_hold = |framing| self.can_hold(framing);
        let plain = lane.keep_nothing(can_hold);
        self.lane = lane;
        for id in plain {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.rx.release_what_drains(None);
            }
        }
    }

    /// Remembers for [`is_opaque`](Self::is_opaque), as the flows go.
    pub(super) fn note_opaque(&mut self) {
        let opaque = self.flows.values().filter(|flow| has_opaque(flow));
        self.opaque_at_end = opaque.map(|flow| flow.id).collect();
    }

    /// Server: what OPEN_HAND_OFF says of a flow. Gives OPEN back as it holds.
    pub(super) fn note_hand_off(&self, flow: &mut Flow, open: &mut Open) {
        open.hand_off
            .take_if(|hand_off| !self.can_hold(hand_off.framing));
        let Some(hand_off) = &open.hand_off else {
            return;
        };
        flow.intake_reserve = longest_message(hand_off.framing) + 2;
        let framer = Framer::of_hand_off(hand_off, Offset(0));
        flow.tx.keep_messages(Some(framer));
        flow.handed_off = Some(Box::new(HandedOff {
            destination: open.destination,
            hand_off: (**hand_off).clone(),
        }));
    }

    /// Server: what a flow whose origin has not answered shall be given of others, and where it
    /// leads.
    pub fn wants_held(&self, id: FlowId) -> Option<(&HandOff, SocketAddr)> {
        let flow = self.flows.get(&id)?;
        let handed_off = flow.handed_off.as_ref()?;
        let is_asking = flow.stage == Stage::Opening && !flow.detached_socket;
        is_asking.then_some((&handed_off.hand_off, handed_off.destination))
    }

    /// Server: C is connected, and `prologue` goes to the application before anything that C says.
    pub fn accept_flow_after(&mut self, id: FlowId, prologue: Vec<Bytes>, now: Instant) {
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.stage == Stage::Opening
            && !flow.detached_socket
        {
            flow.prologue = prologue.into_iter().filter(|p| !p.is_empty()).collect();
            flow.given = Offset(flow.prologue_bytes());
            self.prologue_bytes += flow.given.0;
        }
        self.accept_flow(id, now);
    }

    /// Moves of the prologue what the flow may take; true if that was anything.
    pub(super) fn pour(&mut self, id: FlowId) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else {
            return false;
        };
        let is_over = flow.send_done || flow.tx.has_fin() || flow.reset_sent.is_some();
        if flow.prologue.is_empty() || is_over || flow.stage == Stage::Opening {
            return false;
        }
        let mut room = flow.intake_limit.since(flow.tx.end());
        let mut poured = 0;
        while room > 0
            && let Some(first) = flow.prologue.front_mut()
        {
            let most = usize::try_from(room).unwrap_or(usize::MAX);
            let piece = first.split_to(first.len().min(most));
            if first.is_empty() {
                flow.prologue.pop_front();
            }
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            flow.tx.push(piece);
            room = room.saturating_sub(count);
            poured += count;
        }
        self.prologue_bytes -= poured;
        self.traffic.taken += poured;
        self.schedule(id);
        poured > 0
    }

    /// Server: bytes of all flows that wait to go out ahead of their origins' bytes.
    pub const fn prologue_bytes(&self) -> u64 {
        self.prologue_bytes
    }

    /// Lets go of what was to come before C's bytes.
    pub(super) fn drop_prologue(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id) {
            self.prologue_bytes -= flow.prologue_bytes();
            flow.prologue.clear();
        }
    }

    /// Server: a flow has come to an end that its user did not wish. What it leaves is told.
    pub(super) fn hold(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let is_held = flow.tx.keeps_messages() && flow.stage == Stage::Open && !flow.send_done;
        let Some(HandedOff {
            destination,
            hand_off,
        }) = flow.handed_off.take_if(|_| is_held).map(|boxed| *boxed)
        else {
            return;
        };
        let given = flow.given;
        let rest = std::mem::take(&mut flow.prologue);
        let rest_bytes: u64 = rest.iter().map(|piece| wide(piece.len())).sum();
        let mut remainder = flow.hand_over();
        remainder.fin |= flow.reset_sent.is_some();
        remainder.bytes.extend(rest);
        self.prologue_bytes -= rest_bytes;
        self.events.push_back(Event::FlowHeld {
            flow: id,
            held: Box::new(Held {
                destination,
                hand_off,
                remainder,
                given,
            }),
        });
    }

    /// Server: the session ends. Nothing is held where somebody wished that, or broke the rules.
    pub(super) fn hold_all(&mut self, reason: EndReason) {
        let is_held = matches!(
            reason,
            EndReason::Expired | EndReason::Local(CloseCode::Superseded)
        );
        if self.role == Role::Server && is_held {
            for id in self.flows.keys().copied().collect::<Vec<_>>() {
                self.hold(id);
            }
        }
    }
}

impl Flow {
    /// Bytes that wait for intake, ahead of those of the local socket.
    pub(crate) fn prologue_bytes(&self) -> u64 {
        self.prologue.iter().map(|piece| wide(piece.len())).sum()
    }
}

fn has_opaque(flow: &Flow) -> bool {
    flow.rx.watched().is_some_and(Framer::is_opaque)
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
