//! An outage that is too long: A is reset when grace is over, C half a minute later, to the
//! nanosecond; and what comes after it ends the same way.

use std::time::Duration;
use tund_session::SessionId;
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

/// What `World::connect` asks for.
const GRACE: Duration = Duration::from_secs(300);
/// What the server adds.
const EXTRA: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const NANOSECOND: Duration = Duration::from_nanos(1);

/// A flow on which both ends write, before and after both kernels have lost its link.
fn lose_an_active_flow(world: &mut World) -> (usize, SessionId) {
    let unit = world.connect();
    let Who::Server(id) = world.server() else {
        unreachable!("it is the server's")
    };
    for side in [CLIENT, SERVER] {
        world.socket(unit, side).write(5000);
    }
    let link = *world.pipes.keys().next_back().expect("it is attached");
    world.work(false);
    world.lose(link);
    for side in [CLIENT, SERVER] {
        world.socket(unit, side).write(5000);
    }
    (unit, id)
}

fn is_alive(world: &mut World, unit: usize) -> [bool; 2] {
    [CLIENT, SERVER].map(|side| !world.socket(unit, side).is_reset())
}

/// The end of an outage, second by second. The client never returns.
fn expire(world: &mut World, unit: usize, id: SessionId) {
    world.work_for(GRACE - SECOND);
    assert_eq!(is_alive(world, unit), [true, true], "a second before");
    world.work_for(SECOND - NANOSECOND);
    assert_eq!(is_alive(world, unit), [true, true], "a nanosecond before");
    world.work_for(NANOSECOND);
    assert_eq!(is_alive(world, unit), [false, true], "A is reset, C waits");
    assert!(world.client.is_none(), "the client has done with it");
    world.work_for(EXTRA - NANOSECOND);
    assert_eq!(is_alive(world, unit), [false, true], "a nanosecond before");
    assert!(world.registry.session(id).is_some_and(|s| !s.is_ended()));
    world.work_for(NANOSECOND);
    assert_eq!(is_alive(world, unit), [false, false], "C is closed");
    assert!(world.registry.session(id).is_none_or(|s| s.is_ended()));
}

#[test]
fn grace_ends_a_then_c_and_the_next_session_ends_alike() {
    let mut world = World::calm(Knobs::ROOMY);
    let (unit, first) = lose_an_active_flow(&mut world);
    expire(&mut world, unit, first);
    let ends: Vec<_> = world.registry.tombstones(world.now).collect();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].0.session, first);

    let (unit, second) = lose_an_active_flow(&mut world);
    assert_ne!(second, first, "the id never attaches again");
    expire(&mut world, unit, second);
}

#[test]
fn a_client_that_comes_back_a_nanosecond_before_loses_nothing() {
    let mut world = World::calm(Knobs::ROOMY);
    let (unit, id) = lose_an_active_flow(&mut world);

    world.work_for(GRACE - NANOSECOND);
    world.attach();
    world.work(true);

    assert_eq!(world.server(), Who::Server(id));
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(unit, side).got, 10_000);
    }
}
