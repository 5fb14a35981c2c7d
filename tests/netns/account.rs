//! The account of each flow that has ended, beside what a capture on either side has seen of it.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use tund_tests::lab::{Ending, Family, Settings, ending_of, wait};

use crate::capture::Capture;
use crate::ledger::{Row, check_log, differences};
use crate::support::{Dice, LATER, LONG, Scene, figure, reset, write_until_blocked};

/// Each flow has a port of its own from here on, by which all who saw it know it.
const FIRST_PORT: u16 = 20_000;
/// An address that the server does not allow.
const DENIED: &str = "10.77.6.1";
/// What a stuck reader's kernel holds for it.
const SMALL_BUFFER: usize = 16 << 10;
/// How much is written where nobody reads: more than all buffers on the way hold.
const STUCK_BYTES: usize = 3_000_000;

fn is_ours(port: u16) -> bool {
    (FIRST_PORT..FIRST_PORT + 1000).contains(&port)
}

/// How a flow comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// FIN both ways, the application's first.
    ClosedByApplication,
    /// FIN both ways, the origin's first.
    ClosedByOrigin,
    ResetByApplication,
    ResetByOrigin,
    /// Nobody listens.
    Refused,
    /// The server does not connect there.
    Denied,
    /// Nobody answers, and the application waits no longer.
    Cancelled,
    /// The origin's host falls silent.
    Failed,
    /// The outage outlasts the grace.
    Expired,
    /// The user asks.
    Disconnected,
    /// The server daemon is stopped.
    Stopped,
    /// The server daemon is killed, and started anew.
    Restarted,
}

/// Ways of one flow by itself.
pub(crate) const SINGLY: [Way; 6] = [
    Way::ClosedByApplication,
    Way::ClosedByOrigin,
    Way::ResetByApplication,
    Way::ResetByOrigin,
    Way::Refused,
    Way::Denied,
];

/// Ways that several flows go together.
const TOGETHER: [Way; 5] = [
    Way::Failed,
    Way::Disconnected,
    Way::Expired,
    Way::Stopped,
    Way::Restarted,
];

impl Way {
    /// What the account should say: by whom and how.
    pub(crate) fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::ClosedByApplication => ("application", "closed"),
            Self::ClosedByOrigin => ("origin", "closed"),
            Self::ResetByApplication => ("application", "reset"),
            Self::ResetByOrigin => ("origin", "reset"),
            Self::Refused => ("origin", "refused"),
            Self::Denied => ("server", "refused"),
            Self::Cancelled => ("application", "cancelled"),
            Self::Failed => ("origin", "failed"),
            Self::Expired => ("client", "expired"),
            Self::Disconnected => ("user", "disconnected"),
            Self::Stopped => ("server", "disconnected"),
            Self::Restarted => ("server", "restarted"),
        }
    }
}

/// One flow: how much goes each way, and how it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    port: u16,
    pub(crate) way: Way,
    family: Family,
    /// Of two exchanges.
    up: [u64; 2],
    down: [u64; 2],
    /// Written at the end: by who has not ended it, by who does, or in vain.
    rest: u64,
    /// When it ends, somebody has not read what was written to him: the application, the origin.
    pub(crate) stuck: [bool; 2],
    /// Outages that it lives through.
    pub(crate) outages: u64,
}

/// An open flow, both of whose ends the test holds.
struct Pair {
    script: Script,
    near: TcpStream,
    far: TcpStream,
}

struct Stage {
    scene: Scene,
    dice: Dice,
    scripts: Vec<Script>,
}

