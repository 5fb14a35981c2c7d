//! The outage matrix: how soon the first byte comes after each kind of outage, through tund and by
//! a direct TCP connection in the same lab; and a long run of random events.

pub mod cut;
pub mod long_run;
pub mod many;
pub mod roaming;
pub mod standby;
pub mod uplink;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::emulator::Profile;
use crate::lab::{Direction, Pace, Scene, Settings, Stream, Timeline, wait};

/// Of both access links, each way.
pub const MEGABITS: u32 = 20;

/// What a daemon keeps per direction in these labs: a few seconds of the rate, so that a stream
/// that is told to stop after a long outage ends soon.
pub const BUFFER: &str = "4MiB";

/// For what happens at once unless something is wrong.
const SOON: Duration = Duration::from_secs(20);

/// A stream that is told to stop must have ended by then.
const LONG: Duration = Duration::from_secs(60);

/// A stream goes on if it brought something so lately.
const FLOWING: Duration = Duration::from_millis(400);

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Its place in the table.
    pub place: u32,
    /// What happened to the network.
    pub what: String,
    /// What the application did.
    pub way: &'static str,
    /// Round-trip time of the access links.
    pub rtt: Duration,
    /// What must hold.
    pub target: Target,
}

/// What must hold for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// So long at most, in the middle and in the worst case.
    Within {
        /// In the middle.
        median: Duration,
        /// In the worst case.
        worst: Duration,
    },
    /// No run has failed; the time is told for information.
    Unharmed,
}

impl Target {
    /// `median` and `worst` milliseconds, and on top of both so many tenths of a round trip.
    fn within(median: u64, worst: u64, rtt_tenths: u32, rtt: Duration) -> Self {
        let trips = rtt * rtt_tenths / 10;
        Self::Within {
            median: Duration::from_millis(median) + trips,
            worst: Duration::from_millis(worst) + trips,
        }
    }
}

/// How a direct connection fared beside tund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// Nothing came for so long; it was given up then.
    Silent(Duration),
    /// As much time as through tund is measured.
    Took(Duration),
    /// There was none.
    Untried,
}

/// One run of one row.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Through tund: the time, or what was wrong.
    pub tund: Result<Duration, String>,
    /// Without it.
    pub direct: Direct,
}

/// A piece of work with a lab of its own.
pub struct Job {
    /// For the transcript.
    pub title: String,
    /// About how long it takes.
    pub lasts: Duration,
    /// Nothing else should run meanwhile: it keeps the machine busy.
    pub alone: bool,
    /// What it does.
    pub work: Box<dyn FnOnce() -> Vec<(Row, Sample)> + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("title", &self.title).finish()
    }
}

/// Every case of the matrix, each `runs` times.
pub fn jobs(runs: u32) -> Vec<Job> {
    let mut jobs = cut::jobs(runs);
    jobs.extend(roaming::jobs(runs));
    jobs.extend(standby::jobs(runs));
    jobs.extend(uplink::jobs(runs));
    jobs.extend(many::jobs(runs));
    jobs
}

/// The round-trip times at which cases are measured.
pub const RTTS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(100)];

/// Both ways of a stream, as the table calls them.
const WAYS: [(Direction, &str); 2] = [(Direction::Down, "download"), (Direction::Up, "upload")];

/// A scene whose access links have this round-trip time and [`MEGABITS`].
#[track_caller]
pub fn scene(title: &str, rtt: Duration) -> Scene {
    let settings = Settings::new().buffer(BUFFER);
    if rtt.is_zero() {
        let scene = Scene::new(title, &settings);
        scene.lab.limit_rate(MEGABITS);
        return scene;
    }
    Scene::emulated(title, profile(rtt), &settings)
}

/// A link of [`MEGABITS`] with a queue of 100 ms.
pub fn profile(rtt: Duration) -> Profile {
    Profile {
        queue_bytes: u64::from(MEGABITS) * 1_000_000 / 8 / 10,
        ..Profile::delay(rtt / 2).megabits(MEGABITS.into())
    }
}

/// The device of the link that carries the session.
fn device(scene: &Scene) -> Option<String> {
    scene.tund.client.status().link?.interface
}

/// The same stream through tund and past it.
struct Both {
    tund: Stream,
    direct: Stream,
}

/// A seed that no other stream of this process has.
fn fresh_seed() -> u64 {
    static SEEDS: AtomicU64 = AtomicU64::new(1);
    SEEDS.fetch_add(1, Ordering::Relaxed)
}

/// Attempts follow each other every 500 ms from a moment that the outage has set: without such a
/// rest behind its length every run would meet the same part of that.
fn phase() -> Duration {
    // 3 and 7 have no factor in common: seven runs meet all of them.
    Duration::from_millis(71 * (3 * fresh_seed() % 7))
}

impl Both {
    #[track_caller]
    fn start(scene: &Scene, direction: Direction) -> Self {
        let start = |to| {
            let what = (direction, fresh_seed());
            let stream = Stream::start(&scene.lab.client, (&scene.origin, to), what, Pace::Bulk);
            stream.expect("a connection on a network that works")
        };
        let both = Self {
            tund: start(scene.target()),
            direct: start(scene.plain_target()),
        };
        scene.tund.client.wait_attached(SOON);
        // Until both have round trips behind them; not the same part of the daemon's second each
        // time.
        wait::let_pass(Duration::from_millis(1500 + 137 * (fresh_seed() % 8)));
        both
    }

    /// What `counted` says, for both; ends both.
    fn outcome(self, scene: &Scene, counted: Counted, patience: Duration) -> Sample {
        let took = settled(self.tund.timeline(), counted, LONG);
        let silent = || format!("no byte within {LONG:?}");
        let tund = took.ok_or_else(silent).and_then(|took| {
            let stopped = self.tund.stop(&scene.origin, LONG);
            stopped.map(|_| took)
        });
        let left = patience.saturating_sub(wait::now() - counted.back());
        let direct = match settled(self.direct.timeline(), counted, left) {
            Some(took) => Direct::Took(took),
            None => Direct::Silent(patience),
        };
        self.direct.abandon();
        let outages = scene.tund.client.status().outages;
        let said = format!("tund {tund:?}, direct {direct:?}, {outages:?}");
        scene.lab.client.narrate(&said);
        Sample { tund, direct }
    }
}

/// What is measured of a stream.
#[derive(Clone, Copy, Debug)]
enum Counted {
    /// How long after `back` the silence ended that began when the network went, at `away`.
    Recovery { away: Instant, back: Instant },
    /// The longest silence that a change at that moment caused, where something may go on all the
    /// while.
    Interruption(Instant),
}

impl Counted {
    /// From when on something can come.
    fn back(self) -> Instant {
        match self {
            Self::Recovery { back, .. } => back,
            Self::Interruption(moment) => moment,
        }
    }

    fn of(self, timeline: &Timeline) -> Option<Duration> {
        match self {
            Self::Recovery { away, back } => timeline.recovery(away, back),
            Self::Interruption(moment) => timeline.interruption(moment),
        }
    }
}

/// What is counted, once the stream flows again; none if it does not within `limit`.
fn settled(timeline: &Timeline, counted: Counted, limit: Duration) -> Option<Duration> {
    let start = wait::now();
    // Late bytes of a link that has died must not be taken for the end of the silence.
    let settled = counted.back() + Duration::from_millis(1500);
    loop {
        let now = wait::now();
        if now >= settled && timeline.is_flowing(FLOWING) {
            let found = counted.of(timeline);
            if found.is_some() {
                return found;
            }
        }
        if now - start > limit {
            return None;
        }
        wait::let_pass(Duration::from_millis(20));
    }
}
