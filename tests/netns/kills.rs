//! Either daemon is killed between any two steps by which stored messages are written, delivered and
//! recorded: nothing is lost, and nothing comes twice but what a killed server had not recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tund_tests::lab::{Namespace, Process, wait};

use crate::lines::{Scene, doubled, lines, most_doubled};
use crate::support::{LONG, SOON, figure};

/// Lines of one outage: several records.
const LINES: u32 = 2_000;

/// Has a daemon die as it enters its `nth` call of that name about that file.
fn die_at(
    (victim, host): (&Process, &Namespace),
    directory: &Path,
    (call, file): (&str, &Path),
    nth: u32,
) -> Process {
    let what = format!("signal=SIGKILL:when={nth}");
    inject((victim, host), directory, (call, file), &what)
}

/// Has calls of that name about that file go otherwise, as `strace` says it.
pub(crate) fn inject(
    (victim, host): (&Process, &Namespace),
    directory: &Path,
    (call, file): (&str, &Path),
    what: &str,
) -> Process {
    let pid = victim.pid().to_string();
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-o", "/dev/null", "-P"])
        .arg(file);
    strace.args(["-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:{what}")]);
    strace.args(["-p", &pid]);
    let strace = Process::start(host, directory, "strace", &mut strace);
    wait::until_true("strace has it", SOON, || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        tasks.flatten().all(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        })
    });
    strace
}

/// An outage beyond grace, in which lines are sent that never went out.
fn store(scene: &Scene, sent: &[String]) {
    let mut app = scene.connect();
    scene.lose_the_network();
    scene.send(&mut app, sent);
    scene.expect_reset(&mut app);
}

/// All of `sent` is at the collector; how many lines of it came twice.
fn wait_for_all(scene: &Scene, before: usize, sent: &[String]) -> usize {
    scene.wait_until_delivered();
    let mut got = Vec::new();
    wait::until_true("every line", LONG, || {
        got = scene.collector.lines();
        got.iter()
            .skip(before)
            .any(|line| Some(line) == sent.last())
    });
    doubled(&got[before..], sent)
}

fn file(scene: &Scene, name: &str) -> PathBuf {
    scene.lab.directory().join(name)
}

/// The client dies while it stores: its file is there whole, or not at all.
fn killed_while_storing(scene: &mut Scene, number: u32, (call, ending): (&str, &str)) {
    let sent = lines(number * LINES..(number + 1) * LINES);
    let name = format!("client-spool/{:016}{ending}", 1);
    let path = file(
        scene,
        if ending.is_empty() {
            "client-spool"
        } else {
            &name
        },
    );
    let before = scene.collector.lines().len();
    // Names of files begin anew with a daemon that finds none.
    scene.tund.client.process.kill();
    scene.tund.client.start_again(&scene.lab);
    let mut app = scene.connect();
    scene.lose_the_network();
    let victim = (&scene.tund.client.process, &scene.lab.client);
    let _strace = die_at(victim, scene.lab.directory(), (call, &path), 1);
    scene.send(&mut app, &sent);
    scene.tund.client.process.wait(LONG);
    scene.tund.client.start_again(&scene.lab);

    let is_there = ending.is_empty();
    assert_eq!(
        scene.stored().len(),
        usize::from(is_there),
        "{call} {ending}"
    );
    scene.lab.heal();
    if is_there {
        assert_eq!(wait_for_all(scene, before, &sent), 0, "{call} {ending}");
    } else {
        assert_eq!(scene.collector.lines().len(), before, "{call} {ending}");
    }
}

/// The client dies as it removes what the server has recorded.
fn killed_while_removing(scene: &mut Scene, number: u32, call: &str) {
    let sent = lines(number * LINES..(number + 1) * LINES);
    let before = scene.collector.lines().len();
    store(scene, &sent);
    let directory = file(scene, "client-spool");
    let stored = fs::read_dir(&directory).expect("its spool").flatten();
    let mut stored = stored.map(|entry| entry.path());
    let stored = stored.find(|path| path.extension().is_some_and(|ending| ending == "spool"));
    let path = if call == "fsync" {
        directory
    } else {
        stored.expect("a file")
    };
    let victim = (&scene.tund.client.process, &scene.lab.client);
    let _strace = die_at(victim, scene.lab.directory(), (call, &path), 1);
    scene.lab.heal();
    scene.tund.client.process.wait(LONG);
    scene.tund.client.start_again(&scene.lab);

    assert_eq!(wait_for_all(scene, before, &sent), 0, "{call}");
}

/// The server dies as it records how far a stream has come.
fn killed_while_recording(scene: &mut Scene, number: u32, (call, nth): (&str, u32)) {
    let sent = lines(number * LINES..(number + 1) * LINES);
    let before = scene.collector.lines().len();
    store(scene, &sent);
    let path = file(scene, "server-state/deliveries");
    let victim = (&scene.tund.server.process, &scene.lab.server);
    let _strace = die_at(victim, scene.lab.directory(), (call, &path), nth);
    scene.lab.heal();
    scene.tund.server.process.wait(LONG);
    scene.tund.server.start_again(&scene.lab);

    let twice = wait_for_all(scene, before, &sent);
    figure(&format!(
        "server killed at {call} {nth}: {twice} of {LINES} lines doubled"
    ));
    assert!(twice <= most_doubled(&sent), "{twice} lines doubled");
}

#[test]
fn killed_between_writing_down_and_telling_either_daemon_loses_nothing() {
    let mut scene = Scene::new("kill -9 between two steps");

    killed_while_removing(&mut scene, 0, "unlink");
    killed_while_recording(&mut scene, 1, ("fdatasync", 1));
}

#[test]
#[ignore = "long: ten outages beyond grace"]
fn long_killed_between_any_two_steps_either_daemon_loses_nothing() {
    let mut scene = Scene::new("kill -9 between any two steps");

    for (number, step) in [
        ("write", ".tmp"),
        ("fsync", ".tmp"),
        ("rename", ".tmp"),
        ("fsync", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let number = u32::try_from(number).expect("a few");
        killed_while_storing(&mut scene, number, step);
    }
    killed_while_removing(&mut scene, 4, "unlink");
    killed_while_removing(&mut scene, 5, "fsync");
    killed_while_recording(&mut scene, 6, ("pwrite64", 1));
    killed_while_recording(&mut scene, 7, ("pwrite64", 2));
    killed_while_recording(&mut scene, 8, ("fdatasync", 1));
    killed_while_recording(&mut scene, 9, ("fdatasync", 2));
}
