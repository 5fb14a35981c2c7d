//! How soon the first byte comes after an outage, and what outages of every kind leave alone.

use std::time::Duration;

use tund_tests::emulator::Profile;
use tund_tests::lab::{Access, Download, Keys, SERVER_PORT, ServerDaemon, Settings, Upload, wait};

use crate::support::{LATER, LONG, SOON, Scene, figure, median};

const MIB: u64 = 1 << 20;
const MEGABITS: u32 = 100;

/// What an application may wait for its first byte once the network is back.
const FIRST_BYTE: Duration = Duration::from_secs(1);

/// Cuts a download and an upload for `length`, the connection forgotten, and gives how long after
/// the healing each saw its first byte.
fn first_bytes_after(scene: &Scene, length: Duration, run: u64) -> (Duration, Duration) {
    let (down_seed, up_seed) = (2 * run, 2 * run + 1);
    let size = 20 * MIB;
    let download = Download::start(&scene.lab.client, scene.target(), down_seed, size);
    let upload = Upload::start(&scene.lab.client, scene.target(), up_seed, size);
    let down = download.timeline().clone();
    let up = scene.origin.upload_timeline(up_seed, SOON);
    wait::until_true("both run", SOON, || down.total() > MIB && up.total() > MIB);
    scene.tund.client.wait_attached(SOON);

    scene.lab.cut();
    scene.lab.forget();
    wait::let_pass(length);
    let healed = wait::now();
    scene.lab.heal();

    let first = |timeline: &tund_tests::lab::Timeline| {
        wait::until("a byte after the outage", LATER, || {
            timeline.first_after(healed)
        })
    };
    let found = (first(&down), first(&up));
    figure(&format!(
        "first byte after {length:?}: down {:?}, up {:?}",
        found.0, found.1
    ));
    download.finish(LONG).assert_intact(size);
    assert_eq!(upload.finish(LONG).unwrap(), size);
    found
}

fn assert_medians(found: Vec<(Duration, Duration)>) {
    let (down, up): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let (down, up) = (median(down), median(up));
    assert!(
        down <= FIRST_BYTE && up <= FIRST_BYTE,
        "medians: down {down:?}, up {up:?}"
    );
}

/// A download during which something else answers on the server's port for `length`.
fn portal_loses_nothing(length: Duration) {
    let scene = Scene::new("portal", &Settings::new());
    scene.lab.limit_rate(MEGABITS);
    let size = 20 * MIB;
    let download = Download::start(&scene.lab.client, scene.target(), 1, size);
    wait::until_true("it runs", SOON, || download.timeline().total() > MIB);

    let portal = scene.lab.portal();
    scene.tund.client.wait_for("detached", LATER);
    wait::let_pass(length);
    let status = scene.tund.client.status();
    assert_eq!(
        status.state, "detached",
        "a portal is no final error: {status:?}"
    );
    assert_eq!(status.flows.tcp, 1);
    assert!(
        status.error.is_some(),
        "status shows that something else answers"
    );
    assert!(portal.visits() >= 2, "{} visits", portal.visits());
    scene.lab.portal_off(portal);

    download.finish(LONG).assert_intact(size);
    assert_eq!(
        scene.tund.client.status().error.map(|error| error.code),
        None
    );
}

#[test]
fn the_first_byte_comes_within_a_second_of_the_network() {
    let scene = Scene::new("first byte", &Settings::new());
    scene.lab.limit_rate(MEGABITS);
    let cut = Duration::from_secs(3);

    assert_medians(
        (0..3)
            .map(|run| first_bytes_after(&scene, cut, run))
            .collect(),
    );
}

#[test]
#[ignore = "long: five cuts of 30 s"]
fn long_the_first_byte_comes_within_a_second_of_the_network_after_30_s() {
    let scene = Scene::new("first byte", &Settings::new());
    scene.lab.limit_rate(MEGABITS);
    let cut = Duration::from_secs(30);

    assert_medians(
        (0..5)
            .map(|run| first_bytes_after(&scene, cut, run))
            .collect(),
    );
}

#[test]
fn an_idle_connection_survives_being_forgotten() {
    let scene = Scene::new("idle", &Settings::new());
    let mut echo = scene.echo();

    scene.lab.forget();

    echo.round_trip().unwrap();
    assert_eq!(scene.tund.client.wait_attached(SOON).outages.count, 1);
}

#[test]
fn a_new_connection_during_an_outage_is_held_and_then_made() {
    let scene = Scene::new("held", &Settings::new());
    let mut old = scene.echo();
    scene.lab.cut();
    scene.lab.forget();
    let size = MIB;
    let download = Download::start(&scene.lab.client, scene.target(), 7, size);
    wait::throughout("nothing is refused", Duration::from_secs(2), || {
        !download.has_ended()
    });

    scene.lab.heal();

    download.finish(LATER).assert_intact(size);
    old.round_trip().unwrap();
}

