//! Clients whose key is listed and who mean no good: refused, ended, and alone in that.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tund_daemon::identity::PrivateKey;
use tund_session::wire::codec;
use tund_session::wire::frame::{Ack, Control, Data, DeniedBy, Frame, OpenError};
use tund_session::{FlowId, Offset};
use tund_tests::crowd::{Pair, Rogue};
use tund_tests::lab::{
    ClientDaemon, Download, Family, Keys, Lab, ORIGIN_PORT, Origin, Request, ServerDaemon,
    Settings, Tund, steer, wait,
};

use crate::support::{Echo, LONG, SOON, Scene, figure};

const MIB: u64 = 1 << 20;
/// OPENs of the greediest.
const OPENS: u64 = 70_000;
/// How much more memory the server may have after all of it: 65,536 flows at once, with 1 KiB for
/// each and for what was said of it, and as much again for what the heap keeps.
const GROWTH_KIB: u64 = 128 << 10;

/// A scene in which one more key is listed, that of the rogue.
pub(crate) fn scene(title: &str, settings: &Settings) -> (Scene, Pair) {
    let lab = Lab::new(title);
    let origin = Origin::start(&lab.origin);
    let pair = Pair::generate();
    let client_keys = Keys::generate(lab.directory(), "client");
    let server_keys = Keys::generate(lab.directory(), "server");
    let server = ServerDaemon::start(
        &lab.server,
        lab.directory(),
        ("server", &server_keys),
        &[("client", &client_keys), ("rogue", &pair.listed)],
        settings,
    );
    let client = ClientDaemon::start(
        &lab,
        &lab.client,
        ("client", &client_keys),
        &server_keys.public,
        settings,
    );
    steer(&lab);
    let tund = Tund {
        client,
        server,
        client_keys,
        server_keys,
    };
    (Scene { tund, origin, lab }, pair)
}

/// A link with that key, from the router.
pub(crate) fn connect(scene: &Scene, key: &PrivateKey) -> Rogue {
    let server_key = scene.tund.server_keys.public.parse().unwrap();
    let server = (scene.lab.server_address(Family::V4), server_key);
    Rogue::connect(&scene.lab.router, server, key).unwrap()
}

/// The rogue's session.
fn greeted(scene: &Scene, pair: &Pair) -> Rogue {
    let mut rogue = connect(scene, &pair.private);
    rogue.greet();
    rogue
}

/// What the server answers to the OPEN of `flow`.
pub(crate) fn answer(rogue: &mut Rogue, flow: u64) -> Control {
    loop {
        let frame = rogue.receive().expect("the session goes on");
        if let Frame::Control { message, .. } = frame {
            assert!(
                matches!(
                    message,
                    Control::OpenOk { flow: of, .. } | Control::OpenErr { flow: of, .. }
                        if of == FlowId(flow)
                ),
                "flow {flow}: {message:?}"
            );
            return message;
        }
    }
}

/// Every spelling of what must not be reached, and by what it is refused.
fn forbidden(scene: &Scene) -> Vec<(IpAddr, DeniedBy)> {
    let never = [
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "255.255.255.255",
        "240.0.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "ff02::1",
        "ff0e::1",
        "::ffff:0.0.0.0",
        "::ffff:224.0.0.1",
        "64:ff9b::e000:1",
        // All hosts of the server's own networks.
        "10.77.3.255",
        "10.77.5.255",
    ];
    let unnamed = [
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:0:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "fe80::1",
    ];
    let own = ["10.77.3.2", "10.77.5.1"].map(|text| text.parse::<Ipv4Addr>().unwrap());
    let mut all: Vec<(IpAddr, DeniedBy)> = Vec::new();
    all.extend(never.map(|text| (text.parse().unwrap(), DeniedBy::Never)));
    all.extend(unnamed.map(|text| (text.parse().unwrap(), DeniedBy::Default)));
    for v4 in own {
        let [a, b, c, d] = v4.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        let spellings: [IpAddr; 6] = [
            v4.into(),
            v4.to_ipv6_mapped().into(),
            v4.to_ipv6_compatible().into(),
            IpAddr::from([0x64, 0xff9b, 0, 0, 0, 0, high, low]),
            IpAddr::from([0x2002, high, low, 0, 0, 0, 0, 1]),
            // Teredo: the client's address with every bit inverted.
            IpAddr::from([0x2001, 0, 0x808, 0x808, 0, 0, !high, !low]),
        ];
        all.extend(spellings.map(|ip| (ip, DeniedBy::Default)));
    }
    let listing = scene.lab.server.run("ip -6 -o addr show");
    let own = listing
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(3));
    let own = own.filter_map(|net| net.split('/').next()?.parse::<IpAddr>().ok());
    let own: Vec<_> = own.map(|ip| (ip, DeniedBy::Default)).collect();
    assert!(
        own.len() >= 4,
        "loopback, two of its own, link-local: {listing}"
    );
    all.extend(own);
    all
}

