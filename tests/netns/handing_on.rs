//! What an origin pushes during an outage beyond grace reaches the same user's next connection, and
//! nobody else's.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};
use tund_tests::lab::{Family, Lab, Settings, Tund, wait};

use crate::support::{LATER, LONG, write_until_blocked};

/// Of the origin.
const PORT: u16 = 5222;
/// What each connection is told first.
const GREETING: &str = "hello";
/// Users of the client's host.
const ALICE: u32 = 30_001;
const BOB: u32 = 30_002;

/// A lab with both daemons, an origin that greets and then pushes what it is told to, and a policy
/// that has it handed on.
struct Scene {
    tund: Tund,
    accepted: Receiver<TcpStream>,
    lab: Lab,
}

impl Scene {
    fn new(title: &str, retain: &str) -> Self {
        Self::within(Lab::new(title), retain, "64MiB")
    }

    /// The same, where the server has such a buffer.
    fn within(lab: Lab, retain: &str, buffer: &str) -> Self {
        let quoted = |text: &str| format!("\"{text}\"");
        let destination = lab.origin_address(Family::V4, PORT).ip().to_string();
        let settings = Settings::new()
            .grace("2s")
            .server("session", "buffer", &quoted(buffer))
            .client("[policy]", "destination", &quoted(&destination))
            .client("[policy]", "protocol", &quoted("tcp"))
            .client("[policy]", "framing", &quoted("line"))
            .client("[policy]", "retain", &quoted(retain))
            .client("[policy]", "downstream", &quoted("handoff"));
        let accepted = origin(&lab);
        let tund = Tund::start(&lab, &settings);
        Self {
            tund,
            accepted,
            lab,
        }
    }

    /// A connection of a user, and its origin's end.
    fn connect(&self, user: u32) -> (BufReader<TcpStream>, TcpStream) {
        self.connect_when(user, || {})
    }

    /// The same, where its SYN goes out before `then` is done.
    fn connect_when(&self, user: u32, then: impl FnOnce()) -> (BufReader<TcpStream>, TcpStream) {
        let target = self.lab.origin_address(Family::V4, PORT);
        let client = &self.lab.client;
        let app = client.enter(|| {
            // Of this thread alone, and of those that it starts; they end with this.
            setfsuid(Uid::from_raw(user));
            client.connect_slowly(target)
        });
        let app = app.expect("it begins to connect");
        then();
        let origin = self.accepted.recv_timeout(LATER).expect("it is accepted");
        app.set_nonblocking(false).expect("an open socket");
        app.set_read_timeout(Some(LATER)).expect("a timeout");
        (BufReader::new(app), origin)
    }

    /// The messages are with the server daemon.
    fn push(&self, origin: &mut TcpStream, messages: &[String]) {
        let text: String = messages.iter().map(|line| format!("{line}\n")).collect();
        origin
            .write_all(text.as_bytes())
            .expect("the server daemon takes it");
        let peer = origin.peer_addr().expect("a connected socket");
        let filter = format!("ss -Htn sport = :{PORT} dport = :{}", peer.port());
        wait::until_true("all that was pushed is acknowledged", LATER, || {
            let listing = self.lab.origin.run(&filter);
            listing.split_ascii_whitespace().nth(2) == Some("0")
        });
    }

    fn lose_the_network(&self) {
        self.lab.cut();
        self.lab.forget();
    }

    fn held(&self) -> serde_json::Value {
        self.tund.server.status().expect("a status")["held"].clone()
    }

