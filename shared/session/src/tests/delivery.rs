//! Flows whose messages are kept, and flows that deliver them later.

use super::{CLIENT, Pair, SERVER, config};
use crate::session::VERSION;
use crate::wire::frame::{
    CloseCode, FlowCode, Frame, Framing, Limits, OnExpiry, OpenError, Protocol, RejectReason,
    ResumeReject, Welcome, capability,
};
use crate::*;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

const MESSAGE: usize = 64 * 1024;

fn able(role: Role) -> Config {
    Config {
        capabilities: capability::DELIVERY | capability::HAND_OFF,
        ..config(role)
    }
}

fn pair() -> Pair {
    Pair::with(&able(Role::Client), &able(Role::Server))
}

fn target(on_expiry: OnExpiry, accept_early: bool) -> Target {
    Target {
        protocol: Protocol::Tcp,
        source: "10.0.0.1:1000".parse().unwrap(),
        destination: "192.0.2.1:514".parse().unwrap(),
        grace: Duration::from_secs(60),
        on_expiry,
        accept_early,
    }
}

const LINES: OnExpiry = OnExpiry::Store(Framing::Line);

fn deliver_target() -> DeliverTarget {
    DeliverTarget {
        session: SessionId([3; 16]),
        origin_flow: FlowId(9),
        user: 1000,
        destination: "192.0.2.1:514".parse().unwrap(),
        framing: Framing::Line,
        grace: Duration::from_secs(60),
    }
}

impl Pair {
    fn ask(&mut self, target: &Target) -> FlowId {
        let flow = self.ends[CLIENT].open_flow(target, self.now).unwrap();
        self.run();
        flow
    }

    fn stored(&mut self) -> FlowId {
        let flow = self.ask(&target(LINES, false));
        self.ends[SERVER].accept_flow(flow, self.now);
        self.run();
        flow
    }

    fn say(&mut self, flow: FlowId, text: &str) {
        let now = self.now;
        assert!(self.ends[CLIENT].intake(flow) >= u64::try_from(text.len()).unwrap());
        self.ends[CLIENT].write(flow, Bytes::copy_from_slice(text.as_bytes()), now);
        self.run();
    }

    fn readable(&self, flow: FlowId) -> String {
        let pieces = self.ends[SERVER].readable(flow);
        let bytes: Vec<u8> = pieces.flatten().copied().collect();
        String::from_utf8(bytes).unwrap()
    }

    /// The origin's socket takes everything that is readable.
    fn take(&mut self, flow: FlowId) {
        let len = self.ends[SERVER].readable(flow).map(Bytes::len).sum();
        self.ends[SERVER].release(flow, len, self.now);
        self.run();
    }

    /// The origin's TCP has acknowledged all but so many of the bytes that its socket took.
    fn acknowledge(&mut self, flow: FlowId, unacknowledged: u64) {
        let taken = self.ends[SERVER].taken(flow).0;
        self.ends[SERVER].settle_to(flow, Offset(taken - unacknowledged), self.now);
        self.run();
    }

    fn expired(&self, flow: FlowId) -> Option<(u64, String, bool)> {
        self.events[CLIENT].iter().find_map(|event| {
            let Event::FlowExpired {
                flow: of,
                remainder,
            } = event
            else {
                return None;
            };
            (*of == flow).then(|| words(remainder))
        })
    }

    fn final_of(&self, flow: FlowId) -> Option<(u64, u64)> {
        self.events[SERVER].iter().find_map(|event| {
            let Event::FlowFinal {
                flow: of,
                taken,
                released,
            } = event
            else {
                return None;
            };
            (*of == flow).then_some((taken.0, released.0))
        })
    }
}

fn words(remainder: &Remainder) -> (u64, String, bool) {
    let text = String::from_utf8(remainder.bytes.concat()).unwrap();
    (remainder.start.0, text, remainder.fin)
}

#[test]
fn delivery_is_agreed_where_both_ends_know_it() {
    let both = pair();
    let server_alone = Pair::with(&config(Role::Client), &able(Role::Server));
    let client_alone = Pair::with(&able(Role::Client), &config(Role::Server));

    assert_eq!(both.ends.each_ref().map(Session::has_delivery), [true; 2]);
    for other in [server_alone, client_alone] {
        assert_eq!(other.ends.each_ref().map(Session::has_delivery), [false; 2]);
    }
}

#[test]
fn the_server_hands_on_whole_messages_only() {
    let mut pair = pair();
    let flow = pair.stored();

    pair.say(flow, "one\ntw");
    assert_eq!(pair.readable(flow), "one\n");
    pair.say(flow, "o\nthree");
    assert_eq!(pair.readable(flow), "one\ntwo\n");
    pair.ends[CLIENT].finish(flow, pair.now);
    pair.run();

    assert_eq!(pair.readable(flow), "one\ntwo\nthree");
}

