//! Tests of how a flow ends at its socket, over loopback.

use super::*;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig, RegistryEvent};
use tund_session::wire::frame::{Framing, HandOff, OnExpiry, capability};
use tund_session::{Config, Instance, Outbox, Secret, Session, Target};

const NOW: Instant = Instant::from_nanos(1 << 40);
const LINK: LinkId = LinkId(1);

fn config() -> Config {
    Config {
        instance: Instance([1; 16]),
        buffer_bytes: 1 << 20,
        max_flows: 8,
        max_grace: Duration::from_secs(60),
        capabilities: capability::DELIVERY | capability::HAND_OFF,
        datagram_age: tund_session::limits::DATAGRAM_AGE,
    }
}

/// Both ends of a session, with one flow that may be stored, and its socket at the server.
struct World {
    client: Session,
    registry: Registry,
    session: SessionId,
    flow: FlowId,
    slot: OriginSlot,
}

impl World {
    async fn new() -> (Self, TcpStream) {
        Self::asking(|client, target| client.open_flow(target, NOW).unwrap()).await
    }

    /// The flow is asked for in this way.
    async fn asking(ask: impl FnOnce(&mut Session, &Target) -> FlowId) -> (Self, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut origin = Origin::connect(address, bytes::Bytes::new()).unwrap();
        poll_fn(|cx| origin.poll_connected(cx)).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let mut world = Self {
            client: Session::new_client(&config(), NOW),
            registry: Registry::new(RegistryConfig {
                session: config(),
                max_sessions: 8,
                memory_bytes: 1 << 24,
            }),
            session: SessionId([2; 16]),
            flow: FlowId(0),
            slot: OriginSlot {
                origin,
                waker: Waker::noop().clone(),
                token: 1,
                is_connected: true,
                is_read_over: false,
                has_rest: false,
                unsent: 0,
                timer: None,
            },
        };
        let secret = Secret::new([3; 32]);
        let (key, session) = (ClientKey([4; 32]), world.session);
        world
            .registry
            .handle_link_up(LINK, key, secret.clone(), session, NOW);
        world.client.handle_link_up(LINK, secret, NOW);
        world.exchange();
        let target = Target {
            protocol: Protocol::Tcp,
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: address,
            grace: Duration::from_secs(60),
            on_expiry: OnExpiry::Store(Framing::Line),
            accept_early: false,
        };
        world.flow = ask(&mut world.client, &target);
        world.exchange();
        (world, far)
    }

    /// Moves frames until none is left, and accepts what is opened.
    fn exchange(&mut self) {
        let mut out = Outbox::new();
        let mut moved = true;
        while moved {
            while self.client.poll_event().is_some() {}
            while let Some(event) = self.registry.poll_event() {
                if let RegistryEvent::Session {
                    session,
                    event: Event::FlowOpened { open, .. },
                } = event
                {
                    self.registry
                        .with(session, NOW, |s| s.accept_flow(open.flow, NOW));
                }
            }
            out.clear();
            moved = self.client.poll_transmit(LINK, 60_000, &mut out, NOW);
            self.registry.handle_bytes(LINK, out.to_vec().into(), NOW);
            out.clear();
            moved |= self.registry.poll_transmit(LINK, 60_000, &mut out, NOW);
            self.client.handle_bytes(LINK, out.to_vec().into(), NOW);
        }
    }

    fn with<R>(&mut self, work: impl FnOnce(&mut OriginSlot, &mut Session, FlowId) -> R) -> R {
        let (slot, flow) = (&mut self.slot, self.flow);
        let mut result = None;
        self.registry
            .with(self.session, NOW, |s| result = Some(work(slot, s, flow)));
        result.expect("the session is there")
    }

    fn write_out(&mut self) -> Fate {
        self.with(|slot, session, flow| slot.write_out(session, flow, NOW))
    }

    fn taken(&mut self) -> Offset {
        self.with(|_, session, flow| session.taken(flow))
    }

    /// The application's line is written, and the origin resets; then the application's FIN comes.
    async fn finish_behind_a_reset(&mut self, far: TcpStream) {
        self.client.write(self.flow, "one\n".into(), NOW);
        self.exchange();
        assert!(matches!(self.write_out(), Fate::Lives));
        assert_eq!(self.taken(), Offset(4));
        // What it has not read makes its end a reset.
        drop(far);
        while socket2::SockRef::from(&self.slot.origin)
            .peer_addr()
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
        self.client.finish(self.flow, NOW);
        self.exchange();
    }
}

/// The origin's FIN was read before, so that nobody would meet the failure at a read.
#[tokio::test]
async fn a_fin_that_cannot_be_sent_is_not_taken_and_ends_the_flow() {
    let (mut world, mut far) = World::new().await;
    far.shutdown().await.unwrap();
    let mut buffer = super::super::ReadBuffer::new();
    while !world.slot.is_read_over {
        let _fate = world.with(|slot, s, flow| slot.read_in(s, flow, &mut buffer, NOW));
        tokio::task::yield_now().await;
    }
    world.finish_behind_a_reset(far).await;

    assert!(matches!(world.write_out(), Fate::Gone));

    assert_eq!(world.taken(), Offset(4), "FIN is not among it");
}

#[tokio::test]
async fn a_fin_that_cannot_be_sent_waits_for_what_is_still_to_be_read() {
    let (mut world, far) = World::new().await;
    world.finish_behind_a_reset(far).await;

    assert!(matches!(world.write_out(), Fate::Lives));
    assert_eq!(world.taken(), Offset(4), "FIN is not among it");

    let mut buffer = super::super::ReadBuffer::new();
    let mut read_in = || world.with(|slot, s, flow| slot.read_in(s, flow, &mut buffer, NOW));
    while matches!(read_in(), Fate::Lives) {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.taken(), Offset(4));
}

#[tokio::test]
async fn the_rest_of_a_socket_is_read_in_turns() {
    let hand_off = HandOff {
        user: 1000,
        framing: Framing::Line,
        retain: Duration::from_secs(3600),
        takes: Vec::new(),
    };
    let ask = |client: &mut Session, target: &Target| {
        client.open_handed_off(target, hand_off, NOW).unwrap()
    };
    let (mut world, mut far) = World::asking(ask).await;
    world.client.abort(world.flow, FlowCode::Expired, NOW);
    world.exchange();
    far.write_all(&b"x\n".repeat(20_000)).await.unwrap();
    let mut buffer = super::super::ReadBuffer::new();
    let origin = &mut world.slot.origin;
    poll_fn(|cx| origin.poll_read(cx, &mut buffer, 2))
        .await
        .unwrap();
    while origin.unread().unwrap() < 39_998 {
        tokio::task::yield_now().await;
    }
    let name = (world.session, world.flow);

    let mut left = 15_000;
    let (slot, registry) = (&mut world.slot, &mut world.registry);
    assert!(!slot.read_rest(name, registry, &mut buffer, &mut left));
    assert_eq!((left, registry.offers().bytes()), (0, 15_000));

    left = 1 << 20;
    assert!(slot.read_rest(name, registry, &mut buffer, &mut left));
    assert_eq!(registry.offers().bytes(), 39_998);
    assert_eq!(registry.offers().tally().lost, 0);
}
