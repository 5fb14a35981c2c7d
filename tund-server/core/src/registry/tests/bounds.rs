//! Limits of numbers, and what many at once cost.

use super::world::{GRACE, SECOND, World, config, encoded, hello, key, session_config};
use crate::registry::{
    BUSY_HINT, ClientKey, GREETINGS_PER_KEY, PROVISIONAL_PER_KEY, RegistryConfig, TurnedAway,
};
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, RejectReason};
use tund_session::{Event, LinkId, Outbox, Session};

const BUSY: Option<TurnedAway> = Some(TurnedAway::Rejected(RejectReason::Busy));

#[test]
fn beyond_max_sessions_a_client_is_told_when_to_come_again() {
    let mut world = World::new(RegistryConfig {
        max_sessions: 2,
        ..config()
    });
    let (one, _) = world.attached(1, key(1));
    world.attached(1, key(2));
    let third = world.client(1);

    let link = world.dial(third, key(3));

    assert_eq!(world.turned_away(link), BUSY);
    let hint = Event::AttachRefused {
        reason: RejectReason::Busy,
        retry_after: BUSY_HINT,
    };
    assert!(world.client_events[third].contains(&hint));
    world.clients[one].close(CloseCode::Asked, world.now);
    world.run();
    world.dial(third, key(3));
    assert!(world.clients[third].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn a_restarted_client_gets_its_place_back_on_a_full_server() {
    let mut world = World::new(RegistryConfig {
        max_sessions: 1,
        ..config()
    });
    let (old, _) = world.attached(1, key(1));
    world.open(old);
    world.kill(old);
    let restarted = world.client(2);

    world.dial(restarted, key(1));

    assert!(world.clients[restarted].is_attached());
    assert_eq!(world.live().len(), 1);
    world.expect_nothing_kept();
}

#[test]
fn one_key_has_a_bound_on_what_it_never_confirms() {
    let mut world = World::new(config());
    let links: Vec<LinkId> = (0..PROVISIONAL_PER_KEY + 3)
        .map(|_| {
            let link = world.raw(key(1));
            world.say(link, encoded(&hello(1)));
            link
        })
        .collect();
    world.run();

    let refused = links
        .iter()
        .filter(|link| world.turned_away(**link) == BUSY);
    assert_eq!(refused.count(), 3);
    assert_eq!(world.live().len(), PROVISIONAL_PER_KEY);
    world.attached(1, key(2));
    world.pass(SECOND * 15);
    assert_eq!(world.live().len(), 1);
    world.attached(1, key(1));
    world.expect_nothing_kept();
}

#[test]
fn one_key_has_a_bound_on_links_that_say_nothing() {
    let mut world = World::new(config());
    let links: Vec<LinkId> = (0..GREETINGS_PER_KEY + 2)
        .map(|_| world.raw(key(1)))
        .collect();
    let other = world.raw(key(2));
    world.run();

    let open = links.iter().filter(|link| world.is_open(**link));
    assert_eq!(open.count(), GREETINGS_PER_KEY);
    assert_eq!(world.turned_away(links[GREETINGS_PER_KEY]), BUSY);
    assert!(world.is_open(other));
    world.expect_nothing_kept();
}

/// A link that was turned away stays until its answer is out, for two seconds at most, and holds it.
#[test]
fn one_key_has_a_bound_on_links_that_were_turned_away() {
    let mut world = World::new(config());
    let links: Vec<LinkId> = (0..GREETINGS_PER_KEY * 2 + 5)
        .map(|_| {
            let link = world.raw(key(1));
            world.say(link, vec![0xff; 8]);
            link
        })
        .collect();
    let other = world.raw(key(2));
    let reasons = world.take_turned_away();

    let of = |reason: TurnedAway| reasons.iter().filter(|told| **told == reason).count();
    assert_eq!(of(TurnedAway::NotUnderstood), GREETINGS_PER_KEY);
    assert_eq!(BUSY, Some(reasons[GREETINGS_PER_KEY]));
    assert_eq!(of(TurnedAway::Crowded), 5);
    assert_eq!(reasons.len(), links.len());
    let mut out = Outbox::new();
    let (crowded, now) = (links[links.len() - 1], world.now);
    assert!(!world.registry.poll_transmit(crowded, 9999, &mut out, now));
    assert!(world.is_open(other));

    // Once they are closed the key has its places back.
    links.into_iter().for_each(|link| world.close(link));
    let again = world.raw(key(1));
    assert_eq!(world.take_turned_away(), []);
    assert!(world.is_open(again));
    world.expect_nothing_kept();
}

#[test]
fn a_session_has_a_bound_on_its_links_and_works_on() {
    let mut world = World::new(config());
    let (client, id) = world.attached(1, key(1));
    for _ in 0..100 {
        world.dial(client, key(1));
        assert!(world.registry.session(id).unwrap().link_count() <= 32);
    }
    let flow = world.open(client);
    assert!(world.clients[client].intake(flow) > 0);
    world.expect_nothing_kept();
}

fn numbered(n: u16) -> ClientKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    ClientKey(bytes)
}

#[test]
fn a_thousand_clients_come_back_at_once() {
    let mut world = World::new(RegistryConfig {
        max_sessions: 1000,
        session: session_config(200),
        memory_bytes: 1 << 30,
    });
    for n in 0..1000 {
        let client = world.client(1);
        world.dial_silently(client, numbered(n));
    }
    world.run();
    for client in 0..1000 {
        world.ask(client);
    }
    world.run();
    world.lose_all();
    assert!(!world.clients.iter().any(Session::is_attached));

    for n in 0..1000_u16 {
        world.dial_silently(usize::from(n), numbered(n));
    }
    world.run();

    assert!(world.clients.iter().all(Session::is_attached));
    assert_eq!(world.live().len(), 1000);
    world.pass(Duration::from_secs(5));
    assert!(world.clients.iter().all(Session::is_attached));
    world.lose_all();
    world.pass(GRACE + SECOND * 31);
    assert_eq!(world.live(), []);
    world.expect_nothing_kept();
}
