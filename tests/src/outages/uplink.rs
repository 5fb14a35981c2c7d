//! A slow uplink that an upload fills: PINGs come late, and that is no outage.

use std::time::Duration;

use super::{
    Direct, Job, LONG, RTTS, Row, SOON, Sample, Target, device, fresh_seed, profile, scene,
};
use crate::emulator::{Profile, Way};
use crate::lab::{Access, Direction, Pace, Scene, Stream, wait};

/// Bits a second.
const RATE: u64 = 100_000;

/// Bytes that wait for it: 2.6 s.
const QUEUE: u64 = 32 << 10;

/// Fills the uplink for `length` while another network is there too; gives the longest silence at
/// the origin, if the session has stayed on its link.
#[track_caller]
pub fn saturated(scene: &Scene, rtt: Duration, length: Duration) -> Sample {
    let stream = Stream::start(
        &scene.lab.client,
        (&scene.origin, scene.target()),
        (Direction::Up, fresh_seed()),
        Pace::Bulk,
    );
    let stream = stream.expect("a connection on a network that works");
    // Whichever network answered first, it goes on by the preferred one.
    wait::until_true("the preferred link carries", SOON, || {
        device(scene).as_deref() == Some(Access::Wifi.device())
    });
    let link = scene.tund.client.wait_attached(SOON).link;
    let link = link.expect("attached means that there is one");
    let outages = scene.tund.client.status().outages.count;
    let slow = Profile {
        rate: Some(RATE),
        queue_bytes: QUEUE,
        ..profile(rtt)
    };
    let from = wait::now();
    scene.lab.emulator(Access::Wifi).set_way(Way::ToFar, slow);
    let mut wrong = None;
    while wait::now() - from < length {
        let status = scene.tund.client.status();
        let local = status.link.map(|link| link.local);
        if local.as_ref() != Some(&link.local) || status.outages.count != outages {
            let count = status.outages.count - outages;
            let at = wait::now() - from;
            wrong = Some(format!(
                "after {at:.1?}: {count} outages, from {} to {local:?}",
                link.local
            ));
            break;
        }
        wait::let_pass(Duration::from_millis(200));
    }
    let silence = stream.timeline().longest_silence_between(from, wait::now());
    scene.lab.emulator(Access::Wifi).set(profile(rtt));
    let stopped = stream.stop(&scene.origin, LONG);
    Sample {
        tund: wrong.map_or_else(|| stopped.map(|_| silence), Err),
        direct: Direct::Untried,
    }
}

/// A lab for each run.
pub(super) fn jobs(runs: u32) -> Vec<Job> {
    let rtt = RTTS[1];
    let row = move || Row {
        place: 300,
        what: "uplink of 100 kbit/s full for 60 s (longest silence)".to_owned(),
        way: "upload",
        rtt,
        target: Target::Unharmed,
    };
    let jobs = (0..runs).map(|run| {
        let title = format!("saturated uplink, run {run}");
        let work = move |title: String| {
            let scene = scene(&title, rtt);
            scene.lab.raise(Access::Mobile);
            vec![(row(), saturated(&scene, rtt, Duration::from_secs(60)))]
        };
        Job {
            title: title.clone(),
            lasts: Duration::from_secs(90),
            alone: false,
            work: Box::new(move || work(title)),
        }
    });
    jobs.collect()
}
