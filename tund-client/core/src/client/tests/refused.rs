//! Errors that need a person: shown, told to applications at once, and gone once put right.

use super::world::{
    GRACE, KEY, LINGER, Network, SECOND, World, client_config, registry_config, secret,
};
use crate::client::{ClientConfig, Refused, State};
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_session::wire::codec;
use tund_session::wire::frame::{Frame, RejectReason, ResumeReject};
use tund_session::{LinkId, Outbox, Session, SessionId};

const PROHIBITED: (u8, u8) = (3, 13);

#[test]
fn an_unlisted_key_is_shown_once_and_applications_are_refused_at_once() {
    let mut world = World::new();
    world.network = Network::NotListed;

    world.connect(80);
    assert_eq!(world.client.state(), State::Refused);
    assert_eq!(world.client.refused(), Some(Refused::KeyNotListed));
    assert_eq!(world.icmp, [PROHIBITED], "who waited is told");
    world.connect(80);

    assert_eq!(world.icmp, [PROHIBITED; 2]);
    assert_eq!(world.client.flows().kept(), 0);
    world.pass(SECOND * 60);
    assert_eq!(world.refusals().len(), 1);
}

#[test]
fn once_the_key_is_listed_the_client_recovers_by_itself() {
    let mut world = World::new();
    world.network = Network::NotListed;
    world.connect(80);
    world.connect(80);
    world.heal();

    let took = world.until("attached", |w| w.client.state() == State::Attached);

    assert!(took <= SECOND * 16, "{took:?}");
    assert_eq!(world.client.refused(), None);
    world.open();
    world.client.disconnect(world.now);
    world.run();
    assert_eq!(world.client.state(), State::Ready);
}

#[test]
fn once_attached_again_an_idle_client_insists_on_nothing() {
    let mut world = World::new();
    world.network = Network::NotListed;
    for _ in 0..2 {
        let app = world.connect(80);
        world.kernel.sockets.remove(app);
    }
    world.heal();
    world.until("attached", |w| w.client.state() == State::Attached);
    let before = world.dials.len();

    world.lose();
    world.pass(SECOND * 20);

    assert_eq!(world.dials.len(), before);
}

#[test]
fn a_refused_client_that_nobody_uses_is_silent_and_the_next_use_asks_again() {
    let mut world = World::new();
    world.network = Network::NotListed;
    let app = world.connect(80);
    // As a real kernel does when it reads that.
    world.kernel.sockets.remove(app);
    world.pass(SECOND * 120);
    let before = world.dials.len();
    world.pass(SECOND * 600);
    assert_eq!(world.dials.len(), before);
    assert_eq!(world.client.state(), State::Refused);

    world.heal();
    world.connect(80);
    world.pass(SECOND * 16);

    assert_eq!(world.client.state(), State::Attached);
    world.open();
    // Nothing is left of it: linger goes by the flows.
    assert_eq!(world.client.refused(), None);
    world.pass(LINGER);
    assert_eq!(world.client.state(), State::Attached, "a flow is open");
}

#[test]
fn with_connect_always_a_refused_client_recovers_without_an_application() {
    let config = ClientConfig {
        linger: None,
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    world.network = Network::NotListed;
    world.pass(SECOND * 3000);
    assert_eq!(world.client.state(), State::Refused);
    assert!(world.dials.len() > 100 && world.dials.len() < 400);

    world.heal();
    world.pass(SECOND * 16);

    assert_eq!(world.client.state(), State::Attached);
}

#[test]
fn reconnect_after_a_refusal_asks_at_once() {
    let mut world = World::new();
    world.network = Network::NotListed;
    let app = world.connect(80);
    world.kernel.sockets.remove(app);
    world.pass(SECOND * 200);
    assert!(world.client.session.is_none());
    world.heal();

    world.client.reconnect(world.now);
    world.run();

    assert_eq!(world.client.state(), State::Attached);
}

#[test]
fn connections_that_are_open_have_their_grace_although_the_key_is_refused() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.fail();
    world.network = Network::NotListed;
    world.pass(SECOND * 20);
    assert_eq!(world.client.state(), State::Refused);
    world.connect(80);
    assert_eq!(world.icmp, [PROHIBITED]);
    assert_eq!(world.state(app), tcp::State::Established);

    world.heal();
    world.pass(SECOND * 16);
    assert_eq!(world.client.state(), State::Attached);
    assert_eq!(world.write(app, b"still there"), 11);
    assert_eq!(world.origin(id).received, b"still there");

    world.fail();
    world.network = Network::NotListed;
    world.pass(GRACE + SECOND);
    assert_eq!(world.state(app), tcp::State::Closed);
}

