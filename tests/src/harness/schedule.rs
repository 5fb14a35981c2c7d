//! Schedules: what may happen, drawn by number alone, so that any part can be left out.

use super::rng::Rng;
use super::world::Knobs;
use std::time::Duration;

/// How rough a schedule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Applications and delays only.
    Mild,
    /// Links die, too.
    Links,
    /// And daemons.
    All,
}

/// Something happens to whatever the number points at when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its place in the schedule.
    pub index: usize,
    /// What.
    pub kind: Kind,
    /// Everything that is chosen on the way comes from this.
    pub number: u64,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes arrive.
    Deliver,
    /// A driver writes to a link.
    Transmit,
    /// An application or origin does something.
    Application,
    /// A driver serves a flow.
    Pump,
    /// An application connects.
    Open,
    /// Something happens to a mapping.
    Datagrams,
    /// The client dials.
    Dial,
    /// A second or so passes.
    Wait,
    /// Everything works for a moment, and everybody tries to finish.
    Finish,
    /// Everything works for a moment.
    Run,
    /// A new link is used before the old one has brought what is under way there.
    Overtake,
    /// Timeouts are handled although none may be due.
    Tick,
    /// The client's owner prefers, keeps or gives up a link.
    Steer,
    /// A link is cut or stalled.
    Break,
    /// A long time passes.
    Outage,
    /// Somebody disconnects.
    Disconnect,
    /// The server daemon starts again.
    RestartServer,
    /// The client daemon starts again.
    RestartClient,
}

/// How often something happens, and how rough a schedule must be for it.
type Weight = (Kind, usize, Mood);

/// Weights per mille.
const WEIGHTS: [Weight; 16] = [
    (Kind::Deliver, 250, Mood::Mild),
    (Kind::Transmit, 210, Mood::Mild),
    (Kind::Application, 170, Mood::Mild),
    (Kind::Pump, 130, Mood::Mild),
    (Kind::Open, 30, Mood::Mild),
    (Kind::Run, 40, Mood::Mild),
    (Kind::Dial, 40, Mood::Mild),
    (Kind::Wait, 30, Mood::Mild),
    (Kind::Tick, 10, Mood::Mild),
    (Kind::Overtake, 15, Mood::Mild),
    (Kind::Steer, 20, Mood::Mild),
    (Kind::Break, 35, Mood::Links),
    (Kind::Outage, 13, Mood::All),
    (Kind::Disconnect, 3, Mood::All),
    (Kind::RestartServer, 2, Mood::All),
    (Kind::RestartClient, 3, Mood::All),
];

/// The same towards the end, when flows finish one after the other.
const LAST: [Weight; 7] = [
    (Kind::Finish, 600, Mood::Mild),
    (Kind::Wait, 100, Mood::Mild),
    (Kind::Dial, 60, Mood::Mild),
    (Kind::Steer, 30, Mood::Mild),
    (Kind::Overtake, 100, Mood::Mild),
    (Kind::Break, 120, Mood::Links),
    (Kind::RestartClient, 10, Mood::All),
];

/// Where much is stored, and delivered under all that may happen.
const STORING: [Weight; 15] = [
    (Kind::Deliver, 120, Mood::Mild),
    (Kind::Transmit, 100, Mood::Mild),
    (Kind::Application, 300, Mood::Mild),
    (Kind::Pump, 220, Mood::Mild),
    (Kind::Open, 80, Mood::Mild),
    (Kind::Run, 100, Mood::Mild),
    (Kind::Dial, 90, Mood::Mild),
    (Kind::Wait, 30, Mood::Mild),
    (Kind::Overtake, 10, Mood::Mild),
    (Kind::Steer, 5, Mood::Mild),
    (Kind::Break, 50, Mood::Links),
    (Kind::Outage, 45, Mood::All),
    (Kind::Disconnect, 3, Mood::All),
    (Kind::RestartServer, 12, Mood::All),
    (Kind::RestartClient, 12, Mood::All),
];

