//! The server's part of delivery after grace, asked of by a client whose frames are made by hand.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tund_daemon::identity::PublicKey;
use tund_daemon::seal::{Bound, Sealer};
use tund_session::wire::frame::{
    Ack, CloseCode, Control, Data, Deliver, FlowCode, Frame, Framing, OnExpiry, Open, Protocol,
    capability,
};
use tund_session::{FlowId, Offset, SessionId};
use tund_tests::crowd::{Pair, Rogue};
use tund_tests::lab::{Family, Keys, Lab, ServerDaemon, Settings, wait};

use crate::kills::inject;
use crate::support::{LATER, SOON};

/// Of the collector.
const PORT: u16 = 514;
/// The session in which the bytes are said to have been taken.
const THEN: SessionId = SessionId([3; 16]);
const USER: u32 = 1000;

/// Takes connections, and keeps what each of them brought; never says anything.
struct Collector {
    got: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start(lab: &Lab) -> Self {
        let listener: TcpListener = lab.origin.listen(PORT);
        let got = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&got);
        drop(lab.origin.spawn("collector", move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let place = {
                    let mut got = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    got.push(Vec::new());
                    got.len() - 1
                };
                let shared = Arc::clone(&shared);
                drop(std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        let mut got = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        got[place].extend_from_slice(&buffer[..count]);
                    }
                    // The connection stays open: a delivery does not wait for its end.
                    std::mem::forget(stream);
                }));
            }
        }));
        Self { got }
    }

    /// Waits until each connection has brought exactly that: the kernel acknowledges before the
    /// collector reads.
    #[track_caller]
    fn wait_for(&self, expected: &[&str]) {
        wait::until_true("the collector has it", LATER, || {
            let got = self.got();
            assert!(got.concat().len() <= expected.concat().len(), "{got:?}");
            got == expected
        });
    }

    fn got(&self) -> Vec<String> {
        let got = self.got.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = got.iter().map(|bytes| String::from_utf8(bytes.clone()));
        texts.map(|text| text.expect("text")).collect()
    }
}

/// A server, a collector, and the client's key.
struct Scene {
    server: ServerDaemon,
    collector: Collector,
    server_keys: Keys,
    pair: Pair,
    lab: Lab,
}

impl Scene {
    fn new(title: &str) -> Self {
        let lab = Lab::new(title);
        let pair = Pair::generate();
        let server_keys = Keys::generate(lab.directory(), "server");
        let server = ServerDaemon::start(
            &lab.server,
            lab.directory(),
            ("server", &server_keys),
            &[("rogue", &pair.listed)],
            &Settings::new(),
        );
        Self {
            collector: Collector::start(&lab),
            server,
            server_keys,
            pair,
            lab,
        }
    }

    fn key(&self) -> PublicKey {
        self.server_keys.public.parse().unwrap()
    }

    fn target(&self) -> SocketAddr {
        self.lab.origin_address(Family::V4, PORT)
    }

    /// A new session.
    fn client(&self) -> (Rogue, SessionId) {
        let server = (self.lab.server_address(Family::V4), self.key());
        let mut rogue = Rogue::connect(&self.lab.router, server, &self.pair.private).unwrap();
        let welcome = rogue.greet_with(capability::DELIVERY);
        assert_eq!(welcome.capabilities, capability::DELIVERY);
        (rogue, welcome.session)
    }

    /// One record of `session`'s flow 1, sealed as the client would.
    fn record(&self, session: SessionId, start: u64, text: &str) -> Vec<u8> {
        let end = start + u64::try_from(text.len()).unwrap();
        let bound = Bound {
            client: self.pair.private.public(),
            session,
            flow: FlowId(1),
            user: USER,
            destination: self.target(),
            framing: Framing::Line.number(),
            start,
            end,
            flags: 0,
        };
        let sealer = Sealer::new(&self.key()).unwrap();
        let sealed = sealer.seal(&bound, text.as_bytes()).unwrap();
        let length = u32::try_from(sealed.len()).unwrap().to_be_bytes();
        [
            &start.to_be_bytes()[..],
            &end.to_be_bytes(),
            &[0],
            &length,
            &sealed,
        ]
        .concat()
    }

    /// Has `records` of that session's flow 1 delivered, and waits until all is released.
    fn deliver(&self, session: SessionId, records: &[Vec<u8>]) {
        let (mut rogue, _) = self.client();
        let records = records.concat();
        self.begin(&mut rogue, session, &records);
        let all = u64::try_from(records.len()).unwrap() + 1;
        let released = |frame: &Frame| {
            if let Frame::Ack(Ack { released, .. })
            | Frame::Control {
                message: Control::Done { released, .. },
                ..
            } = frame
            {
                released.0 == all
            } else {
                false
            }
        };
        until(&mut rogue, "all is released", released);
        rogue.say(Control::SessionClose {
            code: CloseCode::Asked,
        });
        rogue.wait_for_end(SOON);
    }

    fn begin(&self, rogue: &mut Rogue, session: SessionId, records: &[u8]) {
        let flow = FlowId(1);
        rogue.say(Control::Deliver(Deliver {
            flow,
            session,
            origin_flow: FlowId(1),
            user: USER,
            destination: self.target(),
            framing: Framing::Line,
            limit: Offset(1 << 16),
            grace: Duration::from_secs(60),
        }));
        let is_open = |frame: &Frame| {
            let Frame::Control { message, .. } = frame else {
                return false;
            };
            assert!(!matches!(message, Control::OpenErr { .. }), "{message:?}");
            matches!(message, Control::OpenOk { .. })
        };
        until(rogue, "the origin has answered", is_open);
        rogue.send(&data(flow, records, true));
    }
}

