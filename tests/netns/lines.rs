//! A collector that takes lines, and a policy that stores for it what outlasts grace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};

use tund_tests::lab::{Family, Lab, Settings, Tund, wait};

use crate::support::{LATER, LONG, wait_until_acknowledged};

/// Of the collector.
const PORT: u16 = 514;
const GRACE: &str = "2s";

/// Takes lines; what it has of one connection is one run of bytes.
pub(crate) struct Collector {
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    pub(crate) fn start(lab: &Lab) -> Self {
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

    /// All that each connection has brought.
    pub(crate) fn connections(&self) -> Vec<Vec<u8>> {
        let all = self.connections.lock();
        all.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whole lines in the order of their connections; what no newline ends is none.
    pub(crate) fn lines(&self) -> Vec<String> {
        let all = self.connections();
        all.iter().flat_map(|bytes| whole_lines(bytes)).collect()
    }

    /// Each connection has brought a run of what was sent: in order, and nothing left out.
    #[track_caller]
    pub(crate) fn expect_runs(&self, sent: &[String]) {
        let place: BTreeMap<_, _> = sent.iter().zip(0..).collect();
        for bytes in self.connections() {
            let places = whole_lines(&bytes).into_iter().map(|line| {
                let at = place.get(&line).copied();
                at.unwrap_or_else(|| panic!("{line:?} was never sent"))
            });
            let places: Vec<usize> = places.collect();
            let breaks = places.windows(2).find(|pair| pair[1] != pair[0] + 1);
            assert_eq!(breaks, None, "neighbours in one connection");
        }
    }

    #[track_caller]
    pub(crate) fn wait_for_lines(&self, count: usize) -> Vec<String> {
        wait::until_true(&format!("{count} lines"), LONG, || {
            self.lines().len() >= count
        });
        self.lines()
    }
}

fn whole_lines(bytes: &[u8]) -> Vec<String> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = end.map_or(&[][..], |end| &bytes[..end]);
    let text = String::from_utf8_lossy(whole);
    text.lines().map(str::to_owned).collect()
}

fn collect(mut stream: TcpStream, place: usize, all: &Mutex<Vec<Vec<u8>>>) {
    let mut piece = [0; 16_384];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all[place].extend_from_slice(&piece[..count]);
    }
}

/// With a grace of two seconds; the origin's host takes lines, which are stored for it.
pub(crate) fn settings(lab: &Lab, connect_during_outage: &str) -> Settings {
    let quoted = |text: &str| format!("\"{text}\"");
    let destination = lab.origin_address(Family::V4, PORT).ip().to_string();
    Settings::new()
        .grace(GRACE)
        .client("[policy]", "destination", &quoted(&destination))
        .client("[policy]", "protocol", &quoted("tcp"))
        .client("[policy]", "on_expiry", &quoted("store"))
        .client("[policy]", "framing", &quoted("line"))
        .client(
            "[policy]",
            "connect_during_outage",
            &quoted(connect_during_outage),
        )
}

/// A lab with both daemons, a collector, and a policy that stores lines for it.
pub(crate) struct Scene {
    pub(crate) tund: Tund,
    pub(crate) collector: Collector,
    pub(crate) lab: Lab,
}

impl Scene {
    pub(crate) fn new(title: &str) -> Self {
        Self::in_lab(Lab::new(title), "hold")
    }

    pub(crate) fn in_lab(lab: Lab, connect_during_outage: &str) -> Self {
        let settings = settings(&lab, connect_during_outage);
        Self::with_settings(lab, &settings)
    }

    pub(crate) fn with_settings(lab: Lab, settings: &Settings) -> Self {
        let collector = Collector::start(&lab);
        let tund = Tund::start(&lab, settings);
        Self {
            tund,
            collector,
            lab,
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        self.connect_to(PORT)
    }

    pub(crate) fn connect_to(&self, port: u16) -> TcpStream {
        let target = self.lab.origin_address(Family::V4, port);
        self.lab
            .client
            .connect(target, LATER)
            .expect("a connection through tund")
    }

    /// The lines are with the client daemon.
    pub(crate) fn send(&self, stream: &mut TcpStream, lines: &[String]) {
        for line in lines {
            writeln!(stream, "{line}").expect("the client daemon takes it");
        }
        let local = stream.local_addr().expect("a bound socket");
        wait_until_acknowledged(&self.lab.client, local);
    }

    pub(crate) fn lose_the_network(&self) {
        self.lab.cut();
        self.lab.forget();
    }

    /// Rows of `spool ls --json`.
    pub(crate) fn stored(&self) -> Vec<serde_json::Value> {
        let text = self.tund.client.command(&["spool", "ls", "--json"]);
        serde_json::from_str(&text.expect("an answer")).expect("a list")
    }

    /// The application has learnt that its connection is over, and its lines are on the disk.
    pub(crate) fn expect_reset(&self, stream: &mut TcpStream) {
        stream.set_read_timeout(Some(LATER)).expect("a timeout");
        let error = stream.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    pub(crate) fn wait_until_delivered(&self) {
        wait::until_true("nothing is stored any more", LONG, || {
            self.stored().is_empty()
        });
    }
}

pub(crate) fn lines(range: std::ops::Range<u32>) -> Vec<String> {
    range
        .map(|number| format!("line {number} of what an application has to say"))
        .collect()
}

/// The most lines of `sent` that a connection that breaks may double: what is on its way and not
/// recorded (PROTOCOL.md §5.8) is less than 16 KiB, and one record more.
pub(crate) fn most_doubled(sent: &[String]) -> usize {
    let least = sent.iter().map(String::len).min().unwrap_or(0) + 1;
    2 * 16_384 / least
}

/// Every line that was sent has come, the first time in its order; how many have come again.
#[track_caller]
pub(crate) fn doubled(got: &[String], sent: &[String]) -> usize {
    let mut seen = BTreeSet::new();
    let firsts: Vec<_> = got.iter().filter(|line| seen.insert(*line)).collect();
    assert_eq!(firsts, sent.iter().collect::<Vec<_>>(), "set and order");
    got.len() - sent.len()
}
