//! What is left of flows whose messages are kept, and of those that take bytes early.

use super::super::{CLIENT, Pair, SERVER};
use super::*;

#[test]
fn an_expired_flow_gives_back_what_is_held_from_the_last_boundary_on() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.send(flow, "one\ntwo\nthree\nfo");
    pair.take(flow);
    pair.acknowledge(flow, 7);
    pair.lose_link();
    pair.send(flow, "ur\nfi");

    pair.seconds(61);

    let (start, text, fin) = pair.expired(flow).expect("a remainder");
    assert_eq!(
        (start, text.as_str(), fin),
        (4, "two\nthree\nfour\nfi", false)
    );
    let aborted = Event::FlowAborted {
        flow,
        code: FlowCode::Expired,
    };
    assert!(!pair.saw(CLIENT, &aborted));
    assert_eq!(pair.ends[CLIENT].lost(), 0);
    pair.seconds(31);
    assert_eq!(pair.final_of(flow), Some((14, 7)));
    let of = |wanted: &dyn Fn(&Event) -> bool| pair.events[SERVER].iter().position(wanted);
    assert!(of(&|e| matches!(e, Event::FlowFinal { .. })) < of(&|e| *e == aborted));
}

/// It was reset, and what it held was lost: the peer had slept, and its clock was first.
#[test]
fn a_flow_that_the_peer_holds_expired_gives_back_what_is_held_too() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.send(flow, "one\ntwo\n");
    pair.take(flow);
    pair.acknowledge(flow, 4);

    let now = pair.now;
    pair.ends[SERVER].abort(flow, FlowCode::Expired, now);
    pair.run();

    let left = pair.expired(flow).expect("a remainder");
    assert_eq!(left, (4, "two\n".to_owned(), false));
    assert_eq!(pair.ends[CLIENT].lost(), 0);
}

#[test]
fn an_opaque_flow_that_expires_is_lost() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.send(flow, "SSH-2.0-some");
    pair.take(flow);
    pair.acknowledge(flow, 0);
    pair.lose_link();
    pair.send(flow, "more\n");

    pair.seconds(61);

    assert_eq!(pair.expired(flow), None);
    assert_eq!(pair.ends[CLIENT].lost(), 5);
}

/// What a client with an unfinished flow is left with when its session ends so.
fn remainders(end: impl FnOnce(&mut Pair)) -> (Vec<(u64, String, bool)>, u64) {
    let mut pair = pair();
    let flow = pair.stored();
    pair.open_accepted();
    pair.send(flow, "one\ntwo\nthree");
    pair.take(flow);
    pair.acknowledge(flow, 2);
    end(&mut pair);
    assert!(pair.ends[CLIENT].is_ended());
    let left = pair.ends[CLIENT].take_remainders();
    let left = left.iter().map(|(of, remainder)| {
        assert_eq!(*of, flow);
        words(remainder)
    });
    (left.collect(), pair.ends[CLIENT].lost())
}

fn rejected(pair: &mut Pair, reason: RejectReason, released: Vec<(FlowId, Offset)>) {
    pair.lose_link();
    pair.ends[CLIENT].handle_link_up(LinkId(9), super::super::secret(9), pair.now);
    let reject = ResumeReject {
        reason,
        released,
        retry_after: Duration::ZERO,
    };
    let mut bytes = Vec::new();
    wire::codec::encode(&Frame::ResumeReject(reject), &mut bytes);
    pair.ends[CLIENT].handle_bytes(LinkId(9), bytes.into(), pair.now);
    pair.run();
}

#[test]
fn a_session_that_ends_unasked_leaves_what_is_to_be_stored() {
    let whole = (vec![(4, "two\nthree".to_owned(), false)], 0);
    for reason in [
        RejectReason::Restarted,
        RejectReason::Ended,
        RejectReason::Superseded,
    ] {
        assert_eq!(remainders(|pair| rejected(pair, reason, Vec::new())), whole);
    }
    let closed = remainders(|pair| {
        pair.ends[SERVER].close(CloseCode::Asked, pair.now);
        pair.run();
    });
    assert_eq!(closed, whole);
}

