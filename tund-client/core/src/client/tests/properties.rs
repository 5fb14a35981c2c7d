//! Whatever comes in whatever order: no panic, no deadline in the past, nothing kept.

use super::world::{
    MILLISECOND, Network, RULES, SECOND, WIFI, World, client_config, registry_config, secret,
};
use crate::client::{ClientConfig, State};
use crate::dialer::PathId;
use crate::netstack::tests::world::ORIGIN_V4;
use crate::policy::{DuringOutage, Policies, Policy, Rules, Store};
use bytes::Bytes;
use proptest::prelude::*;
use smoltcp::iface::SocketHandle;
use std::time::Duration;
use tund_session::wire::codec;
use tund_session::wire::frame::{
    Ack, CloseCode, Control, Data, FlowCode, Frame, Framing, Limits, LinkCloseReason, OpenError,
    RejectReason, ResumeOk, ResumeReject, Welcome,
};
use tund_session::{Config, FlowId, Instance, LinkId, LinkNumber, Offset, SessionId};

#[derive(Clone, Debug)]
enum Step {
    Connect(u16),
    Write(usize, usize),
    Read(usize),
    Close(usize),
    Abort(usize),
    Vanish(usize),
    Network(Network),
    Paths(u8),
    Lose,
    Cut,
    Restart,
    ByHand(LinkId, Hand),
    Pour(usize, bool),
    Pass(u64),
    Disconnect,
    Reconnect,
}

/// What no server of ours does to a link.
#[derive(Clone, Debug)]
enum Hand {
    Say(Frame),
    Garbage(Vec<u8>),
    Up,
    Down(bool),
}

fn frame() -> impl Strategy<Value = Frame> {
    let small = 0..4_u64;
    let flow = small.clone().prop_map(FlowId);
    let reason = prop_oneof![
        Just(RejectReason::Proof),
        Just(RejectReason::Restarted),
        Just(RejectReason::Expired),
        Just(RejectReason::Busy),
        Just(RejectReason::Version),
    ];
    let error = prop_oneof![
        Just(OpenError::Refused),
        Just(OpenError::Exhausted),
        Just(OpenError::TimedOut),
        Just(OpenError::TooManyFlows),
    ];
    let message = prop_oneof![
        4 => (flow.clone(), 0..9000_u64).prop_map(|(flow, limit)| Control::OpenOk {
            flow, limit: Offset(limit), grace: SECOND * 10 }),
        2 => (flow.clone(), error).prop_map(|(flow, error)| Control::OpenErr { flow, error }),
        2 => (flow.clone(), small.clone()).prop_map(|(flow, end)| Control::Reset {
            flow, end: Offset(end), code: FlowCode::PeerReset }),
        1 => flow.clone().prop_map(|flow| Control::Stop { flow, code: FlowCode::Cancelled }),
        1 => (flow.clone(), small.clone()).prop_map(|(flow, released)| Control::Done {
            flow, released: Offset(released) }),
        1 => small.clone().prop_map(|n| Control::LinkDown { link: LinkNumber(n) }),
        1 => Just(Control::SessionClose { code: CloseCode::Asked }),
    ];
    prop_oneof![
        3 => small.clone().prop_map(|n| Frame::Welcome(Welcome {
            version: 1, capabilities: 0, session: SessionId([5; 16]),
            instance: Instance([u8::try_from(n).unwrap(); 16]),
            limits: Limits { max_flows: n, buffer_bytes: 1000, floor_bytes: 1 } })),
        2 => small.clone().prop_map(|n| Frame::ResumeOk(ResumeOk { number: LinkNumber(n) })),
        2 => (reason, small.clone()).prop_map(|(reason, n)| Frame::ResumeReject(ResumeReject {
            reason, released: Vec::new(), retry_after: SECOND * u32::try_from(n).unwrap() })),
        1 => Just(Frame::KeyInUse),
        8 => (1..4_u64, message).prop_map(|(number, message)| Frame::Control { number, message }),
        3 => small.clone().prop_map(|nonce| Frame::Ping { nonce }),
        1 => small.clone().prop_map(|nonce| Frame::Pong { nonce }),
        1 => small.clone().prop_map(|number| Frame::ControlAck { number }),
        3 => (flow.clone(), small.clone(), any::<bool>()).prop_map(|(flow, at, fin)| {
            Frame::Data(Data { flow, offset: Offset(at), fin, payload: Bytes::from_static(b"abc") })
        }),
        2 => (flow, small).prop_map(|(flow, n)| Frame::Ack(Ack {
            flow, accepted: Offset(n), released: Offset(n), limit: Offset(9_000) })),
        1 => Just(Frame::LinkClose { reason: LinkCloseReason::Unneeded }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let app = 0..6_usize;
    let link = 1..12_u64;
    let hand = prop_oneof![
        3 => frame().prop_map(Hand::Say),
        2 => Just(Hand::Up),
        2 => any::<bool>().prop_map(Hand::Down),
        1 => proptest::collection::vec(any::<u8>(), 0..30).prop_map(Hand::Garbage),
    ];
    let network = prop_oneof![
        6 => Just(Network::Up),
        2 => Just(Network::Silent),
        1 => Just(Network::Mute),
        1 => Just(Network::NotListed),
        1 => Just(Network::NoPath),
    ];
    prop_oneof![
        8 => (80..84_u16).prop_map(Step::Connect),
        6 => (app.clone(), 1..60_000_usize).prop_map(|(app, len)| Step::Write(app, len)),
        4 => app.clone().prop_map(Step::Read),
        2 => app.clone().prop_map(Step::Close),
        2 => app.clone().prop_map(Step::Abort),
        1 => app.clone().prop_map(Step::Vanish),
        5 => network.prop_map(Step::Network),
        1 => (0..4_u8).prop_map(Step::Paths),
        3 => Just(Step::Lose),
        2 => Just(Step::Cut),
        1 => Just(Step::Restart),
        8 => (link, hand).prop_map(|(link, hand)| Step::ByHand(LinkId(link), hand)),
        4 => (app, any::<bool>()).prop_map(|(app, ends)| Step::Pour(app, ends)),
        8 => prop_oneof![1..700_u64, 1000..70_000_u64].prop_map(Step::Pass),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Reconnect),
    ]
}

/// A policy for a port whose lines are stored.
fn storing(port: u16, during_outage: DuringOutage) -> Policy {
    Policy {
        network: ORIGIN_V4.into(),
        port: Some(port),
        grace: Some(SECOND * 10),
        during_outage: Some(during_outage),
        store: Some(Store {
            framing: Framing::Line,
            retain: SECOND * 600,
        }),
        hand_off: None,
    }
}

struct Play {
    world: World,
    apps: Vec<SocketHandle>,
}

impl Play {
    fn app(&self, n: usize) -> Option<SocketHandle> {
        self.apps.get(n % self.apps.len().max(1)).copied()
    }

    fn step(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Connect(port) => {
                let app = world.connect_to(port, 20_000);
                self.apps.push(app);
            }
            Step::Write(n, len) => {
                if let Some(app) = self.app(n) {
                    self.world.write(app, &vec![1; len]);
                }
            }
            Step::Read(n) => {
                if let Some(app) = self.app(n) {
                    self.world.read(app);
                }
            }
            Step::Close(n) => {
                if let Some(app) = self.app(n) {
                    self.world.kernel.socket(app).close();
                }
            }
            Step::Abort(n) => {
                if let Some(app) = self.app(n) {
                    self.world.kernel.socket(app).abort();
                }
            }
            Step::Vanish(n) => {
                if let Some(app) = self.app(n) {
                    self.apps.retain(|of| *of != app);
                    self.world.kernel.sockets.remove(app);
                }
            }
            Step::Network(network) => world.network = network,
            Step::Paths(n) => {
                let paths = (0..n).map(|address| PathId {
                    address: address.into(),
                    ..WIFI
                });
                world.paths = paths.take(1).chain([WIFI]).collect();
                let paths = world.usable_paths();
                world.client.handle_paths(&paths, world.now);
            }
            Step::Lose => world.lose(),
            Step::Cut => world.cut(),
            Step::Restart => world.restart_server(),
            Step::ByHand(link, hand) => by_hand(world, link, hand),
            Step::Pour(n, ends) => {
                let nth = world.origins.len().checked_sub(1).map(|last| n.min(last));
                let id = nth.and_then(|n| world.origins.keys().nth(n).copied());
                if let Some(id) = id {
                    let origin = world.origin(id);
                    origin.to_send.extend(vec![2; 30_000]);
                    origin.then = ends.then_some(super::server::End::Fin);
                }
            }
            Step::Pass(millis) => world.pass(Duration::from_millis(millis)),
            Step::Disconnect => world.client.disconnect(world.now),
            Step::Reconnect => world.client.reconnect(world.now),
        }
    }
}

