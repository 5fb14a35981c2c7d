//! Cuts of every length, silent and with the connections forgotten.

use std::time::Duration;

use super::{Both, Counted, Job, RTTS, Row, Sample, Target, WAYS, phase, scene};
use crate::lab::{Direction, Scene, wait};

/// Seconds.
const LENGTHS: [u64; 4] = [5, 30, 90, 280];

/// The longest wait between two retransmissions of a kernel, and some more.
const PATIENCE: Duration = Duration::from_secs(125);

/// A forgotten connection does not come back: its packets are dropped.
const HOPELESS: Duration = Duration::from_secs(10);

/// What becomes of the connections that a cut meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They are dead when the network is back.
    Forgotten,
    /// They go on.
    Silent,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Forgotten => "forgotten",
            Self::Silent => "silent",
        }
    }
}

/// Cuts the network for `length` under a stream, and gives how long after it was back the first
/// byte came.
#[track_caller]
pub fn once(scene: &Scene, direction: Direction, kind: Kind, length: Duration) -> Sample {
    let both = Both::start(scene, direction);
    let away = wait::now();
    scene.lab.cut();
    if kind == Kind::Forgotten {
        scene.lab.forget();
    }
    wait::let_pass(length + phase());
    let back = wait::now();
    scene.lab.heal();
    let patience = match kind {
        Kind::Forgotten => HOPELESS,
        Kind::Silent => PATIENCE,
    };
    let sample = both.outcome(scene, Counted::Recovery { away, back }, patience);
    scene.lab.forgive();
    sample
}

/// A lab for each round-trip time, way, kind and run; all lengths in it.
pub(super) fn jobs(runs: u32) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (rtts, rtt) in (0..).zip(RTTS) {
        for (ways, (direction, way)) in (0..).zip(WAYS) {
            for (kinds, kind) in (0..).zip([Kind::Silent, Kind::Forgotten]) {
                let row = move |number: u32, seconds: u64| Row {
                    place: number * 10 + kinds * 4 + ways * 2 + rtts,
                    what: format!("cut of {seconds} s, {}", kind.name()),
                    way,
                    rtt,
                    target: Target::within(500, 1200, 30, rtt),
                };
                jobs.extend((0..runs).map(|run| {
                    let title = format!("cut, {}, {way}, {rtt:?}, run {run}", kind.name());
                    let work = move |title: String| {
                        let scene = scene(&title, rtt);
                        let each = (0..).zip(LENGTHS).map(|(number, seconds)| {
                            let length = Duration::from_secs(seconds);
                            (row(number, seconds), once(&scene, direction, kind, length))
                        });
                        each.collect()
                    };
                    let patience = if kind == Kind::Silent { 150 } else { 40 };
                    Job {
                        title: title.clone(),
                        lasts: Duration::from_secs(LENGTHS.iter().sum::<u64>() + patience),
                        alone: false,
                        work: Box::new(move || work(title)),
                    }
                }));
            }
        }
    }
    jobs
}
