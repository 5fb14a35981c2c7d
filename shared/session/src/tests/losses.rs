//! What is counted as lost of a flow, and what is not.

use super::pair::{CLIENT, Pair, SERVER};
use crate::wire::frame::FlowCode;
use crate::{Event, FlowId};

/// What was lost of a flow that both ends have forgotten, as `end` has it.
fn lost(pair: &Pair, end: usize, flow: FlowId) -> Option<u64> {
    pair.events[end].iter().find_map(|event| {
        let Event::FlowForgotten { flow: of, lost, .. } = event else {
            return None;
        };
        (*of == flow).then_some(*lost)
    })
}

#[test]
fn what_the_origin_took_before_its_reset_is_not_lost_and_what_its_socket_kept_is() {
    for (stranded, expected) in [(0, 3000), (700, 3700)] {
        let mut pair = Pair::new();
        let flow = pair.open_accepted();
        assert_eq!(pair.write(CLIENT, flow, 5000), 5000);
        pair.run();
        // Its acknowledgement goes out behind RESET.
        let server = &mut pair.ends[SERVER];
        server.release(flow, 2000, pair.now);
        server.strand(flow, stranded, pair.now);
        server.reset(flow, FlowCode::PeerReset, pair.now);
        pair.run();

        assert_eq!(
            pair.ends[CLIENT].reset_code(flow),
            Some(FlowCode::PeerReset)
        );
        pair.ends[CLIENT].end_delivered(flow, pair.now);
        pair.run();
        assert_eq!(lost(&pair, CLIENT, flow), Some(expected));
        assert_eq!(lost(&pair, SERVER, flow), Some(0));
    }
}

#[test]
fn what_a_socket_throws_away_when_it_is_given_up_is_lost() {
    for (unsent, expected) in [(0, 3000), (700, 3700)] {
        let mut pair = Pair::new();
        pair.unsent = unsent;
        let flow = pair.open_accepted();
        assert_eq!(pair.write(CLIENT, flow, 5000), 5000);
        pair.run();
        pair.ends[SERVER].release(flow, 2000, pair.now);
        pair.run();

        pair.ends[CLIENT].abort(flow, FlowCode::Asked, pair.now);
        pair.run();

        assert_eq!(lost(&pair, CLIENT, flow), Some(expected));
    }
}

/// Rule 13: a reset that a stuck reader holds up goes out after five seconds.
#[test]
fn what_a_stuck_socket_throws_away_with_its_reset_is_lost() {
    let mut pair = Pair::new();
    pair.unsent = 700;
    let flow = pair.open_accepted();
    assert_eq!(pair.write(CLIENT, flow, 5000), 5000);
    pair.ends[CLIENT].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();
    pair.ends[SERVER].release(flow, 2000, pair.now);

    pair.seconds(6);

    assert_eq!(lost(&pair, CLIENT, flow), Some(3700));
}