fn data(flow: FlowId, bytes: &[u8], fin: bool) -> Frame {
    Frame::Data(Data {
        flow,
        offset: Offset(0),
        fin,
        payload: Bytes::copy_from_slice(bytes),
    })
}

/// Reads frames until one is it.
fn until(rogue: &mut Rogue, what: &str, is_it: impl Fn(&Frame) -> bool) -> Frame {
    let start = wait::now();
    while wait::now() - start < LATER {
        let frame = rogue.receive().unwrap_or_else(|| panic!("{what}"));
        if is_it(&frame) {
            return frame;
        }
    }
    panic!("not in time: {what}");
}

#[test]
fn stored_messages_reach_their_origin_once_whatever_is_tried_again() {
    let mut scene = Scene::new("delivery tried again");
    let records = [
        scene.record(THEN, 0, "one\ntwo\n"),
        scene.record(THEN, 8, "three\n"),
    ];

    scene.deliver(THEN, &records);
    scene.collector.wait_for(&["one\ntwo\nthree\n"]);
    scene.deliver(THEN, &records);
    scene.collector.wait_for(&["one\ntwo\nthree\n", ""]);

    scene.server.process.kill();
    scene.server.start_again(&scene.lab);
    let more = scene.record(THEN, 14, "four\n");
    scene.deliver(THEN, &[&records[..], &[more]].concat());

    scene
        .collector
        .wait_for(&["one\ntwo\nthree\n", "", "four\n"]);
}

#[test]
fn a_stored_flow_hands_on_whole_messages_and_delivery_goes_on_behind_them() {
    let scene = Scene::new("delivery behind a flow");
    let (mut rogue, session) = scene.client();
    let flow = FlowId(1);
    rogue.say(Control::Open(Open {
        flow,
        protocol: Protocol::Tcp,
        source: SocketAddr::from(([10, 111, 0, 2], 40_000)),
        destination: scene.target(),
        limit: Offset(1 << 16),
        grace: Duration::from_secs(60),
        on_expiry: OnExpiry::Store(Framing::Line),
        hand_off: None,
    }));
    let is_open = |frame: &Frame| {
        let message = Control::OpenOk {
            flow,
            limit: Offset(0),
            grace: Duration::ZERO,
        };
        matches!(frame, Frame::Control { message: said, .. }
            if std::mem::discriminant(said) == std::mem::discriminant(&message))
    };
    until(&mut rogue, "the origin has answered", is_open);
    rogue.send(&data(flow, b"one\ntw", false));

    // Released is what the origin has acknowledged, and that is whole messages.
    let released = |frame: &Frame| matches!(frame, Frame::Ack(ack) if ack.released == Offset(4));
    until(&mut rogue, "a message is released", released);
    scene.collector.wait_for(&["one\n"]);
    rogue.say(Control::Stop {
        flow,
        code: FlowCode::Expired,
    });
    let done = |frame: &Frame| {
        matches!(
            frame,
            Frame::Control {
                message: Control::Done { .. },
                ..
            }
        )
    };
    until(&mut rogue, "the flow is over", done);
    drop(rogue);

    scene.deliver(session, &[scene.record(session, 0, "one\ntwo\n")]);

    scene.collector.wait_for(&["one\n", "two\n"]);
}

#[test]
fn what_was_sealed_as_something_else_is_not_delivered() {
    let scene = Scene::new("a record of another flow");
    let (mut rogue, _) = scene.client();
    let other = scene.record(SessionId([4; 16]), 0, "one\n");

    scene.begin(&mut rogue, THEN, &other);

    let stopped = |frame: &Frame| {
        matches!(
            frame,
            Frame::Control {
                message: Control::Stop {
                    code: FlowCode::Unsealable,
                    ..
                },
                ..
            }
        )
    };
    until(&mut rogue, "the delivery is stopped", stopped);
    scene.collector.wait_for(&[""]);
}

/// A delivery that cannot be recorded would stand still, and hold new connections back at the client.
#[test]
fn a_delivery_that_cannot_be_recorded_is_stopped() {
    let scene = Scene::new("a journal on a full disk");
    let (mut rogue, _) = scene.client();
    let journal = scene.lab.directory().join("server-state/deliveries");
    let _strace = inject(
        (&scene.server.process, &scene.lab.server),
        scene.lab.directory(),
        ("fdatasync", &journal),
        "error=ENOSPC",
    );
    let record = scene.record(THEN, 0, "one\n");

    scene.begin(&mut rogue, THEN, &record);

    let stopped = |frame: &Frame| {
        matches!(
            frame,
            Frame::Control {
                message: Control::Stop {
                    code: FlowCode::SocketError,
                    ..
                },
                ..
            }
        )
    };
    until(&mut rogue, "the delivery is stopped", stopped);
    let log = scene.server.process.log();
    assert!(log.contains("deliveries are given up"), "{log}");
}

#[test]
fn without_a_journal_nothing_is_stored() {
    let lab = Lab::new("no journal");
    let pair = Pair::generate();
    let server_keys = Keys::generate(lab.directory(), "server");
    let settings = Settings::new().server("state", "directory", "\"/proc/tund\"");
    let _server = ServerDaemon::start(
        &lab.server,
        lab.directory(),
        ("server", &server_keys),
        &[("rogue", &pair.listed)],
        &settings,
    );
    let server = (
        lab.server_address(Family::V4),
        server_keys.public.parse().unwrap(),
    );

    let mut rogue = Rogue::connect(&lab.router, server, &pair.private).unwrap();

    assert_eq!(rogue.greet_with(capability::DELIVERY).capabilities, 0);
}
