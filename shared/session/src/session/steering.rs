//! Which link carries flows, how the other end learns of it, and what becomes of the others
//! (PROTOCOL.md §6.4, rule 16).

use super::{LinkDeath, Role, Session};
use crate::id::{LinkId, LinkNumber};
use crate::link::Link;
use crate::time::Instant;
use crate::wire::frame::{Control, Frame};
use std::cmp::Reverse;

impl Session {
    /// The link that carries flows, or would: one that works and has proved it, before one that
    /// works, before one that is not confirmed, before a suspect one. Among equals the server
    /// takes the one that the client leads it to, the client the one that its owner prefers; but
    /// none that came beside another one before it has answered its first PINGs.
    pub fn carrier(&self) -> Option<LinkId> {
        let rank = |link: &Link| {
            let class = match (link.is_working(), link.suspect_since) {
                (true, _) if link.is_proven => 4,
                (true, _) => 3,
                (false, None) => 2,
                (false, Some(_)) => 1,
            };
            let is_led = self.led.1 == Some(link.id);
            let is_known = link.is_first_choice || !link.wants_samples();
            let is_warm = self.role == Role::Client && is_known;
            (
                class,
                is_led,
                is_warm,
                Reverse(link.preference),
                link.number,
            )
        };
        let usable = self.links.values().filter(|link| link.is_usable());
        usable.max_by_key(|link| rank(link)).map(|link| link.id)
    }

    /// Client: the owner's order of preference; the least is best, and among equals the newest.
    pub fn prefer(&mut self, link: LinkId, preference: u32, now: Instant) {
        if let Some(link) = self.links.get_mut(&link) {
            link.preference = preference;
        }
        self.steer(now);
    }