#[test]
fn a_refusal_while_attached_changes_nothing() {
    let mut world = World::new();
    let (app, _) = world.open();

    world.client.handle_link_down(LinkId(77), true, world.now);
    world.run();

    assert_eq!(world.client.state(), State::Attached);
    assert_eq!(world.client.refused(), None);
    world.fail();
    assert_eq!(world.client.state(), State::Detached);
    assert_eq!(world.state(app), tcp::State::Established);
}

#[test]
fn a_server_of_another_version_is_a_refusal() {
    let mut world = World::new();
    world.network = Network::Mute;
    world.connect(80);
    let (_, link, _) = world.dials[0];
    world.client.handle_link_up(link, secret(link), world.now);
    let mut bytes = Vec::new();
    let reject = ResumeReject {
        reason: RejectReason::Version,
        released: Vec::new(),
        retry_after: Duration::ZERO,
    };
    codec::encode(&Frame::ResumeReject(reject), &mut bytes);

    world.client.handle_bytes(link, bytes.into(), world.now);
    world.run();

    assert_eq!(world.refusals(), [Refused::Version]);
    assert_eq!(world.icmp, [PROHIBITED]);
}

/// A client with the same key, attached before.
struct Rival {
    session: Session,
    link: LinkId,
}

impl Rival {
    fn attach(world: &mut World) -> Self {
        let mut config = super::world::session_config(9);
        config.max_flows = 5;
        let link = LinkId(1 << 40);
        let mut session = Session::new_client(&config, world.now);
        let fresh = SessionId([9; 16]);
        world
            .registry
            .handle_link_up(link, KEY, secret(link), fresh, world.now);
        session.handle_link_up(link, secret(link), world.now);
        let mut rival = Self { session, link };
        rival.pump(world);
        assert!(rival.session.is_attached());
        rival
    }

    fn pump(&mut self, world: &mut World) {
        let mut out = Outbox::new();
        loop {
            let mut moved = false;
            out.clear();
            if self
                .session
                .poll_transmit(self.link, 9999, &mut out, world.now)
            {
                moved = true;
                let bytes = out.to_vec().into();
                world.registry.handle_bytes(self.link, bytes, world.now);
            }
            out.clear();
            if world
                .registry
                .poll_transmit(self.link, 9999, &mut out, world.now)
            {
                moved = true;
                self.session
                    .handle_bytes(self.link, out.to_vec().into(), world.now);
            }
            while self.session.poll_event().is_some() {}
            if !moved {
                return;
            }
        }
    }

    fn pass(&mut self, world: &mut World, time: Duration) {
        for _ in 0..time.as_millis() / 50 {
            world.pass(Duration::from_millis(50));
            self.session.handle_timeout(world.now);
            self.pump(world);
        }
    }
}

#[test]
fn a_key_in_use_is_shown_and_works_once_the_other_client_is_gone() {
    let mut world = World::new();
    let mut rival = Rival::attach(&mut world);
    let app = world.connect(80);
    assert_eq!(world.state(app), tcp::State::SynSent);

    rival.pass(&mut world, SECOND * 3);
    assert_eq!(world.client.refused(), Some(Refused::KeyInUse));
    assert_eq!(world.icmp.first(), Some(&PROHIBITED));
    assert!(rival.session.is_attached(), "the first is untouched");
    rival.pass(&mut world, SECOND * 40);
    assert_eq!(world.refusals().len(), 1);
    assert_eq!(world.client.state(), State::Refused);

    world.registry.handle_link_down(rival.link, world.now);
    world.connect(80);
    world.pass(SECOND * 18);

    assert_eq!(world.client.state(), State::Attached);
    world.open();
}
