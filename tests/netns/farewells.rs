//! Sessions that are ended leave nothing on either side; what is not needed is never begun.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tund_tests::lab::{Family, Process, Settings, earliest, latest, wait};

use crate::support::{LATER, SOON, Scene, figure, write_until_blocked};

const PORT: u16 = 9000;
/// Within which nothing is left, by the daemons' own logs: how soon a test sees it depends on what
/// else its machine does.
const DONE: Duration = Duration::from_secs(1);
/// What a daemon says when nothing is left of a session, but for its links.
const ENDED: &str = "session ended";
/// What it says when it closes a link.
const CLOSED: &str = "link closed";
/// What it says when it is terminated.
const STOPPING: &str = "stopping";

/// A scene, and how many sockets each daemon has before its first flow.
struct Stage {
    scene: Scene,
    client_sockets: usize,
    server_sockets: usize,
}

/// A connection on which bytes lie in every buffer, each way.
struct Loaded {
    near: TcpStream,
    far: TcpStream,
    _listener: TcpListener,
}

impl Stage {
    fn new(title: &str, settings: &Settings) -> Self {
        let level = "\"debug\"";
        let settings = settings.clone().client("log", "level", level);
        let scene = Scene::new(title, &settings.server("log", "level", level));
        let client_sockets = scene.tund.client.process.sockets();
        let server_sockets = scene.tund.server.process.sockets();
        Self {
            scene,
            client_sockets,
            server_sockets,
        }
    }

    fn load(&self) -> Loaded {
        let lab = &self.scene.lab;
        let listener = lab.origin.listen_with_buffer(PORT, Some(64 << 10));
        let to = lab.origin_address(Family::V4, PORT);
        let near = lab.client.connect_with_buffer(to, 64 << 10, LATER).unwrap();
        let (far, _) = listener.accept().unwrap();
        for end in [&near, &far] {
            write_until_blocked(end, 4 << 20);
            end.set_nonblocking(false).unwrap();
            end.set_read_timeout(Some(LATER)).unwrap();
        }
        let buffered = self.scene.tund.client.status().buffered_bytes;
        assert!(buffered.up > 0 && buffered.down > 0, "{buffered:?}");
        Loaded {
            near,
            far,
            _listener: listener,
        }
    }

    /// Waits until neither daemon has a socket more than before its first flow. Of a client that has
    /// ended there is none.
    fn wait_without_sockets(&self, start: Instant, what: &str) {
        wait::until_true("both daemons have closed all sockets", LATER, || {
            self.scene.tund.client.process.sockets() <= self.client_sockets
                && self.scene.tund.server.process.sockets() <= self.server_sockets
        });
        let took = wait::now() - start;
        figure(&format!("{what}: nothing left after {took:?}"));
    }

    /// From the first word about `begin` in one log to the last about the end of the session or a
    /// link in either: then the last socket is closed.
    fn own_time(&self, begin: (&Process, &str)) -> Duration {
        let tund = &self.scene.tund;
        let begun = begin.0.log_lines(&[begin.1]);
        let mut ends = tund.client.process.log_lines(&[ENDED, CLOSED]);
        ends.extend(tund.server.process.log_lines(&[ENDED, CLOSED]));
        let took = latest(&ends).since(earliest(&begun));
        figure(&format!("by the daemons' own logs after {took:?}"));
        took
    }

