//! What is not stored, not delivered, or only when a person wants it; and what goes before a delivery.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use proxy_header::{ParseConfig, ProxyHeader};
use tund_tests::lab::{Lab, wait};

use crate::lines::{Scene, lines, settings};
use crate::support::{LATER, LONG, SOON};

/// The first bytes of TLS, SSH and HTTP/2, each a line or more.
const CONVERSATIONS: [&[u8]; 3] = [
    b"\x16\x03\x01\x00\x05hello\n",
    b"SSH-2.0-somebody\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

/// Said when the outage has begun: it must not reach anybody.
const LATE: &str = "late";

#[test]
fn a_conversation_is_reset_and_never_stored_nor_delivered() {
    let scene = Scene::new("TLS, SSH and HTTP/2 are not stored");
    let sent = lines(0..20);
    let mut known = Vec::new();
    for first in CONVERSATIONS {
        let mut app = scene.connect();
        app.write_all(first).expect("the client daemon takes it");
        known.push(app);
    }
    let came = || scene.collector.connections().concat().len();
    let all = CONVERSATIONS.concat().len();
    wait::until_true("they are carried as they come", LATER, || came() == all);
    // Others begin when nobody hears them: their first bytes are with the client alone.
    let mut unheard: Vec<_> = CONVERSATIONS.iter().map(|_| scene.connect()).collect();
    let mut app = scene.connect();

    scene.lose_the_network();
    for (app, first) in unheard.iter_mut().zip(CONVERSATIONS) {
        app.write_all(first).expect("the client daemon takes it");
    }
    for app in known.iter_mut().chain(&mut unheard) {
        scene.send(app, &[LATE.to_owned()]);
    }
    scene.send(&mut app, &sent);
    for app in known.iter_mut().chain(&mut unheard).chain([&mut app]) {
        scene.expect_reset(app);
    }

    assert_eq!(scene.stored().len(), 1, "{:?}", scene.stored());
    scene.lab.heal();
    scene.wait_until_delivered();
    wait::until_true("the lines", LONG, || {
        scene.collector.lines().ends_with(&sent)
    });
    let got = scene.collector.lines();
    assert!(!got.iter().any(|line| line.contains(LATE)), "{got:?}");
    assert_eq!(came(), all + sent.join("\n").len() + 1);
    let log = scene.tund.client.process.log();
    assert!(
        log.contains("TLS, SSH and HTTP/2 are never stored"),
        "{log}"
    );
}

/// Has the server read its configuration again, with that in place of this.
#[track_caller]
fn reconfigure(scene: &Scene, this: &str, that: &str) {
    let server = &scene.tund.server;
    let text = fs::read_to_string(server.config()).expect("a file");
    let changed = text.replace(this, that);
    assert_ne!(changed, text);
    fs::write(server.config(), changed).expect("it can be written");
    let told = |log: &str| log.matches("were read again").count();
    let before = told(&server.process.log());
    server.process.signal(Signal::SIGHUP);
    wait::until_true("the server has read it", SOON, || {
        told(&server.process.log()) > before
    });
}

#[test]
fn what_the_server_denies_by_now_waits_for_a_person() {
    let scene = Scene::new("refused again at delivery");
    let sent = lines(0..50);
    let mut app = scene.connect();
    scene.lose_the_network();
    scene.send(&mut app, &sent);
    scene.expect_reset(&mut app);
    let denied = "[origin]\ndeny = [\"10.77.4.2\"]";
    reconfigure(&scene, "[origin]", denied);

    scene.lab.heal();

    wait::until_true("it is a dead letter", LONG, || {
        scene.stored()[0]["state"] == "dead"
    });
    let row = &scene.stored()[0];
    assert_eq!(row["reason"], "denied");
    assert_eq!(scene.collector.lines(), Vec::<String>::new());
    reconfigure(&scene, denied, "[origin]");
    let tried = scene
        .tund
        .client
        .command(&["spool", "retry", &row["id"].to_string()]);
    assert_eq!(tried.expect("it is there"), "1 tried again\n");

    assert_eq!(scene.collector.wait_for_lines(50), sent);
    scene.wait_until_delivered();
}

#[test]
fn an_origin_that_refuses_is_tried_again_in_five_minutes_or_when_a_person_wants_it() {
    const AWAY: u16 = 601;
    let scene = Scene::new("an origin that is away");
    let sent = lines(0..50);
    let listener = scene.lab.origin.listen(AWAY);
    let mut app = scene.connect_to(AWAY);
    let (far, _) = listener.accept().expect("a connection");
    scene.lose_the_network();
    scene.send(&mut app, &sent);
    scene.expect_reset(&mut app);
    drop((listener, far));

    scene.lab.heal();

    wait::until_true("it was refused", LONG, || {
        scene.stored()[0]["retry_ms"].is_u64()
    });
    let row = &scene.stored()[0];
    assert_eq!(row["state"], "waiting");
    let [age, keep] = ["age_s", "keep_s"].map(|what| row[what].as_u64().expect("a number"));
    assert!(
        age < 60 && (72 * 3600 - 60..=72 * 3600).contains(&keep),
        "{row}"
    );
    let pause = row["retry_ms"].as_u64().expect("a number");
    assert!((270_000..=300_000).contains(&pause), "{pause}");
    let listener = scene.lab.origin.listen(AWAY);
    let tried = scene.tund.client.command(&["spool", "retry", "--all"]);
    assert_eq!(tried.expect("it is there"), "1 tried again\n");

    let (mut far, _) = listener.accept().expect("a delivery");
    far.set_read_timeout(Some(LATER)).expect("a timeout");
    let mut got = String::new();
    far.read_to_string(&mut got).expect("all, and FIN");
    assert_eq!(got.lines().collect::<Vec<_>>(), sent);
    scene.wait_until_delivered();
}

#[test]
fn a_spool_that_is_full_is_said_and_degrades_to_reset() {
    let lab = Lab::new("a full spool");
    let small = settings(&lab, "hold").client("spool", "max_bytes", "\"1MiB\"");
    let scene = Scene::with_settings(lab, &small);
    // One user has a quarter of it.
    let (few, many) = (lines(0..4_000), lines(4_000..8_000));
    let bytes = few.iter().map(|line| line.len() + 1).sum::<usize>();
    assert!(bytes < 256 << 10 && bytes * 2 > 256 << 10, "{bytes}");
    let (mut one, mut other) = (scene.connect(), scene.connect());
    scene.lose_the_network();
    scene.send(&mut one, &few);
    scene.send(&mut other, &many);
    scene.expect_reset(&mut one);
    scene.expect_reset(&mut other);

    assert_eq!(scene.stored().len(), 1);
    let log = scene.tund.client.process.log();
    assert!(log.contains("raise [spool] max_bytes"), "{log}");
    scene.lab.heal();
    assert_eq!(scene.collector.wait_for_lines(few.len()), few);
    scene.wait_until_delivered();
}

/// What an origin reads of a connection: the session it is told of, and lines.
fn told(bytes: &[u8], origin: SocketAddr) -> (String, Vec<String>) {
    let (header, len) = ProxyHeader::parse(bytes, ParseConfig::default()).expect("a header");
    let addresses = header.proxied_address().expect("it has addresses");
    assert_eq!(addresses.destination, origin);
    let id = header.unique_id().expect("it has an id").to_vec();
    let text = String::from_utf8(bytes[len..].to_vec()).expect("text");
    let lines = text.lines().map(str::to_owned);
    (String::from_utf8(id).expect("text"), lines.collect())
}

#[test]
fn a_delivery_begins_with_the_header_that_its_origin_wants() {
    let lab = Lab::new("proxy protocol before a delivery");
    let listed = "[\"10.77.4.0/24:514\"]";
    let told_of = settings(&lab, "hold").server("origin", "proxy_protocol", listed);
    let scene = Scene::with_settings(lab, &told_of);
    let sent = lines(0..100);
    let mut app: TcpStream = scene.connect();
    scene.send(&mut app, &sent[..10]);
    let origin = app.peer_addr().expect("a connection");
    let old = scene.tund.client.status().session_id;
    wait::until_true("the first are there", LATER, || {
        let got = scene.collector.connections();
        let last = format!("{}\n", sent[9]);
        got.first()
            .is_some_and(|bytes| bytes.ends_with(last.as_bytes()))
    });
    scene.lose_the_network();
    scene.send(&mut app, &sent[10..]);
    scene.expect_reset(&mut app);

    scene.lab.heal();
    scene.wait_until_delivered();

    let new = scene.tund.client.status().session_id;
    let [first, second] = &scene.collector.connections()[..] else {
        panic!("{:?}", scene.collector.connections().len());
    };
    let (first, second) = (told(first, origin), told(second, origin));
    assert_eq!((Some(first.0), Some(second.0)), (old, new));
    assert_eq!([first.1, second.1].concat(), sent);
}
