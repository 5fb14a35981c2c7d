//! One key greeted twice: who waits for whom, and who gives way.

use super::world::{NANOSECOND, SECOND, World, config, encoded, hello, key};
use crate::registry::{KEY_IN_USE_WAIT, TurnedAway};
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, Frame, LinkCloseReason, RejectReason};
use tund_session::{EndReason, Event, Outbox};

const UNCONFIRMED: Duration = Duration::from_secs(15);

#[test]
fn a_newcomer_is_told_that_its_key_is_in_use_and_the_first_is_untouched() {
    let mut world = World::new(config());
    let (first, id) = world.attached(1, key(1));
    let second = world.client(2);
    let link = world.dial(second, key(1));

    world.pass(KEY_IN_USE_WAIT - NANOSECOND);
    assert_eq!(world.turned_away(link), None);
    world.pass(NANOSECOND);

    assert_eq!(world.turned_away(link), Some(TurnedAway::KeyInUse));
    assert!(world.client_events[second].contains(&Event::KeyInUse));
    assert!(!world.is_open(link));
    assert_eq!(world.live(), [id]);
    assert!(world.clients[first].is_attached());
    assert!(!world.client_events[first].contains(&Event::Detached));
    world.expect_nothing_kept();
}

#[test]
fn a_silent_rival_gives_way_once_the_newcomer_is_confirmed() {
    let mut world = World::new(config());
    let (first, old) = world.attached(1, key(1));
    world.pass(SECOND * 3);
    world.cut(first);
    let second = world.client(2);

    world.dial(second, key(1));
    world.pass(KEY_IN_USE_WAIT - NANOSECOND);
    assert_eq!(world.live(), [old]);
    world.pass(NANOSECOND);

    let superseded = EndReason::Local(CloseCode::Superseded);
    assert_eq!(world.ended(old), Some(superseded));
    let id = world.clients[second].id().unwrap();
    assert_eq!(world.live(), [id]);
    world.expect_nothing_kept();
}