    /// Client: that link stays although another one carries, or not any more.
    pub fn keep(&mut self, link: LinkId, is_kept: bool, now: Instant) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_kept = is_kept;
        }
        self.steer(now);
    }

    /// The owner knows that nothing passes by a link for now: its device has lost its carrier, or
    /// its address is gone. If another one works, flows go on there at once; else the link stays,
    /// suspect, whatever is read from its socket that had come before, until it is
    /// [found](Self::handle_link_found) again.
    pub fn handle_link_lost(&mut self, id: LinkId, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        let is_usable = self.links.get(&id).is_some_and(Link::is_usable);
        let mut others = self.links.values().filter(|link| link.id != id);
        if !is_usable || others.any(Link::is_working) {
            self.kill_link(id, LinkDeath::Transport, now);
            return;
        }
        self.ask(id, now);
        if let Some(link) = self.links.get_mut(&id) {
            link.lose(now);
        }
        self.check_detached(None, now);
    }

    /// What was [lost](Self::handle_link_lost) is there again; whether the link works shows with
    /// the next frame on it, and it is asked.
    pub fn handle_link_found(&mut self, id: LinkId, now: Instant) {
        if let Some(link) = self.links.get_mut(&id)
            && link.is_lost()
        {
            link.find();
            self.ask(id, now);
        }
    }

    /// A link has become suspect. Another one that was heard since the unanswered PING shows that
    /// the fault is the link's and not the network's: what was under way goes out again there.
    pub(super) fn weigh_suspect(&mut self, id: LinkId, now: Instant) {
        let since = self.links.get(&id).and_then(|link| link.suspect_since);
        let mut working = self.links.values().filter(|link| link.is_working());
        if working.any(|link| since.is_some_and(|since| link.last_heard() >= since)) {
            self.bury_suspects(now);
        } else {
            self.probe(now);
        }
        self.steer(now);
    }

    /// Where the other end wants frames, as far as this one shows.
    pub(super) fn note_following(&mut self, id: LinkId, frame: &Frame, now: Instant) {
        match (self.role, frame) {
            (Role::Server, Frame::Control { number, .. }) if *number > self.led.0 => {
                self.led = (*number, Some(id));
            }
            (_, Frame::Ping { .. } | Frame::Pong { .. } | Frame::FlowState(_))
            | (Role::Server, _) => {}
            // The server sends nothing else by a link that it does not take for the carrier.
            (Role::Client, _) => {
                if self.told_by == Some(id) && !self.is_followed {
                    self.is_followed = true;
                    self.steer(now);
                }
            }
        }
    }

    /// That PING was answered, which had been asked for then.
    pub(super) fn on_answered(&mut self, id: LinkId, ping: (u64, Instant), now: Instant) {
        let (nonce, asked_at) = ping;
        if self.role != Role::Client {
            return;
        }
        let link = self.links.get(&id);
        if link.is_some_and(|link| link.is_empty_at(nonce)) {
            self.let_go(id, now);
        } else if link.is_some_and(Link::wants_samples) {
            self.ask(id, now);
            if let Some(link) = self.links.get_mut(&id) {
                link.forget_step();
            }
        }
        for other in self.links.values_mut().filter(|link| link.id != id) {
            other.expect_soon(asked_at);
        }
        self.steer(now);
    }

    /// Client: tells the server by the carrier that it is the carrier, and lets go of what nobody
    /// needs once the server sends there.
    pub(super) fn steer(&mut self, now: Instant) {
        if self.role != Role::Client || self.ended.is_some() {
            return;
        }
        let Some(carrier) = self.carrier() else {
            return;
        };
        if let Some(link) = self.links.get_mut(&carrier) {
            link.stay();
        }
        if self.told_by != Some(carrier) {
            self.told_by = Some(carrier);
            let is_alone = !self.has_other(carrier);
            self.is_followed = is_alone;
            if !is_alone {
                // It names what was retired already, so it closes nothing.
                let older_than = self.retired_below.max(LinkNumber(1));
                self.lane.say(Control::Retire { older_than });
            }
        }
        let is_sure = self
            .links
            .get(&carrier)
            .is_some_and(|link| link.is_working() && link.is_proven);
        if is_sure && self.is_followed {
            self.dismiss(carrier, now);
        }
    }

    fn has_other(&self, than: LinkId) -> bool {
        let mut others = self.links.values().filter(|link| link.id != than);
        others.any(Link::is_usable)
    }

    /// Every link but the carrier and those that are kept runs empty, and is let go of then.
    fn dismiss(&mut self, carrier: LinkId, now: Instant) {
        let mut ask = Vec::new();
        for link in self.links.values_mut().filter(|link| link.id != carrier) {
            if link.is_kept {
                link.stay();
            } else if link.is_working() && link.is_proven {
                link.leave(now);
            }
            if link.is_working() && link.wants_last_ping() {
                ask.push(link.id);
            }
        }
        for id in ask {
            self.ask(id, now);
            let nonce = self.next_nonce;
            if let Some(link) = self.links.get_mut(&id) {
                link.last_ping(nonce);
            }
        }
    }

    /// Client: a link that nobody needs has run empty, or had its time for it.
    pub(super) fn let_go(&mut self, id: LinkId, now: Instant) {
        let Some(number) = self.links.get(&id).and_then(|link| link.number) else {
            return;
        };
        let carrier = self.carrier().filter(|carrier| *carrier != id);
        let newest = carrier.and_then(|carrier| self.links.get(&carrier)?.number);
        let last_of_the_older = newest.is_some_and(|newest| {
            let usable = self.links.values().filter(|link| link.is_usable());
            let older = usable.filter(|link| link.number < Some(newest));
            number < newest && older.count() == 1
        });
        match carrier.filter(|_| last_of_the_older) {
            Some(carrier) if self.retires(carrier) => self.retire_older(carrier, now),
            _ => {
                self.lane.say(Control::LinkDown { link: number });
                self.kill_link(id, LinkDeath::Retired, now);
            }
        }
    }

    fn retires(&self, carrier: LinkId) -> bool {
        self.links.get(&carrier).is_some_and(|link| link.retire_due)
    }
}
