//! The link emulator does what it is told: delay, loss, order, rate, queue, on real packets.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::time::Duration;

use tund_tests::emulator::{Profile, Way};
use tund_tests::lab::{Access, Download, Family, Lab, ORIGIN_PORT, Origin, Request, Upload, wait};

use crate::support::{figure, median};

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(30);
const MS: Duration = Duration::from_millis(1);

/// Sends numbered datagrams from client to origin with a short pause between, and gives the
/// numbers in the order in which they came.
fn datagrams(lab: &Lab, count: u32) -> Vec<u32> {
    let far = lab
        .origin
        .enter(|| UdpSocket::bind("0.0.0.0:7000"))
        .unwrap();
    let near = lab.client.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    near.connect(lab.origin_address(Family::V4, 7000)).unwrap();
    far.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let receiver = std::thread::spawn(move || {
        let mut numbers = Vec::new();
        let mut packet = [0; 4];
        while far.recv(&mut packet).is_ok() {
            numbers.push(u32::from_be_bytes(packet));
        }
        numbers
    });
    for number in 0..count {
        near.send(&number.to_be_bytes()).unwrap();
        if number % 10 == 9 {
            wait::let_pass(MS);
        }
    }
    receiver.join().unwrap()
}

fn round_trips(lab: &Lab, family: Family) -> Duration {
    let mut stream = lab
        .client
        .connect(lab.origin_address(family, ORIGIN_PORT), SHORT)
        .unwrap();
    stream.set_nodelay(true).unwrap();
    Request::Echo.send(&mut stream).unwrap();
    let times = (0..7).map(|_| {
        let start = wait::now();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        wait::now() - start
    });
    median(times.collect())
}

#[test]
fn the_round_trip_time_is_twice_the_delay() {
    let lab = Lab::emulated("delay", Profile::delay(50 * MS));
    let _origin = Origin::start(&lab.origin);

    for family in [Family::V4, Family::V6] {
        let took = round_trips(&lab, family);
        assert!((100 * MS..180 * MS).contains(&took), "{took:?}");
    }

    lab.emulator(Access::Wifi).set(Profile::delay(10 * MS));
    let took = round_trips(&lab, Family::V4);
    assert!((20 * MS..80 * MS).contains(&took), "{took:?}");
}

#[test]
fn each_way_can_have_its_own_delay() {
    let lab = Lab::emulated("two delays", Profile::default());
    let _origin = Origin::start(&lab.origin);

    lab.emulator(Access::Wifi)
        .set_way(Way::ToNear, Profile::delay(40 * MS));

    let took = round_trips(&lab, Family::V4);
    assert!((40 * MS..100 * MS).contains(&took), "{took:?}");
}

#[test]
fn the_share_of_lost_packets_is_the_one_asked_for() {
    let lab = Lab::emulated("loss", Profile::default().loss(0.1));

    let arrived = datagrams(&lab, 3000);

    assert!(
        (2590..2810).contains(&arrived.len()),
        "{} of 3000 arrived",
        arrived.len()
    );
    assert!(arrived.is_sorted());
    let counts = lab.emulator(Access::Wifi).counts(Way::ToFar);
    assert_eq!(counts.lost + counts.carried, 3000, "{counts:?}");
}

#[test]
fn some_packets_overtake_others_where_asked_for() {
    let profile = Profile {
        reordering: 0.05,
        reordered_by: 3 * MS,
        ..Profile::delay(5 * MS)
    };
    let lab = Lab::emulated("reordering", profile);

    let arrived = datagrams(&lab, 2000);

    assert_eq!(arrived.len(), 2000);
    let inversions = arrived.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!((30..200).contains(&inversions), "{inversions} inversions");
}

