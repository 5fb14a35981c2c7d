//! What an outage beyond grace leaves is stored by the client, and delivered once there is a network
//! again: to a collector that takes lines.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use tund_tests::lab::{Lab, Process, wait};

use crate::lines::{Scene, doubled, lines, most_doubled};
use crate::support::{Dice, LATER, LONG, figure};

#[test]
fn lines_outlast_an_outage_beyond_grace_and_another_one_and_arrive_once_in_order() {
    let scene = Scene::new("store");
    let sent = lines(0..200);
    for round in [0, 100] {
        let mut app = scene.connect();
        scene.send(&mut app, &sent[round..round + 10]);
        scene.collector.wait_for_lines(round + 10);
        scene.lose_the_network();
        scene.send(&mut app, &sent[round + 10..round + 100]);

        scene.expect_reset(&mut app);
        let stored = scene.stored();
        assert_eq!(stored.len(), 1, "{stored:?}");
        assert_eq!(stored[0]["state"], "waiting");
        assert_eq!(stored[0]["user"], 0);
        scene.lab.heal();

        let got = scene.collector.wait_for_lines(round + 100);
        assert_eq!(got, sent[..round + 100]);
        scene.wait_until_delivered();
    }
    let log = scene.tund.client.process.log();
    assert!(log.contains("stored what is left of a connection"), "{log}");
}

#[test]
fn what_was_stored_outlives_a_killed_client() {
    let mut scene = Scene::new("store, kill -9 of the client");
    let sent = lines(0..100);
    let mut app = scene.connect();
    scene.lose_the_network();
    scene.send(&mut app, &sent);
    scene.expect_reset(&mut app);

    scene.tund.client.process.kill();
    scene.tund.client.start_again(&scene.lab);
    assert_eq!(scene.stored().len(), 1);
    scene.lab.heal();

    assert_eq!(scene.collector.wait_for_lines(100), sent);
    scene.wait_until_delivered();
}

#[test]
fn a_client_that_is_killed_again_and_again_delivers_every_line() {
    let mut scene = Scene::new("deliver, kill -9 of the client");
    let mut dice = Dice::new(514);
    let sent = lines(0..40_000);
    let mut app = scene.connect();
    scene.lose_the_network();
    scene.send(&mut app, &sent);
    scene.expect_reset(&mut app);
    scene.lab.limit_rate(20);
    scene.lab.heal();

    for _ in 0..5 {
        let before = scene.collector.lines().len();
        wait::until_true("more has come", LONG, || {
            scene.collector.lines().len() > before || scene.stored().is_empty()
        });
        wait::let_pass(dice.millis(0, 200));
        scene.tund.client.process.kill();
        scene.tund.client.start_again(&scene.lab);
    }
    scene.wait_until_delivered();

    let all: BTreeSet<_> = sent.iter().collect();
    wait::until_true("every line", LONG, || {
        scene
            .collector
            .lines()
            .iter()
            .collect::<BTreeSet<_>>()
            .len()
            == all.len()
    });
    let twice = doubled(&scene.collector.lines(), &sent);
    figure(&format!(
        "five kills of the client: {twice} of {} lines doubled",
        sent.len()
    ));
    scene.collector.expect_runs(&sent);
    assert!(twice <= 5 * most_doubled(&sent), "{twice} lines doubled");
}

/// A directory with hardly any room.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(lab: &Lab) -> Self {
        let directory = lab.directory().join("client-spool");
        fs::create_dir(&directory).expect("a new directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"])
            .arg(&directory)
            .status();
        assert!(status.expect("mount runs").success());
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_is_said_and_degrades_to_reset() {
    let lab = Lab::new("store on a full disk");
    let small = Small::mount(&lab);
    // Dropped the other way round: the lab removes its directory last.
    let (scene, small) = (Scene::in_lab(lab, "hold"), small);
    let (few, many) = (lines(0..100), lines(100..3_000));
    let (mut one, mut other) = (scene.connect(), scene.connect());
    scene.lose_the_network();
    scene.send(&mut other, &many);
    scene.expect_reset(&mut other);
    scene.expect_reset(&mut one);

    assert_eq!(scene.stored(), Vec::<serde_json::Value>::new());
    let left = fs::read_dir(&small.0).expect("readable").flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["lock"]);
    let log = scene.tund.client.process.log();
    assert!(log.contains("cannot store"), "{log}");
    assert!(log.contains("is there room on the disk"), "{log}");

    // What fits is stored all the same.
    scene.lab.heal();
    let mut again = scene.connect();
    scene.lose_the_network();
    scene.send(&mut again, &few);
    scene.expect_reset(&mut again);
    assert_eq!(scene.stored().len(), 1);
    scene.lab.heal();
    assert_eq!(scene.collector.wait_for_lines(100), few);
}

#[test]
fn with_accept_an_application_is_served_while_there_is_no_network() {
    let scene = Scene::in_lab(Lab::new("accept"), "accept");
    let sent = lines(0..300);
    let mut first = scene.connect();
    scene.lose_the_network();
    scene.send(&mut first, &sent[..100]);
    scene.expect_reset(&mut first);

    // In the outage, and behind what is stored.
    let start = wait::now();
    let mut second = scene.connect();
    scene.send(&mut second, &sent[100..200]);
    figure(&format!("accepted within {:?}", wait::now() - start));
    scene.lab.heal();
    scene.collector.wait_for_lines(200);
    scene.send(&mut second, &sent[200..]);

    assert_eq!(scene.collector.wait_for_lines(300), sent);
    scene.wait_until_delivered();
}

