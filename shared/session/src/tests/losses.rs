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
        server.strand(flow, stranded);
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
