//! Half a day of a mobile host in virtual time: bytes take time on their way, networks come and go,
//! either end sleeps while the other runs on, and applications talk, pause and half-close.

use super::pipe::Farewell;
use super::rng::Rng;
use super::talkers::Talkers;
use super::world::{CLIENT, Knobs, SERVER, Who, World};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use tund_session::{Instant, LinkId, Session};

/// One way, for bytes of a link.
const DELAY: Duration = Duration::from_millis(50);
/// Bytes that a link takes in that time: 4 Mbit/s.
const RATE: usize = 25_000;
/// Between two attempts.
const REDIAL: Duration = Duration::from_millis(500);
/// How long a life is.
pub const LIFE: Duration = Duration::from_secs(12 * 3600);
/// A sleep that counts as one of a night.
pub const NIGHT: Duration = Duration::from_secs(7 * 3600);

/// What must be met over all lives of a test.
pub const MET: [&str; 19] = [
    "cut, silent, the connection goes on",
    "cut, silent, the connection forgotten",
    "cut one way",
    "reset by a middlebox",
    "switch of network, the client told",
    "switch of network, nobody told",
    "gap without any network",
    "portal",
    "attempt that met a portal or nobody",
    "client asleep for minutes",
    "client asleep for hours",
    "server asleep",
    "wake-up: bytes first",
    "wake-up: clock first",
    "attach lost: request",
    "attach lost: answer",
    "attach lost: confirmation",
    "half-close, the other half went on",
    "outage outlived",
];

/// How often something has happened.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// Once more.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// So many times more.
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// The most there has been.
    pub fn most(&mut self, what: &'static str, number: u64) {
        let known = self.0.entry(what).or_default();
        *known = number.max(*known);
    }

    /// Of others.
    pub fn merge(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            if what.starts_with("longest") {
                self.most(what, *times);
            } else {
                self.add(what, *times);
            }
        }
    }

    /// How often.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.0.iter();
        lines.try_for_each(|(what, times)| writeln!(f, "{times:>12}  {what}"))
    }
}

/// What the client's network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    /// Attempts find nobody, and links bring nothing, these ways.
    Dark(&'static [usize]),
    /// Attempts meet something else.
    Portal,
    Works,
}

/// Where an attach is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doom {
    Answer,
    Confirmation,
    Request,
}

/// One host and its server.
#[derive(Debug)]
pub struct Life {
    /// The cores, applications and links.
    pub world: World,
    /// What has happened.
    pub tally: Tally,
    rng: Rng,
    talkers: Talkers,
    network: Network,
    /// When the network changes next, and when the client may dial next.
    change_at: Instant,
    dial_at: Instant,
    doomed: BTreeMap<LinkId, Doom>,
    nights: usize,
    /// When the last outage with flows began.
    detached_at: Option<Instant>,
}

impl Life {
    /// The life of a seed, with flows of this grace.
    pub fn new(seed: u64, grace: Duration) -> Self {
        let mut rng = Rng::new(seed);
        let knobs = Knobs {
            buffer: [1 << 19, 1 << 19],
            send_queue: 100_000,
            max_grace: grace,
            ..Knobs::ROOMY
        };
        let world = World::new(seed, knobs);
        let start = world.now;
        Self {
            tally: Tally::default(),
            talkers: Talkers::new(rng.draw(), grace),
            nights: rng.pick(&[0, 1, 1]),
            rng,
            network: Network::Works,
            change_at: start + Duration::from_secs(30),
            dial_at: start,
            doomed: BTreeMap::new(),
            detached_at: None,
            world,
        }
    }

    /// Lives it to its end, and demands that everything has arrived.
    pub fn play(&mut self) {
        let end = self.world.now + LIFE;
        while self.world.now < end && self.world.fault.is_none() {
            if self.world.now >= self.change_at {
                self.change();
            }
            self.step(end);
        }
        self.network = Network::Works;
        self.shine();
        self.talkers.tell(&self.world, &mut self.tally);
        let sessions = self.world.client.as_ref().map_or(0, |client| client.uid);
        self.tally.add("sessions", sessions);
        self.world.settle();
    }

    /// One turn of everybody, and the time until the next.
    fn step(&mut self, end: Instant) {
        let moving = self.turn();
        self.note_outage();
        self.world.check();
        let now = self.world.now;
        let wait = if moving {
            DELAY
        } else {
            let next = self.world.next_deadline();
            let dial = self.wants_to_dial().then_some(self.dial_at);
            let all = [next, dial, self.talkers.next(&self.world)];
            let soonest = all.into_iter().flatten().min().unwrap_or(end);
            let soonest = soonest.min(self.change_at).min(end);
            soonest
                .saturating_duration_since(now)
                .max(Duration::from_nanos(1))
        };
        self.world.pass(wait);
    }

