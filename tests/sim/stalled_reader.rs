//! One reader that stands still takes neither the buffer nor the rate of the others.

use tund_tests::harness::world::{CLIENT, Knobs, SERVER, World};

/// Bytes that each of the other flows moves in a number of turns of a narrow link.
fn moved_beside(stuck: bool, from: usize) -> u64 {
    let to = 1 - from;
    let mut world = World::calm(Knobs {
        buffer: [512 * 1024, 512 * 1024],
        max_flows: [16, 16],
        ..Knobs::ROOMY
    });
    for _ in 0..4 {
        world.connect();
    }
    world.socket(0, to).stuck = stuck;
    for _ in 0..60 {
        for unit in 0..4 {
            world.socket(unit, from).write(64 * 1024);
            world.socket(unit, to).read(u64::MAX);
        }
        for who in world.ends() {
            for flow in world.flows(who) {
                world.pump(who, flow, 64 * 1024);
            }
        }
        for (link, side) in [(1, from), (1, to)].map(|(n, side)| (tund_session::LinkId(n), side)) {
            world.transmit(link, side, 64 * 1024);
            world.deliver(link, side, usize::MAX);
        }
        world.check();
        world.demand();
    }
    (1..4)
        .map(|unit| world.socket(unit, to).got)
        .min()
        .unwrap_or(0)
}

#[test]
fn a_stalled_reader_leaves_the_others_their_rate_both_ways() {
    for from in [CLIENT, SERVER] {
        let alone = moved_beside(false, from);
        let beside = moved_beside(true, from);

        assert!(alone > 1 << 20, "{alone}");
        assert!(
            beside * 2 >= alone,
            "{beside} beside a stuck reader, {alone} without"
        );
    }
}

#[test]
fn a_flow_whose_reader_never_read_gets_no_more_of_the_buffer() {
    for from in [CLIENT, SERVER] {
        let mut world = World::calm(Knobs::ROOMY);
        world.connect();
        world.socket(0, 1 - from).stuck = true;

        for _ in 0..100 {
            world.socket(0, from).write(64 * 1024);
            world.work(true);
        }

        let taken = world.socket(0, from).taken();
        assert!(
            taken < 256 * 1024,
            "{taken} bytes of one stalled flow, buffer 1 MiB"
        );
    }
}