#[test]
fn an_opaque_stream_is_handed_on_as_it_comes() {
    let mut pair = pair();
    let flow = pair.stored();

    pair.say(flow, "SSH-2.0-some");

    assert_eq!(pair.readable(flow), "SSH-2.0-some");
}

#[test]
fn what_a_reset_cuts_off_is_handed_on_before_it() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.say(flow, "one\ntw");
    pair.take(flow);
    pair.events[SERVER].clear();

    pair.ends[CLIENT].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();

    assert!(pair.saw(SERVER, &Event::FlowReadable { flow }));
    assert_eq!(pair.readable(flow), "tw");
    pair.take(flow);
    assert_eq!(pair.ends[SERVER].delivery(flow), Delivery::Reset);
    pair.ends[SERVER].end_delivered(flow, pair.now);
    pair.run();
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

#[test]
fn released_is_what_the_origin_has_acknowledged() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.say(flow, "one\ntwo\n");

    pair.take(flow);
    assert!(pair.ends[SERVER].awaits_release(flow));
    assert_eq!(pair.ends[CLIENT].released(flow), Offset(0));
    pair.acknowledge(flow, 3);
    assert_eq!(pair.ends[CLIENT].released(flow), Offset(5));
    pair.acknowledge(flow, 0);

    assert_eq!(pair.ends[CLIENT].released(flow), Offset(8));
    assert!(!pair.ends[SERVER].awaits_release(flow));
}

#[test]
fn the_client_keeps_the_message_that_is_under_way() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.say(flow, "one\ntwo\nthree\n");

    pair.take(flow);
    pair.acknowledge(flow, 7);

    assert_eq!(pair.ends[CLIENT].released(flow), Offset(7));
    assert_eq!(pair.ends[CLIENT].flow_buffered(flow).0, 10);
    pair.acknowledge(flow, 0);
    assert_eq!(pair.ends[CLIENT].flow_buffered(flow).0, 0);
}

#[test]
fn fin_is_released_once_the_origin_has_acknowledged_it() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.say(flow, "one\n");
    pair.ends[CLIENT].finish(flow, pair.now);
    pair.ends[SERVER].finish(flow, pair.now);
    pair.run();
    pair.ends[CLIENT].end_delivered(flow, pair.now);
    pair.take(flow);

    assert_eq!(pair.ends[SERVER].delivery(flow), Delivery::Fin);
    pair.ends[SERVER].end_delivered(flow, pair.now);
    pair.run();
    assert_eq!(pair.ends[SERVER].delivery(flow), Delivery::Open);
    pair.acknowledge(flow, 1);
    assert_eq!(pair.ends[CLIENT].released(flow), Offset(4));
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [1, 1]);
    pair.acknowledge(flow, 0);

    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
    assert_eq!(pair.ends.each_ref().map(Session::lent), [0, 0]);
}

#[test]
fn a_message_of_the_greatest_length_passes_through_a_crowd() {
    let mut pair = pair();
    let flows: Vec<_> = (0..4).map(|_| pair.stored()).collect();
    let hog = pair.open_accepted();
    while pair.write(CLIENT, hog, 100_000) > 0 {
        pair.run();
    }
    let line = [vec![b'x'; MESSAGE - 1], b"\n".to_vec()].concat();

    for flow in &flows {
        for round in 1..=3 {
            let mut rest = Bytes::from(line.clone());
            while !rest.is_empty() {
                let room = usize::try_from(pair.ends[CLIENT].intake(*flow)).unwrap();
                assert!(room > 0, "no room, {} bytes left", rest.len());
                let piece = rest.split_to(room.min(rest.len()));
                pair.ends[CLIENT].write(*flow, piece, pair.now);
                pair.run();
            }
            assert_eq!(pair.readable(*flow).len(), MESSAGE, "round {round}");
            pair.take(*flow);
            pair.acknowledge(*flow, 0);
        }
    }
}

#[test]
fn a_flow_that_may_be_stored_waits_for_room_at_the_client() {
    let mut pair = pair();
    let mut opened = 0;
    let refused = loop {
        match pair.ends[CLIENT].open_flow(&target(LINES, false), pair.now) {
            Ok(_) => opened += 1,
            Err(refused) => break refused,
        }
    };

    assert_eq!(refused, OpenRefused::NoRoom);
    assert!((13..16).contains(&opened), "{opened}");
    assert!(
        pair.ends[CLIENT]
            .open_flow(&target(OnExpiry::Reset, false), pair.now)
            .is_ok()
    );
}