/// B is lost at `places` places of a stream of a thousand lines each, at random.
fn lost_at(places: usize) {
    let scene = Scene::new("B lost at random places");
    let mut dice = Dice::new(1_000);
    let sent = lines(0..u32::try_from(places).expect("a few") * 1_000);
    for part in sent.chunks(1_000) {
        let before = scene.collector.lines().len();
        let mut app = scene.connect();
        let place = usize::try_from(dice.below(1_000)).expect("below 1,000");
        for line in &part[..place] {
            writeln!(app, "{line}").expect("the client daemon takes it");
        }
        wait::let_pass(dice.millis(0, 10));
        scene.lose_the_network();
        scene.send(&mut app, &part[place..]);
        scene.expect_reset(&mut app);
        scene.lab.heal();
        scene.wait_until_delivered();
        wait::until_true("the part is there", LONG, || {
            let got = scene.collector.lines();
            let new: BTreeSet<_> = got[before..].iter().collect();
            new.len() == part.len()
        });
    }
    let twice = doubled(&scene.collector.lines(), &sent);
    figure(&format!(
        "{places} places: {twice} of {} lines doubled",
        sent.len()
    ));
    scene.collector.expect_runs(&sent);
    // The server and its connections live on: nothing is on its way but one message, if any.
    assert!(twice <= places, "{twice} lines doubled");
}

#[test]
fn wherever_b_is_lost_every_line_arrives() {
    lost_at(2);
}

#[test]
#[ignore = "long: fifty outages beyond grace"]
fn long_wherever_b_is_lost_every_line_arrives() {
    lost_at(50);
}

#[test]
#[ignore = "needs rsyslogd; scripts/test rsyslog"]
fn rsyslog_gets_every_line_once_and_in_order() {
    const SYSLOG: u16 = 601;
    let scene = Scene::new("rsyslog as origin");
    let directory = scene.lab.directory();
    let (config, out) = (
        directory.join("rsyslog.conf"),
        directory.join("rsyslog.out"),
    );
    let text = format!(
        "global(workDirectory=\"{0}\")\nmodule(load=\"imtcp\")\n\
         template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
         ruleset(name=\"all\") {{ action(type=\"omfile\" file=\"{1}\" template=\"raw\") }}\n\
         input(type=\"imtcp\" port=\"{SYSLOG}\" ruleset=\"all\")\n",
        directory.display(),
        out.display()
    );
    fs::write(&config, text).expect("a file");
    let mut rsyslogd = Command::new("rsyslogd");
    rsyslogd.args(["-n", "-f"]).arg(&config);
    rsyslogd.arg("-i").arg(directory.join("rsyslog.pid"));
    let _running = Process::start(&scene.lab.origin, directory, "rsyslogd", &mut rsyslogd);
    wait::until_true("rsyslogd listens", LATER, || {
        let listening = scene.lab.origin.run("ss -Htln");
        listening.contains(&format!(":{SYSLOG} "))
    });
    let got = || {
        let text = fs::read_to_string(&out).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let sent: Vec<_> = (0..200).map(|n| format!("<13>line {n}")).collect();

    for part in [0, 100] {
        let mut app = scene.connect_to(SYSLOG);
        scene.send(&mut app, &sent[part..part + 10]);
        wait::until_true("rsyslog has the first", LATER, || got().len() == part + 10);
        scene.lose_the_network();
        scene.send(&mut app, &sent[part + 10..part + 100]);
        scene.expect_reset(&mut app);
        scene.lab.heal();
        wait::until_true("rsyslog has all", LONG, || got().len() >= part + 100);
        scene.wait_until_delivered();
    }

    assert_eq!(got(), sent);
}

#[test]
fn a_person_sees_what_waits_and_may_drop_it() {
    let scene = Scene::new("spool ls, show, drop");
    let mut app = scene.connect();
    scene.lose_the_network();
    scene.send(&mut app, &lines(0..10));
    scene.expect_reset(&mut app);

    let command = |arguments: &[&str]| scene.tund.client.command(arguments);
    let id = scene.stored()[0]["id"].to_string();
    let table = command(&["spool", "ls"]).expect("a table");
    assert!(table.contains("10.77.4.2:514"), "{table}");
    let shown = command(&["spool", "show", &id]).expect("facts");
    assert!(shown.contains("only the server can open"), "{shown}");
    assert!(command(&["spool", "show", "99"]).is_err());
    assert_eq!(
        command(&["spool", "retry", "--all"]).expect("tried"),
        "1 tried again\n"
    );
    assert_eq!(
        command(&["spool", "drop", &id]).expect("dropped"),
        "1 dropped\n"
    );
    let error = command(&["spool", "drop", &id]).expect_err("it is gone");
    assert!(error.contains("spool ls"), "{error}");

    scene.lab.heal();
    wait::let_pass(Duration::from_millis(500));
    assert_eq!(scene.collector.lines(), Vec::<String>::new());
}