    /// What is under way arrives, drivers and applications work, and new bytes go on their way.
    fn turn(&mut self) -> bool {
        self.meet_doom();
        let mut moving = self.deliver();
        if self.wants_to_dial() && self.dial_at <= self.world.now {
            self.dial_at = self.world.now + REDIAL;
            moving |= self.dial();
        }
        moving |= self.talkers.act(&mut self.world, &mut self.tally);
        for who in self.world.ends() {
            if self.world.asleep[who.side()] {
                continue;
            }
            for flow in self.world.flows(who) {
                moving |= self.world.work_on(who, flow);
            }
        }
        for link in self.links() {
            for side in [CLIENT, SERVER] {
                if !self.world.asleep[side] && self.world.wants_to_send(link, side) {
                    self.world.transmit(link, side, RATE);
                    moving = true;
                }
            }
        }
        moving
    }

    fn links(&self) -> Vec<LinkId> {
        self.world.pipes.keys().copied().collect()
    }

    fn deliver(&mut self) -> bool {
        let mut moving = false;
        for link in self.links() {
            for side in [CLIENT, SERVER] {
                let lane = self.world.pipes.get(&link).map(|pipe| &pipe.lanes[side]);
                let ready = lane.is_some_and(super::pipe::Lane::is_deliverable);
                if ready && !self.world.asleep[1 - side] {
                    self.world.deliver(link, side, usize::MAX);
                    moving = true;
                }
            }
        }
        moving
    }

    fn wants_to_dial(&self) -> bool {
        let Some(client) = &self.world.client else {
            return false;
        };
        let session = &client.session;
        !self.world.asleep[CLIENT]
            && session.wants_link()
            && !session.is_attached()
            && client.books.links.len() < 4
    }

    fn dial(&mut self) -> bool {
        let reachable = self.network == Network::Works && !self.world.asleep[SERVER];
        if !reachable {
            self.tally.count("attempt that met a portal or nobody");
            return false;
        }
        let Some(link) = self.world.dial() else {
            return false;
        };
        if self.rng.chance(25) {
            let doom = self
                .rng
                .pick(&[Doom::Request, Doom::Answer, Doom::Confirmation]);
            self.doomed.insert(link, doom);
        }
        true
    }

    /// Cuts attempts whose time has come.
    fn meet_doom(&mut self) {
        let mut met = Vec::new();
        self.doomed.retain(|link, doom| {
            let Some(pipe) = self.world.pipes.get(link) else {
                return false;
            };
            let [up, down] = pipe.lanes.each_ref();
            let (now, what) = match doom {
                Doom::Request => (up.under_way() > 0, "attach lost: request"),
                Doom::Answer => (down.under_way() > 0, "attach lost: answer"),
                Doom::Confirmation => (
                    down.delivered > 0 && up.under_way() > 0,
                    "attach lost: confirmation",
                ),
            };
            if now {
                met.push((*link, what));
            }
            !now
        });
        for (link, what) in met {
            self.tally.count(what);
            let noticed: &[usize] = self.rng.pick(&[&[], &[], &[CLIENT], &[SERVER]]);
            self.world.cut(link, &[CLIENT, SERVER], noticed);
        }
    }

    /// Counts outages that flows have outlived, and the longest.
    fn note_outage(&mut self) {
        let session = self.world.client.as_ref().map(|client| &client.session);
        let flows = session.is_some_and(|session| session.flow_count() > 0);
        let attached = session.is_some_and(Session::is_attached);
        match self.detached_at {
            None if flows && !attached => self.detached_at = Some(self.world.now),
            Some(since) if attached => {
                let lasted = self.world.now.saturating_duration_since(since).as_secs();
                self.tally.count("outage outlived");
                self.tally.most("longest outage outlived, s", lasted);
                self.detached_at = None;
            }
            Some(_) if !flows => self.detached_at = None,
            _ => {}
        }
    }

    // What befalls the host.

    fn change(&mut self) {
        if self.network != Network::Works {
            self.end_of_darkness();
        } else {
            match self.rng.below(100) {
                0..25 => self.darken(),
                25..37 => self.forsake("reset by a middlebox", &[CLIENT, SERVER]),
                37..50 => self.forsake("switch of network, the client told", &[CLIENT]),
                50..63 => self.forsake("switch of network, nobody told", &[]),
                63..72 => self.gap(),
                72..80 => self.portal(),
                80..92 => self.sleep(CLIENT),
                _ => self.sleep(SERVER),
            }
        }
        if self.network == Network::Works {
            let quiet = self.rng.pick(&[1, 5, 20, 60, 300, 900]);
            let quiet = quiet * 1000 + self.rng.below(5000);
            self.change_at = self.world.now + millis(quiet);
        }
    }

