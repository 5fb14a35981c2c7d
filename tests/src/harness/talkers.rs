//! Applications and origins that talk for a while: in bursts, with long silences, half-closed.

use super::mobile::Tally;
use super::rng::Rng;
use super::world::{CLIENT, SERVER, World};
use std::time::Duration;
use tund_session::Instant;

/// Flows at once.
const MOST: usize = 8;

/// One end of a flow.
#[derive(Clone, Copy, Debug)]
struct Mouth {
    /// Bytes still to be written, and how many at once; then FIN.
    left: u64,
    piece: u64,
    /// When it writes next.
    next: Instant,
    /// Between two pieces, at most.
    pause: Duration,
    /// Speaks only once the other end has finished: its last word.
    answers: bool,
    finished: bool,
}

/// One flow.
#[derive(Debug)]
struct Talker {
    unit: usize,
    mouths: [Mouth; 2],
    /// Reads so much at once; none: all there is.
    sip: Option<u64>,
}

/// Everybody.
#[derive(Debug)]
pub(super) struct Talkers {
    rng: Rng,
    grace: Duration,
    all: Vec<Talker>,
    opens_at: Instant,
}

impl Talkers {
    pub(super) fn new(seed: u64, grace: Duration) -> Self {
        Self {
            rng: Rng::new(seed),
            grace,
            all: Vec::new(),
            opens_at: Instant::default(),
        }
    }

    /// There is a flow that neither end has finished.
    pub(super) fn has_some(&self, world: &World) -> bool {
        let units = self.all.iter().map(|talker| &world.units[talker.unit]);
        let mut open = units.filter(|unit| {
            let mut sockets = unit.sockets.iter().flatten();
            unit.aborted.is_none() && sockets.all(|socket| socket.connected && !socket.is_told())
        });
        open.next().is_some()
    }

    /// When somebody wants to do something next.
    pub(super) fn next(&self, world: &World) -> Option<Instant> {
        let opens = (!world.asleep[CLIENT]).then_some(self.opens_at);
        let mouths = self.all.iter().flat_map(|talker| {
            let awake = [CLIENT, SERVER].into_iter().filter(|side| {
                let socket = world.units[talker.unit].sockets[*side].as_ref();
                let can = socket.is_some_and(|socket| socket.connected && !socket.is_told());
                let mouth = &talker.mouths[*side];
                let waits = mouth.answers && !socket.is_some_and(|socket| socket.saw_fin);
                can && !mouth.finished && !waits && (*side == SERVER || !world.asleep[CLIENT])
            });
            awake.map(|side| talker.mouths[side].next)
        });
        mouths.chain(opens).min()
    }

    /// Lets everybody do what is due; true if anybody did.
    pub(super) fn act(&mut self, world: &mut World, tally: &mut Tally) -> bool {
        let mut acted = false;
        if self.opens_at <= world.now && !world.asleep[CLIENT] {
            self.opens_at = world.now + self.random(120);
            if self.all.len() < MOST {
                acted |= self.open(world, tally);
            }
        }
        let mut all = std::mem::take(&mut self.all);
        for talker in &mut all {
            for side in [CLIENT, SERVER] {
                if side == SERVER || !world.asleep[CLIENT] {
                    acted |= self.speak(talker, side, world, tally);
                    acted |= listen(talker, side, world);
                }
            }
        }
        all.retain(|talker| !is_over(talker, world));
        self.all = all;
        acted
    }

    /// Up to so many seconds.
    fn random(&mut self, seconds: usize) -> Duration {
        Duration::from_millis(self.rng.below(seconds * 1000).try_into().unwrap_or(0))
    }

    fn open(&mut self, world: &mut World, tally: &mut Tally) -> bool {
        let Some(unit) = world.open(self.grace) else {
            return false;
        };
        tally.count("flows");
        let now = world.now;
        let mouth = |left: u64, piece: u64, pause: u64| Mouth {
            left,
            piece,
            next: now,
            pause: Duration::from_secs(pause),
            answers: false,
            finished: false,
        };
        let bulk = 20_000 + self.rng.draw() % 2_000_000;
        let words = 200 + self.rng.draw() % 20_000;
        let mut mouths = match self.rng.below(10) {
            0..2 => [mouth(300, 300, 0), mouth(bulk, 60_000, 0)],
            2..4 => [mouth(bulk, 60_000, 0), mouth(8, 8, 0)],
            4..8 => [mouth(words, 400, 30), mouth(words, 900, 40)],
            _ => [mouth(60, 10, 3000), mouth(60, 10, 2000)],
        };
        if self.rng.chance(50) {
            mouths[self.rng.pick(&[CLIENT, SERVER])].answers = true;
        }
        let sip = self.rng.chance(15).then_some(2000);
        self.all.push(Talker { unit, mouths, sip });
        true
    }

    fn speak(
        &mut self,
        talker: &mut Talker,
        side: usize,
        world: &mut World,
        tally: &mut Tally,
    ) -> bool {
        let now = world.now;
        let mouth = &mut talker.mouths[side];
        let Some(socket) = &mut world.units[talker.unit].sockets[side] else {
            return false;
        };
        if mouth.finished || mouth.next > now || (mouth.answers && !socket.saw_fin) {
            return false;
        }
        let wrote = socket.write(mouth.piece.min(mouth.left));
        if wrote > 0 && socket.saw_fin {
            tally.count("half-close, the other half went on");
        }
        mouth.left -= wrote;
        let mut acted = wrote > 0;
        if mouth.left == 0 {
            mouth.finished = socket.finish();
            acted |= mouth.finished;
        }
        let pause = mouth.pause;
        // A full ring is looked at again later: its reader may be asleep.
        let least = if wrote > 0 { 0 } else { 1000 };
        mouth.next = now + Duration::from_millis(least) + pause / 100 * self.percent();
        acted
    }

    fn percent(&mut self) -> u32 {
        u32::try_from(self.rng.below(100)).unwrap_or(0)
    }

    /// Counts what has gone across.
    pub(super) fn tell(&self, world: &World, tally: &mut Tally) {
        for unit in &world.units {
            let bytes: u64 = unit.sockets.iter().flatten().map(|socket| socket.got).sum();
            tally.add("bytes", bytes);
            match unit.aborted {
                Some("expired") => tally.count("flows that expired"),
                Some(_) => tally.count("flows that ended with their session"),
                None => {}
            }
        }
    }
}

fn listen(talker: &Talker, side: usize, world: &mut World) -> bool {
    let socket = world.units[talker.unit].sockets[side].as_mut();
    socket.is_some_and(|socket| socket.read(talker.sip.unwrap_or(u64::MAX)))
}

/// Both ends know that it is over.
fn is_over(talker: &Talker, world: &World) -> bool {
    let [app, origin] = &world.units[talker.unit].sockets;
    let told = |socket: &super::socket::Socket| {
        socket.app_rst || socket.saw_rst || (socket.app_fin && socket.saw_fin)
    };
    app.as_ref().is_none_or(told) && origin.as_ref().is_none_or(told)
}