#[test]
fn the_rate_is_the_one_asked_for_each_way() {
    let lab = Lab::emulated("rate", Profile::delay(5 * MS).megabits(40));
    let origin = Origin::start(&lab.origin);
    let to = lab.origin_address(Family::V4, ORIGIN_PORT);
    let length = 10_000_000;
    let lasted = |points: Vec<(Duration, u64)>| {
        points[points.len() - 1].0.as_secs_f64() - points[0].0.as_secs_f64()
    };
    // 2 s for the bytes alone; headers, the slow start and a busy machine come on top.
    let bounds = 1.9..6.0;

    let down = Download::start(&lab.client, to, 1, length).finish(LONG);
    down.assert_intact(length);
    let took = lasted(down.timeline.points());
    assert!(bounds.contains(&took), "down: {took} s");

    Upload::start(&lab.client, to, 2, length)
        .finish(LONG)
        .unwrap();
    let took = lasted(origin.upload_report(2, SHORT).timeline.points());
    assert!(bounds.contains(&took), "up: {took} s");
}

#[test]
fn a_short_queue_drops_what_a_long_one_keeps() {
    let flood = |queue_bytes| {
        let profile = Profile {
            queue_bytes,
            ..Profile::default().megabits(1)
        };
        let lab = Lab::emulated("queue", profile);
        // 32 bytes each with their headers, 100 at a time in 10 ms: 2.5 Mbit/s.
        let arrived = datagrams(&lab, 1000).len();
        (
            arrived,
            lab.emulator(Access::Wifi).counts(Way::ToFar).dropped,
        )
    };

    let (arrived, dropped) = flood(2000);
    assert!(
        dropped > 100 && arrived < 900,
        "{arrived} arrived, {dropped} were dropped"
    );
    assert_eq!(flood(1 << 20), (1000, 0));
}

#[test]
fn a_lost_carrier_a_cut_and_a_switch_work_on_emulated_links_too() {
    let mut lab = Lab::emulated("events on emulated links", Profile::delay(5 * MS));
    let _origin = Origin::start(&lab.origin);
    let has_carrier = |lab: &Lab| lab.client.run("ip link show dev wifi").contains("LOWER_UP");
    round_trips(&lab, Family::V4);

    lab.carrier(Access::Wifi, false);
    wait::until_true("the carrier is gone", SHORT, || !has_carrier(&lab));
    lab.carrier(Access::Wifi, true);
    wait::until_true("the carrier is back", SHORT, || has_carrier(&lab));
    round_trips(&lab, Family::V4);

    lab.cut();
    let to = lab.origin_address(Family::V4, ORIGIN_PORT);
    assert!(lab.client.connect(to, Duration::from_millis(300)).is_err());
    lab.heal();
    lab.switch();

    for family in [Family::V4, Family::V6] {
        round_trips(&lab, family);
    }
    assert!(lab.emulator(Access::Mobile).counts(Way::ToFar).carried > 0);
}

#[test]
#[ignore = "long: a measurement, printed; run it with --release and --no-capture"]
fn long_the_ceiling_of_the_emulator() {
    let lab = Lab::emulated("ceiling", Profile::default());
    let origin = Origin::start(&lab.origin);
    let to = lab.origin_address(Family::V4, ORIGIN_PORT);
    let length = 500_000_000;
    let counts = || {
        let emulator = lab.emulator(Access::Wifi);
        emulator.counts(Way::ToFar).carried + emulator.counts(Way::ToNear).carried
    };
    for (way, seed) in [("down", 1), ("up", 2)] {
        let (start, before) = (wait::now(), counts());
        if way == "down" {
            Download::start(&lab.client, to, seed, length)
                .finish(LONG)
                .assert_intact(length);
        } else {
            Upload::start(&lab.client, to, seed, length)
                .finish(LONG)
                .unwrap();
            origin.upload_report(seed, SHORT).assert_intact(length);
        }
        let seconds = (wait::now() - start).as_secs_f64();
        let packets = f64::from(u32::try_from(counts() - before).unwrap()) / seconds;
        figure(&format!(
            "emulator, {way}: {:.2} Gbit/s, {packets:.0} packets/s",
            4.0 / seconds
        ));
    }
}