#[test]
fn forged_opens_reach_no_spelling_of_the_server_and_the_log_names_the_setting() {
    let (scene, pair) = scene("forged opens", &Settings::new());
    let local = Origin::start(&scene.lab.server);
    let mut rogue = greeted(&scene, &pair);
    let all = forbidden(&scene);
    let mut flow = 0;
    for (ip, by) in &all {
        flow += 1;
        rogue.open(flow, SocketAddr::new(*ip, ORIGIN_PORT));
        let answer = answer(&mut rogue, flow);
        let expected = OpenError::Denied(*by);
        assert!(
            matches!(answer, Control::OpenErr { error, .. } if error == expected),
            "{ip}: {answer:?}, not {by:?}"
        );
    }

    // The same way of asking, for what is allowed: the OPENs were right.
    let honest = SocketAddr::new(scene.target().ip(), ORIGIN_PORT);
    rogue.open(flow + 1, honest);
    assert!(matches!(
        answer(&mut rogue, flow + 1),
        Control::OpenOk { .. }
    ));
    // Nothing listens on port 0, wherever it is.
    rogue.open(flow + 2, SocketAddr::new(honest.ip(), 0));
    let zero = answer(&mut rogue, flow + 2);
    assert!(matches!(zero, Control::OpenErr { .. }), "port 0: {zero:?}");
    figure(&format!("port 0: {zero:?}"));
    assert_eq!(
        local.accepted(),
        0,
        "a listener of the server's host was reached"
    );
    let log = scene.tund.server.process.log();
    let count = |by: DeniedBy| all.iter().filter(|(_, denied)| *denied == by).count();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(
        lines("no setting opens them"),
        count(DeniedBy::Never),
        "{log}"
    );
    assert_eq!(lines("[origin] allow"), count(DeniedBy::Default), "{log}");
}

/// An echo flow of the rogue, and the offset up to which it may send there.
fn echo_flow(scene: &Scene, rogue: &mut Rogue) -> Offset {
    rogue.open(1, scene.target());
    let answer = answer(rogue, 1);
    let Control::OpenOk { limit, .. } = answer else {
        panic!("{answer:?}");
    };
    limit
}

fn ack(accepted: u64) -> Ack {
    Ack {
        flow: FlowId(1),
        accepted: Offset(accepted),
        released: Offset(accepted),
        limit: Offset(1 << 20),
    }
}

/// Flows of a peer that reads nothing of them.
const DOWNLOADS: u64 = 300;

#[test]
fn a_removed_key_is_rid_of_within_a_second_though_its_peer_neither_reads_nor_closes() {
    let (scene, pair) = scene("a removed key that does not read", &Settings::new());
    let mut echo = scene.echo();
    let used = || scene.tund.server.status().unwrap()["memory"]["used_bytes"].as_u64();
    let before = used();
    let mut rogue = greeted(&scene, &pair);
    // Each flow has a first share of some kilobytes; together they fill both kernels and more.
    for flow in 1..=DOWNLOADS {
        rogue.open(flow, scene.target());
    }
    let mut opened = 0;
    while opened < DOWNLOADS {
        let frame = rogue.receive().expect("the session goes on");
        if let Frame::Control { message, .. } = frame {
            assert!(matches!(message, Control::OpenOk { .. }), "{message:?}");
            opened += 1;
        }
    }
    let mut request = Vec::new();
    let (seed, length) = (1, 100 * MIB);
    Request::Down { seed, length }.send(&mut request).unwrap();
    for flow in 1..=DOWNLOADS {
        rogue.send(&Frame::Data(Data {
            flow: FlowId(flow),
            offset: Offset(0),
            fin: false,
            payload: request.clone().into(),
        }));
    }
    // As the server's kernel shows it, within an IPv6 address.
    let name = rogue.local_address().ip().to_string();
    let links = || {
        let all = scene.lab.server.run("ss -Htan sport = :443");
        all.lines().filter(|line| line.contains(&name)).count()
    };
    wait::until_true("link, kernel and session are full", LONG, || {
        let rows = scene.tund.server.sessions().unwrap();
        let of_rogue = rows.iter().find(|row| row["client"] == "rogue");
        of_rogue.is_some_and(|row| row["buffered_bytes"]["down"].as_u64() > Some(3 * MIB))
    });
    assert_eq!(links(), 1);

    scene.tund.server.unlist(&pair.listed);

    let limit = Duration::from_secs(1);
    wait::until_true("its link, origin and buffers are gone", limit, || {
        links() == 0
            && scene
                .lab
                .server
                .run("ss -Htan dport = :8080")
                .lines()
                .count()
                == 1
            && used() <= before
    });
    echo.round_trip().unwrap();
    rogue.wait_for_end(SOON);
}

