//! Each flow that ends leaves one account, which says what became of it and by whom.

use super::server::{End, OriginId};
use super::storing;
use super::world::{GRACE, RULES, SECOND, World, client_config, registry_config};
use crate::account::{EndedBy, FlowAccount, HowEnded, LostBytes};
use crate::client::{ClientConfig, ClientEvent};
use crate::netstack::tests::world::pattern;
use crate::policy::{DuringOutage, Policies, Policy};
use smoltcp::iface::SocketHandle;
use tund_server_core::registry::Registry;
use tund_session::wire::frame::{CloseCode, DeniedBy, OpenError};

/// The accounts told so far; those kept for whoever asks are the same.
fn accounts(world: &World) -> Vec<FlowAccount> {
    let told = world.events.iter().filter_map(|(_, event)| {
        let ClientEvent::FlowEnded(account) = event else {
            return None;
        };
        Some(*account)
    });
    let told: Vec<_> = told.collect();
    let kept: Vec<_> = world.client.flows().ended().copied().collect();
    assert_eq!(told, kept);
    told
}

/// The only account there is: its end, and what was lost.
fn only(world: &World) -> (EndedBy, HowEnded, LostBytes) {
    let accounts = accounts(world);
    let [account] = accounts.as_slice() else {
        panic!("one account is expected, not {accounts:?}");
    };
    (account.by, account.how, account.lost)
}

const NOTHING: LostBytes = LostBytes { up: 0, down: 0 };

#[test]
fn whoever_says_fin_first_has_closed_the_flow() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, &pattern(3000, 1));
    world.origin(id).to_send = pattern(5000, 2);
    world.run();
    world.kernel.socket(app).close();
    world.run();
    assert!(accounts(&world).is_empty(), "half-closed is not ended");
    world.origin(id).then = Some(End::Fin);
    world.run();
    world.read(app);
    world.pass(SECOND);

    assert_eq!(
        only(&world),
        (EndedBy::Application, HowEnded::Closed, NOTHING)
    );
    let account = accounts(&world)[0];
    assert_eq!((account.up_bytes, account.down_bytes), (3000, 5000));

    let mut world = World::new();
    let (app, id) = world.open();
    world.origin(id).then = Some(End::Fin);
    world.run();
    world.kernel.socket(app).close();
    world.pass(SECOND);

    assert_eq!(only(&world), (EndedBy::Origin, HowEnded::Closed, NOTHING));
}

#[test]
fn whoever_resets_is_named_and_loses_nothing_that_came_before() {
    let mut world = World::new();
    let (app, _) = world.open();
    world.write(app, &pattern(200_000, 5));
    world.kernel.socket(app).abort();
    world.run();

    assert_eq!(
        only(&world),
        (EndedBy::Application, HowEnded::Reset, NOTHING)
    );

    let mut world = World::new();
    let (app, id) = world.open();
    world.origin(id).to_send = pattern(1000, 1);
    world.origin(id).then = Some(End::Reset);
    world.run();
    world.read(app);
    world.pass(SECOND);

    assert_eq!(only(&world), (EndedBy::Origin, HowEnded::Reset, NOTHING));
    assert_eq!(accounts(&world)[0].down_bytes, 1000);
}

#[test]
fn what_an_origin_that_resets_has_not_taken_is_lost() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.origin(id).is_stalled = true;
    world.write(app, &pattern(7000, 3));
    world.run();

    world.origin(id).then = Some(End::Reset);
    world.run();
    world.pass(SECOND * 10);

    let lost = LostBytes { up: 7000, down: 0 };
    assert_eq!(only(&world), (EndedBy::Origin, HowEnded::Reset, lost));
}

#[test]
fn an_origin_that_falls_silent_has_not_reset_and_what_it_never_acknowledged_is_lost() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, &pattern(7000, 3));
    world.run();

    world.origin(id).then = Some(End::Silence(4000));
    world.run();
    world.pass(SECOND);

    let lost = LostBytes { up: 4000, down: 0 };
    assert_eq!(only(&world), (EndedBy::Origin, HowEnded::Failed, lost));
    assert_eq!(accounts(&world)[0].up_bytes, 7000);
}