    /// A connection of Alice's that an outage outlasts, and what is pushed to it meanwhile.
    fn lose(&self, messages: &[String]) {
        let (mut app, mut origin) = self.connect(ALICE);
        assert_eq!(line(&mut app), GREETING);
        self.lose_the_network();
        self.push(&mut origin, messages);
        let error = app.read(&mut [0]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

/// Greets, and hands each connection over.
fn origin(lab: &Lab) -> Receiver<TcpStream> {
    let listener = lab.origin.listen(PORT);
    let (sender, accepted) = sync_channel(16);
    drop(lab.origin.spawn("pushing origin", move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let greeted = writeln!(stream, "{GREETING}");
            if greeted.is_err() || sender.send(stream).is_err() {
                return;
            }
        }
    }));
    accepted
}

fn messages(range: std::ops::Range<u32>) -> Vec<String> {
    let text = |number| format!("message {number} of what an origin has to say");
    range.map(text).collect()
}

fn line(app: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    app.read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

fn next(app: &mut BufReader<TcpStream>, count: usize) -> Vec<String> {
    (0..count).map(|_| line(app)).collect()
}

#[test]
fn a_thousand_messages_reach_the_next_connection_of_their_user_alone() {
    let scene = Scene::new("handed on", "1h");
    let pushed = messages(0..1_000);
    scene.lose(&pushed);
    scene.lab.heal();

    let (mut bobs, mut origin) = scene.connect(BOB);
    scene.push(&mut origin, &messages(5_000..5_010));
    assert_eq!(line(&mut bobs), GREETING);
    assert_eq!(next(&mut bobs, 10), messages(5_000..5_010));

    let (mut alices, mut origin) = scene.connect(ALICE);
    scene.push(&mut origin, &messages(1_000..1_010));
    assert_eq!(next(&mut alices, 1_000), pushed);
    assert_eq!(line(&mut alices), GREETING);
    assert_eq!(next(&mut alices, 10), messages(1_000..1_010));

    // Once: another one of hers begins with what its origin says.
    let (mut again, _origin) = scene.connect(ALICE);
    assert_eq!(line(&mut again), GREETING);
    let held = scene.held();
    assert_eq!(
        (&held["flows"], &held["lost_bytes"]),
        (&0.into(), &0.into())
    );
    let bytes: usize = pushed.iter().map(|line| line.len() + 1).sum();
    assert_eq!(held["handed_on_bytes"], bytes);
    let ended = scene.tund.client.command(&["flows", "--ended", "--json"]);
    let ended: serde_json::Value = serde_json::from_str(&ended.expect("accounts")).expect("JSON");
    assert_eq!(ended[0]["lost_bytes"]["down"], 0, "{ended}");
}

#[test]
fn what_outlasts_two_outages_is_handed_on_behind_both() {
    let scene = Scene::new("handed on twice", "1h");
    scene.lose(&messages(0..100));
    scene.lab.heal();
    let (mut app, mut origin) = scene.connect(ALICE);
    assert_eq!(next(&mut app, 50), messages(0..50));
    // What its kernel has is the application's; that may be more than it has read.
    let read = |app: &mut BufReader<TcpStream>| {
        let mut all = Vec::new();
        while let Ok(count @ 1..) = app.fill_buf().map(<[u8]>::len) {
            all.extend_from_slice(&app.buffer()[..count]);
            app.consume(count);
        }
        String::from_utf8(all).expect("text")
    };
    scene.lose_the_network();
    scene.push(&mut origin, &messages(100..200));
    let rest = read(&mut app);
    let whole = rest.rfind('\n').map_or("", |end| &rest[..=end]);
    let rest: Vec<_> = whole.lines().map(str::to_owned).collect();
    scene.lab.heal();

    let (mut last, _origin) = scene.connect(ALICE);
    let mut got = messages(0..50);
    got.extend(rest);
    while got.last() != messages(199..200).first() {
        got.push(line(&mut last));
    }

    let greeting = got.iter().position(|line| line == GREETING);
    got.remove(greeting.expect("the second connection was greeted"));
    assert_eq!(got, messages(0..200));
    assert_eq!(line(&mut last), GREETING);
}

#[test]
fn what_a_socket_had_beyond_the_buffer_is_handed_on_too() {
    let lab = Lab::new("handed on from a socket");
    // Much waits in sockets that nobody reads, more than is read before the next connection asks.
    lab.server.sysctl("ipv4.tcp_rmem", "4096 67108864 67108864");
    let scene = Scene::within(lab, "1h", "32MiB");
    let (mut app, mut origin) = scene.connect(ALICE);
    assert_eq!(line(&mut app), GREETING);
    let other = scene.lab.origin_address(Family::V6, PORT);
    let _greedy = scene
        .lab
        .client
        .connect(other, LATER)
        .expect("a connection");
    let plenty = scene.accepted.recv_timeout(LATER).expect("it is accepted");
    scene.lose_the_network();
    // The buffer is full of what is handed on to nobody.
    write_until_blocked(&plenty, 128 << 20);
    let pushed = messages(0..450_000);
    scene.push(&mut origin, &pushed);
    let error = app.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (mut next_one, _origin) = scene.connect_when(ALICE, || scene.lab.heal());

    for message in &pushed {
        assert_eq!(&line(&mut next_one), message);
    }
    assert_eq!(line(&mut next_one), GREETING);
    let held = scene.held();
    let bytes: usize = pushed.iter().map(|line| line.len() + 1).sum();
    assert!(bytes > 16 << 20, "many turns of the loop: {bytes}");
    let expected = (&held["handed_on_bytes"], &held["lost_bytes"]);
    assert_eq!(expected, (&bytes.into(), &0.into()));
}

#[test]
fn who_disconnects_gets_nothing() {
    let scene = Scene::new("handed on to nobody", "1h");
    scene.lose(&messages(0..10));
    scene.tund.client.command(&["disconnect"]).expect("done");
    scene.lab.heal();

    let (mut app, _origin) = scene.connect(ALICE);

    assert_eq!(line(&mut app), GREETING);
    wait::until_true("the server has forgotten it, too", LATER, || {
        scene.held()["bytes"] == 0
    });
    assert_eq!(scene.held()["handed_on_bytes"], 0);
}

#[test]
#[ignore = "long: nothing is held for less than a minute"]
fn long_what_is_too_old_is_handed_on_to_nobody() {
    let scene = Scene::new("handed on too late", "1m");
    scene.lose(&messages(0..10));
    scene.lab.heal();
    let _bobs = scene.connect(BOB);
    wait::until_true("it is held", LONG, || scene.held()["bytes"] != 0);
    wait::until_true("it is too old", Duration::from_secs(90), || {
        scene.held()["bytes"] == 0
    });

    let (mut app, _origin) = scene.connect(ALICE);

    assert_eq!(line(&mut app), GREETING);
    assert_eq!(scene.held()["handed_on_bytes"], 0);
}

#[test]
fn a_key_that_is_removed_loses_what_is_held() {
    let scene = Scene::new("handed on, key removed", "1h");
    scene.lose(&messages(0..10));
    scene.lab.heal();
    let _bobs = scene.connect(BOB);
    wait::until_true("it is held", LONG, || scene.held()["bytes"] != 0);

    scene.tund.server.unlist(&scene.tund.client_keys);

    wait::until_true("it is forgotten", LATER, || scene.held()["bytes"] == 0);
}
