//! How long mappings live: idle time, outages, sleep, restarts, and where there is no room.

use super::super::world::{SECOND, World};
use super::{dual_stack, server, v4, world};
use crate::account::{EndedBy, HowEnded};
use crate::client::State;
use crate::netstack::tests::world::Collector;
use crate::packet::{DatagramKind, Reason};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{OpenError, Protocol, capability};

#[test]
fn a_mapping_lives_for_its_idle_time_and_outages_do_not_count() {
    let mut world = world();
    world.throw(v4(), b"hello");
    let mapping = world.mapping();
    world.at_server(mapping);
    world.pass(SECOND * 200);
    world.fail();
    world.pass(SECOND * 50);
    world.heal();
    world.pass(SECOND * 99);
    assert_eq!(world.client.mappings().len(), 1);

    // The outage counts from when the server was heard last.
    world.pass(SECOND * 30);

    assert_eq!(world.client.mappings().len(), 0);
    assert_eq!(
        world.registry.session(mapping.0).map(|s| s.flow_count()),
        Some(0)
    );
    let accounts = world.accounts();
    assert_eq!(accounts.len(), 1, "{accounts:?}");
    let account = accounts[0];
    assert_eq!(
        (account.protocol, account.by, account.how),
        (Protocol::Udp, EndedBy::Client, HowEnded::Idle)
    );
    assert_eq!((account.up_bytes, account.outages), (5, 1));
    assert_eq!(world.client.mappings().kept(), 0);
}

#[test]
fn what_is_sent_in_an_outage_arrives_if_it_is_short_and_not_if_it_is_long() {
    let mut world = world();
    world.throw(v4(), b"before");
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping).len(), 1);
    for (length, arrives) in [(Duration::from_millis(1000), true), (SECOND * 3, false)] {
        world.fail();
        world.throw(v4(), b"meanwhile");
        world.pass(length);
        world.heal();
        world.until("attached", |world| world.client.state() == State::Attached);

        assert_eq!(!world.at_server(mapping).is_empty(), arrives, "{length:?}");
    }
    assert_eq!(world.opened.len(), 1);
    world.answer(mapping, v4().1, b"still here");
    assert_eq!(world.seen().len(), 1);
}

#[test]
fn an_application_that_goes_on_sending_does_not_keep_the_dialer_busy() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    let mut world = World::with(config, server(capability::DATAGRAM));
    world.throw(v4(), b"hello");
    world.fail();
    world.pass(SECOND * 400);

    // One that was silent has somebody waiting.
    let before = world.dials.len();
    world.throw(v4(), b"hello?");
    world.pass(Duration::from_millis(1));
    assert!(world.dials.len() > before);
    let before = world.dials.len();
    for _ in 0..60 {
        world.throw(v4(), b"hello?");
        world.pass(SECOND);
    }
    let dials = world.dials.len() - before;
    assert!((5..40).contains(&dials), "{dials} attempts in a minute");
}

#[test]
fn a_restarted_server_has_new_mappings_for_the_same_applications() {
    let mut world = world();
    world.throw(v4(), b"one");
    world.restart_server();
    world.pass(SECOND * 2);
    let accounts = world.accounts();
    assert_eq!(accounts.len(), 1);
    assert_eq!(accounts[0].how, HowEnded::Restarted);

    world.throw(v4(), b"two");

    assert_eq!(world.opened.len(), 2);
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(v4().1, b"two".to_vec())]);
}

#[test]
fn a_user_who_disconnects_ends_mappings_and_leaves_nothing() {
    let mut world = world();
    world.throw(v4(), b"one");
    world.client.disconnect(world.now);
    world.run();

    let accounts = world.accounts();
    assert_eq!(accounts.len(), 1);
    assert_eq!(
        (accounts[0].by, accounts[0].how),
        (EndedBy::User, HowEnded::Disconnected)
    );
    assert_eq!(world.client.mappings().kept(), 0);
    assert_eq!(world.client.state(), State::Ready);
}

#[test]
fn a_sleep_is_no_idle_time() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    let mut world = World::with(config, server(capability::DATAGRAM));
    world.throw(v4(), b"hello");
    let mapping = world.mapping();
    world.at_server(mapping);
    world.pass(SECOND * 100);

    // Nothing happens here for ten minutes, and then everything is due at once.
    let before = world.now;
    world.now = world.now + SECOND * 600;
    let mut sink = Collector::default();
    world.client.handle_woken(world.now);
    world.client.handle_timeout(world.now, &mut sink);
    assert_eq!(world.client.mappings().len(), 1);
    world.now = before + SECOND * 600;
    world.run();
    world.pass(SECOND * 150);
    assert_eq!(
        world.client.mappings().len(),
        1,
        "100 s and 150 s are less than 300 s"
    );
    world.pass(SECOND * 120);
    assert_eq!(world.client.mappings().len(), 0);
}

