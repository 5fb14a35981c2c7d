//! What a client that has nothing to do costs the battery: how often it is woken.

use std::fs;
use std::thread;
use std::time::Duration;

use tund_tests::lab::{Access, Settings, wait};

use crate::support::{LATER, SOON, Scene, figure};

const WATCHED: Duration = Duration::from_secs(121);

/// How often the threads of a process have slept, hence were woken.
fn wakes(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = tasks.map(|task| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    });
    of_task.sum()
}

/// Wakes while nothing happens.
fn wakes_in_peace(scene: &Scene) -> u64 {
    let pid = scene.tund.client.process.pid();
    // What the last event has left to do is not counted.
    let mut before = wakes(pid);
    wait::until_true("it has come to rest", LATER, || {
        wait::let_pass(Duration::from_secs(3));
        std::mem::replace(&mut before, wakes(pid)) == wakes(pid)
    });
    wait::let_pass(WATCHED);
    wakes(pid) - before
}

fn attached() -> u64 {
    let settings = Settings::new().client("link", "connect", "\"always\"");
    let scene = Scene::new("attached and idle", &settings);
    scene.tund.client.wait_attached(SOON);
    drop(scene.echo());
    scene.wait_without_flows();
    wakes_in_peace(&scene)
}

fn without_network() -> u64 {
    let settings = Settings::new().client("link", "linger", "\"1s\"");
    let scene = Scene::new("idle without a network", &settings);
    drop(scene.echo());
    scene.tund.client.wait_for("ready", LATER);
    scene.lab.lower(Access::Wifi);
    wakes_in_peace(&scene)
}

#[test]
#[ignore = "long: two minutes without anything to do"]
fn long_a_client_without_flows_is_hardly_woken() {
    let other = thread::spawn(without_network);
    let attached = attached();
    let without_network = other.join().unwrap();
    figure(&format!(
        "wakes in 2 minutes without flows: {attached} attached, {without_network} without a network"
    ));
    assert!(attached <= 10, "{attached}: at most 5 a minute");
    assert!(
        without_network <= 2,
        "{without_network}: at most one a minute"
    );
}