#[test]
fn a_lost_carrier_is_survived() {
    let scene = Scene::new("carrier", &Settings::new());
    scene.lab.limit_rate(MEGABITS);
    let size = 20 * MIB;
    let download = Download::start(&scene.lab.client, scene.target(), 1, size);
    wait::until_true("it runs", SOON, || download.timeline().total() > MIB);

    scene.lab.carrier(Access::Wifi, false);
    wait::let_pass(Duration::from_secs(2));
    scene.lab.carrier(Access::Wifi, true);

    download.finish(LONG).assert_intact(size);
}

#[test]
fn a_portal_loses_nothing() {
    portal_loses_nothing(Duration::from_secs(3));
}

#[test]
#[ignore = "long: a portal of 20 s"]
fn long_a_portal_of_20_s_loses_nothing() {
    portal_loses_nothing(Duration::from_secs(20));
}

#[test]
fn another_server_with_another_key_is_a_portal_too() {
    let scene = Scene::new("another key", &Settings::new());
    let mut echo = scene.echo();
    let directory = scene.lab.directory();
    let other = Keys::generate(directory, "other");
    let impostor = ServerDaemon::start(
        &scene.lab.router,
        directory,
        ("impostor", &other),
        &[("client", &scene.tund.client_keys)],
        &Settings::new(),
    );

    scene.lab.divert();
    echo.stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    assert!(echo.round_trip().is_err(), "nothing passes");
    let status = scene.tund.client.wait_for("detached", LATER);
    assert_eq!(status.flows.tcp, 1, "the flow stays");
    let shown = wait::until("status shows the wrong key", LATER, || {
        scene.tund.client.status().error
    });
    assert_eq!(shown.code, "server_key_mismatch", "{}", shown.message);
    let text = scene.tund.client.command(&["status"]).unwrap();
    assert!(text.contains("the first goes on"), "{text}");
    scene.lab.divert_off();
    drop(impostor);

    let mut back = [0];
    echo.stream.set_read_timeout(Some(LATER)).unwrap();
    std::io::Read::read_exact(&mut echo.stream, &mut back).unwrap();
    echo.round_trip().unwrap();
    assert_eq!(
        scene.lab.server_address(tund_tests::lab::Family::V4).port(),
        SERVER_PORT
    );
}

/// The congestion control of the client's link, or BBR where the kernel has none.
fn congestion_control(scene: &Scene) -> String {
    let available = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let link = scene.tund.client.status().link.expect("attached");
    if std::fs::read_to_string(available).unwrap().contains("bbr") {
        link.congestion_control.expect("shown")
    } else {
        "bbr".to_owned()
    }
}

/// How long the session takes to be attached again, at 1.2 s round trip and 10 % loss, after the
/// connection has been forgotten.
fn attach_on_a_slow_path(runs: u64) -> Duration {
    let lossy = Profile::delay(Duration::from_millis(600)).loss(0.1);
    let scene = Scene::emulated("a slow path", Profile::default(), &Settings::new());
    let mut echo = scene.echo();
    scene.lab.emulator(Access::Wifi).set(lossy);
    let mut times = Vec::new();
    for run in 0..runs {
        let count = scene.tund.client.wait_attached(LONG).outages.count;
        scene.lab.cut();
        scene.lab.forget();
        wait::let_pass(Duration::from_secs(4));
        scene.lab.heal();
        let start = wait::now();
        wait::until_true("the outage is over", LONG, || {
            let status = scene.tund.client.status();
            status.outages.count > count && status.state == "attached"
        });
        times.push(wait::now() - start);
        assert_eq!(congestion_control(&scene), "bbr", "far, hence not by loss");
        figure(&format!(
            "attached on a slow path, run {run}: {:?}",
            times[times.len() - 1]
        ));
    }
    scene.lab.emulator(Access::Wifi).set(Profile::default());
    echo.round_trip().unwrap();
    median(times)
}

#[test]
fn a_slow_and_lossy_path_is_attached_within_10_s() {
    let took = attach_on_a_slow_path(3);

    assert!(took <= Duration::from_secs(10), "median {took:?}");
}

#[test]
#[ignore = "long: five attaches at 1.2 s round trip and 10 % loss"]
fn long_a_slow_and_lossy_path_is_attached_within_10_s() {
    let took = attach_on_a_slow_path(5);

    assert!(took <= Duration::from_secs(10), "median {took:?}");
}

#[test]
fn grace_ends_both_sides_and_a_new_session_works() {
    let scene = Scene::new("grace", &Settings::new().grace("2s"));
    let mut echo = scene.echo();
    let old = scene.tund.client.status().session_id;
    echo.round_trip().unwrap();

    scene.lab.cut();
    scene.lab.forget();
    // What makes the outage noticed, and the application hear of its end.
    let error = echo.round_trip().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(scene.tund.client.status().flows.tcp, 0);
    scene.lab.heal();

    scene.echo();
    let new = scene.tund.client.wait_attached(SOON).session_id;
    assert!(new.is_some() && new != old, "{old:?} then {new:?}");
}