#[test]
fn what_the_server_says_of_an_expired_session_is_left_out() {
    let expired = |offset| {
        let told = vec![(FlowId(1), Offset(offset)), (FlowId(77), Offset(5))];
        remainders(|pair| rejected(pair, RejectReason::Expired, told))
    };

    assert_eq!(expired(8), (vec![(8, "three".to_owned(), false)], 0));
    assert_eq!(expired(3), (vec![(4, "two\nthree".to_owned(), false)], 0));
    assert_eq!(
        expired(u64::MAX >> 2),
        (vec![(8, "three".to_owned(), false)], 0)
    );
}

#[test]
fn who_disconnects_or_loses_the_key_leaves_nothing() {
    let lost = (Vec::new(), 7);
    let by_user = remainders(|pair| pair.ends[CLIENT].close(CloseCode::Asked, pair.now));
    let by_key = remainders(|pair| {
        pair.ends[SERVER].close(CloseCode::KeyRemoved, pair.now);
        pair.run();
    });

    assert_eq!(by_user, lost);
    assert_eq!(by_key, lost);
}

#[test]
fn the_server_tells_how_far_each_flow_got_when_its_session_ends() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.stored();
    pair.send(flow, "one\ntwo\n");
    pair.take(flow);
    pair.acknowledge(flow, 3);

    pair.ends[SERVER].close(CloseCode::Superseded, pair.now);
    pair.run();

    assert_eq!(pair.final_of(flow), Some((8, 5)));
    let finals = pair.events[SERVER].iter();
    let finals = finals.filter(|e| matches!(e, Event::FlowFinal { .. }));
    assert_eq!(finals.count(), 1);
    let order: Vec<_> = pair.events[SERVER].iter().rev().take(3).collect();
    assert!(order.iter().any(|e| matches!(e, Event::Ended { .. })));
}

#[test]
fn an_early_flow_takes_bytes_before_its_origin_answers() {
    let mut pair = pair();
    let flow = pair.ask(&target(OnExpiry::Reset, true));

    pair.send(flow, "hello");
    assert_eq!(pair.readable(flow), "");
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();

    assert_eq!(pair.readable(flow), "hello");
}

#[test]
fn an_early_flow_that_is_refused_gives_back_what_it_took() {
    let mut pair = pair();
    let flow = pair.ask(&target(LINES, true));
    pair.send(flow, "hello");

    pair.ends[SERVER].refuse_flow(flow, OpenError::Refused, pair.now);
    pair.run();

    let given = pair.events[CLIENT].iter().find_map(|event| {
        let Event::FlowRefused { remainder, .. } = event else {
            return None;
        };
        remainder.as_ref().map(words)
    });
    assert_eq!(given, Some((0, "hello".to_owned(), false)));
    assert_eq!(pair.ends[CLIENT].flow_count(), 0);
    assert_eq!(pair.ends[CLIENT].lent(), 0);
}

#[test]
fn an_early_flow_whose_session_ends_gives_back_what_it_took() {
    let mut pair = pair();
    let flow = pair.ask(&target(OnExpiry::Reset, true));
    pair.send(flow, "hello");
    pair.ends[CLIENT].finish(flow, pair.now);

    rejected(&mut pair, RejectReason::Restarted, Vec::new());

    let left = pair.ends[CLIENT].take_remainders();
    assert_eq!(left.len(), 1);
    assert_eq!(words(&left[0].1), (0, "hello".to_owned(), true));
    assert_eq!(pair.ends[CLIENT].lost(), 0);
}

#[test]
fn an_early_flow_given_up_is_counted_as_lost() {
    let mut pair = pair();
    pair.lose_link();
    let flow = pair.ask(&target(OnExpiry::Reset, true));
    pair.send(flow, "hello");

    pair.ends[CLIENT].abort(flow, FlowCode::Cancelled, pair.now);

    assert_eq!(pair.ends[CLIENT].lost(), 5);
}
