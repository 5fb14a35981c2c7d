//! Bytes arrive exactly once and in order, whatever happens to the network meanwhile.

use std::time::Duration;

use tund_tests::lab::{Download, Family, ORIGIN_PORT, Settings, Upload};

use crate::events::Walk;
use crate::support::{LONG, SOON, Scene};

const MIB: u64 = 1 << 20;

/// Slow enough that a transfer meets its events.
const MEGABITS: u32 = 200;

const SHORT_WALK: Walk = Walk {
    events: 4,
    longest: Duration::from_millis(800),
};
const LONG_WALK: Walk = Walk {
    events: 20,
    longest: Duration::from_secs(3),
};

fn download_survives(
    settings: &Settings,
    family: Family,
    length: u64,
    walk: Walk,
    limit: Duration,
) {
    let mut scene = Scene::new("a download through events", settings);
    scene.lab.limit_rate(MEGABITS);
    let from = scene.lab.origin_address(family, ORIGIN_PORT);
    let download = Download::start(&scene.lab.client, from, 1, length);
    let timeline = download.timeline().clone();

    walk.happen(&mut scene.lab, &scene.tund, length, || timeline.total());

    download.finish(limit).assert_intact(length);
}

fn upload_survives(settings: &Settings, family: Family, length: u64, walk: Walk, limit: Duration) {
    let mut scene = Scene::new("an upload through events", settings);
    scene.lab.limit_rate(MEGABITS);
    let to = scene.lab.origin_address(family, ORIGIN_PORT);
    let upload = Upload::start(&scene.lab.client, to, 2, length);
    let timeline = scene.origin.upload_timeline(2, LONG);

    walk.happen(&mut scene.lab, &scene.tund, length, || timeline.total());

    assert_eq!(upload.finish(limit).unwrap(), length);
    scene.origin.upload_report(2, SOON).assert_intact(length);
}

fn many_flows_survive(flows: u64, length: u64, walk: Walk, limit: Duration) {
    let mut scene = Scene::new("many flows through events", &Settings::new());
    scene.lab.limit_rate(MEGABITS);
    let target = scene.target();
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for seed in 0..flows / 2 {
        down.push(Download::start(&scene.lab.client, target, seed, length));
        up.push(Upload::start(&scene.lab.client, target, seed, length));
    }
    let timelines: Vec<_> = down
        .iter()
        .map(|download| download.timeline().clone())
        .collect();

    walk.happen(&mut scene.lab, &scene.tund, length * flows / 2, || {
        timelines.iter().map(tund_tests::lab::Timeline::total).sum()
    });

    for download in down {
        download.finish(limit).assert_intact(length);
    }
    for upload in up {
        assert_eq!(upload.finish(limit).unwrap(), length);
    }
}

#[test]
fn transfers_without_any_event_arrive_whole_over_both_families() {
    let scene = Scene::new("quiet transfers", &Settings::new());
    let length = 30 * MIB;

    for (seed, family) in [(1, Family::V4), (2, Family::V6)] {
        for to in [
            scene.lab.origin_address(family, ORIGIN_PORT),
            scene.lab.hidden_origin_address(family, ORIGIN_PORT),
        ] {
            let down = Download::start(&scene.lab.client, to, seed, length);
            let up = Upload::start(&scene.lab.client, to, seed, length);
            down.finish(LONG).assert_intact(length);
            assert_eq!(up.finish(LONG).unwrap(), length);
        }
    }
    scene.wait_without_flows();
    let status = scene.tund.client.status();
    assert!(
        status.bytes.down >= 4 * length && status.bytes.up >= 4 * length,
        "{status:?}"
    );
    assert_eq!(
        (status.buffered_bytes.up, status.buffered_bytes.down),
        (0, 0)
    );
}

#[test]
fn a_download_survives_cut_forget_rst_and_switch() {
    download_survives(&Settings::new(), Family::V4, 60 * MIB, SHORT_WALK, LONG);
}

#[test]
fn an_upload_survives_cut_forget_rst_and_switch() {
    upload_survives(&Settings::new(), Family::V4, 60 * MIB, SHORT_WALK, LONG);
}

#[test]
fn both_survive_over_ipv6_inside_and_outside() {
    let settings = Settings::new().link_over(Family::V6);
    download_survives(&settings, Family::V6, 60 * MIB, SHORT_WALK, LONG);
    upload_survives(&settings, Family::V6, 60 * MIB, SHORT_WALK, LONG);
}

#[test]
fn forty_flows_at_once_survive_cut_forget_rst_and_switch() {
    many_flows_survive(40, 2 * MIB, SHORT_WALK, LONG);
}

#[test]
#[ignore = "long: 1 GB each way through 20 events"]
fn long_a_gigabyte_each_way_survives_twenty_events() {
    let limit = Duration::from_secs(300);
    download_survives(&Settings::new(), Family::V4, 1 << 30, LONG_WALK, limit);
    upload_survives(&Settings::new(), Family::V4, 1 << 30, LONG_WALK, limit);
}

#[test]
#[ignore = "long: 1 GB each way through 20 events"]
fn long_a_gigabyte_each_way_survives_twenty_events_over_ipv6() {
    let limit = Duration::from_secs(300);
    let settings = Settings::new().link_over(Family::V6);
    download_survives(&settings, Family::V6, 1 << 30, LONG_WALK, limit);
    upload_survives(&settings, Family::V6, 1 << 30, LONG_WALK, limit);
}

#[test]
#[ignore = "long: 200 flows through 6 events"]
fn long_two_hundred_flows_survive_six_events() {
    let walk = Walk {
        events: 6,
        longest: Duration::from_secs(3),
    };
    many_flows_survive(200, 3 * MIB, walk, Duration::from_secs(120));
}