/// Where most of what goes by is datagrams.
const THROWING: [Weight; 16] = [
    (Kind::Deliver, 200, Mood::Mild),
    (Kind::Transmit, 170, Mood::Mild),
    (Kind::Datagrams, 330, Mood::Mild),
    (Kind::Application, 60, Mood::Mild),
    (Kind::Pump, 50, Mood::Mild),
    (Kind::Open, 10, Mood::Mild),
    (Kind::Run, 40, Mood::Mild),
    (Kind::Dial, 50, Mood::Mild),
    (Kind::Wait, 40, Mood::Mild),
    (Kind::Tick, 10, Mood::Mild),
    (Kind::Steer, 20, Mood::Mild),
    (Kind::Break, 40, Mood::Links),
    (Kind::Outage, 13, Mood::All),
    (Kind::Disconnect, 2, Mood::All),
    (Kind::RestartServer, 2, Mood::All),
    (Kind::RestartClient, 3, Mood::All),
];

/// Where many connections are lost, and their users open others.
const HANDING: [Weight; 15] = [
    (Kind::Deliver, 60, Mood::Mild),
    (Kind::Transmit, 60, Mood::Mild),
    (Kind::Application, 300, Mood::Mild),
    (Kind::Pump, 150, Mood::Mild),
    (Kind::Open, 120, Mood::Mild),
    (Kind::Run, 130, Mood::Mild),
    (Kind::Dial, 80, Mood::Mild),
    (Kind::Wait, 20, Mood::Mild),
    (Kind::Overtake, 10, Mood::Mild),
    (Kind::Steer, 5, Mood::Mild),
    (Kind::Break, 50, Mood::Links),
    (Kind::Outage, 40, Mood::All),
    (Kind::Disconnect, 3, Mood::All),
    (Kind::RestartServer, 3, Mood::All),
    (Kind::RestartClient, 3, Mood::All),
];

/// Buffers in which some flows that may be stored find room at once.
const STORING_BUFFERS: [u64; 3] = [200_000, 512 * 1024, 4 << 20];

/// The same, and one that has room for two messages at once.
const TIGHT_BUFFERS: [u64; 3] = [140_000, 140_000, 512 * 1024];

/// A schedule before it is played.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Where it comes from.
    pub seed: u64,
    /// The world it is played in.
    pub knobs: Knobs,
    /// What happens.
    pub actions: Vec<Action>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mood = rng.pick(&[Mood::Mild, Mood::Links, Mood::Links, Mood::All, Mood::All]);
        let buffers = [8, 16, 32, 64, 256, 1024, 4096, 32_768];
        let buffer = [rng.pick(&buffers), rng.pick(&buffers)];
        // What passes through a small buffer in small pieces takes its time.
        let memory = rng.pick(&[0, 100, 1 << 20, 1 << 30]);
        let most = buffer[0].min(buffer[1]) * 16;
        let most = if memory < 1000 { most.min(400) } else { most };
        let knobs = Knobs {
            buffer,
            max_flows: [rng.pick(&[2, 4, 6]), rng.pick(&[2, 4, 6])],
            ring: rng.pick(&[1, 3, 6, 40, 600, 20_000]).min(most),
            send_queue: rng.pick(&[60, 400, 5000, 200_000]),
            memory,
            stored: false,
            datagrams: false,
            handed: false,
            max_grace: Duration::from_secs(3600),
        };
        let count = rng.pick(&[60, 150, 300, 600]);
        let tail = rng.pick(&[0, 0, 15, 60]);
        let actions = (0..count + tail).map(|index| {
            let weights = if index < count { &WEIGHTS[..] } else { &LAST };
            draw(&mut rng, index, weights, mood)
        });
        let actions = actions.collect();
        let knobs = if rng.chance(20) {
            // Whole messages need room.
            Knobs {
                buffer: [rng.pick(&STORING_BUFFERS), rng.pick(&STORING_BUFFERS)],
                memory: 1 << 30,
                stored: true,
                handed: rng.chance(50),
                ..knobs
            }
        } else {
            knobs
        };
        Self {
            seed,
            knobs,
            actions,
        }
    }
}

