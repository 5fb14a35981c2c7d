//! What a client that has nothing to do costs the battery: how often it is woken.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::thread;
use std::time::Duration;

use tund_tests::lab::{Access, Settings, wait};

use crate::support::{LATER, SOON, Scene, figure};

const TWO_MINUTES: Duration = Duration::from_secs(120);

/// How often each thread of a process has slept, hence was woken.
fn wakes(pid: u32) -> BTreeMap<OsString, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = tasks.map(|task| {
        let task = task.unwrap();
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        (task.file_name(), count.unwrap().trim().parse().unwrap())
    });
    of_task.collect()
}

/// Wakes in `length` without events, after `rest` for what the last one has left to do. To look up
/// the routes takes a thread more than one sleep: what it does within a moment is one wake. A
/// thread that ended meanwhile was woken for that.
fn wakes_in_peace(scene: &Scene, rest: Duration, length: Duration) -> u64 {
    const MOMENT: Duration = Duration::from_millis(500);
    let pid = scene.tund.client.process.pid();
    wait::let_pass(rest);
    let (end, mut before, mut count) = (wait::now() + length, wakes(pid), 0);
    while wait::now() < end {
        wait::let_pass(MOMENT);
        let after = wakes(pid);
        count += u64::from(after != before);
        before = after;
    }
    count
}

fn always() -> Settings {
    Settings::new().client("link", "connect", "\"always\"")
}

/// A client that wants a link and has no network.
fn without_network(rest: Duration, length: Duration) -> u64 {
    let scene = Scene::new("idle without a network", &always());
    scene.tund.client.wait_attached(SOON);
    scene.lab.lower(Access::Wifi);
    scene.tund.client.wait_for("detached", SOON);
    wakes_in_peace(&scene, rest, length)
}

/// One that wants none, and has no network either.
fn on_demand_without_network(rest: Duration) -> u64 {
    let settings = Settings::new().client("link", "linger", "\"1s\"");
    let scene = Scene::new("idle, on demand, without a network", &settings);
    drop(scene.echo());
    scene.tund.client.wait_for("ready", LATER);
    scene.lab.lower(Access::Wifi);
    wakes_in_peace(&scene, rest, TWO_MINUTES)
}

/// One that is attached, with a flow on which nothing moves, or without any.
fn attached(has_flow: bool, rest: Duration) -> u64 {
    let scene = Scene::new("attached and idle", &always());
    let mut echo = scene.echo();
    if !has_flow {
        drop(echo);
        scene.wait_without_flows();
        return wakes_in_peace(&scene, rest, TWO_MINUTES);
    }
    let count = wakes_in_peace(&scene, rest, TWO_MINUTES);
    echo.round_trip().unwrap();
    count
}

#[test]
fn without_flows_and_network_the_client_sleeps() {
    let count = without_network(Duration::from_secs(2), Duration::from_secs(15));

    figure(&format!("woken {count} times in 15 s without a network"));
    assert!(count <= 1, "woken {count} times");
}

/// What the client is in, how many wakes that may cost, and how it is played after a rest.
type Stage = (&'static str, u64, fn(Duration) -> u64);

#[test]
#[ignore = "long: three minutes without anything to do"]
fn long_an_idle_client_is_hardly_woken() {
    // PINGs become rare within the first minute.
    let rest = Duration::from_secs(70);
    let stages: [Stage; 4] = [
        ("without a network", 2, |rest| {
            without_network(rest, TWO_MINUTES)
        }),
        ("on demand, without a network", 2, on_demand_without_network),
        ("attached, no flow", 10, |rest| attached(false, rest)),
        ("attached, an idle flow", 10, |rest| attached(true, rest)),
    ];

    let counts = stages.map(|(_, _, stage)| thread::spawn(move || stage(rest)));

    let counts = counts.map(|count| count.join().unwrap());
    for ((what, most, _), count) in stages.iter().zip(counts) {
        figure(&format!("woken {count} times in two minutes, {what}"));
        assert!(count <= *most, "{what}: woken {count} times");
    }
}
