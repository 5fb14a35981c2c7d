//! Two access links at once: the preferred one dies, and comes back.

use std::time::{Duration, Instant};

use super::{
    Both, Counted, Job, LONG, RTTS, Row, SOON, Sample, Target, WAYS, device, fresh_seed, scene,
};
use crate::lab::{Access, Direction, Pace, Scene, Stream, wait};

/// A second link should be there so soon.
const STANDBY: Duration = Duration::from_secs(10);

/// The session should have moved back so soon.
const RETURN: Duration = Duration::from_secs(30);

/// A connection from the address of a dead link does not move.
const HOPELESS: Duration = Duration::from_secs(5);

/// Between two KiB of a stream whose every silence counts.
const SIPS: Duration = Duration::from_millis(5);

/// How the preferred link dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The kernel is told.
    Carrier,
    /// Nobody is.
    Silence,
}

/// Waits until a link is there on each of the two devices; false if it does not come.
fn has_standby(scene: &Scene) -> bool {
    let start = wait::now();
    while wait::now() - start < STANDBY {
        let links = scene.tund.client.status().links;
        let on = |access: Access| {
            let mut devices = links.iter().filter_map(|link| link.interface.as_deref());
            devices.any(|device| device == access.device())
        };
        if on(Access::Wifi) && on(Access::Mobile) {
            return true;
        }
        wait::let_pass(Duration::from_millis(50));
    }
    false
}

/// The preferred link dies under a stream while the other is up.
#[track_caller]
pub fn dies(scene: &Scene, direction: Direction, death: Death) -> Sample {
    let both = Both::start(scene, direction);
    let had_standby = has_standby(scene);
    let counted = match death {
        Death::Carrier => {
            // Until the kernel tells, it is a silent death.
            scene.lab.carrier(Access::Wifi, false);
            Counted::Interruption(wait::now())
        }
        Death::Silence => {
            let away = wait::now();
            scene.lab.cut_access(Access::Wifi);
            Counted::Recovery { away, back: away }
        }
    };
    let mut sample = both.outcome(scene, counted, HOPELESS);
    if !had_standby {
        let took = sample.tund;
        sample.tund = Err(format!("no standby link; without it {took:?}"));
    }
    sample
}

/// Until the status tells of a move, at most.
const TOLD_AFTER: Duration = Duration::from_millis(150);

/// The preferred link comes back: the longest silence from when the session moves there until
/// shortly after. Until then the other link is as it was; BBR has it pause for most of a round trip,
/// three times in a row, once in ten seconds. To compare with: the longest silence before.
#[track_caller]
pub fn returns(scene: &Scene, direction: Direction, death: Death) -> Sample {
    let target = (&scene.origin, scene.target());
    let stream = Stream::start(
        &scene.lab.client,
        target,
        (direction, fresh_seed()),
        Pace::Sips(SIPS),
    );
    let stream = stream.expect("a connection over the other link");
    scene.tund.client.wait_attached(SOON);
    wait::let_pass(Duration::from_secs(5));
    let back = wait::now();
    match death {
        Death::Carrier => scene.lab.carrier(Access::Wifi, true),
        Death::Silence => scene.lab.heal(),
    }
    let moved = moved_back(scene, back);
    wait::let_pass(Duration::from_secs(2));
    let end = wait::now();
    let from = moved.map_or(back, |seen| (seen - TOLD_AFTER).max(back));
    let silence = stream.timeline().longest_silence_between(from, end);
    let before = stream
        .timeline()
        .longest_silence_between(back - (end - back).min(Duration::from_secs(5)), back);
    scene
        .lab
        .client
        .narrate(&format!("silence {silence:?}, before that {before:?}"));
    let stopped = stream.stop(&scene.origin, LONG);
    let tund = match moved {
        Some(_) => stopped.map(|_| silence),
        None => Err(format!("not moved back within {RETURN:?}")),
    };
    Sample {
        tund,
        direct: super::Direct::Untried,
    }
}

/// When the session was seen to be there.
fn moved_back(scene: &Scene, since: Instant) -> Option<Instant> {
    while wait::now() - since < RETURN {
        if device(scene).as_deref() == Some(Access::Wifi.device()) {
            return Some(wait::now());
        }
        wait::let_pass(Duration::from_millis(20));
    }
    None
}

/// A lab for each round-trip time, way, death and run.
pub(super) fn jobs(runs: u32) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (rtts, rtt) in (0..).zip(RTTS) {
        for (ways, (direction, way)) in (0..).zip(WAYS) {
            for (number, death) in (0..).zip([Death::Carrier, Death::Silence]) {
                let row = move |number: u32, what: &str, target: Target| Row {
                    place: 200 + number * 10 + ways * 2 + rtts,
                    what: what.to_owned(),
                    way,
                    rtt,
                    target,
                };
                let (what, again, millis) = match death {
                    Death::Carrier => (
                        "both links up, the preferred one loses its carrier",
                        "… and comes back (longest silence)",
                        200,
                    ),
                    Death::Silence => (
                        "both links up, the preferred one dies silently",
                        "… and works again (longest silence)",
                        1200,
                    ),
                };
                jobs.extend((0..runs).map(|run| {
                    let title = format!("two links, {death:?}, {way}, {rtt:?}, run {run}");
                    let work = move |title: String| {
                        let scene = scene(&title, rtt);
                        scene.lab.raise(Access::Mobile);
                        let dies_within = Target::within(millis, millis, 15, rtt);
                        let returns_within = Target::within(50, 50, 0, rtt);
                        vec![
                            (
                                row(2 * number, what, dies_within),
                                dies(&scene, direction, death),
                            ),
                            (
                                row(2 * number + 1, again, returns_within),
                                returns(&scene, direction, death),
                            ),
                        ]
                    };
                    Job {
                        title: title.clone(),
                        lasts: Duration::from_secs(60),
                        alone: false,
                        work: Box::new(move || work(title)),
                    }
                }));
            }
        }
    }
    jobs
}