#[test]
fn a_flow_that_may_be_stored_is_refused_while_the_server_has_no_room() {
    let ours = Config {
        buffer_bytes: 4 << 20,
        ..able(Role::Client)
    };
    let mut pair = Pair::with(&ours, &able(Role::Server));
    for _ in 0..20 {
        pair.ask(&target(LINES, false));
    }

    let refused = |event: &&Event| matches!(event, Event::FlowRefused { error, .. } if *error == OpenError::Exhausted);
    let refused = pair.events[CLIENT].iter().filter(refused).count();
    assert!((5..8).contains(&refused), "{refused}");
    assert_eq!(
        pair.ends.each_ref().map(Session::flow_count),
        [20 - refused; 2]
    );
}

#[test]
fn what_no_buffer_could_ever_hold_is_asked_for_as_reset() {
    for (mine, theirs) in [(1 << 20, 50_000), (50_000, 1 << 20)] {
        let ours = Config {
            buffer_bytes: mine,
            ..able(Role::Client)
        };
        let their = Config {
            buffer_bytes: theirs,
            ..able(Role::Server)
        };
        let mut pair = Pair::with(&ours, &their);

        pair.ask(&target(LINES, false));

        let opened = pair.events[SERVER].iter().find_map(|event| {
            let Event::FlowOpened { open, .. } = event else {
                return None;
            };
            Some(open.on_expiry)
        });
        assert_eq!(opened, Some(OnExpiry::Reset));
    }
}

/// What WELCOME says to a client that has a flow waiting, and what its OPEN asks for then.
fn opened_after_welcome(capabilities: u64, buffer_bytes: u64) -> OnExpiry {
    let now = Instant::from_nanos(1_000_000_000);
    let mut client = Session::new_client(&able(Role::Client), now);
    client.open_flow(&target(LINES, false), now).unwrap();
    client.handle_link_up(LinkId(1), super::secret(1), now);
    let mut out = Outbox::new();
    client.poll_transmit(LinkId(1), 10_000, &mut out, now);
    let welcome = Welcome {
        version: VERSION,
        capabilities,
        session: SessionId([7; 16]),
        instance: Instance([2; 16]),
        limits: Limits {
            max_flows: 64,
            buffer_bytes,
            floor_bytes: 1,
        },
    };
    let mut bytes = Vec::new();
    wire::codec::encode(&Frame::Welcome(welcome), &mut bytes);
    client.handle_bytes(LinkId(1), bytes.into(), now);
    out.clear();
    client.poll_transmit(LinkId(1), 10_000, &mut out, now);
    let mut bytes = Bytes::from(out.to_vec());
    while let Ok(Some(frame)) = wire::codec::decode(&mut bytes) {
        if let Frame::Control {
            message: wire::frame::Control::Open(open),
            ..
        } = frame
        {
            return open.on_expiry;
        }
    }
    panic!("no OPEN");
}

#[test]
fn a_flow_asked_for_before_welcome_is_stored_where_welcome_agrees() {
    assert_eq!(opened_after_welcome(capability::DELIVERY, 1 << 20), LINES);
    assert_eq!(opened_after_welcome(0, 1 << 20), OnExpiry::Reset);
    assert_eq!(
        opened_after_welcome(capability::DELIVERY, 50_000),
        OnExpiry::Reset
    );
}

#[test]
fn an_expired_flow_gives_back_what_is_held_from_the_last_boundary_on() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.say(flow, "one\ntwo\nthree\nfo");
    pair.take(flow);
    pair.acknowledge(flow, 7);
    pair.lose_link();
    pair.say(flow, "ur\nfi");

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

#[test]
fn an_opaque_flow_that_expires_is_lost() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.say(flow, "SSH-2.0-some");
    pair.take(flow);
    pair.acknowledge(flow, 0);
    pair.lose_link();
    pair.say(flow, "more\n");

    pair.seconds(61);

    assert_eq!(pair.expired(flow), None);
    assert_eq!(pair.ends[CLIENT].lost(), 5);
}

/// What a client with an unfinished flow is left with when its session ends so.
fn remainders(end: impl FnOnce(&mut Pair)) -> (Vec<(u64, String, bool)>, u64) {
    let mut pair = pair();
    let flow = pair.stored();
    pair.open_accepted();
    pair.say(flow, "one\ntwo\nthree");
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
    pair.ends[CLIENT].handle_link_up(LinkId(9), super::secret(9), pair.now);
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
    pair.say(flow, "one\ntwo\n");
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

    pair.say(flow, "hello");
    assert_eq!(pair.readable(flow), "");
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();

    assert_eq!(pair.readable(flow), "hello");
}

#[test]
fn an_early_flow_that_is_refused_gives_back_what_it_took() {
    let mut pair = pair();
    let flow = pair.ask(&target(LINES, true));
    pair.say(flow, "hello");

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
    pair.say(flow, "hello");
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
    pair.say(flow, "hello");

    pair.ends[CLIENT].abort(flow, FlowCode::Cancelled, pair.now);

    assert_eq!(pair.ends[CLIENT].lost(), 5);
}

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
    pair.say(flow, "rec");
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
    pair.say(flow, "record");
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
        pair.say(flow, "record");
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
