//! Links that fall silent or die, and what time does to flows meanwhile (PROTOCOL.md §6).

use super::{EndReason, Event, LinkDeath, Progress, Role, Session, Timer};
use crate::id::{FlowId, LinkId};
use crate::limits;
use crate::link::{Around, Duty, Link, Verdict};
use crate::time::Instant;
use crate::wire::frame::{CloseCode, FlowCode, Frame};
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
        match link.judge(progress, now) {
            Verdict::AsBefore => {}
            Verdict::Suspect => {
                let since = link.unanswered_since();
                self.check_detached(since, now);
                self.weigh_suspect(id, now);
            }
            Verdict::Passes => self.reattach(id, now),
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
        // One that was never confirmed may carry the peer's frames all the same (rule 10).
        let told = matches!(
            death,
            LinkDeath::Transport | LinkDeath::Silent | LinkDeath::AttachFailed
        );
        if told
            && let Some(number) = link.number
            && self.links.values().any(Link::is_usable)
        {
            self.lane.say_link_down(number);
        }
        self.check_detached(link.unanswered_since(), now);
        self.steer(now);
    }

    /// Begins an outage if no link works; `since` if it began before `now`, but never before the
    /// last frame: a PING may be unanswered while others are heard.
    pub(super) fn check_detached(&mut self, since: Option<Instant>, now: Instant) {
        if self.is_attached() || self.detached_since.is_some() {
            return;
        }
        let since = since.unwrap_or(now).max(self.heard_at);
        self.detached_since = Some(since);
        self.events.push_back(Event::Detached);
        self.plan_expiries(since);
        let starved: Vec<FlowId> = self.flows.keys().copied().collect();
        for id in starved {
            self.extend_intake(id);
        }
    }

    /// A suspect link works again.
    pub(super) fn reattach(&mut self, id: LinkId, now: Instant) {
        if let Some(link) = self.links.get_mut(&id) {
            link.trust();
        }
        if self.detached_since.take().is_some() {
            self.expiries.clear();
            self.events.push_back(Event::Reattached { link: id });
        }
        self.bury_suspects(now);
    }

    /// A suspect link is heard again; true if it works one way only as far as is known: bytes of this
    /// end went into it before, and neither a PONG nor the kernel shows that any arrives. Until then a
    /// new link is worth having, which may be there first.
    pub(super) fn hear_half(&mut self, id: LinkId, frame: &Frame) -> bool {
        let Some(link) = self.links.get(&id).filter(|link| link.owes_pong(frame)) else {
            return false;
        };
        let is_owed = link.is_half_heard
            || self.lane.is_under_way_on(id)
            || self.flows.values().any(|flow| flow.tx.is_under_way_on(id));
        if let Some(link) = self.links.get_mut(&id).filter(|_| is_owed) {
            link.is_half_heard = true;
            // Once for all frames that have come together.
            let wanted = Event::WantProgress { link: id };
            if !self.events.contains(&wanted) {
                self.events.push_back(wanted);
            }
        }
        is_owed
    }

    pub(super) fn extra(&self) -> Duration {
        match self.role {
            Role::Client => Duration::ZERO,
            Role::Server => limits::SERVER_EXTRA,
        }
    }

    /// When the grace of each flow that lives is over, once for an outage: they are many, and each
    /// may have its own.
    fn plan_expiries(&mut self, since: Instant) {
        let extra = self.extra();
        let live = self.flows.values_mut().filter(|flow| !flow.is_past());
        let expiries = live.map(|flow| {
            let at = flow.expires_at(since) + extra;
            flow.expiry = Some(at);
            (at, flow.id)
        });
        self.expiries = expiries.collect();
    }

    /// A frame from a lost link had come before its loss, and says nothing of the network; but
    /// grace runs from the last frame.
    pub(super) fn defer_expiries(&mut self, now: Instant) {
        if let Some(since) = &mut self.detached_since
            && *since < now
        {
            *since = now;
            self.plan_expiries(now);
        }
    }

    /// When no flow lives and no link works, the session ends then (rule 15).
    fn abandoned_at(&self) -> Option<Instant> {
        if !self.confirmed {
            return Some(self.born + limits::UNCONFIRMED);
        }
        let since = self.detached_since?;
        (self.live_flows == 0)
            .then(|| since.max(self.idle_since) + limits::ABANDONED + self.extra())
    }

    /// Looks at a flow again when its local socket may have held a RESET for too long.
    pub(super) fn watch_reset(&mut self, id: FlowId) {
        let at = self.reset_stall_at(&id);
        if let (Some(at), Some(flow)) = (at, self.flows.get_mut(&id))
            && flow.stall.is_none()
        {
            flow.stall = Some(at);
            self.stalls.insert((at, id));
        }
    }

    fn reset_stall_at(&self, id: &FlowId) -> Option<Instant> {
        let flow = self.flows.get(id)?;
        let here = flow
            .reset_received
            .is_some_and(|end| flow.rx.accepted() >= end);
        (here || flow.reset_due).then(|| flow.progress_at + limits::RESET_STALL)
    }

    fn around(&self) -> Around {
        let links = self.links.values();
        Around {
            is_client: self.role == Role::Client,
            is_busy: self.is_busy(),
            working: links.filter(|link| link.is_working()).count(),
        }
    }

    /// The next deadline, and what it is for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        if self.ended.is_some() {
            return None;
        }
        let around = self.around();
        let links = self.links.values();
        let links = links.filter_map(|link| link.deadline(around));
        let link = links.map(|(at, _)| (at, Timer::Link)).min();
        let grace = self.expiries.first().map(|(at, _)| (*at, Timer::Grace));
        let stall = self.stalls.first().map(|(at, _)| (*at, Timer::ResetStall));
        let abandoned = self.abandoned_at().map(|at| (at, Timer::Abandoned));
        let datagrams = self.sweeps_at().map(|at| (at, Timer::Datagrams));
        let all = [link, grace, stall, abandoned, datagrams];
        all.into_iter().flatten().min()
    }

    /// Does what is due at `now`; early calls do nothing, late ones are caught up with.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        self.link_duties(now);
        self.reset_stalls(now);
        self.sweep_if_due(now);
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
        let around = self.around();
        let due = self.links.values().filter_map(|link| {
            let (at, duty) = link.deadline(around)?;
            (at <= now).then_some((link.id, duty))
        });
        let due: Vec<_> = due.collect();
        for (id, duty) in &due {
            let (id, duty) = (*id, *duty);
            match duty {
                // What carries nothing is asked together with what carries: it must be known to
                // work when the other is found not to.
                Duty::Ping if around.is_client && self.carrier() == Some(id) => self.probe(now),
                Duty::Ping => self.ask(id, now),
                Duty::Leave => self.let_go(id, now),
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
        while let Some((at, id)) = self.stalls.first().copied()
            && at <= now
        {
            self.stalls.remove(&(at, id));
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.stall = None;
            }
            if self.reset_stall_at(&id).is_some_and(|at| at <= now) {
                self.abort_socket(id, FlowCode::PeerReset);
                self.end_receiving(id, now);
            } else {
                self.watch_reset(id);
            }
        }
    }

    fn expire_flows(&mut self, now: Instant) {
        let mut is_any = false;
        while let Some((at, id)) = self.expiries.first().copied()
            && at <= now
        {
            self.expiries.remove(&(at, id));
            is_any = true;
            self.expire(id);
            self.abort(id, FlowCode::Expired, now);
        }
        // If the last flow has ended otherwise, rule 15 has its say.
        if is_any && self.live_flows == 0 {
            self.end(EndReason::Expired, None, now);
        }
    }
}
