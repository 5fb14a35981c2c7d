//! Thieves of a session: a copied key, an old link's secret, a replay; refused, and the session is
//! none the worse.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use etherparse::{SlicedPacket, TransportSlice};
use tund_daemon::identity::PrivateKey;
use tund_session::wire::codec;
use tund_session::wire::frame::{Frame, RejectReason, Resume};
use tund_session::{
    Config, Instance, Instant, LinkId, LinkNumber, Outbox, Secret, Session, SessionId,
};
use tund_tests::crowd::Rogue;
use tund_tests::lab::{Family, SERVER_PORT, Settings, wait};

use crate::rogues::{connect, scene};
use crate::sniffer::Sniffer;
use crate::support::{LATER, SOON, Scene};

/// The sessions that the thieves do not steal have their own clock, which stands still.
const NOW: Instant = Instant::from_nanos(1_000_000_000);

/// The first frame that is no PING, nor an answer to one.
#[track_caller]
fn answer(link: &mut Rogue) -> Frame {
    loop {
        let frame = link.receive().expect("the link goes on");
        if !matches!(frame, Frame::Ping { .. } | Frame::Pong { .. }) {
            return frame;
        }
    }
}

#[track_caller]
fn assert_refused(link: &mut Rogue, why: RejectReason) {
    let frame = answer(link);
    let Frame::ResumeReject(reject) = &frame else {
        panic!("not refused: {frame:?}");
    };
    assert_eq!(reject.reason, why);
    link.wait_for_end(SOON);
}

/// The state of the client's session at the server, and what its client shows.
fn shown(scene: &Scene, client: &str) -> (serde_json::Value, serde_json::Value) {
    let rows = scene.tund.server.sessions().unwrap();
    let mut of_client = rows.iter().filter(|row| row["client"] == client);
    let row = of_client.next().expect("it has a session");
    assert!(of_client.next().is_none(), "two sessions: {rows:?}");
    (row["session_id"].clone(), row["state"].clone())
}

#[test]
fn a_copied_key_with_the_true_id_and_no_secret_takes_nothing() {
    let (scene, pair) = scene("a copied key", &Settings::new());
    let mut echo = scene.echo();
    let id = scene.tund.client.status().session_id.unwrap();
    let session = SessionId(u128::from_str_radix(&id, 16).unwrap().to_be_bytes());
    // Everybody who is listed knows the server's instance.
    let instance = connect(&scene, &pair.private).greet().instance;
    let copied = PrivateKey::load(&scene.tund.client_keys.file).unwrap();
    let steal = |key: &PrivateKey, why| {
        for proved in 1..=3 {
            let mut thief = connect(&scene, key);
            thief.send(&Frame::Resume(Resume {
                versions: (1, 1),
                session,
                instance,
                proved: LinkNumber(proved),
                proof: [9; 32],
            }));
            assert_refused(&mut thief, why);
        }
    };

    steal(&copied, RejectReason::Proof);
    // Of another key nobody is told that there is such a session.
    steal(&pair.private, RejectReason::Ended);
    echo.round_trip().unwrap();
    assert_eq!(
        shown(&scene, "client"),
        (id.as_str().into(), "attached".into())
    );
    assert_eq!(scene.tund.client.status().outages.count, 0);

    scene.lab.cut();
    scene.lab.forget();
    wait::until_true("the session is detached", LATER, || {
        shown(&scene, "client").1 == "detached"
    });
    steal(&copied, RejectReason::Proof);
    assert_eq!(
        shown(&scene, "client"),
        (id.as_str().into(), "detached".into())
    );
    scene.lab.heal();
    echo.round_trip().unwrap();
    assert_eq!(scene.tund.client.status().session_id, Some(id));
}

fn client_session() -> Session {
    let config = Config {
        instance: Instance([0x66; 16]),
        capabilities: 0,
        buffer_bytes: 1 << 20,
        max_flows: 64,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
        max_grace: Duration::from_secs(3600),
    };
    Session::new_client(&config, NOW)
}

/// What a session says first on a link.
fn first_words(session: &mut Session, link: u64, secret: Secret) -> Vec<u8> {
    let mut out = Outbox::new();
    session.handle_link_up(LinkId(link), secret, NOW);
    session.poll_transmit(LinkId(link), 10_000, &mut out, NOW);
    out.to_vec()
}

fn hear(session: &mut Session, link: u64, frame: &Frame) {
    let mut bytes = Vec::new();
    codec::encode(frame, &mut bytes);
    session.handle_bytes(LinkId(link), bytes.into(), NOW);
}

