//! Flows that deliver what was stored.

use super::super::{CLIENT, Pair, SERVER, config};
use super::*;

#[test]
fn a_delivery_is_released_when_the_server_says_so() {
    let mut pair = pair();
    let flow = pair.ends[CLIENT]
        .deliver(&deliver_target(), pair.now)
        .unwrap();
    pair.run();
    let asked = pair.events[SERVER].iter().find_map(|event| {
        let Event::DeliverOpened { deliver, .. } = event else {
            return None;
        };
        Some(*deliver)
    });
    let asked = asked.expect("DELIVER");
    assert_eq!(
        (asked.flow, asked.session, asked.origin_flow, asked.user),
        (flow, SessionId([3; 16]), FlowId(9), 1000)
    );
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();
    pair.events[CLIENT] = VecDeque::new();

    // Records have no newline to wait for.
    pair.send(flow, "rec");
    assert_eq!(pair.readable(flow), "rec");
    pair.take(flow);
    assert_eq!(pair.ends[CLIENT].released(flow), Offset(0));
    pair.ends[SERVER].settle_to(flow, Offset(2), pair.now);
    pair.run();
    let told = Event::FlowReleased {
        flow,
        released: Offset(2),
    };
    assert!(pair.saw(CLIENT, &told));
    pair.ends[SERVER].settle_to(flow, Offset(99), pair.now);
    pair.run();

    assert_eq!(pair.ends[CLIENT].released(flow), Offset(3));
}

#[test]
fn the_longest_record_finds_room_at_once_in_a_crowd() {
    let crowd = |role| Config {
        max_flows: 16_384,
        ..able(role)
    };
    let mut pair = Pair::with(&crowd(Role::Client), &crowd(Role::Server));
    let flow = pair.ends[CLIENT]
        .deliver(&deliver_target(), pair.now)
        .unwrap();
    pair.run();
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();
    let record = usize::try_from(limits::MESSAGE + limits::RECORD_EXTRA).unwrap();

    assert_eq!(pair.write(CLIENT, flow, record), record);
    pair.run();

    let arrived: usize = pair.ends[SERVER].readable(flow).map(Bytes::len).sum();
    assert_eq!(arrived, record);
}

#[test]
fn a_stopped_delivery_never_looks_released() {
    let mut pair = pair();
    let flow = pair.ends[CLIENT]
        .deliver(&deliver_target(), pair.now)
        .unwrap();
    pair.run();
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();
    pair.send(flow, "record");
    pair.take(flow);

    pair.ends[SERVER].abort(flow, FlowCode::Unsealable, pair.now);
    pair.run();

    let aborted = Event::FlowAborted {
        flow,
        code: FlowCode::Unsealable,
    };
    assert!(pair.saw(CLIENT, &aborted));
    let released = |e: &&Event| matches!(e, Event::FlowReleased { .. });
    assert_eq!(pair.events[CLIENT].iter().find(released), None);
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

#[test]
fn what_a_delivery_carries_is_never_lost() {
    let mut pair = pair();
    for ends in [false, true] {
        let flow = pair.ends[CLIENT].deliver(&deliver_target(), pair.now);
        let flow = flow.unwrap();
        pair.run();
        pair.ends[SERVER].accept_flow(flow, pair.now);
        pair.run();
        pair.send(flow, "record");
        if ends {
            pair.ends[CLIENT].close(CloseCode::Asked, pair.now);
        } else {
            pair.ends[CLIENT].abort(flow, FlowCode::Asked, pair.now);
            pair.run();
        }
    }

    assert_eq!(pair.ends[CLIENT].lost(), 0);
    assert_eq!(pair.ends[CLIENT].take_remainders(), Vec::new());
    let lost = Event::FlowForgotten {
        flow: FlowId(1),
        lost: 0,
        dropped: 0,
    };
    assert!(pair.saw(CLIENT, &lost));
}

#[test]
fn delivering_needs_the_capability() {
    let mut pair = Pair::with(&able(Role::Client), &config(Role::Server));
    let refused = pair.ends[CLIENT].deliver(&deliver_target(), pair.now);
    assert_eq!(refused, Err(OpenRefused::NotAgreed));

    let mut bytes = Vec::new();
    let deliver = wire::frame::Deliver {
        flow: FlowId(1),
        session: SessionId([3; 16]),
        origin_flow: FlowId(9),
        user: 0,
        destination: "192.0.2.1:514".parse().unwrap(),
        framing: Framing::Line,
        limit: Offset(1),
        grace: Duration::ZERO,
    };
    let message = wire::frame::Control::Deliver(deliver);
    let number = 1;
    wire::codec::encode(&Frame::Control { number, message }, &mut bytes);
    pair.ends[SERVER].handle_bytes(LinkId(1), bytes.into(), pair.now);
    assert!(pair.ends[SERVER].is_ended());
}

#[test]
fn a_flow_that_is_not_stored_waits_for_nobody() {
    let mut pair = pair();
    let flow = pair.open_accepted();
    pair.write(CLIENT, flow, 10);
    pair.run();

    pair.take(flow);

    assert_eq!(pair.ends[CLIENT].released(flow), Offset(10));
    assert!(!pair.ends[SERVER].awaits_release(flow));
    assert_eq!(pair.ends[CLIENT].flow_buffered(flow).0, 0);
}