#[test]
fn a_client_that_hangs_while_its_kernel_answers_gives_way_too() {
    let mut world = World::new(config());
    let (first, _) = world.attached(1, key(1));
    world.pass(SECOND * 3);
    world.cut(first);
    world.is_moving = true;
    let second = world.client(2);

    world.dial(second, key(1));
    world.pass(KEY_IN_USE_WAIT - NANOSECOND);
    assert!(!world.clients[second].is_attached());
    world.pass(NANOSECOND);

    assert!(world.clients[second].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn a_newcomer_that_never_confirms_takes_nothing_over() {
    let mut world = World::new(config());
    let (first, old) = world.attached(1, key(1));
    world.open(first);
    world.lose(first);
    let newcomer = world.raw(key(1));
    world.say(newcomer, encoded(&hello(2)));

    world.pass(UNCONFIRMED);

    assert_eq!(world.live(), [old]);
    world.dial(first, key(1));
    assert!(world.registry.session(old).unwrap().is_attached());
    world.expect_nothing_kept();
}

#[test]
fn a_killed_client_is_replaced_at_once_although_bytes_of_it_were_under_way() {
    let mut world = World::new(config());
    let (first, old) = world.attached(1, key(1));
    let old_link = world.registry.session(old).unwrap().carrier().unwrap();
    let second = world.client(2);
    world.dial(second, key(1));

    // What the killed process had sent arrives, and then its FIN.
    world.say(old_link, encoded(&Frame::Ping { nonce: 77 }));
    world.kill(first);

    let id = world.clients[second].id().expect("it did not have to wait");
    assert_eq!(world.live(), [id]);
    world.expect_nothing_kept();
}

/// A killed client had two links; one has ended for its session, and the driver has not closed it
/// yet. What was under way on it said to the newcomer that its key is in use.
#[test]
fn late_bytes_of_a_link_that_is_dead_are_no_answer() {
    let mut world = World::new(config());
    let (first, old) = world.attached(1, key(1));
    let dead = world.dial_silently(first, key(1));
    let mut out = Outbox::new();
    world.clients[first].poll_transmit(dead, 60_000, &mut out, world.now);
    world.say(dead, out.to_vec());
    let reason = LinkCloseReason::Unneeded;
    world.say(dead, encoded(&Frame::LinkClose { reason }));
    world.cut(first);

    let newcomer = world.raw(key(1));
    world.say(newcomer, encoded(&hello(2)));
    world.say(dead, encoded(&Frame::Ping { nonce: 77 }));
    assert_eq!(world.live(), [old]);
    world.pass(KEY_IN_USE_WAIT);

    assert_eq!(world.turned_away(newcomer), None);
    let welcomed = |frame: &Frame| matches!(frame, Frame::Welcome(_));
    assert!(world.heard(newcomer).iter().any(welcomed));
    world.expect_nothing_kept();
}

#[test]
fn a_newcomer_gets_in_at_once_when_the_first_disconnects() {
    let mut world = World::new(config());
    let (first, _) = world.attached(1, key(1));
    let second = world.client(2);
    world.dial(second, key(1));
    assert!(!world.clients[second].is_attached());

    world.clients[first].close(CloseCode::Asked, world.now);
    world.run();

    assert!(world.clients[second].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn a_rival_that_changes_links_meanwhile_has_no_longer_to_answer() {
    let mut world = World::new(config());
    let (first, id) = world.attached(1, key(1));
    world.open(first);
    let old = world.registry.session(id).unwrap().carrier().unwrap();
    world.dial_silently(first, key(1));
    let second = world.client(2);
    let link = world.dial(second, key(1));
    world.pass(SECOND);

    world.close(old);
    world.run();
    world.pass(SECOND);

    assert_eq!(world.turned_away(link), Some(TurnedAway::KeyInUse));
    assert!(world.clients[first].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn a_detached_session_of_another_start_ends_when_the_newcomer_confirms() {
    let mut world = World::new(config());
    let (first, old) = world.attached(1, key(1));
    world.open(first);
    world.lose(first);
    let second = world.client(2);

    world.dial(second, key(1));

    let superseded = EndReason::Local(CloseCode::Superseded);
    assert_eq!(world.ended(old), Some(superseded));
    assert_eq!(world.live(), [world.clients[second].id().unwrap()]);
    // The old one finds out when it comes back.
    world.dial(first, key(1));
    let told = EndReason::Rejected(RejectReason::Superseded);
    assert_eq!(world.client_ended(first), Some(told));
    world.expect_nothing_kept();
}

#[test]
fn hello_of_the_same_start_needs_no_wait() {
    let mut world = World::new(config());
    let (_, old) = world.attached(1, key(1));
    let again = world.client(1);

    world.dial(again, key(1));

    let id = world.clients[again].id().expect("welcomed at once");
    assert_eq!(world.live(), [id]);
    let superseded = EndReason::Local(CloseCode::Superseded);
    assert_eq!(world.ended(old), Some(superseded));
    world.expect_nothing_kept();
}

#[test]
fn of_two_newcomers_at_a_silent_session_only_one_gets_in() {
    let mut world = World::new(config());
    let (first, _) = world.attached(1, key(1));
    world.cut(first);
    let second = world.client(2);
    let third = world.client(3);
    world.dial(second, key(1));
    world.pass(Duration::from_millis(100));
    let late = world.dial(third, key(1));

    world.pass(KEY_IN_USE_WAIT);
    let id = world.clients[second].id().expect("in after two seconds");
    assert_eq!(world.turned_away(late), None);
    world.pass(KEY_IN_USE_WAIT);

    assert_eq!(world.turned_away(late), Some(TurnedAway::KeyInUse));
    assert_eq!(world.live(), [id]);
    assert!(world.clients[second].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn a_late_word_of_a_killed_client_does_not_end_its_successor() {
    let mut world = World::new(config());
    let links = [world.raw(key(1)), world.raw(key(1))];
    for (link, instance) in links.into_iter().zip([1, 2]) {
        world.say(link, encoded(&hello(instance)));
        world.run();
    }
    let [killed, successor] = world.live()[..] else {
        panic!("both are provisional")
    };

    // What confirms the first had been under way for long.
    world.say(links[0], encoded(&Frame::Ping { nonce: 1 }));
    world.run();
    assert_eq!(world.live(), [killed, successor]);
    world.say(links[1], encoded(&Frame::Ping { nonce: 1 }));
    world.run();

    assert_eq!(world.confirmed(), [successor]);
    let superseded = EndReason::Local(CloseCode::Superseded);
    assert_eq!(world.ended(killed), Some(superseded));
    world.expect_nothing_kept();
}