#[test]
fn a_flow_that_outlives_an_outage_says_so() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, &pattern(100, 3));
    world.fail();
    world.pass(SECOND * 42);
    world.heal();
    world.pass(SECOND);
    world.write(app, &pattern(100, 3));
    world.origin(id).then = Some(End::Fin);
    world.run();
    world.kernel.socket(app).close();
    world.pass(SECOND);

    let account = accounts(&world)[0];
    assert_eq!((account.outages, account.lost), (1, NOTHING));
    assert!(account.longest_silence >= SECOND * 42);
    assert!(account.longest_silence < SECOND * 45);
}

#[test]
fn what_grace_ends_is_expired_and_its_bytes_are_counted() {
    let mut world = World::new();
    let (app, _) = world.open();
    world.fail();
    world.write(app, &pattern(4000, 3));

    world.pass(GRACE + SECOND);

    let lost = LostBytes { up: 4000, down: 0 };
    assert_eq!(only(&world), (EndedBy::Client, HowEnded::Expired, lost));
}

/// A flow whose application does not read, and how much of it lies here: in the ring, and more in the
/// session.
fn unread() -> (World, SocketHandle, OriginId, LostBytes) {
    unread_of(client_config(), 80)
}

fn unread_of(config: ClientConfig, port: u16) -> (World, SocketHandle, OriginId, LostBytes) {
    let mut world = World::with_rings(config, registry_config(200), 65_536, 64);
    let app = world.connect(port);
    let id = world.opened.last().expect("an origin was asked for").0;
    world.origin(id).to_send = pattern(3 << 20, 7);
    world.run();
    let session = world.client.session.as_ref().unwrap();
    let in_session = session.flow_buffered(id.1).1;
    let known = *world.client.flows().iter().next().unwrap().1;
    let in_ring = world.client.in_rings(&known).down;
    assert!(in_ring > 60_000 && in_session > 60_000);
    let down = in_ring + in_session;
    (world, app, id, LostBytes { up: 0, down })
}

/// What the application's kernel holds for it.
fn taken(world: &mut World, app: SocketHandle) -> u64 {
    u64::try_from(world.kernel.socket(app).recv_queue()).unwrap()
}

#[test]
fn what_came_and_was_not_read_is_counted_when_grace_is_over() {
    let (mut world, app, _, lost) = unread();
    let taken = taken(&mut world, app);
    world.fail();

    world.pass(GRACE + SECOND);

    assert_eq!(only(&world), (EndedBy::Client, HowEnded::Expired, lost));
    assert_eq!(accounts(&world)[0].down_bytes, taken);
}

#[test]
fn what_came_and_was_not_read_is_counted_of_a_stored_flow_too() {
    for is_the_server_new in [false, true] {
        let (mut world, app, _, lost) = unread_of(storing::config(), storing::LOG);
        let taken = taken(&mut world, app);
        world.fail();
        world.write(app, b"one\n");
        if is_the_server_new {
            world.registry = Registry::new(registry_config(201));
            world.heal();
        }

        world.pass(GRACE + SECOND);

        let account = accounts(&world)[0];
        assert_eq!((account.lost, account.stored_bytes), (lost, 4));
        assert_eq!((account.up_bytes, account.down_bytes), (4, taken));
    }
}

#[test]
fn what_came_and_was_not_read_is_counted_when_the_session_ends() {
    let (mut world, app, _, lost) = unread();
    let taken = taken(&mut world, app);

    world.client.disconnect(world.now);
    world.run();

    assert_eq!(only(&world), (EndedBy::User, HowEnded::Disconnected, lost));
    assert_eq!(accounts(&world)[0].down_bytes, taken);
}

