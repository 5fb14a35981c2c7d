//! Time in the world: deadlines are met, missed by a sleep, or met while links run.

use super::coverage::Situation;
use super::pipe::Farewell;
use super::world::{CLIENT, SERVER, Who, World};
use std::time::Duration;
use tund_session::{Instant, LinkId, Session};

/// A connection on which nothing was asked for so long is closed by the server's driver.
const GREETING: Duration = Duration::from_secs(20);
/// No world needs more turns of its deadlines in one stretch of time.
const TURNS: usize = 20_000;
/// Nor more rounds at one moment.
const ROUNDS: usize = 4;

impl World {
    /// The next deadline of either daemon that is awake.
    pub fn next_deadline(&self) -> Option<Instant> {
        let client = self.client.as_ref().and_then(|c| c.session.poll_timeout());
        let client = client.filter(|_| !self.asleep[CLIENT]).map(|(at, _)| at);
        let server = self.registry.poll_timeout();
        let server = server.filter(|_| !self.asleep[SERVER]);
        client.into_iter().chain(server).min()
    }

    /// Lets both daemons do what is due, or calls them early.
    pub fn timeouts(&mut self) {
        let now = self.now;
        self.note_held();
        let ends: Vec<Who> = self.ends();
        let before: Vec<usize> = ends.iter().map(|who| self.flows_of(*who)).collect();
        self.in_timeout = true;
        let mut rounds = 0;
        loop {
            self.meet_deadlines();
            for link in self.pipes.keys().copied().collect::<Vec<_>>() {
                self.adopt(link);
            }
            self.drain();
            // What drivers answer may make something due that was not, but not again and again.
            if self.next_deadline().is_none_or(|at| at > now) || self.fault.is_some() {
                break;
            }
            rounds += 1;
            if rounds > ROUNDS {
                self.fault("a deadline stays in the past");
            }
        }
        self.in_timeout = false;
        for (who, before) in ends.into_iter().zip(before) {
            self.note_single_expiry(who, before);
        }
        self.close_old_pipes();
    }

    /// Both cores do what is due, and then nothing is (INV-10).
    fn meet_deadlines(&mut self) {
        let now = self.now;
        if let Some(client) = &mut self.client
            && !self.asleep[CLIENT]
        {
            client.session.handle_timeout(now);
            if let Some((at, timer)) = client.session.poll_timeout()
                && at <= now
            {
                self.fault(format!(
                    "client: deadline {timer:?} lies in the past after a timeout"
                ));
            }
        }
        if !self.asleep[SERVER] {
            self.registry.handle_timeout(now);
            if self.registry.poll_timeout().is_some_and(|at| at <= now) {
                self.fault("server: a deadline lies in the past after a timeout");
            }
        }
    }

    fn flows_of(&self, who: Who) -> usize {
        let books = match who {
            Who::Client => self.client.as_ref().map(|client| &client.books),
            Who::Server(id) => self.books.get(&id),
        };
        books.map_or(0, |books| books.locals.values().filter(|l| !l.over).count())
    }

    fn note_single_expiry(&mut self, who: Who, before: usize) {
        let ended = self.session(who).is_none_or(Session::is_ended);
        let left = self.flows_of(who);
        if !ended
            && left > 0
            && left < before
            && self.session(who).is_some_and(|s| !s.is_attached())
        {
            self.met(Situation::SingleExpiry);
        }
    }

    /// What never said HELLO, and what is over.
    fn close_old_pipes(&mut self) {
        let now = self.now;
        if self.asleep[SERVER] {
            return;
        }
        let old = self.pipes.values().filter(|pipe| {
            pipe.session.is_none() && pipe.open[SERVER] && pipe.born + GREETING <= now
        });
        for link in old.map(|pipe| pipe.id).collect::<Vec<_>>() {
            self.let_go(link, SERVER, Farewell::Orderly);
        }
        self.drain();
        self.pipes.retain(|_, pipe| !pipe.is_over());
    }

    /// Time passes; every deadline is met on its time, and nothing arrives meanwhile.
    pub fn pass(&mut self, span: Duration) {
        self.pass_with(span, |_| {});
    }

    /// Time passes while links, drivers and readers work.
    pub fn pass_running(&mut self, span: Duration) {
        self.pass_with(span, |world| {
            world.run_links();
        });
    }

    fn pass_with(&mut self, span: Duration, mut meanwhile: impl FnMut(&mut Self)) {
        let until = self.now + span;
        for _ in 0..TURNS {
            meanwhile(self);
            let next = self.next_deadline().filter(|at| *at < until);
            let soonest = self.now + Duration::from_nanos(1);
            self.now = next.unwrap_or(until).max(soonest).min(until);
            self.timeouts();
            if self.fault.is_some() || self.now >= until {
                return;
            }
        }
        self.fault("deadlines without end");
    }

    /// Everybody sleeps; deadlines are caught up with afterwards.
    pub fn sleep(&mut self, span: Duration) {
        if span > Duration::from_secs(15) && self.flows_of(Who::Client) > 0 {
            self.met(Situation::LongSleep);
        }
        self.now = self.now + span;
        self.timeouts();
    }

    /// Moves everything that links would move at once; true if it was more than small talk.
    pub fn run_links(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..TURNS {
            let mut more = false;
            let mut talk = false;
            for link in self.pipes.keys().copied().collect::<Vec<_>>() {
                for side in [CLIENT, SERVER] {
                    let due = side == CLIENT || self.ready.contains(&link);
                    if due && self.wants_to_send(link, side) {
                        talk = true;
                        more |= self.transmit(link, side, 20_000);
                    }
                    let ready = |world: &Self| {
                        world
                            .pipes
                            .get(&link)
                            .is_some_and(|pipe| pipe.lanes[side].is_deliverable())
                    };
                    while ready(self) {
                        talk = true;
                        more |= self.deliver(link, side, usize::MAX);
                    }
                }
            }
            moved |= more;
            if !talk || self.fault.is_some() {
                return moved;
            }
        }
        self.fault("links are never quiet");
        moved
    }

    /// A driver would write to that link.
    pub fn wants_to_send(&self, link: LinkId, side: usize) -> bool {
        let Some(pipe) = self.pipes.get(&link) else {
            return false;
        };
        if !pipe.open[side] || pipe.unacknowledged(side) >= self.knobs.send_queue {
            return false;
        }
        if side == CLIENT {
            return self
                .client
                .as_ref()
                .is_some_and(|client| client.session.has_transmit(link));
        }
        let session = pipe.session.and_then(|id| self.registry.session(id));
        session.is_some_and(|session| session.has_transmit(link))
    }
}
