//! What the client makes of two access links: lost carriers, switches, a link that stands by, and
//! the better one that comes back. Times are printed beside what they should be; the outage matrix
//! demands them on a machine that does nothing else.

use std::time::{Duration, Instant};

use tund_tests::emulator::Profile;
use tund_tests::lab::{
    Access, Direction, Lab, Origin, Pace, Settings, Stream, Timeline, Tund, Upload, wait,
};
use tund_tests::outages;

use crate::support::{LATER, LONG, SOON, Scene, figure};

const ROUND_TRIP: Duration = Duration::from_millis(100);
/// What a machine may add that others use meanwhile; our own tests do not run beside these.
const BUSY_MACHINE: Duration = Duration::from_millis(400);

/// Between two pieces of a stream whose every silence counts; what goes as fast as it can is silent
/// by itself whenever a queue overflows.
const SIPS: Pace = Pace::Sips(Duration::from_millis(5));

/// A stream each way.
struct Traffic([Stream; 2]);

impl Traffic {
    fn start(scene: &Scene, pace: Pace) -> Self {
        let start = |direction, seed| {
            let target = (&scene.origin, scene.target());
            Stream::start(&scene.lab.client, target, (direction, seed), pace).unwrap()
        };
        let this = Self([start(Direction::Down, 1), start(Direction::Up, 2)]);
        this.wait_for_more();
        this
    }

    fn timelines(&self) -> [&Timeline; 2] {
        self.0.each_ref().map(Stream::timeline)
    }

    fn wait_for_more(&self) {
        let before = self.timelines().map(Timeline::total);
        wait::until_true("bytes move both ways", LATER, || {
            let now = self.timelines().map(Timeline::total);
            now[0] > before[0] + 200_000 && now[1] > before[1] + 200_000
        });
    }

    /// How long after `back` bytes moved again, both ways.
    fn recovery(&self, away: Instant, back: Instant) -> [Duration; 2] {
        self.timelines().map(|timeline| {
            // What was under way comes first, and must not be taken for the end of the silence.
            wait::until("bytes long after the outage", LATER, || {
                timeline.first_after(back + Duration::from_secs(2))
            });
            timeline.recovery(away, back).expect("bytes have come")
        })
    }

    fn longest_silence(&self, from: Instant, to: Instant) -> [Duration; 2] {
        self.timelines()
            .map(|timeline| timeline.longest_silence_between(from, to))
    }

    fn stop(self, scene: &Scene) {
        for stream in self.0 {
            stream.stop(&scene.origin, LONG).unwrap();
        }
    }
}

fn check(what: &str, took: [Duration; 2], target: Duration) {
    figure(&format!(
        "{what}: down {:?}, up {:?}, should be {target:?}",
        took[0], took[1]
    ));
    for time in took {
        assert!(time <= target + BUSY_MACHINE, "{what}: {took:?}");
    }
}

fn wait_for_links(scene: &Scene, interfaces: &[&str]) {
    wait::until_true(&format!("links by {interfaces:?}"), LATER, || {
        let links = scene.tund.client.status().links;
        let found: Vec<_> = links
            .iter()
            .filter_map(|link| link.interface.as_deref())
            .collect();
        found == interfaces
    });
}

/// Both access links up, a stream each way, and the second link in standby.
fn with_standby(title: &str) -> (Scene, Traffic) {
    let scene = outages::scene(title, ROUND_TRIP);
    scene.lab.raise(Access::Mobile);
    let traffic = Traffic::start(&scene, Pace::Bulk);
    wait_for_links(&scene, &["wifi", "mobile"]);
    traffic.wait_for_more();
    (scene, traffic)
}

#[test]
fn a_carrier_that_comes_back_brings_bytes_at_once() {
    let scene = outages::scene("carrier", ROUND_TRIP);
    let traffic = Traffic::start(&scene, Pace::Bulk);

    scene.lab.carrier(Access::Wifi, false);
    let away = wait::now();
    scene.tund.client.wait_for("detached", SOON);
    let noticed = wait::now() - away;
    wait::let_pass(Duration::from_secs(1));
    scene.lab.carrier(Access::Wifi, true);
    let took = traffic.recovery(away, wait::now());

    figure(&format!("a lost carrier was noticed after {noticed:?}"));
    check(
        "carrier back",
        took,
        Duration::from_millis(300) + 3 * ROUND_TRIP,
    );
    traffic.stop(&scene);
}

