//! Flows share a narrow link: equals get the same, and one that sends little does not wait.

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
