//! Who gets a session, who gets back into one, and what the others are told.

use super::world::{GRACE, NANOSECOND, SECOND, World, config, encoded, hello, key, secret};
use crate::registry::{RegistryConfig, TurnedAway};
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, Frame, LinkCloseReason, RejectReason, Resume};
use tund_session::wire::kind::MAX_RELEASED;
use tund_session::{EndReason, FlowId, Instance, LinkId, LinkNumber, Offset, SessionId};

const UNCONFIRMED: Duration = Duration::from_secs(15);

#[test]
fn hello_is_welcomed_and_the_session_confirmed() {
    let mut world = World::new(config());

    let (client, id) = world.attached(1, key(1));

    assert!(world.registry.session(id).unwrap().is_confirmed());
    assert_eq!(world.registry.key(id), Some(key(1)));
    assert!(world.clients[client].is_attached());
    assert_eq!(world.live(), [id]);
    world.expect_nothing_kept();
}

#[test]
fn a_session_nobody_confirms_is_gone_after_15_s() {
    let mut world = World::new(config());
    let link = world.raw(key(1));
    world.say(link, encoded(&hello(1)));
    world.run();
    assert!(matches!(world.heard(link)[..], [Frame::Welcome(_)]));
    let [id] = world.live()[..] else {
        panic!("one provisional session")
    };

    world.pass(UNCONFIRMED - NANOSECOND);
    assert!(world.ended(id).is_none());
    assert_eq!(world.live(), [id]);

    world.pass(NANOSECOND);
    assert_eq!(world.ended(id), Some(EndReason::Abandoned));
    assert_eq!(world.live(), []);
    world.expect_nothing_kept();
}

