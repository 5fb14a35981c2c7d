//! The shape of a core: polls that stay drained, timeouts that may come early, bytes in any pieces.

use std::time::Duration;
use tund_session::{LinkId, Outbox};
use tund_tests::harness::rng::Rng;
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

/// Moves all that can be moved, in pieces as told.
fn exchange(world: &mut World, piece: &mut impl FnMut() -> usize) {
    loop {
        let mut moved = false;
        for link in world.pipes.keys().copied().collect::<Vec<_>>() {
            for side in [CLIENT, SERVER] {
                if world.wants_to_send(link, side) {
                    moved = true;
                    world.transmit(link, side, 50_000);
                }
                let waits = |world: &World| {
                    let pipe = world.pipes.get(&link);
                    pipe.is_some_and(|pipe| pipe.lanes[side].is_deliverable())
                };
                while waits(world) {
                    moved = true;
                    world.deliver(link, side, piece());
                }
            }
        }
        for who in world.ends() {
            for flow in world.flows(who) {
                if let Who::Server(id) = who {
                    world.answer(id, flow, false);
                }
                moved |= world.pump(who, flow, 1 << 20);
            }
        }
        if !moved {
            return;
        }
    }
}

/// The same small life, cut into pieces and looked at as told; what both ends said and learned.
fn life(mut piece: impl FnMut() -> usize, tick: Option<Duration>) -> Vec<String> {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world.open(Duration::from_secs(60)).unwrap();
    world.dial();
    let mut pass = |world: &mut World, span: Duration| {
        let until = world.now + span;
        while world.now < until {
            let next = world.next_deadline().filter(|at| *at < until);
            let next = next.unwrap_or(until);
            while let Some(tick) = tick
                && world.now + tick < next
            {
                world.now = world.now + tick;
                world.timeouts();
            }
            world.now = next.max(world.now + Duration::from_nanos(1));
            world.timeouts();
            world.demand();
            exchange(world, &mut piece);
        }
    };
    let moment = Duration::from_nanos(1);
    pass(&mut world, moment);
    for round in 0..4 {
        for side in [CLIENT, SERVER] {
            world.socket(0, side).write(3000 + round);
        }
        pass(&mut world, moment);
        for side in [CLIENT, SERVER] {
            world.socket(0, side).read(u64::MAX);
        }
        pass(&mut world, Duration::from_secs(40));
        if round == 1 {
            world.lose(LinkId(1));
            pass(&mut world, Duration::from_secs(2));
            world.dial();
        }
    }
    let lines = world.story.take().unwrap_or_default();
    let told = lines
        .into_iter()
        .filter(|line| !line.contains(" reads on "));
    let mut told: Vec<String> = told.collect();
    // Of frames that come one by one, an owner is told as often.
    told.dedup();
    told
}

#[test]
fn bytes_in_any_pieces_give_the_same_life() {
    let whole = life(|| usize::MAX, None);
    let mut rng = Rng::new(5);

    let single = life(|| 1, None);
    let random = life(|| 1 + rng.below(70), None);

    assert!(whole.len() > 100);
    assert_eq!(single, whole);
    assert_eq!(random, whole);
}

#[test]
fn timeouts_at_every_millisecond_give_the_same_life() {
    let at_deadlines = life(|| usize::MAX, None);

    let always = life(|| usize::MAX, Some(Duration::from_millis(1)));

    assert_eq!(always, at_deadlines);
}

#[test]
fn what_is_drained_stays_drained() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    world.socket(0, CLIENT).write(50_000);
    world.work(true);
    let now = world.now;
    let client = world.client.as_mut().unwrap();
    let deadline = client.session.poll_timeout();

    for _ in 0..3 {
        let mut out = Outbox::new();
        assert!(
            !client
                .session
                .poll_transmit(LinkId(1), 1 << 20, &mut out, now)
        );
        assert!(out.is_empty());
        assert_eq!(client.session.poll_event(), None);
        client.session.handle_timeout(now);
        assert_eq!(client.session.poll_timeout(), deadline);
    }
}

#[test]
fn frames_for_unknown_links_and_flows_change_nothing() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let now = world.now;
    let client = world.client.as_mut().unwrap();
    let deadline = client.session.poll_timeout();

    client
        .session
        .handle_bytes(LinkId(99), vec![1, 2, 3].into(), now);
    client.session.handle_link_down(LinkId(99), now);
    client.session.release(tund_session::FlowId(99), 10, now);
    client.session.end_delivered(tund_session::FlowId(99), now);

    assert_eq!(client.session.poll_event(), None);
    assert_eq!(client.session.poll_timeout(), deadline);
}