impl Schedule {
    /// The schedule of a seed in which much is stored and delivered.
    pub fn storing(seed: u64) -> Self {
        let mut rng = Rng::of(seed, 514);
        let knobs = Knobs {
            buffer: [rng.pick(&TIGHT_BUFFERS), rng.pick(&TIGHT_BUFFERS)],
            max_flows: [rng.pick(&[4, 6, 8]), rng.pick(&[4, 6, 8])],
            ring: rng.pick(&[40, 600, 600, 20_000]),
            send_queue: rng.pick(&[60, 400, 5000, 200_000]),
            memory: 1 << 30,
            stored: true,
            datagrams: false,
            handed: false,
            max_grace: Duration::from_secs(3600),
        };
        let count = rng.pick(&[150, 300, 600]);
        let actions = (0..count).map(|index| draw(&mut rng, index, &STORING, Mood::All));
        let actions = actions.collect();
        Self {
            seed,
            knobs,
            actions,
        }
    }
}

impl Schedule {
    /// The schedule of a seed with mappings beside connections.
    pub fn throwing(seed: u64) -> Self {
        let mut rng = Rng::of(seed, 768);
        let mood = rng.pick(&[Mood::Mild, Mood::Links, Mood::Links, Mood::All, Mood::All]);
        let buffers = [64, 4096, 32_768, 1 << 20, 1 << 24];
        let knobs = Knobs {
            buffer: [rng.pick(&buffers), rng.pick(&buffers)],
            max_flows: [rng.pick(&[3, 6, 12]), rng.pick(&[3, 6, 12])],
            ring: rng.pick(&[6, 40, 600]),
            send_queue: rng.pick(&[400, 5000, 200_000]),
            memory: rng.pick(&[0, 1 << 20, 1 << 30]),
            stored: false,
            datagrams: true,
            handed: false,
            max_grace: Duration::from_secs(3600),
        };
        let count = rng.pick(&[60, 150, 300, 600]);
        let actions = (0..count).map(|index| draw(&mut rng, index, &THROWING, mood));
        let actions = actions.collect();
        Self {
            seed,
            knobs,
            actions,
        }
    }

    /// The schedule of a seed in which much is handed on, and some stored.
    pub fn handing(seed: u64) -> Self {
        let mut rng = Rng::of(seed, 5222);
        let knobs = Knobs {
            // The server forgets nothing for want of room.
            buffer: [rng.pick(&STORING_BUFFERS), 4 << 20],
            ring: rng.pick(&[3, 40, 600, 20_000]),
            stored: rng.chance(30),
            handed: true,
            ..Self::storing(seed).knobs
        };
        let count = rng.pick(&[150, 300, 600]);
        let actions = (0..count).map(|index| draw(&mut rng, index, &HANDING, Mood::All));
        let actions = actions.collect();
        Self {
            seed,
            knobs,
            actions,
        }
    }
}

fn draw(rng: &mut Rng, index: usize, weights: &[Weight], mood: Mood) -> Action {
    let has = |needs: Mood| match needs {
        Mood::Mild => true,
        Mood::Links => mood != Mood::Mild,
        Mood::All => mood == Mood::All,
    };
    let total = weights
        .iter()
        .filter(|(_, _, needs)| has(*needs))
        .map(|(_, weight, _)| weight)
        .sum();
    let mut at = rng.below(total);
    let number = rng.draw();
    for (kind, weight, needs) in weights.iter().copied() {
        if !has(needs) {
            continue;
        }
        if at < weight {
            return Action {
                index,
                kind,
                number,
            };
        }
        at -= weight;
    }
    Action {
        index,
        kind: Kind::Tick,
        number,
    }
}
