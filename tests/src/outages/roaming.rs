//! A carrier that is lost for a while, and moves from one access link to the other.

use std::time::Duration;

use super::{Both, Counted, Job, RTTS, Row, Sample, Target, WAYS, phase, scene};
use crate::lab::{Direction, Scene, wait};

/// Direct connections survive a lost carrier, but their kernel has backed off.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection from an address that is gone does not come back.
const HOPELESS: Duration = Duration::from_secs(10);

/// The link in use loses its carrier for `length`.
#[track_caller]
pub fn carrier(scene: &Scene, direction: Direction, length: Duration) -> Sample {
    let both = Both::start(scene, direction);
    let access = scene.lab.access();
    let away = wait::now();
    scene.lab.carrier(access, false);
    wait::let_pass(length + phase());
    scene.lab.carrier(access, true);
    let back = wait::now();
    both.outcome(scene, Counted::Recovery { away, back }, PATIENCE)
}

/// The link in use goes away with its addresses; the other one comes after `gap`.
#[track_caller]
pub fn switch(scene: &mut Scene, direction: Direction, gap: Duration) -> Sample {
    let both = Both::start(scene, direction);
    let away = wait::now();
    let back = scene
        .lab
        .switch_after(gap + if gap.is_zero() { gap } else { phase() });
    let counted = match gap {
        Duration::ZERO => Counted::Interruption(back),
        _ => Counted::Recovery { away, back },
    };
    both.outcome(scene, counted, HOPELESS)
}

/// A lab for each round-trip time, way and run.
pub(super) fn jobs(runs: u32) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (rtts, rtt) in (0..).zip(RTTS) {
        for (ways, (direction, way)) in (0..).zip(WAYS) {
            let row = move |number: u32, what: &str, millis: u64| Row {
                place: 100 + number * 10 + ways * 2 + rtts,
                what: what.to_owned(),
                way,
                rtt,
                target: Target::within(millis, millis, 30, rtt),
            };
            jobs.extend((0..runs).map(|run| {
                let title = format!("roaming, {way}, {rtt:?}, run {run}");
                let work = move |title: String| {
                    let mut scene = scene(&title, rtt);
                    let none = Duration::ZERO;
                    let minute = Duration::from_secs(60);
                    let five = Duration::from_secs(5);
                    vec![
                        (
                            row(0, "carrier lost for 5 s", 300),
                            carrier(&scene, direction, five),
                        ),
                        (
                            row(1, "switch of access link, the old one gone", 200),
                            switch(&mut scene, direction, none),
                        ),
                        (
                            row(2, "switch after 60 s without any network", 200),
                            switch(&mut scene, direction, minute),
                        ),
                    ]
                };
                Job {
                    title: title.clone(),
                    lasts: Duration::from_secs(110),
                    alone: false,
                    work: Box::new(move || work(title)),
                }
            }));
        }
    }
    jobs
}
