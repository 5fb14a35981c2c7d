//! Who may hold how much: credit for the peer, intake for the local sockets (rules 5 and 6).

use super::{Event, Session};
use crate::budget::{Budget, Share};
use crate::flow::Flow;
use crate::id::{FlowId, Offset};
use crate::limits;

/// Grows a flow's target once as much has drained as it may hold: it keeps up, so it gets more,
/// at most half of what is left. A reader that has stalled stays where it is.
fn grow(target: &mut u64, grown_at: &mut Offset, drained: Offset, share: Share, budget: &Budget) {
    if drained.since(*grown_at) >= *target {
        *grown_at = drained;
        let most = (budget.free() + share.held()) / 2;
        *target = target.saturating_mul(2).min(most.max(*target));
    }
}

impl Session {
    /// Credit granted with OPEN or OPEN_OK.
    pub(super) fn first_credit(&mut self, flow: &mut Flow) -> Offset {
        if flow.mapping.is_some() {
            return Offset(0);
        }
        flow.credit_target = self.credit.initial().max(flow.credit_reserve);
        let held = self
            .credit
            .resize(&mut flow.credit_share, flow.credit_target);
        flow.rx.raise_limit(Offset(held));
        flow.rx.limit()
    }

    /// Intake of a flow whose origin has answered.
    pub(super) fn first_intake(&mut self, id: FlowId) {
        let initial = self.intake.initial();
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.intake_target = initial.max(flow.intake_reserve);
        }
        self.extend_intake(id);
    }

    /// Grants the peer more as the local socket drains; hands back what is not needed.
    pub(super) fn extend_credit(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.mapping.is_some() {
            return;
        }
        if flow.receive_done {
            self.credit.resize(&mut flow.credit_share, 0);
            return;
        }
        let drained = flow.rx.drained();
        let outstanding = flow.rx.limit().since(drained);
        let reserve = flow.credit_reserve;
        self.credit
            .resize(&mut flow.credit_share, outstanding.max(reserve));
        let target = &mut flow.credit_target;
        grow(
            target,
            &mut flow.credit_grown_at,
            drained,
            flow.credit_share,
            &self.credit,
        );
        // Behind a known RESET all that is left is taken, so that a reader that stands still does
        // not hold it (rule 13).
        let rest = flow.reset_received.map_or(0, |end| end.since(drained));
        let rest = rest.max(reserve);
        if outstanding > *target / 2 && outstanding >= rest {
            return;
        }
        let wanted = rest.max(*target);
        let held = self.credit.resize(&mut flow.credit_share, wanted);
        let limit = drained.plus(held);
        let short = held < wanted && !flow.credit_starved;
        if short {
            flow.credit_starved = true;
            self.credit_starved.push_back(id);
        }
        if limit > flow.rx.limit() {
            flow.rx.raise_limit(limit);
            self.owe_ack(id);
        }
    }

    /// Lets the owner take more as the peer releases. During an outage a flow may take whatever
    /// the pool has: that is what the buffer is for.
    pub(super) fn extend_intake(&mut self, id: FlowId) {
        self.grow_intake(id);
        let mut has_poured = false;
        while self.pour(id) {
            has_poured = true;
            self.grow_intake(id);
        }
        if has_poured {
            self.tell_writable(id);
        }
    }

    /// The local socket may be read: there is room, and nothing goes before it.
    fn tell_writable(&mut self, id: FlowId) {
        let has_room = self.intake(id) > 0;
        if let Some(flow) = self.flows.get_mut(&id)
            && has_room
            && !flow.writable_told
            && !flow.detached_socket
        {
            flow.writable_told = true;
            self.events.push_back(Event::FlowWritable { flow: id });
        }
    }

    fn grow_intake(&mut self, id: FlowId) {
        let detached = self.detached_since.is_some();
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if !flow.may_take() || flow.mapping.is_some() {
            return;
        }
        let (base, end) = (flow.tx.base(), flow.tx.end());
        if flow.send_done || flow.tx.has_fin() || flow.reset_sent.is_some() {
            let held = if flow.send_done {
                0
            } else {
                flow.tx.retained()
            };
            self.intake.resize(&mut flow.intake_share, held);
            return;
        }
        let reserved = flow.intake_limit.since(base).max(flow.intake_reserve);
        self.intake.resize(&mut flow.intake_share, reserved);
        let target = &mut flow.intake_target;
        grow(
            target,
            &mut flow.intake_grown_at,
            base,
            flow.intake_share,
            &self.intake,
        );
        let wanted = if detached || flow.is_failing {
            // A flow that writes gets more the more it has written; one that does not leaves the
            // pool to others. Nor is it taken to the last byte: what is set aside lets others work
            // when links are back, though the reader of this flow may stand still then.
            let ahead = flow.tx.retained().max(*target).min(limits::INTAKE_AHEAD);
            let most = self.intake.spare(flow.intake_share);
            end.plus(ahead).min(base.plus(most))
        } else {
            end.plus(limits::INTAKE_AHEAD).min(base.plus(*target))
        };
        if wanted <= flow.intake_limit {
            return;
        }
        let ahead = flow.intake_limit.since(end);
        let gain = wanted.since(flow.intake_limit);
        if gain < limits::INTAKE_AHEAD / 4 && ahead > 0 && gain < *target / 4 {
            return;
        }
        let held = self
            .intake
            .resize(&mut flow.intake_share, wanted.since(base));
        let limit = base.plus(held);
        if limit < wanted && !flow.intake_starved {
            flow.intake_starved = true;
            self.intake_starved.push_back(id);
        }
        if limit > flow.intake_limit {
            flow.intake_limit = limit;
            self.tell_writable(id);
        }
    }

    /// Gives to those who found the pools empty, first come first served.
    pub(super) fn feed_starved(&mut self) {
        let enough = limits::INITIAL_SHARE;
        for _ in 0..self.intake_starved.len() {
            if self.intake.free() < enough {
                break;
            }
            let Some(id) = self.intake_starved.pop_front() else {
                break;
            };
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.intake_starved = false;
                self.extend_intake(id);
            }
        }
        for _ in 0..self.credit_starved.len() {
            if self.credit.free() < enough {
                break;
            }
            let Some(id) = self.credit_starved.pop_front() else {
                break;
            };
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.credit_starved = false;
                self.extend_credit(id);
            }
        }
    }
}