    /// The server has no session and no connection C, nor memory for any.
    fn assert_server_is_empty(&self) {
        let server = &self.scene.tund.server;
        assert_eq!(server.sessions(), Ok(Vec::new()));
        let text = server.command(&["status", "--json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["memory"]["used_bytes"], 0, "{text}");
        let origins = format!("ss -Htan dport = :{PORT}");
        assert_eq!(self.scene.lab.server.run(&origins), "");
    }

    /// The client has no session, link, flow, or byte.
    fn assert_client_is_empty(&self) {
        let status = self.scene.tund.client.status();
        assert_eq!(status.state, "ready");
        assert_eq!(status.session_id, None);
        assert!(status.link.is_none() && status.links.is_empty());
        assert_eq!(status.flows.tcp, 0);
        let buffered = status.buffered_bytes;
        assert_eq!((buffered.up, buffered.down), (0, 0));
        // What the kernel still does for closed sockets is TCP's own affair.
        let links = "ss -Htn state established dport = :443";
        assert_eq!(self.scene.lab.client.run(links), "");
    }
}

/// Both ends of a connection meet a reset, behind whatever had arrived.
fn assert_reset(loaded: &mut Loaded) {
    for end in [&mut loaded.near, &mut loaded.far] {
        let mut buf = vec![0; 64 << 10];
        let error = loop {
            match end.read(&mut buf) {
                Ok(0) => panic!("a FIN passes for a true end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_disconnect_by_the_user_leaves_nothing_on_either_side() {
    let stage = Stage::new("disconnect leaves nothing", &Settings::new());
    let mut loaded = stage.load();

    let start = wait::now();
    stage.scene.tund.client.command(&["disconnect"]).unwrap();
    stage.wait_without_sockets(start, "disconnect by the client");

    assert_reset(&mut loaded);
    stage.assert_client_is_empty();
    stage.assert_server_is_empty();
    let took = stage.own_time((&stage.scene.tund.client.process, ENDED));
    assert!(took < DONE, "{took:?}");
}

#[test]
fn a_disconnect_by_the_server_leaves_nothing_on_either_side() {
    let stage = Stage::new("server disconnects", &Settings::new());
    let mut loaded = stage.load();

    let start = wait::now();
    let by_name = ["disconnect", "--client", "client"];
    stage.scene.tund.server.command(&by_name).unwrap();
    stage.wait_without_sockets(start, "disconnect by the server");

    assert_reset(&mut loaded);
    stage.assert_client_is_empty();
    stage.assert_server_is_empty();
    let took = stage.own_time((&stage.scene.tund.server.process, ENDED));
    assert!(took < DONE, "{took:?}");
}

#[test]
fn a_client_that_is_terminated_leaves_nothing_at_the_server() {
    let mut stage = Stage::new("sigterm leaves nothing", &Settings::new());
    let mut loaded = stage.load();

    let start = wait::now();
    let status = stage.scene.tund.client.process.terminate(LATER);
    stage.wait_without_sockets(start, "SIGTERM of the client");

    assert!(status.success(), "{status:?}");
    assert_reset(&mut loaded);
    stage.assert_server_is_empty();
    let took = stage.own_time((&stage.scene.tund.client.process, STOPPING));
    assert!(took < DONE, "{took:?}");
}

#[test]
fn a_server_that_is_terminated_leaves_nothing_at_the_client() {
    let mut stage = Stage::new("sigterm of the server", &Settings::new());
    let mut loaded = stage.load();

    let start = wait::now();
    let status = stage.scene.tund.server.process.terminate(LATER);
    stage.wait_without_sockets(start, "SIGTERM of the server");

    assert!(status.success(), "{status:?}");
    assert_reset(&mut loaded);
    stage.assert_client_is_empty();
    let took = stage.own_time((&stage.scene.tund.server.process, STOPPING));
    assert!(took < DONE, "{took:?}");
}

#[test]
fn the_end_of_linger_leaves_nothing_on_either_side() {
    let linger = Duration::from_secs(2);
    let settings = Settings::new().client("link", "linger", "\"2s\"");
    let stage = Stage::new("linger", &settings);
    let echo = stage.scene.echo();
    let lasting = stage.scene.tund.client.wait_attached(SOON).session_id;

    drop(echo);
    stage.scene.wait_without_flows();
    let start = wait::now();
    wait::throughout("it lingers", linger / 2, || {
        stage.scene.tund.client.status().session_id == lasting
    });
    stage.wait_without_sockets(start, "end of a linger of 2 s");

    stage.assert_client_is_empty();
    stage.assert_server_is_empty();
    let took = stage.own_time((&stage.scene.tund.client.process, "flow ended"));
    assert!(took >= linger && took < linger + DONE, "{took:?}");
}

#[test]
fn a_disconnect_during_an_outage_is_done_at_once_and_at_the_server_later() {
    let stage = Stage::new("disconnect in an outage", &Settings::new());
    let mut loaded = stage.load();
    let id = stage.scene.tund.client.wait_attached(SOON).session_id;
    stage.scene.lab.cut();
    stage.scene.lab.forget();
    stage.scene.tund.client.wait_for("detached", LATER);

    let start = wait::now();
    stage.scene.tund.client.command(&["disconnect"]).unwrap();
    wait::until_true("the client has closed all sockets", LATER, || {
        stage.scene.tund.client.process.sockets() <= stage.client_sockets
    });
    figure(&format!(
        "disconnect in an outage: all closed after {:?}",
        wait::now() - start
    ));
    stage.assert_client_is_empty();
    let client = &stage.scene.tund.client.process;
    let closed = client.log_lines(&[ENDED, CLOSED]);
    let took = latest(&closed).since(earliest(&client.log_lines(&[ENDED])));
    assert!(took < DONE, "{took:?}");
    let rows = stage.scene.tund.server.sessions().unwrap();
    assert_eq!(rows.len(), 1, "the server could not hear of it");

    stage.scene.lab.heal();
    stage.scene.echo();
    let mut rest = Vec::new();
    let error = loaded.far.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let server = &stage.scene.tund.server.process;
    let contact = server.log_lines(&["session attached"]);
    let took = latest(&server.log_lines(&[ENDED])).since(latest(&contact));
    figure(&format!(
        "disconnect in an outage: C reset {took:?} after contact"
    ));
    assert!(took < DONE, "{took:?}");
    let new = stage.scene.tund.client.wait_attached(SOON).session_id;
    let rows = stage.scene.tund.server.sessions().unwrap();
    let shown: Vec<_> = rows.iter().map(|row| row["session_id"].as_str()).collect();
    assert_eq!(shown, [new.as_deref()]);
    assert_ne!(new, id);
}

/// Packets that have gone through the router to the server's address, as its counter says.
fn packets_to_server(scene: &Scene) -> u64 {
    let table = scene.lab.router.run("nft -j list table inet watch");
    let listing: serde_json::Value = serde_json::from_str(&table).unwrap();
    let items = listing["nftables"].as_array().unwrap().iter();
    let counters = items.filter_map(|item| item["rule"]["expr"].as_array());
    let packets = counters
        .flatten()
        .filter_map(|part| part["counter"]["packets"].as_u64());
    packets.sum()
}

#[test]
fn no_packet_goes_to_the_server_before_the_first_flow() {
    let settings = Settings::new().client("link", "linger", "\"1s\"");
    let mut scene = Scene::new("on demand", &settings);
    scene.lab.router.nft(
        "table inet watch {
            chain seen {
                type filter hook prerouting priority -300;
                ip daddr 10.77.3.2 counter
                ip6 daddr fd77:0:0:3::2 counter
            }
        }",
    );
    // Whatever a start sends is sent while it is watched.
    scene.tund.client.process.kill();
    scene.tund.client.start_again(&scene.lab);
    tund_tests::lab::steer(&scene.lab);

    wait::throughout("nothing is sent", Duration::from_secs(3), || {
        packets_to_server(&scene) == 0
    });
    assert_eq!(scene.tund.client.status().state, "ready");
    drop(scene.echo());

    let seen = packets_to_server(&scene);
    assert!(seen > 3, "the first flow makes the session: {seen} packets");
    scene.tund.client.wait_for("ready", LATER);
    let after = wait::until("the last words are out", LATER, || {
        let links = scene
            .lab
            .client
            .run("ss -Htan exclude time-wait dport = :443");
        links.is_empty().then(|| packets_to_server(&scene))
    });
    wait::throughout("nothing is sent", Duration::from_secs(2), || {
        packets_to_server(&scene) == after
    });
}

/// An active flow whose network is cut until A and C are gone; how long after the cut that was.
fn expire(scene: &Scene, grace: Duration, is_watched: bool) -> Option<Duration> {
    let second = Duration::from_secs(1);
    let mut echo = scene.echo();
    let count = || {
        scene
            .lab
            .server
            .run("ss -Htn state established dport = :8080")
    };
    let origins = count().lines().count();
    assert_eq!(origins, 1);

    scene.lab.cut();
    let cut = wait::now();
    scene.lab.forget();
    let mut write = || echo.stream.write_all(b"x");
    wait::throughout("A lives", grace - second, || write().is_ok());
    assert_eq!(count().lines().count(), 1, "C lives");
    wait::until_true("A is reset", LATER, || write().is_err());
    let took = wait::now() - cut;
    figure(&format!("grace of {grace:?}: A reset after {took:?}"));
    assert!(took <= grace + second, "{took:?}");
    if !is_watched {
        return None;
    }
    let left = (grace + 29 * second).saturating_sub(wait::now() - cut);
    let mut next = wait::now();
    wait::throughout("C lives", left, || {
        // A look costs a process, so one in a quarter of a second will do.
        if wait::now() < next {
            return true;
        }
        next = wait::now() + second / 4;
        count().lines().count() == 1
    });
    wait::until_true("C is closed", LATER, || count().is_empty());
    let took = wait::now() - cut;
    figure(&format!("grace of {grace:?}: C closed after {took:?}"));
    Some(took)
}

#[test]
fn grace_ends_a_then_c_to_the_second_and_the_next_session_alike() {
    let grace = Duration::from_secs(4);
    let scene = Scene::new("grace to the second", &Settings::new().grace("4s"));
    let took = expire(&scene, grace, true).unwrap();
    assert!(took <= grace + Duration::from_secs(31), "{took:?}");
    assert_eq!(scene.tund.server.sessions(), Ok(Vec::new()));
    assert_eq!(scene.tund.client.status().state, "ready");
    let file = scene.lab.directory().join("server-state/tombstones");
    wait::until_true("its end is written down", LATER, || {
        std::fs::metadata(&file).is_ok_and(|data| data.len() > 8)
    });

    scene.lab.heal();
    expire(&scene, grace, false);
}
