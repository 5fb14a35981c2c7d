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
    for _ in 0..100 {
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

/// During an outage one flow may take the buffer. If its reader stands still afterwards, others
/// must still be able to grow: a new one would crawl with its floor alone.
#[test]
fn a_flow_that_filled_the_buffer_in_an_outage_leaves_others_room_to_grow() {
    for from in [CLIENT, SERVER] {
        let mut world = World::calm(Knobs {
            max_flows: [1024, 1024],
            ..Knobs::ROOMY
        });
        world.connect();
        world.lose(tund_session::LinkId(1));
        world.socket(0, 1 - from).stuck = true;
        for _ in 0..40 {
            world.socket(0, from).write(64 * 1024);
            world.work(false);
        }
        let taken = world.socket(0, from).taken();
        assert!(taken > 900 * 1024, "{taken} bytes taken from {from}");
        let link = world.attach();

        world.connect();
        for _ in 0..100 {
            world.socket(1, from).write(64 * 1024);
            for who in world.ends() {
                for flow in world.flows(who) {
                    world.pump(who, flow, 1 << 20);
                }
            }
            for side in [from, 1 - from] {
                world.transmit(link, side, 1 << 20);
                world.deliver(link, side, usize::MAX);
            }
            world.socket(1, 1 - from).read(u64::MAX);
            world.demand();
        }

        let got = world.socket(1, 1 - from).got;
        assert!(got > 700_000, "{got} bytes in 100 round trips");
    }
}
