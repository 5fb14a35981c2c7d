//! What the client makes of two access links: lost carriers, switches, a link that stands by, and
//! the better one that comes back. Times are printed beside what they should be.

use std::fs;
use std::time::{Duration, Instant};

use tund_tests::emulator::Profile;
use tund_tests::lab::{Access, Download, Lab, Origin, Settings, Timeline, Tund, Upload, wait};

use crate::support::{LATER, LONG, SOON, Scene, figure};

/// One way; the round trip is twice that.
const DELAY: Duration = Duration::from_millis(50);
const ROUND_TRIP: Duration = Duration::from_millis(100);
const MEGABITS: u64 = 20;
/// What a machine may add that builds and runs other tests meanwhile.
const BUSY_MACHINE: Duration = Duration::from_millis(400);

/// A transfer each way, long enough for any of these stories.
struct Traffic {
    down: Download,
    up: Upload,
    timelines: [Timeline; 2],
    size: u64,
}

/// A lab with a round trip of 100 ms.
fn far_scene(title: &str, settings: &Settings) -> Scene {
    let profile = Profile::delay(DELAY).megabits(MEGABITS);
    let lab = Lab::emulated(title, profile);
    let origin = Origin::start(&lab.origin);
    let tund = Tund::start(&lab, settings);
    Scene { tund, origin, lab }
}

impl Traffic {
    fn start(scene: &Scene, seconds: u64) -> Self {
        let size = MEGABITS * 125_000 * seconds;
        let down = Download::start(&scene.lab.client, scene.target(), 1, size);
        let up = Upload::start(&scene.lab.client, scene.target(), 2, size);
        let timelines = [
            down.timeline().clone(),
            scene.origin.upload_timeline(2, SOON),
        ];
        let this = Self {
            down,
            up,
            timelines,
            size,
        };
        this.wait_for_more();
        this
    }

    fn wait_for_more(&self) {
        let before = self.timelines.each_ref().map(Timeline::total);
        wait::until_true("bytes move both ways", LATER, || {
            let now = self.timelines.each_ref().map(Timeline::total);
            now[0] > before[0] + 300_000 && now[1] > before[1] + 300_000
        });
    }

    /// How long after `back` bytes moved again, both ways.
    fn recovery(&self, away: Instant, back: Instant) -> [Duration; 2] {
        self.timelines.each_ref().map(|timeline| {
            // What was under way comes first, and must not be taken for the end of the silence.
            wait::until("bytes long after the outage", LATER, || {
                timeline.first_after(back + Duration::from_secs(2))
            });
            timeline.recovery(away, back).expect("bytes have come")
        })
    }

