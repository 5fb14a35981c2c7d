//! Tests of how a flow ends at its socket, over loopback.

use super::super::rests::Rests;
use super::*;
use bytes::Bytes;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tund_server_core::registry::{ClientKey, Registry, RegistryConfig, RegistryEvent};
use tund_session::wire::frame::{Framing, HandOff, OnExpiry, Take, capability};
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
    target: Target,
}

impl World {
    async fn new() -> (Self, TcpStream) {
        Self::asking(|client, target| client.open_flow(target, NOW).unwrap()).await
    }

    /// The flow is asked for in this way.
    async fn asking(ask: impl FnOnce(&mut Session, &Target) -> FlowId) -> (Self, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut origin = Origin::connect(address, Bytes::new()).unwrap();
        poll_fn(|cx| origin.poll_connected(cx)).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let target = Target {
            protocol: Protocol::Tcp,
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: address,
            grace: Duration::from_secs(60),
            on_expiry: OnExpiry::Store(Framing::Line),
            accept_early: false,
        };
        let mut world = Self {
            target,
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
                guest: None,
            },
        };
        let secret = Secret::new([3; 32]);
        let (key, session) = (ClientKey([4; 32]), world.session);
        world
            .registry
            .handle_link_up(LINK, key, secret.clone(), session, NOW);
        world.client.handle_link_up(LINK, secret, NOW);
        world.exchange();
        world.flow = ask(&mut world.client, &target);
        world.exchange();
        (world, far)
    }

    /// Moves frames until none is left, and accepts what is opened.
    fn exchange(&mut self) {
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
            moved = carry(&mut self.client, &mut self.registry, LINK);
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

/// Of a flow that begins with what those have left.
fn hand_off(takes: Vec<Take>) -> HandOff {
    HandOff {
        user: 1000,
        framing: Framing::Line,
        retain: Duration::from_secs(3600),
        takes,
    }
}

/// A flow has expired whose socket has twenty thousand lines to be read, less the first.
async fn expired() -> (World, TcpStream, super::super::ReadBuffer) {
    let ask = |client: &mut Session, target: &Target| {
        let wish = hand_off(Vec::new());
        client.open_handed_off(target, wish, NOW).unwrap()
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
    (world, far, buffer)
}

#[tokio::test]
async fn the_rest_of_a_socket_is_read_in_turns() {
    let (mut world, _far, mut buffer) = expired().await;
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

#[tokio::test]
async fn what_a_turn_had_no_time_for_is_read_in_the_next() {
    let (mut world, mut far, mut buffer) = expired().await;
    let name = (world.session, world.flow);
    let mut rests = Rests::default();
    rests.begin(name, &mut world.slot, &mut world.registry, &mut buffer);
    assert!(world.slot.has_rest);
    assert_eq!(world.registry.offers().bytes(), 0);
    rests.add(name, world.slot);

    rests.read_on(&mut world.registry, &mut buffer);

    assert_eq!(world.registry.offers().bytes(), 39_998);
    assert!(rests.is_empty());
    // And then it is reset.
    let error = far.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_socket_that_still_sends_is_read_at_once() {
    let (mut world, _far, mut buffer) = expired().await;
    let (name, piece) = ((world.session, world.flow), Bytes::from(vec![0; 1 << 20]));
    let origin = &mut world.slot.origin;
    let write = |cx: &mut Context<'_>| {
        while origin.poll_write(cx, std::iter::once(&piece)).is_ready() {}
        Poll::Ready(())
    };
    poll_fn(write).await;
    assert!(world.slot.origin.unsent().unwrap() > 0);

    Rests::default().begin(name, &mut world.slot, &mut world.registry, &mut buffer);

    assert!(!world.slot.has_rest, "nobody notes what it sends from here");
    assert_eq!(world.registry.offers().bytes(), 39_998);
}

#[tokio::test]
async fn what_a_connection_wants_is_read_first_and_what_it_is_not_given_is_not() {
    for (key, user, is_read) in [(4, 1000, true), (4, 1001, false), (5, 1000, false)] {
        let (mut world, _far, mut buffer) = expired().await;
        let name = (world.session, world.flow);
        let mut rests = Rests::default();
        rests.begin(name, &mut world.slot, &mut world.registry, &mut buffer);
        let target = world.target;
        let (session, flow) = next_connection(&mut world.registry, key, |client| {
            let take = Take {
                session: name.0,
                flow: name.1,
                delivered: Offset(0),
            };
            let wish = HandOff {
                user,
                ..hand_off(vec![take])
            };
            client.open_handed_off(&target, wish, NOW).unwrap()
        });
        rests.add(name, world.slot);

        rests.read_wanted((session, flow), &mut world.registry, &mut buffer);

        assert_eq!(rests.is_empty(), is_read, "{key} {user}");
        let held = world.registry.offers().bytes();
        assert_eq!(held, if is_read { 39_998 } else { 0 });
    }
}

/// Another client asks for an origin, which has not answered.
fn next_connection(
    registry: &mut Registry,
    key: u8,
    ask: impl FnOnce(&mut Session) -> FlowId,
) -> (SessionId, FlowId) {
    let (link, session) = (LinkId(2), SessionId([9; 16]));
    let secret = Secret::new([7; 32]);
    let mut client = Session::new_client(&config(), NOW);
    registry.handle_link_up(link, ClientKey([key; 32]), secret.clone(), session, NOW);
    client.handle_link_up(link, secret, NOW);
    let flow = ask(&mut client);
    while carry(&mut client, registry, link) {}
    (session, flow)
}

/// Moves frames between the two; true if there were any.
fn carry(client: &mut Session, registry: &mut Registry, link: LinkId) -> bool {
    let mut out = Outbox::new();
    let mut moved = client.poll_transmit(link, 60_000, &mut out, NOW);
    registry.handle_bytes(link, out.to_vec().into(), NOW);
    out.clear();
    moved |= registry.poll_transmit(link, 60_000, &mut out, NOW);
    client.handle_bytes(link, out.to_vec().into(), NOW);
    moved
}