#[test]
fn where_there_are_few_flows_mappings_leave_half_of_them_and_make_room() {
    // Both ends allow 64 flows.
    let mut world = world();
    let (app, origin) = v4();
    let from = |port: u16| SocketAddr::new(app.ip(), 5000 + port);
    for port in 0..32 {
        world.throw((from(port), origin), b"hello");
    }
    assert_eq!(world.client.mappings().len(), 32);
    world.throw((from(32), origin), b"no room");
    assert_eq!(world.client.mappings().len(), 32);
    assert_eq!(
        world.client.netstack().stats().untaken(Reason::TableFull),
        1
    );

    world.pass(SECOND * 29);
    world.throw((from(0), origin), b"still here");
    world.pass(SECOND);
    world.throw((from(33), origin), b"room");

    assert_eq!(world.client.mappings().len(), 32);
    let has = |world: &World, port| {
        world
            .client
            .mappings()
            .find(DatagramKind::Udp, from(port))
            .is_some()
    };
    assert!(has(&world, 0) && has(&world, 33) && !has(&world, 1));
    // Connections find the other half, and one more makes room of the same kind.
    for _ in 0..32 {
        world.connect(80);
    }
    assert_eq!(world.client.flows().len(), 32);
    world.connect(80);
    world.pass(SECOND * 3);
    assert_eq!(world.client.flows().len(), 33);
    assert_eq!(world.client.mappings().len(), 31);
}

#[test]
fn mappings_that_the_server_never_heard_of_are_not_asked_for_in_vain() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    let mut world = World::with(config, server(capability::DATAGRAM));
    let (app, origin) = v4();
    world.throw((app, origin), b"before");
    world.fail();
    for port in 0..100 {
        let from = SocketAddr::new(app.ip(), 5000 + port);
        world.throw((from, origin), b"question");
        world.pass(SECOND);
    }
    assert!(
        world.client.mappings().len() <= 8,
        "{}",
        world.client.mappings().len()
    );
    let asked = world.opened.len();

    world.heal();
    world.until("attached", |world| world.client.state() == State::Attached);
    world.run();

    assert!(world.opened.len() - asked <= 8);
    assert!(
        world
            .client
            .mappings()
            .find(DatagramKind::Udp, app)
            .is_some()
    );
}

#[test]
fn the_first_datagram_waits_for_a_slow_first_link_but_not_for_ever() {
    let mut world = world();
    world.fail();
    world.throw(v4(), b"question");
    world.pass(SECOND * 12);
    assert_eq!(world.client.mappings().len(), 1);
    world.heal();
    world.until("attached", |world| world.client.state() == State::Attached);
    world.run();
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(v4().1, b"question".to_vec())]);

    let mut world = self::world();
    world.fail();
    world.throw(v4(), b"question");
    // It is looked for every 15 s.
    world.pass(SECOND * 31);
    assert_eq!(world.client.mappings().len(), 0);
}

#[test]
fn an_empty_datagram_waits_like_any_other() {
    let mut world = world();
    world.throw(v4(), b"before");
    world.fail();
    let other = SocketAddr::new(v4().0.ip(), 4001);
    world.throw((other, v4().1), b"");
    world.pass(Duration::from_millis(600));
    world.heal();
    world.until("attached", |world| world.client.state() == State::Attached);
    world.run();

    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(v4().1, Vec::new())]);
}

#[test]
fn in_an_outage_no_mapping_makes_room_for_another_flow() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    // Both ends allow 64 flows.
    let mut world = World::with(config, server(capability::DATAGRAM));
    let from = |port: u16| SocketAddr::new(v4().0.ip(), 5000 + port);
    for port in 0..32 {
        world.throw((from(port), v4().1), b"hello");
    }
    for _ in 0..32 {
        world.connect(80);
    }
    assert_eq!(world.client.flows().len(), 32);
    world.fail();
    world.pass(SECOND * 31);

    world.connect(80);
    for port in 32..40 {
        world.throw((from(port), v4().1), b"hello?");
        world.pass(SECOND * 2);
    }
    assert_eq!(world.client.mappings().len(), 32);
    world.heal();
    world.until("attached", |world| world.client.state() == State::Attached);
    let lives = |world: &World, port| {
        world
            .client
            .mappings()
            .find(DatagramKind::Udp, from(port))
            .is_some()
    };
    assert!((1..32).filter(|port| lives(&world, *port)).count() >= 30);
}

#[test]
fn a_server_without_places_costs_no_mapping_its_own() {
    let mut world = world();
    for port in 0..3 {
        let from = SocketAddr::new(v4().0.ip(), 5000 + port);
        world.throw((from, v4().1), b"hello");
    }
    world.pass(SECOND * 40);
    world.answers.insert(99, OpenError::Exhausted);
    let elsewhere = SocketAddr::new(v4().1.ip(), 99);
    for _ in 0..5 {
        world.throw((v4().0, elsewhere), b"hello");
        world.pass(SECOND);
    }
    assert_eq!(world.client.mappings().len(), 3);
}