/// Something that a peer must not do, and how it is done.
type Misdeed = (&'static str, fn(&Scene, &mut Rogue));

/// Each on a session of its own.
const MISDEEDS: [Misdeed; 9] = [
    ("an ACK beyond what was sent", |scene, rogue| {
        echo_flow(scene, rogue);
        rogue.send(&Frame::Ack(ack(1000)));
    }),
    ("an ACK of a flow that was never opened", |_, rogue| {
        rogue.send(&Frame::Ack(ack(0)));
    }),
    ("DATA beyond the credit", |scene, rogue| {
        let limit = echo_flow(scene, rogue);
        rogue.send(&Frame::Data(Data {
            flow: FlowId(1),
            offset: limit,
            fin: false,
            payload: Bytes::from_static(&[7; 1000]),
        }));
    }),
    ("garbage in place of frames", |_, rogue| {
        rogue.send_bytes(&[0xee; 1000]);
    }),
    ("a frame longer than any may be", |_, rogue| {
        rogue.send_bytes(&[0x11, 0xff, 0xff, 0xff]);
    }),
    ("OPEN of the same flow twice", |scene, rogue| {
        rogue.open(1, scene.target());
        rogue.open(1, scene.target());
    }),
    ("a control message from far ahead", |scene, rogue| {
        rogue.send(&Rogue::open_frame(1 << 40, 1, scene.target()));
    }),
    ("FLOW_STATE full of flows that never were", |_, rogue| {
        rogue.send(&Frame::FlowState(vec![ack(0); codec::MAX_ACKS]));
    }),
    ("PINGs without reading", |_, rogue| {
        let mut pings = Vec::new();
        for nonce in 2..100_000 {
            codec::encode(&Frame::Ping { nonce }, &mut pings);
        }
        // Until the server has enough; far more than both kernels hold.
        let _ended = (0..20).any(|_| !rogue.send_bytes(&pings));
    }),
];

#[test]
fn a_client_that_breaks_the_protocol_ends_its_own_session_only() {
    let (scene, pair) = scene("a hostile client", &Settings::new());
    let mut echo = scene.echo();
    let honest = scene.tund.client.status().session_id;
    let before = scene.tund.server.process.resident_kib();
    for (number, (misdeed, act)) in MISDEEDS.into_iter().enumerate() {
        eprintln!("{misdeed}");
        let seed = u64::try_from(number).unwrap();
        let transfer = Download::start(&scene.lab.client, scene.target(), seed, 8 * MIB);
        let mut rogue = greeted(&scene, &pair);

        act(&scene, &mut rogue);

        rogue.wait_for_end(SOON);
        wait::until_true(&format!("its session is gone: {misdeed}"), SOON, || {
            scene.tund.server.sessions().unwrap().len() == 1
        });
        transfer.finish(LONG).assert_intact(8 * MIB);
        echo.round_trip().unwrap();
    }
    let after = scene.tund.server.process.resident_kib();
    figure(&format!(
        "server: {before} KiB before all misdeeds, {after} KiB after them"
    ));
    assert!(after <= before + GROWTH_KIB, "{before} then {after} KiB");
    let now = scene.tund.client.status().session_id;
    assert_eq!(now, honest, "the other client's session goes on");
}

/// So many OPENs to `destination`, reading nothing and acknowledging nothing.
fn open_many(rogue: &mut Rogue, destination: SocketAddr) {
    let mut bytes = Vec::new();
    for flow in 1..=OPENS {
        codec::encode(&Rogue::open_frame(flow, flow, destination), &mut bytes);
    }
    // The server may end it at any time.
    rogue.send_bytes(&bytes);
}

#[test]
fn seventy_thousand_opens_cost_the_server_a_bounded_amount_and_nobody_else_anything() {
    let (scene, pair) = scene("opens by the thousand", &Settings::new());
    let mut echo = scene.echo();
    let honest = scene.tund.client.status().session_id;
    let before = scene.tund.server.process.resident_kib();
    let closed = scene.lab.origin_address(Family::V4, 9);
    let denied = scene.lab.server_address(Family::V4);
    for destination in [closed, denied] {
        let transfer = Download::start(&scene.lab.client, scene.target(), 1, 8 * MIB);
        let mut rogue = greeted(&scene, &pair);

        open_many(&mut rogue, destination);

        transfer.finish(LONG).assert_intact(8 * MIB);
        echo.round_trip().unwrap();
        drop(rogue);
        Echo::open(&scene.lab.client, scene.target()).unwrap();
    }
    let after = scene.tund.server.process.resident_kib();
    figure(&format!(
        "server: {before} KiB before {OPENS} OPENs twice, {after} KiB after"
    ));
    assert!(after <= before + GROWTH_KIB, "{before} then {after} KiB");
    let log = scene.tund.server.process.log().len();
    assert!(log < 1 << 20, "{log} bytes of log");
    let now = scene.tund.client.status().session_id;
    assert_eq!(now, honest, "the other client's session goes on");
}
