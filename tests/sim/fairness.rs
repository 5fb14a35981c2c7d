//! Flows share a narrow link: equals get the same, and one that sends little does not wait.

use std::time::Duration;
use tund_session::LinkId;
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, World};

fn turn(world: &mut World, budget: usize) {
    for who in world.ends() {
        for flow in world.flows(who) {
            world.pump(who, flow, 64 * 1024);
        }
    }
    for side in [CLIENT, SERVER] {
        world.transmit(LinkId(1), side, budget);
        world.deliver(LinkId(1), side, usize::MAX);
    }
}

#[test]
fn eight_equal_flows_get_equal_parts() {
    let mut world = World::calm(Knobs::ROOMY);
    for _ in 0..8 {
        world.connect();
    }
    for _ in 0..300 {
        for unit in 0..8 {
            world.socket(unit, CLIENT).write(64 * 1024);
            world.socket(unit, SERVER).read(u64::MAX);
        }
        turn(&mut world, 40_000);
    }

    let got: Vec<u64> = (0..8).map(|unit| world.socket(unit, SERVER).got).collect();
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(*least > 500_000 && *most < *least * 5 / 4, "{got:?}");
}

#[test]
fn a_flow_that_sends_little_overtakes_those_that_send_much() {
    let mut world = World::calm(Knobs::ROOMY);
    for _ in 0..8 {
        world.connect();
    }
    for _ in 0..50 {
        for unit in 0..7 {
            world.socket(unit, CLIENT).write(64 * 1024);
            world.socket(unit, SERVER).read(u64::MAX);
        }
        turn(&mut world, 20_000);
    }
    world.socket(7, CLIENT).write(1);

    turn(&mut world, 20_000);
    turn(&mut world, 1);

    assert_eq!(world.socket(7, SERVER).put, 1);
}

/// In full turns of 16 KiB the last of a thousand applications waited for 2.7 s at 50 Mbit/s.
#[test]
fn after_an_outage_everybody_has_something_before_anybody_has_much() {
    const FLOWS: usize = 32;
    let mut world = World::calm(Knobs {
        buffer: [4 << 20, 4 << 20],
        ..Knobs::ROOMY
    });
    for _ in 0..FLOWS {
        world.connect();
    }
    world.lose(LinkId(1));
    for unit in 0..FLOWS {
        for side in [CLIENT, SERVER] {
            world.socket(unit, side).write(64 * 1024);
        }
    }
    world.work_for(Duration::from_secs(5));

    let link = world.dial().unwrap();
    world.transmit(link, CLIENT, 1);
    world.deliver(link, CLIENT, usize::MAX);
    for side in [SERVER, CLIENT] {
        // Their headers, and what else is due at an attach, take a little.
        world.transmit(link, side, FLOWS * 2300);
        world.deliver(link, side, usize::MAX);
    }
    for who in world.ends() {
        for flow in world.flows(who) {
            world.pump(who, flow, 64 * 1024);
        }
    }

    for unit in 0..FLOWS {
        let put = [CLIENT, SERVER].map(|side| world.socket(unit, side).put);
        assert!(
            put.iter().all(|put| (1..4096).contains(put)),
            "u{unit}: {put:?}"
        );
    }
    world.work(true);
    for unit in 0..FLOWS {
        let got = [CLIENT, SERVER].map(|side| world.socket(unit, side).got);
        assert_eq!(got, [64 * 1024; 2], "u{unit}");
    }
}
