//! An outage in which both sides fill their buffers: writers do not block before, and everything
//! arrives whole afterwards.

use std::time::Duration;
use tund_session::{LinkId, Session};
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

const BUFFER: u64 = 256 * 1024;

fn cut_off() -> World {
    let mut world = World::calm(Knobs {
        buffer: [BUFFER, BUFFER],
        ring: 1 << 20,
        ..Knobs::ROOMY
    });
    world.connect();
    world.lose(LinkId(1));
    world
}

fn held(world: &World, who: Who) -> u64 {
    world.session(who).map_or(0, |session| session.buffered().0)
}

#[test]
fn writers_that_fit_finish_during_the_outage_and_arrive_after_it() {
    let mut world = cut_off();
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(0, side).write(BUFFER / 2), BUFFER / 2);
        assert!(world.socket(0, side).finish());
    }

    world.work_for(Duration::from_secs(60));
    let blocked = [CLIENT, SERVER].map(|side| world.socket(0, side).inbound());
    world.attach();
    world.work(true);

    assert_eq!(blocked, [0, 0], "taken from the sockets while detached");
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(0, side).got, BUFFER / 2);
        assert!(world.socket(0, side).saw_fin);
    }
    for who in [Who::Client, world.server()] {
        assert_eq!(world.session(who).map(Session::flow_count), Some(0));
    }
}

#[test]
fn writers_that_do_not_fit_are_stopped_close_to_the_buffer() {
    let mut world = cut_off();
    let server = world.server();
    for side in [CLIENT, SERVER] {
        world.socket(0, side).write(1 << 20);
    }

    world.work_for(Duration::from_secs(60));

    for who in [Who::Client, server] {
        let held = held(&world, who);
        assert!(
            (BUFFER * 9 / 10..=BUFFER).contains(&held),
            "{who:?} holds {held}"
        );
    }
    world.attach();
    world.work(true);
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(0, side).got, 1 << 20);
    }
}

#[test]
fn several_outages_in_the_middle_of_frames_lose_nothing() {
    let mut world = World::calm(Knobs {
        ring: 1 << 20,
        ..Knobs::ROOMY
    });
    world.connect();
    for side in [CLIENT, SERVER] {
        world.socket(0, side).write(1 << 20);
        world.socket(0, side).finish();
    }
    for round in 0..10 {
        let link = *world.pipes.keys().next_back().unwrap();
        for who in [Who::Client, world.server()] {
            let flow = world.flows(who)[0];
            world.pump(who, flow, 70_000);
            world.transmit(link, who.side(), 70_000);
            world.deliver(link, who.side(), 20_000 + 777 * round);
        }
        world.lose(link);
        world.attach();
    }
    world.work(true);
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(0, side).got, 1 << 20);
        assert!(world.socket(0, side).saw_fin);
    }
}

/// At the beginning of an outage every flow was promised what it might write. A few hundred idle
/// ones took the whole pool so, and the one that did write was stopped at once.
#[test]
fn idle_flows_leave_the_buffer_to_the_one_that_writes() {
    let mut world = World::calm(Knobs {
        buffer: [16 << 20, 16 << 20],
        max_flows: [512, 512],
        ring: 32 << 20,
        send_queue: 1 << 24,
        ..Knobs::ROOMY
    });
    world.connect();
    for _ in 1..200 {
        world.open(Duration::from_secs(300)).unwrap();
    }
    world.work(false);
    world.lose(LinkId(1));
    for side in [CLIENT, SERVER] {
        world.socket(0, side).write(32 << 20);
    }

    world.work_for(Duration::from_secs(5));

    for side in [CLIENT, SERVER] {
        let taken = world.socket(0, side).taken();
        assert!(taken > 11 << 20, "{taken} of 16 MiB");
    }
}