/// What the server has read of a link it has answered.
#[track_caller]
fn assert_lives(link: &mut Rogue) {
    link.send(&Frame::Ping { nonce: 77 });
    while !matches!(link.receive(), Some(Frame::Pong { nonce: 77, .. })) {}
}

#[test]
fn an_old_links_secret_and_a_resume_heard_elsewhere_are_refused() {
    let (scene, pair) = scene("an old secret", &Settings::new());
    let mut echo = scene.echo();
    let new_link = || connect(&scene, &pair.private);
    // One session, and a copy of what its client knew when it had one link.
    let (mut owner, mut thief) = (client_session(), client_session());
    let mut first = new_link();
    let hello = first_words(&mut owner, 1, first.secret());
    assert_eq!(first_words(&mut thief, 1, first.secret()), hello);
    first.send_bytes(&hello);
    let welcome = answer(&mut first);
    hear(&mut owner, 1, &welcome);
    hear(&mut thief, 1, &welcome);
    assert_lives(&mut first);
    let mut second = new_link();
    second.send_bytes(&first_words(&mut owner, 2, second.secret()));
    let accepted = answer(&mut second);
    assert!(matches!(accepted, Frame::ResumeOk(_)), "{accepted:?}");
    hear(&mut owner, 2, &accepted);
    assert_lives(&mut second);
    let session = shown(&scene, "rogue");

    // The secret of link 1 counts no more.
    let mut link = new_link();
    link.send_bytes(&first_words(&mut thief, 3, link.secret()));
    assert_refused(&mut link, RejectReason::Proof);

    // What is right on one link is worth nothing on another.
    let (mut third, mut link) = (new_link(), new_link());
    let resume = first_words(&mut owner, 4, third.secret());
    link.send_bytes(&resume);
    assert_refused(&mut link, RejectReason::Proof);
    assert_eq!(shown(&scene, "rogue"), session);
    assert_lives(&mut second);
    third.send_bytes(&resume);
    let accepted = answer(&mut third);
    assert!(matches!(accepted, Frame::ResumeOk(_)), "{accepted:?}");

    assert_eq!(shown(&scene, "rogue"), session);
    assert_lives(&mut second);
    assert_lives(&mut third);
    echo.round_trip().unwrap();
}

/// All bytes of each connection to the server, by the client's port.
fn said_to_the_server(frames: &[Vec<u8>]) -> BTreeMap<u16, Vec<u8>> {
    let mut all: BTreeMap<u16, (u32, Vec<u8>)> = BTreeMap::new();
    for frame in frames {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            continue;
        };
        if tcp.destination_port() != SERVER_PORT {
            continue;
        }
        let next = tcp.sequence_number().wrapping_add(u32::from(tcp.syn()));
        let (expected, bytes) = all
            .entry(tcp.source_port())
            .or_insert_with(|| (next, Vec::new()));
        if next == *expected {
            let payload = tcp.payload();
            bytes.extend(payload);
            *expected = next.wrapping_add(u32::try_from(payload.len()).expect("a packet"));
        }
    }
    all.into_iter()
        .map(|(port, (_, bytes))| (port, bytes))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect()
}

#[test]
fn flights_that_were_recorded_and_are_sent_again_change_nothing() {
    let scene = Scene::new("replayed flights", &Settings::new());
    let mut sniffer = Sniffer::start(&scene.lab.router, "s0");
    // HELLO, and RESUME.
    let mut echo = scene.echo();
    scene.lab.forget();
    echo.round_trip().unwrap();
    let recorded = said_to_the_server(&sniffer.packets());
    assert!(recorded.len() >= 2, "{} connections", recorded.len());
    let before = (shown(&scene, "client"), scene.tund.client.status());

    for bytes in recorded.values() {
        // A handshake, a proof of the key, and at least one frame.
        assert!(bytes.starts_with(&[0x16, 3, 1]) && bytes.len() > 1000);
        let server = scene.lab.server_address(Family::V4);
        let mut stream = scene.lab.router.connect(server, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        // The server may have enough of it before all is out.
        let _sent = stream.write_all(bytes).is_ok();
        let mut heard = Vec::new();
        match io::copy(&mut stream, &mut heard) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => assert!(heard.starts_with(&[0x16, 3, 3]), "it answers ClientHello"),
        }
    }

    echo.round_trip().unwrap();
    let after = (shown(&scene, "client"), scene.tund.client.status());
    assert_eq!(after.0, before.0);
    assert_eq!(after.1.session_id, before.1.session_id);
    assert_eq!(after.1.outages.count, before.1.outages.count);
    assert_eq!(after.1.link.unwrap().local, before.1.link.unwrap().local);
}