impl Stage {
    fn new() -> Self {
        let settings = Settings::new().grace("4s");
        let scene = Scene::new("accounts and captures", &settings);
        scene
            .lab
            .client
            .run(&format!("ip route add {DENIED} dev tund0"));
        // An established connection is given up after 1.4 s in place of 15 min.
        scene.lab.server.sysctl("ipv4.tcp_retries2", "2");
        scene.lab.origin.nft(
            "table inet quiet {
                 set ports { type inet_service; }
                 chain in { type filter hook input priority 0; tcp dport @ports drop; }
             }",
        );
        Self {
            scene,
            dice: Dice::new(500),
            scripts: Vec::new(),
        }
    }

    fn script(&mut self, way: Way) -> Script {
        let place = u16::try_from(self.scripts.len()).expect("below 1000");
        let may_be_stuck = way == Way::Disconnected;
        let mut size = || match self.dice.below(8) {
            0 => 0,
            // More would take its time through small buffers.
            1..=7 if may_be_stuck => self.dice.below(2000),
            1..=4 => self.dice.below(2000),
            5 | 6 => self.dice.below(100_000),
            _ => self.dice.below(1_000_000),
        };
        let (up, down, rest) = ([size(), size()], [size(), size()], 1 + size());
        let stuck = [self.dice.below(3) == 0, self.dice.below(3) == 0];
        let script = Script {
            port: FIRST_PORT + place,
            way,
            family: [Family::V4, Family::V6][usize::from(place % 3 == 2)],
            up,
            down,
            rest,
            stuck: stuck.map(|stuck| stuck && may_be_stuck),
            outages: 0,
        };
        self.scripts.push(script);
        script
    }

    /// What the client says of all flows that have ended.
    fn rows(&self) -> Vec<Row> {
        let client = &self.scene.tund.client;
        let text = client.command(&["flows", "--ended", "--json"]).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|cause| panic!("{cause}: {text}"))
    }

    /// Some flows from their beginning to their end; those of `together` end last.
    fn round(&mut self, singly: &[Way], (together, count): (Way, usize), has_outage: bool) {
        let first = self.scripts.len();
        let ways = [singly, &vec![together; count]].concat();
        let scripts: Vec<_> = ways.into_iter().map(|way| self.script(way)).collect();
        let scene = &self.scene;
        let pairs: Vec<Pair> = side_by_side(scripts, |script| open(scene, script))
            .into_iter()
            .flatten()
            .collect();
        let outages = || scene.tund.client.status().outages.count;
        let before = outages();
        thread::scope(|scope| {
            let exchanges = scope
                .spawn(|| side_by_side(pairs.iter().collect(), |pair: &Pair| pair.exchange(1)));
            if has_outage {
                scene.lab.forget();
            }
            exchanges.join().expect("its panic has been printed");
        });
        if has_outage {
            wait::until_true("the outage is over", LATER, || outages() > before);
        }
        let lived_through = outages() - before;
        let is_open = |script: &Script| {
            let of_pair = pairs.iter().any(|pair| pair.script.port == script.port);
            of_pair || script.way == Way::Cancelled
        };
        for script in self.scripts[first..].iter_mut().filter(|one| is_open(one)) {
            script.outages = lived_through;
        }
        let (last, first_ones): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .partition(|pair| pair.script.way == together);
        side_by_side(first_ones, Pair::end);
        // To give up takes its time; a session that goes on may have it.
        let cancelled = singly.iter().filter(|way| **way == Way::Cancelled).count();
        let left = u64::try_from(count + cancelled).unwrap();
        wait::until_true("the others have ended", LATER, || {
            scene.tund.client.status().flows.tcp <= left
        });
        self.end_together(together, &last);
        let total = self.scripts.len();
        wait::until_true("each has its account", LATER, || self.rows().len() == total);
        let round = first..total;
        figure(&format!(
            "flows {round:?}, {lived_through} outages, then {together:?}"
        ));
    }

    /// Ends these flows at one stroke, and waits until their applications have learnt of it.
    fn end_together(&mut self, way: Way, pairs: &[Pair]) {
        let lab = &self.scene.lab;
        side_by_side(pairs.iter().collect(), |pair: &Pair| {
            let [near, far] = pair.script.stuck;
            if near {
                write_until_blocked(&pair.far, STUCK_BYTES);
            }
            if far {
                write_until_blocked(&pair.near, STUCK_BYTES);
            }
        });
        // The reset may come before all is taken.
        let write = || {
            side_by_side(pairs.iter().collect(), |pair: &Pair| {
                let failure = send(&pair.near, pair.script.rest).err();
                failure.map(|error| ending_of(&error))
            })
        };
        let mut met = vec![None; pairs.len()];
        match way {
            Way::Failed => {
                let ports = pairs.iter().map(|pair| pair.script.port.to_string());
                let ports = ports.collect::<Vec<_>>().join(", ");
                lab.origin
                    .nft(&format!("add element inet quiet ports {{ {ports} }}\n"));
                met = write();
            }
            Way::Expired => {
                lab.cut();
                lab.forget();
                met = write();
            }
            Way::Disconnected => drop(self.scene.tund.client.command(&["disconnect"]).unwrap()),
            Way::Stopped => {
                let status = self.scene.tund.server.process.terminate(LONG);
                assert!(status.success(), "{status:?}");
            }
            Way::Restarted => {
                self.scene.tund.server.process.kill();
                met = write();
                self.scene.tund.server.start_again(&self.scene.lab);
            }
            Way::ClosedByApplication
            | Way::ClosedByOrigin
            | Way::ResetByApplication
            | Way::ResetByOrigin
            | Way::Refused
            | Way::Denied
            | Way::Cancelled => panic!("{way:?} is the way of one"),
        }
        let each = pairs.iter().zip(met).collect();
        let ends = side_by_side(each, |(pair, met): (&Pair, Option<Ending>)| {
            met.unwrap_or_else(|| end_of(&pair.near))
        });
        assert_eq!(ends, vec![Ending::Reset; pairs.len()]);
        if way == Way::Stopped {
            self.scene.tund.server.start_again(&self.scene.lab);
        }
        self.scene.lab.heal();
    }
}