#[test]
#[ignore = "long: a minute without any network"]
fn long_a_switch_after_60_s_without_network_brings_bytes_at_once() {
    let mut scene = outages::scene("switch", ROUND_TRIP);
    let traffic = Traffic::start(&scene, Pace::Bulk);

    let away = wait::now();
    let back = scene.lab.switch_after(Duration::from_secs(60));
    let took = traffic.recovery(away, back);

    check(
        "switch after 60 s",
        took,
        Duration::from_millis(200) + 3 * ROUND_TRIP,
    );
    traffic.stop(&scene);
}

#[test]
fn with_both_links_up_the_loss_of_one_carrier_is_hardly_noticed() {
    let (scene, traffic) = with_standby("carrier of one");

    scene.lab.carrier(Access::Wifi, false);
    let away = wait::now();
    let took = traffic.recovery(away, away);

    check(
        "preferred link lost its carrier",
        took,
        Duration::from_millis(200) + 3 * ROUND_TRIP / 2,
    );
    assert_eq!(scene.tund.client.status().outages.count, 0);
    traffic.stop(&scene);
}

#[test]
fn with_both_links_up_the_silence_of_one_is_over_in_about_a_second() {
    let (scene, traffic) = with_standby("silence of one");

    let away = wait::now();
    scene.lab.cut_access(Access::Wifi);
    let took = traffic.recovery(away, away);

    check(
        "preferred link fell silent",
        took,
        Duration::from_millis(1200) + 3 * ROUND_TRIP / 2,
    );
    assert_eq!(scene.tund.client.status().outages.count, 0);
    traffic.stop(&scene);
}

#[test]
fn the_better_link_that_comes_back_is_moved_to_without_a_silence() {
    let mut scene = outages::scene("comes back", ROUND_TRIP);
    scene.lab.lower(Access::Wifi);
    scene.lab.use_access(Access::Mobile);
    let traffic = Traffic::start(&scene, SIPS);
    wait_for_links(&scene, &["mobile"]);
    let before = wait::now();
    traffic.wait_for_more();

    let from = wait::now();
    scene.lab.prefer(Access::Wifi);
    wait::until_true("flows have moved", LATER, || {
        let link = scene.tund.client.status().link;
        link.and_then(|link| link.interface).as_deref() == Some("wifi")
    });
    traffic.wait_for_more();

    let usual = traffic.longest_silence(before, from);
    let silences = traffic.longest_silence(from, wait::now());
    figure(&format!("longest silences before the move: {usual:?}"));
    assert_eq!(scene.tund.client.status().outages.count, 0);
    // A stream pauses on a busy machine without a move, too.
    check(
        "longest silence of a move to the better link",
        silences,
        usual
            .into_iter()
            .fold(Duration::from_millis(50), Duration::max),
    );
    traffic.stop(&scene);
}

#[test]
#[ignore = "long: an uplink that is full for a minute"]
fn long_an_uplink_full_for_a_minute_is_no_outage() {
    let slow = Profile {
        rate: Some(100_000),
        queue_bytes: 64 << 10,
        ..Profile::delay(ROUND_TRIP / 2)
    };
    let lab = Lab::emulated("full uplink", slow);
    let origin = Origin::start(&lab.origin);
    let tund = Tund::start(&lab, &Settings::new());
    let scene = Scene { tund, origin, lab };
    let size = 4 << 20;
    let up = Upload::start(&scene.lab.client, scene.target(), 2, size);
    let timeline = scene.origin.upload_timeline(2, SOON);
    wait::until_true("it runs", LATER, || timeline.total() > 10_000);
    let link = scene.tund.client.wait_attached(SOON).link.unwrap().local;

    wait::let_pass(Duration::from_secs(60));

    let status = scene.tund.client.status();
    assert_eq!(status.outages.count, 0, "{status:?}");
    assert_eq!(status.link.unwrap().local, link, "the link has changed");
    scene
        .lab
        .emulator(Access::Wifi)
        .set(Profile::delay(Duration::ZERO));
    assert_eq!(up.finish(LONG).unwrap(), size);
}
