//! A short case of each kind of the outage matrix (`scripts/test outages`): every byte arrives, and
//! the first one soon enough for a machine that does other things meanwhile.

use std::time::Duration;

use tund_tests::emulator::Profile;
use tund_tests::lab::{Access, Direction, Scene, Settings};
use tund_tests::outages::{Sample, cut, many, roaming, scene, uplink};

use crate::support::figure;

const MS: Duration = Duration::from_millis(1);
const BOTH: [Direction; 2] = [Direction::Down, Direction::Up];

#[track_caller]
fn assert_soon(what: &str, sample: Sample) {
    figure(&format!("{what}: {sample:?}"));
    let took = sample.tund.expect("every byte arrives");
    assert!(took <= 3000 * MS, "{what}: {took:?}");
}

#[test]
fn a_download_and_an_upload_go_on_after_a_short_cut_of_each_kind() {
    let scene = scene("a short cut", 20 * MS);
    for kind in [cut::Kind::Forgotten, cut::Kind::Silent] {
        for direction in BOTH {
            let sample = cut::once(&scene, direction, kind, 2000 * MS);

            assert_soon(&format!("{kind:?} {direction:?}"), sample);
        }
    }
}

#[test]
fn a_lost_carrier_and_two_moves_are_outlived_by_downloads_and_uploads() {
    let mut scene = scene("roaming", Duration::ZERO);
    let carrier = roaming::carrier(&scene, Direction::Down, 1000 * MS);
    assert_soon("carrier", carrier);

    for (direction, gap) in BOTH.into_iter().zip([Duration::ZERO, 2000 * MS]) {
        let sample = roaming::switch(&mut scene, direction, gap);

        assert_soon(&format!("switch after {gap:?}"), sample);
    }
}

#[test]
fn a_full_uplink_is_no_outage() {
    let scene = scene("a full uplink", 100 * MS);
    scene.lab.raise(Access::Mobile);

    let sample = uplink::saturated(&scene, 100 * MS, 10_000 * MS);

    figure(&format!("full uplink: {sample:?}"));
    sample.tund.expect("no change of link");
}

#[test]
fn two_hundred_flows_resume_together() {
    let profile = Profile::delay(10 * MS).megabits(50);
    let scene = Scene::emulated("two hundred flows", profile, &Settings::new());

    let times = many::resume(&scene, 200, 2000 * MS, false).expect("all are intact");

    let last = times[times.len() - 1];
    figure(&format!("the last of 200 flows: {last:?}"));
    assert!(last <= 5000 * MS, "{last:?}");
}