/// Does the work of each in a thread of its own.
fn side_by_side<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let start = |one| scope.spawn(move || work(one));
        let threads: Vec<_> = all.into_iter().map(start).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, R>| thread.join();
        let ended = threads.into_iter().map(join);
        ended
            .map(|result| result.expect("its panic has been printed"))
            .collect()
    })
}

fn send(mut stream: &TcpStream, mut length: u64) -> io::Result<()> {
    let piece = [0x61; 65536];
    while length > 0 {
        let count = usize::try_from(length.min(65536)).expect("at most 64 KiB");
        stream.write_all(&piece[..count])?;
        length -= u64::try_from(count).expect("at most 64 KiB");
    }
    Ok(())
}

fn take(stream: &TcpStream, length: u64) {
    let taken = io::copy(&mut stream.take(length), &mut io::sink());
    assert_eq!(taken.unwrap(), length);
}

/// Reads to the end of a connection that has one.
fn end_of(mut stream: &TcpStream) -> Ending {
    stream.set_nonblocking(false).unwrap();
    match io::copy(&mut stream, &mut io::sink()) {
        Ok(_) => Ending::Finished,
        Err(error) => ending_of(&error),
    }
}

/// Opens a flow and lets it carry its first bytes; none where it does not come about.
fn open(scene: &Scene, script: Script) -> Option<Pair> {
    let lab = &scene.lab;
    let to = lab.origin_address(script.family, script.port);
    let connect = |to, limit| lab.client.enter(|| TcpStream::connect_timeout(&to, limit));
    let refused = |result: io::Result<TcpStream>, kind| {
        assert_eq!(result.unwrap_err().kind(), kind);
        None
    };
    // Without a limit: with one the library may miss the kernel's reason.
    let ask = |to: SocketAddr| lab.client.enter(|| TcpStream::connect(to));
    if script.way == Way::Refused {
        return refused(ask(to), io::ErrorKind::ConnectionRefused);
    }
    if script.way == Way::Denied {
        let to = SocketAddr::new(DENIED.parse().unwrap(), script.port);
        return refused(ask(to), io::ErrorKind::HostUnreachable);
    }
    if script.way == Way::Cancelled {
        let port = script.port;
        lab.origin
            .nft(&format!("add element inet quiet ports {{ {port} }}\n"));
        let result = connect(to, Duration::from_millis(300));
        return refused(result, io::ErrorKind::TimedOut);
    }
    let [near_is_stuck, far_is_stuck] = script.stuck;
    let buffer = |is_stuck: bool| is_stuck.then_some(SMALL_BUFFER);
    let listener = lab
        .origin
        .listen_with_buffer(script.port, buffer(far_is_stuck));
    let near = match buffer(near_is_stuck) {
        Some(bytes) => lab.client.connect_with_buffer(to, bytes, LATER),
        None => connect(to, LATER),
    };
    let near = near.unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_read_timeout(Some(LONG)).unwrap();
    }
    let pair = Pair { script, near, far };
    pair.exchange(0);
    Some(pair)
}