    /// The network is dark for a while, and nobody is told.
    fn darken(&mut self) {
        let ways: &[usize] =
            self.rng
                .pick(&[&[CLIENT, SERVER], &[CLIENT, SERVER], &[CLIENT], &[SERVER]]);
        if ways.len() == 1 {
            self.tally.count("cut one way");
        }
        self.network = Network::Dark(ways);
        for link in self.links() {
            if let Some(pipe) = self.world.pipes.get_mut(&link) {
                for way in ways {
                    pipe.lanes[*way].stalled = true;
                }
            }
        }
        let span = self.rng.pick(&[1, 5, 30, 90, 280, 1500]);
        self.change_at = self.world.now + millis(span * 1000 + self.rng.below(2000));
    }

    fn end_of_darkness(&mut self) {
        let both = matches!(self.network, Network::Dark(ways) if ways.len() == 2);
        self.network = Network::Works;
        let forgotten = self.rng.chance(60);
        if both {
            self.tally.count(if forgotten {
                "cut, silent, the connection forgotten"
            } else {
                "cut, silent, the connection goes on"
            });
        }
        self.shine();
        if forgotten {
            self.lose_all(&[]);
        }
    }

    /// What has waited goes on.
    fn shine(&mut self) {
        for pipe in self.world.pipes.values_mut() {
            for lane in &mut pipe.lanes {
                lane.stalled = false;
            }
            pipe.acknowledge();
        }
    }

    fn lose_all(&mut self, noticed: &[usize]) {
        for link in self.links() {
            self.world.cut(link, &[CLIENT, SERVER], noticed);
        }
    }

    /// Every link is dead; the next attempt may succeed at once.
    fn forsake(&mut self, what: &'static str, noticed: &[usize]) {
        self.tally.count(what);
        self.lose_all(noticed);
    }

    fn gap(&mut self) {
        self.forsake("gap without any network", &[CLIENT]);
        self.network = Network::Dark(&[CLIENT, SERVER]);
        let span = self.rng.pick(&[3, 60, 600]);
        self.change_at = self.world.now + millis(span * 1000 + self.rng.below(1000));
    }

    fn portal(&mut self) {
        self.forsake("portal", &[CLIENT]);
        self.network = Network::Portal;
        let span = self.rng.pick(&[5, 60, 240]);
        self.change_at = self.world.now + millis(span * 1000);
    }

    /// One side sleeps while the other runs on.
    fn sleep(&mut self, side: usize) {
        let night = side == CLIENT && self.nights > 0 && self.rng.chance(30);
        let seconds = if night {
            self.nights -= 1;
            NIGHT.as_secs() + self.rng.draw() % 3600
        } else if side == CLIENT {
            self.rng.pick(&[20, 70, 200, 700, 2400])
        } else {
            self.rng.pick(&[10, 50, 200, 500])
        };
        self.tally.count(match side {
            SERVER => "server asleep",
            _ if night => "client asleep for hours",
            _ => "client asleep for minutes",
        });
        let span = Duration::from_secs(seconds);
        if self.talkers.has_some(&self.world) {
            self.tally.most("longest sleep with flows open, s", seconds);
        }
        let until = self.world.now + span;
        self.world
            .tell(|| format!("side {side} sleeps for {span:?}"));
        self.world.asleep[side] = true;
        while self.world.now < until && self.world.fault.is_none() {
            self.change_at = until;
            self.step(until);
        }
        self.world.asleep[side] = false;
        self.wake(side, span);
    }

    /// The clock of that side has jumped. Its kernel may first tell of bytes, or the clock first;
    /// connections may be forgotten meanwhile.
    fn wake(&mut self, side: usize, span: Duration) {
        if span > Duration::from_secs(150) && self.rng.chance(70) {
            let noticed: &[usize] = self.rng.pick(&[&[], &[CLIENT], &[SERVER]]);
            self.lose_all(noticed);
        }
        if self.rng.chance(50) {
            self.tally.count("wake-up: bytes first");
            self.deliver();
        } else {
            self.tally.count("wake-up: clock first");
            self.world.timeouts();
        }
        if side == CLIENT && self.rng.chance(50) {
            let now = self.world.now;
            self.world.with(Who::Client, |session| session.probe(now));
            self.world.drain();
        }
        // What neither end has kept is closed by somebody's kernel sooner or later.
        for link in self.links() {
            let one = self.world.pipes.get(&link).map(|pipe| pipe.open);
            if one == Some([false, true]) && self.rng.chance(50) {
                self.world.let_go(link, SERVER, Farewell::Silent);
            }
        }
        self.dial_at = self.world.now;
    }
}

fn millis(number: usize) -> Duration {
    Duration::from_millis(number.try_into().unwrap_or(u64::MAX))
}