    fn finish(self) {
        self.down.finish(LONG).assert_intact(self.size);
        assert_eq!(self.up.finish(LONG).unwrap(), self.size);
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

#[test]
fn a_carrier_that_comes_back_brings_bytes_at_once() {
    let scene = far_scene("carrier", &Settings::new());
    let traffic = Traffic::start(&scene, 5);

    let away = wait::now();
    scene.lab.carrier(Access::Wifi, false);
    scene.tund.client.wait_for("detached", SOON);
    let noticed = wait::now() - away;
    wait::let_pass(Duration::from_secs(2));
    scene.lab.carrier(Access::Wifi, true);
    let took = traffic.recovery(away, wait::now());

    figure(&format!("a lost carrier was noticed after {noticed:?}"));
    check(
        "carrier back",
        took,
        Duration::from_millis(300) + 3 * ROUND_TRIP,
    );
    traffic.finish();
}

/// A switch of access links with `gap` of no network at all between them.
fn switch_after(gap: Duration) {
    let mut scene = far_scene("switch", &Settings::new());
    let traffic = Traffic::start(&scene, 5);

    let away = wait::now();
    scene.lab.lower(Access::Wifi);
    scene.tund.client.wait_for("detached", SOON);
    wait::let_pass(gap);
    let back = wait::now();
    scene.lab.use_access(Access::Mobile);
    let took = traffic.recovery(away, back);

    check(
        &format!("switch after {gap:?}"),
        took,
        Duration::from_millis(200) + 3 * ROUND_TRIP,
    );
    traffic.finish();
}

#[test]
fn a_switch_with_the_old_link_gone_brings_bytes_at_once() {
    switch_after(Duration::from_secs(3));
}

#[test]
#[ignore = "long: a minute without any network"]
fn long_a_switch_after_60_s_without_network_brings_bytes_at_once() {
    switch_after(Duration::from_secs(60));
}

#[test]
fn with_both_links_up_the_loss_of_one_carrier_is_hardly_noticed() {
    let scene = far_scene("carrier of one", &Settings::new());
    scene.lab.raise(Access::Mobile);
    let traffic = Traffic::start(&scene, 8);
    wait_for_links(&scene, &["wifi", "mobile"]);
    traffic.wait_for_more();

    let away = wait::now();
    scene.lab.carrier(Access::Wifi, false);
    let took = traffic.recovery(away, away);

    check(
        "preferred link lost its carrier",
        took,
        Duration::from_millis(200) + 3 * ROUND_TRIP / 2,
    );
    assert_eq!(scene.tund.client.status().outages.count, 0);
    traffic.finish();
}

#[test]
fn with_both_links_up_the_silence_of_one_is_over_in_about_a_second() {
    let scene = far_scene("silence of one", &Settings::new());
    scene.lab.raise(Access::Mobile);
    let traffic = Traffic::start(&scene, 8);
    wait_for_links(&scene, &["wifi", "mobile"]);
    traffic.wait_for_more();

    let away = wait::now();
    scene.lab.cut_access(Access::Wifi);
    let took = traffic.recovery(away, away);

    check(
        "preferred link fell silent",
        took,
        Duration::from_millis(1200) + 3 * ROUND_TRIP / 2,
    );
    assert_eq!(scene.tund.client.status().outages.count, 0);
    traffic.finish();
}

#[test]
fn the_better_link_that_comes_back_is_moved_to_without_a_silence() {
    let mut scene = far_scene("comes back", &Settings::new());
    scene.lab.lower(Access::Wifi);
    scene.lab.use_access(Access::Mobile);
    let traffic = Traffic::start(&scene, 10);
    wait_for_links(&scene, &["mobile"]);

    let from = wait::now();
    scene.lab.prefer(Access::Wifi);
    wait::until_true("flows have moved", LATER, || {
        let link = scene.tund.client.status().link;
        link.and_then(|link| link.interface).as_deref() == Some("wifi")
    });
    traffic.wait_for_more();

    let silences = traffic
        .timelines
        .each_ref()
        .map(|timeline| timeline.longest_silence_since(from));
    figure(&format!(
        "moved to the better link: longest silence down {:?}, up {:?}, should be below 50 ms",
        silences[0], silences[1]
    ));
    assert_eq!(scene.tund.client.status().outages.count, 0);
    for silence in silences {
        assert!(
            silence < Duration::from_millis(50) + BUSY_MACHINE / 4,
            "{silences:?}"
        );
    }
    traffic.finish();
}

/// An upload through 100 kbit/s for `length`; no link may be given up for being full.
fn full_uplink(length: Duration) {
    let slow = Profile {
        rate: Some(100_000),
        queue_bytes: 64 << 10,
        ..Profile::delay(DELAY)
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

    wait::let_pass(length);

    let status = scene.tund.client.status();
    assert_eq!(status.outages.count, 0, "{status:?}");
    assert_eq!(status.link.unwrap().local, link, "the link has changed");
    scene
        .lab
        .emulator(Access::Wifi)
        .set(Profile::delay(Duration::ZERO));
    assert_eq!(up.finish(LONG).unwrap(), size);
}

#[test]
fn a_full_uplink_is_no_outage() {
    full_uplink(Duration::from_secs(12));
}

#[test]
#[ignore = "long: an uplink that is full for a minute"]
fn long_an_uplink_full_for_a_minute_is_no_outage() {
    full_uplink(Duration::from_secs(60));
}

/// How often a process has slept, and so was woken.
fn sleeps(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn without_flows_and_network_the_daemon_sleeps() {
    let scene = Scene::new(
        "no network",
        &Settings::new().client("link", "connect", "\"always\""),
    );
    scene.tund.client.wait_attached(SOON);
    scene.lab.lower(Access::Wifi);
    scene.tund.client.wait_for("detached", SOON);
    wait::let_pass(Duration::from_secs(2));
    let before = sleeps(scene.tund.client.process.pid());

    wait::let_pass(Duration::from_secs(15));

    let woken = sleeps(scene.tund.client.process.pid()) - before;
    figure(&format!("woken {woken} times in 15 s without a network"));
    assert!(woken <= 1, "woken {woken} times");
}

#[test]
#[ignore = "long: two minutes of an idle session"]
fn long_an_attached_and_idle_daemon_is_woken_five_times_a_minute_at_most() {
    let scene = Scene::new("idle", &Settings::new());
    let mut echo = scene.echo();
    // PINGs become rare within the first minute.
    wait::let_pass(Duration::from_secs(70));
    let before = sleeps(scene.tund.client.process.pid());

    wait::let_pass(Duration::from_secs(120));

    let woken = sleeps(scene.tund.client.process.pid()) - before;
    figure(&format!(
        "woken {woken} times in two minutes, attached and idle"
    ));
    assert!(woken <= 10, "woken {woken} times");
    echo.round_trip().unwrap();
}
