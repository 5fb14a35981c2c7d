//! How flows and sessions end (PROTOCOL.md §8).

use super::delivery::final_offset;
use super::{EndReason, Event, LinkDeath, Role, Session};
use crate::flow::Stage;
use crate::id::FlowId;
use crate::time::Instant;
use crate::wire::frame::{CloseCode, Control, FlowCode};

impl Session {
    /// Ends the session: SESSION_CLOSE goes out where a link is, then [`Event::Ended`] tells.
    pub fn close(&mut self, code: CloseCode, now: Instant) {
        self.end(EndReason::Local(code), Some(code), now);
    }

    /// Destroys the session. Its last words stay with the links until the driver closes them.
    pub(super) fn end(&mut self, reason: EndReason, say: Option<CloseCode>, _now: Instant) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(reason);
        self.drop_all_datagrams();
        self.hold_all(reason);
        self.keep_remainders(reason);
        let dropped = self
            .flows
            .values_mut()
            .map(|flow| (flow.id, flow.dropped + flow.rx.abandon()));
        self.dropped_by_flow = dropped.filter(|(_, dropped)| *dropped > 0).collect();
        self.note_opaque();
        self.flows.clear();
        self.prologue_bytes = 0;
        self.live_flows = 0;
        self.mappings = 0;
        self.short_pieces = 0;
        self.slices = 0;
        self.acks.clear();
        self.fresh.clear();
        self.bulk.clear();
        self.intake_starved.clear();
        self.credit_starved.clear();
        self.stalls.clear();
        self.expiries.clear();
        self.secrets.clear();
        if let Some(code) = say {
            self.lane.say_last(Control::SessionClose { code });
        }
        self.events.push_back(Event::Ended { reason });
        let links: Vec<_> = self.links.keys().copied().collect();
        for link in links {
            self.events.push_back(Event::LinkDead {
                link,
                death: LinkDeath::SessionEnded,
            });
        }
    }

    /// The local socket is to be reset at once.
    pub(super) fn abort_socket(&mut self, id: FlowId, code: FlowCode) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if self.role == Role::Server {
            self.events.extend(final_offset(flow));
        }
        if !flow.detached_socket {
            flow.detached_socket = true;
            let has_bytes = flow.mapping.is_none();
            let is_open = flow.stage == Stage::Open;
            flow.awaits_stranded = self.role == Role::Server && is_open && has_bytes;
            self.events.push_back(Event::FlowAborted { flow: id, code });
        }
    }

    /// Nothing more is delivered of the peer's direction.
    pub(super) fn end_receiving(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.receive_done = true;
        flow.reset_due = false;
        self.drop_received(id);
        self.extend_credit(id);
        self.settle(id, now);
    }

    /// Lets go of what waits for the local socket.
    fn drop_received(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        self.short_pieces -= flow.rx.short_pieces();
        self.slices -= flow.rx.slices();
        flow.dropped += flow.rx.abandon();
        if let Some(at) = flow.stall.take() {
            self.stalls.remove(&(at, id));
        }
    }

    /// Both directions are dropped here.
    pub(super) fn drop_both(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.abandon_sending();
        flow.receive_done = true;
        flow.reset_due = false;
        self.drop_datagrams(id);
        self.drop_prologue(id);
        self.drop_received(id);
        self.extend_intake(id);
        self.extend_credit(id);
    }

    /// Says DONE once it is owed, and forgets the flow after DONE from both (rule 14).
    pub(super) fn settle(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let ended = flow.tx.has_fin() || flow.reset_sent.is_some();
        if !flow.send_done && ended && flow.tx.is_settled() {
            flow.send_done = true;
            self.extend_intake(id);
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.is_past() && !flow.is_past_told {
            flow.is_past_told = true;
            self.live_flows -= 1;
            if let Some(at) = flow.expiry.take() {
                self.expiries.remove(&(at, id));
            }
        }
        if flow.owes_done() {
            flow.done_sent = true;
            self.lane.say(Control::Done {
                flow: id,
                released: flow.delivered(),
            });
        }
        if flow.is_over() {
            let (lost, dropped) = (flow.lost, flow.dropped);
            self.forget(id, now);
            self.events.push_back(Event::FlowForgotten {
                flow: id,
                lost,
                dropped,
            });
        }
    }

    /// Lets go of all that is kept of a flow.
    pub(super) fn forget(&mut self, id: FlowId, now: Instant) {
        self.drop_datagrams(id);
        self.drop_prologue(id);
        let Some(mut flow) = self.flows.remove(&id) else {
            return;
        };
        self.mappings -= usize::from(flow.mapping.is_some());
        self.intake.resize(&mut flow.intake_share, 0);
        self.credit.resize(&mut flow.credit_share, 0);
        self.short_pieces -= flow.rx.short_pieces();
        self.slices -= flow.rx.slices();
        if let Some(at) = flow.stall {
            self.stalls.remove(&(at, id));
        }
        if let Some(at) = flow.expiry {
            self.expiries.remove(&(at, id));
        }
        if !flow.is_past_told {
            self.live_flows -= 1;
        }
        if self.flows.is_empty() {
            self.idle_since = now;
        }
        self.feed_starved();
    }
}