impl Pair {
    /// Both ends send and read what the script says.
    fn exchange(&self, part: usize) {
        let Self { script, near, far } = self;
        let (up, down) = (script.up[part], script.down[part]);
        thread::scope(|scope| {
            scope.spawn(|| send(near, up).unwrap());
            scope.spawn(|| send(far, down).unwrap());
            scope.spawn(|| take(far, up));
            take(near, down);
        });
    }

    /// One end ends it.
    fn end(self) {
        let Self { script, near, far } = self;
        // One of them says its last word, the other one may go on a while.
        let is_of_application =
            [Way::ClosedByApplication, Way::ResetByApplication].contains(&script.way);
        let (first, second) = match is_of_application {
            true => (near, far),
            false => (far, near),
        };
        if [Way::ResetByApplication, Way::ResetByOrigin].contains(&script.way) {
            // Nobody reads it yet: as much as finds room on the way, where it is when the reset comes.
            send(&first, script.rest.min(100_000)).unwrap();
            reset(first);
            assert_eq!(end_of(&second), Ending::Reset);
            return;
        }
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&second).read(&mut [0]).unwrap(), 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                send(&second, script.rest).unwrap();
                second.shutdown(Shutdown::Write).unwrap();
            });
            take(&first, script.rest);
        });
        assert_eq!(end_of(&first), Ending::Finished);
    }
}

/// Plays `rounds`, each with `singly` flows that end by themselves and `together` that do not.
fn accounts_agree(rounds: usize, singly: usize, together: usize) {
    let mut stage = Stage::new();
    let lab = &stage.scene.lab;
    let on_a = Capture::start(&lab.client, "tund0", is_ours);
    let on_c = Capture::start(&lab.origin, "up", is_ours);
    for round in 0..rounds {
        let way = TOGETHER[round % TOGETHER.len()];
        let mut ways: Vec<_> = (0..singly)
            .map(|place| SINGLY[(round * singly + place) % SINGLY.len()])
            .collect();
        if way == Way::Failed {
            ways.push(Way::Cancelled);
        }
        stage.round(&ways, (way, together), round % 2 == 1);
    }

    let (on_a, on_c) = (on_a.finish(), on_c.finish());
    let rows = stage.rows();
    assert_eq!(rows.len(), stage.scripts.len());
    let by_port: BTreeMap<_, _> = rows
        .iter()
        .map(|row| (row.destination.port(), row))
        .collect();
    let mut wrong = 0;
    for script in &stage.scripts {
        let row = by_port[&script.port];
        let (a, c) = (on_a.get(&script.port), on_c.get(&script.port));
        let found = differences(script, row, a, c);
        if !found.is_empty() {
            wrong += 1;
            eprintln!("{found:?}: {script:?}\n  says {row:?}\n  A {a:?}\n  C {c:?}");
        }
    }
    assert_eq!(wrong, 0, "accounts of {} that do not agree", rows.len());
    check_log(&stage.scene, &rows);
    let lost: u64 = rows.iter().map(|row| row.lost_bytes.up).sum();
    assert!(lost > 0, "nothing was lost by any way");
    figure(&format!(
        "{} accounts agree, {lost} bytes up lost",
        rows.len()
    ));
}

#[test]
fn the_accounts_of_flows_that_ended_in_many_ways_agree_with_captures_on_both_sides() {
    accounts_agree(5, 4, 4);
}

#[test]
#[ignore = "long: 500 flows that end in 12 ways"]
fn long_five_hundred_accounts_agree_with_captures_on_both_sides() {
    accounts_agree(25, 12, 8);
}