#[test]
fn what_came_and_was_not_read_is_counted_when_a_reset_waits_no_longer() {
    let (mut world, _, id, _) = unread();
    world.origin(id).to_send.clear();
    world.origin(id).then = Some(End::Reset);
    world.run();
    let session = world.client.session.as_ref().unwrap();
    let in_session = session.flow_buffered(id.1).1;

    world.pass(SECOND * 10);

    let (by, how, lost) = only(&world);
    assert_eq!((by, how, lost.up), (EndedBy::Origin, HowEnded::Reset, 0));
    assert!(lost.down > in_session, "{lost:?}, {in_session}");
}

#[test]
fn what_an_application_that_resets_had_not_read_is_not_lost() {
    let (mut world, app, ..) = unread();

    world.kernel.socket(app).abort();
    world.pass(SECOND);

    assert_eq!(
        only(&world),
        (EndedBy::Application, HowEnded::Reset, NOTHING)
    );
}

#[test]
fn an_origin_that_cannot_be_had_and_one_that_may_not_are_told_apart() {
    for (answer, by) in [
        (OpenError::Refused, EndedBy::Origin),
        (OpenError::Denied(DeniedBy::Default), EndedBy::Server),
    ] {
        let mut world = World::new();
        world.answers.insert(80, answer);
        world.connect(80);

        assert_eq!(only(&world), (by, HowEnded::Refused, NOTHING));
    }
}

#[test]
fn an_application_that_gives_up_asking_has_cancelled() {
    let mut world = World::new();
    world.quiet_ports.insert(80);
    let app = world.connect(80);

    world.kernel.socket(app).abort();
    world.pass(SECOND * 30);

    assert_eq!(
        only(&world),
        (EndedBy::Application, HowEnded::Cancelled, NOTHING)
    );
    assert_eq!(world.client.flows().kept(), 0);
}

#[test]
fn whoever_asks_for_the_end_of_the_session_is_named() {
    let mut world = World::new();
    world.open();
    world.client.disconnect(world.now);
    world.run();
    assert_eq!(
        only(&world),
        (EndedBy::User, HowEnded::Disconnected, NOTHING)
    );

    let mut world = World::new();
    let (_, id) = world.open();
    let now = world.now;
    world.registry.close(id.0, CloseCode::Asked, now);
    world.run();
    assert_eq!(
        only(&world),
        (EndedBy::Server, HowEnded::Disconnected, NOTHING)
    );

    let mut world = World::new();
    world.open();
    world.restart_server();
    world.pass(SECOND * 10);
    assert_eq!(
        only(&world),
        (EndedBy::Server, HowEnded::Restarted, NOTHING)
    );
}

#[test]
fn the_end_of_a_session_settles_what_was_still_on_its_way() {
    let mut world = World::new();
    let (app, _) = world.open();
    world.fail();
    world.write(app, &pattern(900, 3));
    world.kernel.socket(app).abort();
    world.pass(SECOND);
    assert!(accounts(&world).is_empty(), "its bytes may still arrive");

    world.client.disconnect(world.now);
    world.run();

    let lost = LostBytes { up: 900, down: 0 };
    assert_eq!(only(&world), (EndedBy::Application, HowEnded::Reset, lost));
    assert_eq!(world.client.flows().kept(), 0);
}

#[test]
fn what_was_accepted_ahead_and_never_asked_for_is_counted_once() {
    let early = Policy {
        store: None,
        ..storing::policy(storing::EARLY, Some(DuringOutage::Accept))
    };
    let keeper = Policy {
        grace: Some(GRACE * 3),
        store: None,
        ..storing::policy(80, None)
    };
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![early, keeper]),
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    world.connect(80);
    world.fail();
    world.pass(SECOND * 2);
    let app = world.connect(storing::EARLY);
    world.write(app, b"one\n");

    world.pass(GRACE * 4);

    let (_, _, lost) = world.ended().unwrap();
    assert_eq!(lost, 4);
}