fn by_hand(world: &mut World, link: LinkId, hand: Hand) {
    let now = world.now;
    match hand {
        Hand::Say(frame) => {
            let mut bytes = Vec::new();
            codec::encode(&frame, &mut bytes);
            world.client.handle_bytes(link, bytes.into(), now);
        }
        Hand::Garbage(bytes) => world.client.handle_bytes(link, bytes.into(), now),
        Hand::Up => world.client.handle_link_up(link, secret(link), now),
        Hand::Down(refused) => world.client.handle_link_down(link, refused, now),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_panics_hangs_or_leaks(
        refuse in any::<bool>(),
        always in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let base = client_config();
        let during_outage = if refuse { DuringOutage::Refuse } else { DuringOutage::Hold };
        let rules = Rules { during_outage, ..RULES };
        let config = ClientConfig {
            policies: Policies::new(rules, vec![storing(81, DuringOutage::Accept), storing(82, DuringOutage::Hold)]),
            stub: None,
            linger: (!always).then_some(SECOND * 20),
            session: Config { max_flows: 3, buffer_bytes: 100_000, ..base.session },
            ..base
        };
        let mut world = World::with_rings(config, registry_config(200), 16_384, 6);
        world.answers.insert(82, OpenError::Refused);
        world.answers.insert(83, OpenError::Exhausted);
        let mut play = Play { world, apps: Vec::new() };
        for step in steps {
            play.step(step);
            play.world.run();
            play.world.pass(MILLISECOND);
            let buffered = play.world.client.buffered();
            // Rings of connections that were accepted behind stored files come on top.
            let most = (100_000 + 6 * 16_384, 100_000);
            prop_assert!(buffered.0 <= most.0 && buffered.1 <= most.1, "{buffered:?}");
        }
        let mut world = play.world;
        for app in play.apps {
            world.kernel.sockets.remove(app);
        }
        world.network = Network::NoPath;
        world.client.disconnect(world.now);
        world.run();
        world.lose();
        // Until the last retransmission of a SYN can be expected.
        world.pass(SECOND * 300);

        prop_assert_eq!(world.client.state(), State::Ready);
        prop_assert_eq!(world.client.flows().kept(), 0);
        prop_assert_eq!(world.client.asking.kept(), 0);
        prop_assert_eq!(world.client.behind.kept(), 0);
        prop_assert_eq!(world.client.storing.kept(), 0);
        prop_assert!(world.client.parting.is_empty() && world.client.session.is_none());
        prop_assert_eq!(world.client.dialer.poll_timeout(), None);
        prop_assert_eq!(world.link_count(), 0);
        prop_assert!(world.client.poll_event().is_none());
    }
}
