//! What an outage beyond grace leaves is stored by the client, and delivered once there is a network
//! again: to a collector that takes lines.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tund_tests::lab::{Family, Lab, Process, Settings, Tund, wait};

use crate::support::{Dice, LATER, LONG, figure, wait_until_acknowledged};

/// Of the collector.
const PORT: u16 = 514;
const GRACE: &str = "2s";

/// Takes lines; what it has of one connection is one run of bytes.
struct Collector {
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start(lab: &Lab) -> Self {
        let listener = lab.origin.listen(PORT);
        let connections = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&connections);
        drop(lab.origin.spawn("collector", move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let place = {
                    let mut all = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(Vec::new());
                    all.len() - 1
                };
                let shared = Arc::clone(&shared);
                drop(std::thread::spawn(move || collect(stream, place, &shared)));
            }
        }));
        Self { connections }
    }

    /// Whole lines in the order of their connections; what no newline ends is none.
    fn lines(&self) -> Vec<String> {
        let all = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let lines = all.iter().flat_map(|bytes| {
            let whole = bytes.iter().rposition(|byte| *byte == b'\n');
            let whole = whole.map_or(&[][..], |end| &bytes[..end]);
            let text = String::from_utf8_lossy(whole).into_owned();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines
        });
        lines.collect()
    }

    #[track_caller]
    fn wait_for_lines(&self, count: usize) -> Vec<String> {
        wait::until_true(&format!("{count} lines"), LONG, || {
            self.lines().len() >= count
        });
        self.lines()
    }
}

fn collect(mut stream: TcpStream, place: usize, all: &Mutex<Vec<Vec<u8>>>) {
    let mut piece = [0; 16_384];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all[place].extend_from_slice(&piece[..count]);
    }
}

/// A lab with both daemons, a collector, and a policy that stores lines for it.
struct Scene {
    tund: Tund,
    collector: Collector,
    lab: Lab,
}

impl Scene {
    fn new(title: &str) -> Self {
        Self::in_lab(Lab::new(title), "hold")
    }

    fn in_lab(lab: Lab, connect_during_outage: &str) -> Self {
        let collector = Collector::start(&lab);
        let destination = format!("\"{}\"", lab.origin_address(Family::V4, PORT).ip());
        let settings = Settings::new()
            .grace(GRACE)
            .client("[policy]", "destination", &destination)
            .client("[policy]", "protocol", "\"tcp\"")
            .client("[policy]", "on_expiry", "\"store\"")
            .client("[policy]", "framing", "\"line\"")
            .client(
                "[policy]",
                "connect_during_outage",
                &format!("\"{connect_during_outage}\""),
            );
        let tund = Tund::start(&lab, &settings);
        Self {
            tund,
            collector,
            lab,
        }
    }

    fn connect(&self) -> TcpStream {
        self.connect_to(PORT)
    }

    fn connect_to(&self, port: u16) -> TcpStream {
        let target = self.lab.origin_address(Family::V4, port);
        self.lab
            .client
            .connect(target, LATER)
            .expect("a connection through tund")
    }

    /// The lines are with the client daemon.
    fn send(&self, stream: &mut TcpStream, lines: &[String]) {
        for line in lines {
            writeln!(stream, "{line}").expect("the client daemon takes it");
        }
        let local = stream.local_addr().expect("a bound socket");
        wait_until_acknowledged(&self.lab.client, local);
    }

    fn lose_the_network(&self) {
        self.lab.cut();
        self.lab.forget();
    }

    /// Rows of `spool ls --json`.
    fn stored(&self) -> Vec<serde_json::Value> {
        let text = self.tund.client.command(&["spool", "ls", "--json"]);
        serde_json::from_str(&text.expect("an answer")).expect("a list")
    }

    /// The application has learnt that its connection is over, and its lines are on the disk.
    fn expect_reset(&self, stream: &mut TcpStream) {
        stream.set_read_timeout(Some(LATER)).expect("a timeout");
        let error = stream.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    fn wait_until_delivered(&self) {
        wait::until_true("nothing is stored any more", LONG, || {
            self.stored().is_empty()
        });
    }
}

fn lines(range: std::ops::Range<u32>) -> Vec<String> {
    range
        .map(|number| format!("line {number} of what an application has to say"))
        .collect()
}

#[test]
fn lines_outlast_an_outage_beyond_grace_and_another_one_and_arrive_once_in_order() {
    let scene = Scene::new("store");
    let sent = lines(0..300);
    for round in [0, 100, 200] {
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
    let got = scene.collector.lines();
    assert_eq!(got.iter().collect::<BTreeSet<_>>(), all);
    let mut seen = BTreeSet::new();
    let firsts: Vec<_> = got.iter().filter(|line| seen.insert(*line)).collect();
    assert_eq!(firsts, sent.iter().collect::<Vec<_>>(), "in order");
    figure(&format!(
        "five kills of the client: {} of {} lines doubled",
        got.len() - sent.len(),
        sent.len()
    ));
}

/// A directory with hardly any room.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(lab: &Lab) -> Self {
        let directory = lab.directory().join("spool");
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
    assert_eq!(fs::read_dir(&small.0).expect("readable").count(), 0);
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
    let got = scene.collector.lines();
    let mut seen = BTreeSet::new();
    let firsts: Vec<_> = got.iter().filter(|line| seen.insert(*line)).collect();
    assert_eq!(firsts, sent.iter().collect::<Vec<_>>(), "set and order");
    figure(&format!(
        "{places} places: {} of {} lines doubled",
        got.len() - sent.len(),
        sent.len()
    ));
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