#[test]
fn overlapping_attempts_of_one_start_end_in_one_session() {
    let mut world = World::new(config());
    let client = world.client(1);
    let links: Vec<LinkId> = (0..6)
        .map(|_| world.dial_silently(client, key(1)))
        .collect();

    world.run();

    let id = world.clients[client].id().unwrap();
    assert_eq!(world.confirmed(), [id]);
    let open = links.iter().filter(|link| world.is_open(**link)).count();
    assert_eq!(open, 1);
    world.pass(UNCONFIRMED);
    assert_eq!(world.live(), [id]);
    assert!(world.clients[client].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn two_resumes_that_race_both_join() {
    let mut world = World::new(config());
    let (client, id) = world.attached(1, key(1));
    world.open(client);
    world.lose(client);

    let links = [
        world.dial_silently(client, key(1)),
        world.dial_silently(client, key(1)),
    ];
    world.run();

    assert!(world.clients[client].is_attached());
    assert!(world.registry.session(id).unwrap().is_attached());
    assert_eq!(links.map(|link| world.turned_away(link)), [None, None]);
    assert_eq!(world.client_ended(client), None);
    world.expect_nothing_kept();
}

/// RESUME with a proof that is none.
pub(super) fn false_resume(session: SessionId, instance: u8) -> Vec<u8> {
    encoded(&Frame::Resume(Resume {
        versions: (1, 1),
        session,
        instance: Instance([instance; 16]),
        proved: LinkNumber(1),
        proof: [9; 32],
    }))
}

/// What RESUME for `session` with `instance` on a link of `of` is answered with.
fn resume_by_hand(world: &mut World, of: u8, session: SessionId, instance: u8) -> RejectReason {
    rejected_by_hand(world, of, session, instance).0
}

/// The same with the offsets of flows, of as many frames as it takes.
pub(super) fn rejected_by_hand(
    world: &mut World,
    of: u8,
    session: SessionId,
    instance: u8,
) -> (RejectReason, Vec<(FlowId, Offset)>) {
    let link = world.raw(key(of));
    world.say(link, false_resume(session, instance));
    let mut out = tund_session::Outbox::new();
    while world
        .registry
        .poll_transmit(link, 9999, &mut out, world.now)
    {}
    let mut bytes = out.to_vec().into();
    let mut released = Vec::new();
    let reason = loop {
        let answer = tund_session::wire::codec::decode(&mut bytes).unwrap();
        let Some(Frame::ResumeReject(reject)) = answer else {
            panic!("{answer:?}")
        };
        let is_last = reject.released.len() < MAX_RELEASED;
        released.extend(reject.released);
        if is_last {
            break reject.reason;
        }
    };
    world.run();
    assert!(!world.is_open(link));
    let told = TurnedAway::Rejected(reason);
    assert_eq!(world.turned_away(link), Some(told));
    (reason, released)
}

#[test]
fn each_resume_that_fails_is_told_why() {
    let mut world = World::new(config());
    let (first, id) = world.attached(1, key(1));
    let nobody = SessionId([0xaa; 16]);
    world.open(first);

    assert_eq!(
        resume_by_hand(&mut world, 1, id, 99),
        RejectReason::Restarted
    );
    assert_eq!(resume_by_hand(&mut world, 1, id, 200), RejectReason::Proof);
    assert_eq!(
        resume_by_hand(&mut world, 1, nobody, 200),
        RejectReason::Ended
    );
    assert!(world.clients[first].is_attached(), "it was not disturbed");

    // Grace, and what the server adds.
    world.lose(first);
    world.pass(GRACE + SECOND * 31);
    assert_eq!(world.ended(id), Some(EndReason::Expired));
    assert_eq!(
        resume_by_hand(&mut world, 1, id, 200),
        RejectReason::Expired
    );

    // One that has ended and still has its link is as good as gone.
    let (_, next) = world.attached(2, key(1));
    let now = world.now;
    world.registry.close(next, CloseCode::Superseded, now);
    assert_eq!(
        resume_by_hand(&mut world, 1, next, 200),
        RejectReason::Superseded
    );
    let (_, last) = world.attached(3, key(1));
    world.registry.close(last, CloseCode::Asked, now);
    assert_eq!(
        resume_by_hand(&mut world, 1, last, 200),
        RejectReason::Ended
    );
    world.expect_nothing_kept();
}

#[test]
fn another_key_learns_nothing_of_a_session_and_cannot_have_it() {
    let mut world = World::new(config());
    let (first, id) = world.attached(1, key(1));
    world.open(first);
    assert_eq!(resume_by_hand(&mut world, 2, id, 200), RejectReason::Ended);
    world.lose(first);

    // Even with the right secret.
    let thief = world.raw(key(2));
    world.clients[first].handle_link_up(thief, secret(thief), world.now);
    let mut out = tund_session::Outbox::new();
    world.clients[first].poll_transmit(thief, 9999, &mut out, world.now);
    world.say(thief, out.to_vec());
    world.run();
    let ended = TurnedAway::Rejected(RejectReason::Ended);
    assert_eq!(world.turned_away(thief), Some(ended));

    world.pass(GRACE + SECOND * 31);
    assert_eq!(world.ended(id), Some(EndReason::Expired));
    assert_eq!(resume_by_hand(&mut world, 2, id, 200), RejectReason::Ended);
    world.expect_nothing_kept();
}

#[test]
fn a_stolen_key_without_the_secret_takes_no_session_over() {
    let mut world = World::new(config());
    let (first, id) = world.attached(1, key(1));
    world.open(first);
    world.lose(first);
    let before = world.live();

    assert_eq!(resume_by_hand(&mut world, 1, id, 200), RejectReason::Proof);

    assert_eq!(world.live(), before);
    world.dial(first, key(1));
    assert!(world.clients[first].is_attached());
    world.expect_nothing_kept();
}

#[test]
fn first_frames_come_in_any_pieces() {
    let mut world = World::new(config());
    let link = world.raw(key(1));
    for byte in encoded(&hello(1)) {
        assert!(world.heard(link).is_empty());
        world.say(link, vec![byte]);
        world.run();
    }
    assert!(matches!(world.heard(link)[..], [Frame::Welcome(_)]));

    let (client, id) = world.attached(1, key(2));
    world.open(client);
    world.lose(client);
    let link = world.raw(key(2));
    world.clients[client].handle_link_up(link, secret(link), world.now);
    let mut out = tund_session::Outbox::new();
    world.clients[client].poll_transmit(link, 9999, &mut out, world.now);
    for byte in out.to_vec() {
        world.say(link, vec![byte]);
    }
    world.run();
    assert!(matches!(world.heard(link)[..], [Frame::ResumeOk(_), ..]));
    assert_eq!(world.registry.session(id).unwrap().link_count(), 1);
    world.expect_nothing_kept();
}

#[test]
fn nothing_may_come_behind_hello_before_its_answer() {
    let mut world = World::new(config());
    let (first, _) = world.attached(1, key(1));
    world.cut(first);
    let ping = encoded(&Frame::Ping { nonce: 1 });
    let behind_hello = world.raw(key(2));
    world.say(behind_hello, [encoded(&hello(1)), ping.clone()].concat());
    let while_waiting = world.raw(key(1));
    world.say(while_waiting, encoded(&hello(2)));
    world.say(while_waiting, ping);
    world.run();

    for link in [behind_hello, while_waiting] {
        assert_eq!(world.turned_away(link), Some(TurnedAway::NotUnderstood));
    }
    assert_eq!(world.live().len(), 1, "no session was made");
    world.expect_nothing_kept();
}

#[test]
fn what_is_no_first_frame_is_turned_away_without_an_answer() {
    let mut world = World::new(config());
    let wrong = [
        vec![0xff; 4],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        encoded(&Frame::KeyInUse),
        encoded(&Frame::Ping { nonce: 1 }),
        encoded(&Frame::LinkClose {
            reason: LinkCloseReason::Unneeded,
        }),
        // The header of DATA with 16 KiB to come: known to be wrong before the rest is there.
        vec![0x20, 0, 0x40, 0],
        vec![0x01, 0xff, 0xff, 0xff],
    ];
    for bytes in wrong {
        let link = world.raw(key(1));
        world.say(link, bytes.clone());
        let mut out = tund_session::Outbox::new();
        let answered = world
            .registry
            .poll_transmit(link, 9999, &mut out, world.now);
        world.run();
        let told = world.turned_away(link);
        assert_eq!(told, Some(TurnedAway::NotUnderstood), "{bytes:x?}");
        assert!(!answered && !world.is_open(link));
    }
    world.expect_nothing_kept();
}

#[test]
fn a_link_that_says_nothing_is_turned_away_after_10_s() {
    let mut world = World::new(config());
    let silent = world.raw(key(1));
    let halfway = world.raw(key(1));
    world.say(halfway, encoded(&hello(1))[..9].to_vec());

    world.pass(SECOND * 10 - NANOSECOND);
    assert!(world.is_open(silent) && world.is_open(halfway));
    world.pass(NANOSECOND);

    for link in [silent, halfway] {
        assert_eq!(world.turned_away(link), Some(TurnedAway::Silent));
    }
    world.expect_nothing_kept();
}

#[test]
fn a_version_that_we_do_not_speak_is_told_so() {
    let mut world = World::new(config());
    let Frame::Hello(mut from_the_future) = hello(1) else {
        unreachable!()
    };
    from_the_future.versions = (2, 9);
    let link = world.raw(key(1));

    world.say(link, encoded(&Frame::Hello(from_the_future)));
    world.run();

    let told = TurnedAway::Rejected(RejectReason::Version);
    assert_eq!(world.turned_away(link), Some(told));
    world.expect_nothing_kept();
}

#[test]
fn a_removed_key_loses_sessions_and_greetings_at_once() {
    let mut world = World::new(config());
    let (gone, id) = world.attached(1, key(1));
    let (stays, other) = world.attached(1, key(2));
    let greeting = world.raw(key(1));
    let waiting = world.raw(key(1));
    world.say(waiting, encoded(&hello(9)));
    let untouched = world.raw(key(2));

    world.registry.retain_keys(|of| *of == key(2), world.now);
    world.run();

    let removed = EndReason::Local(CloseCode::KeyRemoved);
    assert_eq!(world.ended(id), Some(removed));
    let told = EndReason::Peer(CloseCode::KeyRemoved);
    assert_eq!(world.client_ended(gone), Some(told));
    for link in [greeting, waiting] {
        assert_eq!(world.turned_away(link), Some(TurnedAway::KeyRemoved));
        assert!(!world.is_open(link));
    }
    assert!(world.is_open(untouched) && world.clients[stays].is_attached());
    assert_eq!(world.live(), [other]);
    world.expect_nothing_kept();
}

#[test]
fn while_draining_sessions_go_on_and_new_ones_are_told_to_wait() {
    let mut world = World::new(config());
    let (old, id) = world.attached(1, key(1));
    world.open(old);
    world.registry.drain();
    let newcomer = world.client(1);

    let link = world.dial(newcomer, key(2));
    world.lose(old);
    world.dial(old, key(1));

    let busy = TurnedAway::Rejected(RejectReason::Busy);
    assert_eq!(world.turned_away(link), Some(busy));
    assert!(world.registry.session(id).unwrap().is_attached());
    world.expect_nothing_kept();
}

#[test]
fn when_the_daemon_stops_everybody_is_told() {
    let mut world = World::new(RegistryConfig { ..config() });
    let (attached, _) = world.attached(1, key(1));
    let (detached, _) = world.attached(1, key(2));
    world.open(detached);
    world.lose(detached);
    let greeting = world.raw(key(3));

    world.registry.close_all(world.now);
    world.run();

    let told = EndReason::Peer(CloseCode::Asked);
    assert_eq!(world.client_ended(attached), Some(told));
    assert!(!world.is_open(greeting));
    assert_eq!(world.registry.kept(), [0; 8]);
}
