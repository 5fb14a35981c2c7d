//! Links that fall silent or die, and what time does to flows meanwhile (PROTOCOL.md §6).

use super::{EndReason, Event, LinkDeath, Progress, Role, Session, Timer};
use crate::id::{FlowId, LinkId};
use crate::limits;
use crate::link::{Duty, Link};
use crate::time::Instant;
use crate::wire::frame::{CloseCode, Control, FlowCode};
use std::time::Duration;

impl Session {
    /// The transport connection is gone.
    pub fn handle_link_down(&mut self, link: LinkId, now: Instant) {
        if self.ended.is_some() {
            self.links.remove(&link);
        } else {
            self.kill_link(link, LinkDeath::Transport, now);
        }
    }

    /// The answer to [`Event::WantProgress`].
    pub fn handle_progress(&mut self, id: LinkId, progress: Progress, now: Instant) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if link.judge(progress, now) {
            let since = link.suspect_since;
            self.check_detached(since, now);
        }
    }

    /// Asks on every working link whether it is alive, at once: something has changed outside.
    pub fn probe(&mut self, now: Instant) {
        let working = self.links.values().filter(|link| link.is_working());
        let working: Vec<_> = working.map(|link| link.id).collect();
        for id in working {
            self.ask(id, now);
        }
    }

    pub(super) fn ask(&mut self, id: LinkId, now: Instant) {
        let nonce = self.nonce();
        if let Some(link) = self.links.get_mut(&id)
            && link.ask(nonce, now)
        {
            self.events.push_back(Event::WantProgress { link: id });
        }
    }

    /// A link has ended for the session; what was under way on it is unsent again (rules 2, 4).
    pub(super) fn kill_link(&mut self, id: LinkId, death: LinkDeath, now: Instant) {
        let Some(link) = self.links.remove(&id) else {
            return;
        };
        self.events.push_back(Event::LinkDead { link: id, death });
        if !link.is_usable() {
            return;
        }
        self.lane.forget_link(id);
        let mut owed = Vec::new();
        let mut ready = Vec::new();
        for (flow_id, flow) in &mut self.flows {
            if flow.tx.forget_link(id) && flow.is_ready() {
                ready.push(*flow_id);
            }
            if let Some((on, position)) = flow.ack_on
                && on == id
            {
                flow.ack_on = None;
                if !link.has_proved(position) {
                    owed.push(*flow_id);
                }
            }
        }
        owed.into_iter().for_each(|flow| self.owe_ack(flow));
        ready.into_iter().for_each(|flow| self.schedule(flow));
        let told = matches!(death, LinkDeath::Transport | LinkDeath::Silent);
        if told
            && let Some(number) = link.number
            && self.links.values().any(Link::is_usable)
        {
            self.lane.say(Control::LinkDown { link: number });
        }
        self.check_detached(link.suspect_since, now);
    }

    /// Begins an outage if no link works; `since` if it began before `now`, but never before the
    /// last frame: a PING may be unanswered while others are heard.
    fn check_detached(&mut self, since: Option<Instant>, now: Instant) {
        if self.is_attached() || self.detached_since.is_some() {
            return;
        }
        self.detached_since = Some(since.unwrap_or(now).max(self.heard_at));
        self.events.push_back(Event::Detached);
        self.plan_expiry();
        let starved: Vec<FlowId> = self.flows.keys().copied().collect();
        for id in starved {
            self.extend_intake(id);
        }
    }

    /// A suspect link has been heard again.
    pub(super) fn reattach(&mut self, link: LinkId) {
        if self.detached_since.take().is_some() {
            self.next_expiry = None;
            self.events.push_back(Event::Reattached { link });
        }
    }

    fn extra(&self) -> Duration {
        match self.role {
            Role::Client => Duration::ZERO,
            Role::Server => limits::SERVER_EXTRA,
        }
    }

    pub(super) fn plan_expiry(&mut self) {
        let Some(since) = self.detached_since else {
            return;
        };
        let live = self
            .flows
            .values()
            .filter(|f| !(f.send_done && f.receive_done));
        let extra = self.extra();
        self.next_expiry = live.map(|f| f.expires_at(since) + extra).min();
    }

    /// When no flow lives and no link works, the session ends then (rule 15).
    fn abandoned_at(&self) -> Option<Instant> {
        if !self.confirmed {
            return Some(self.born + limits::UNCONFIRMED);
        }
        let since = self.detached_since?;
        let live = self
            .flows
            .values()
            .any(|f| !(f.send_done && f.receive_done));
        (!live).then(|| since.max(self.idle_since) + limits::ABANDONED + self.extra())
    }

    fn reset_stall_at(&self, id: &FlowId) -> Option<Instant> {
        let flow = self.flows.get(id)?;
        let here = flow
            .reset_received
            .is_some_and(|end| flow.rx.accepted() >= end);
        (here || flow.reset_due).then(|| flow.progress_at + limits::RESET_STALL)
    }

    /// The next deadline, and what it is for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        if self.ended.is_some() {
            return None;
        }
        let (client, busy) = (self.role == Role::Client, self.is_busy());
        let links = self
            .links
            .values()
            .filter_map(|link| link.deadline(client, busy));
        let link = links.map(|(at, _)| (at, Timer::Link)).min();
        let grace = self.next_expiry.map(|at| (at, Timer::Grace));
        let stalls = self
            .resetting
            .iter()
            .filter_map(|id| self.reset_stall_at(id));
        let stall = stalls.map(|at| (at, Timer::ResetStall)).min();
        let abandoned = self.abandoned_at().map(|at| (at, Timer::Abandoned));
        [link, grace, stall, abandoned].into_iter().flatten().min()
    }

    /// Does what is due at `now`; early calls do nothing, late ones are caught up with.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        self.link_duties(now);
        self.reset_stalls(now);
        self.expire_flows(now);
        if self.ended.is_none() && self.abandoned_at().is_some_and(|at| at <= now) {
            self.end(EndReason::Abandoned, Some(CloseCode::Idle), now);
        }
    }

    /// A link may owe more than one thing after a sleep: a look at the kernel, then its death.
    fn link_duties(&mut self, now: Instant) {
        while self.link_duty(now) {}
    }

    fn link_duty(&mut self, now: Instant) -> bool {
        let (client, busy) = (self.role == Role::Client, self.is_busy());
        let due = self.links.values().filter_map(|link| {
            let (at, duty) = link.deadline(client, busy)?;
            (at <= now).then_some((link.id, duty))
        });
        let due: Vec<_> = due.collect();
        for (id, duty) in &due {
            let (id, duty) = (*id, *duty);
            match duty {
                Duty::Ping => self.ask(id, now),
                Duty::Check => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.overdue(now);
                        self.events.push_back(Event::WantProgress { link: id });
                    }
                }
                Duty::Silent => self.kill_link(id, LinkDeath::Silent, now),
                Duty::AttachTimeout => self.kill_link(id, LinkDeath::AttachFailed, now),
            }
        }
        !due.is_empty()
    }

    fn reset_stalls(&mut self, now: Instant) {
        let due = self.resetting.iter().copied();
        let due: Vec<_> = due
            .filter(|id| self.reset_stall_at(id).is_some_and(|at| at <= now))
            .collect();
        for id in due {
            self.abort_socket(id, FlowCode::PeerReset);
            self.end_receiving(id, now);
        }
    }

    fn expire_flows(&mut self, now: Instant) {
        let (Some(since), Some(at)) = (self.detached_since, self.next_expiry) else {
            return;
        };
        if at > now {
            return;
        }
        let extra = self.extra();
        let over = self
            .flows
            .values()
            .filter(|f| !(f.send_done && f.receive_done) && f.expires_at(since) + extra <= now);
        let over: Vec<_> = over.map(|f| f.id).collect();
        for id in over {
            self.expire(id);
            self.abort(id, FlowCode::Expired, now);
        }
        self.plan_expiry();
        if self.next_expiry.is_none() {
            self.end(EndReason::Expired, None, now);
        }
    }
}
