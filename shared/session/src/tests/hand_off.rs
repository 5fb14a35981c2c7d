//! What an application did not get: kept at the server, told when the flow expires, and first in the
//! next flow.

use super::pair::{CLIENT, Pair, SERVER, config, open, secret, target};
use crate::wire::frame::{
    CloseCode, FlowCode, Frame, Framing, HandOff, Limits, OpenError, Take, Welcome, capability,
};
use crate::*;
use bytes::Bytes;
use std::time::Duration;

fn able(role: Role) -> Config {
    Config {
        capabilities: capability::HAND_OFF,
        ..config(role)
    }
}

fn pair() -> Pair {
    Pair::with(&able(Role::Client), &able(Role::Server))
}

fn wish(framing: Framing) -> HandOff {
    HandOff {
        user: 1000,
        framing,
        retain: Duration::from_secs(3600),
        takes: vec![Take {
            session: SessionId([9; 16]),
            flow: FlowId(4),
            delivered: Offset(5),
        }],
    }
}

/// Of a flow that begins with what its origin says.
fn plain_wish() -> HandOff {
    HandOff {
        takes: Vec::new(),
        ..wish(Framing::Line)
    }
}

fn ask(pair: &mut Pair) -> FlowId {
    ask_for(pair, wish(Framing::Line))
}

fn ask_for(pair: &mut Pair, wish: HandOff) -> FlowId {
    let client = &mut pair.ends[CLIENT];
    let flow = client.open_handed_off(&target(), wish, pair.now);
    pair.run();
    flow.unwrap()
}

/// A flow whose origin has answered; this is for its application ahead of what that says.
fn opened(pair: &mut Pair, prologue: &[&'static str]) -> FlowId {
    let flow = ask(pair);
    accept(pair, flow, prologue);
    flow
}

fn accept(pair: &mut Pair, flow: FlowId, prologue: &[&'static str]) {
    let pieces = prologue
        .iter()
        .map(|piece| Bytes::from_static(piece.as_bytes()));
    pair.ends[SERVER].accept_flow_after(flow, pieces.collect(), pair.now);
    pair.run();
}

/// The origin says.
fn say(pair: &mut Pair, flow: FlowId, text: &str) {
    let server = &mut pair.ends[SERVER];
    assert!(server.intake(flow) >= u64::try_from(text.len()).unwrap());
    server.write(flow, Bytes::copy_from_slice(text.as_bytes()), pair.now);
    pair.run();
}

fn readable(pair: &Pair, flow: FlowId) -> String {
    let bytes: Vec<u8> = pair.ends[CLIENT]
        .readable(flow)
        .flatten()
        .copied()
        .collect();
    String::from_utf8(bytes).unwrap()
}

/// The client's ring takes everything, and the application's TCP acknowledges so much more.
fn deliver(pair: &mut Pair, flow: FlowId, acknowledged: u64) {
    let len = pair.ends[CLIENT].readable(flow).map(Bytes::len).sum();
    pair.ends[CLIENT].release(flow, len, pair.now);
    pair.ends[CLIENT].drained(flow, acknowledged, pair.now);
    pair.run();
}

fn held(pair: &Pair, flow: FlowId) -> Option<(u64, String, bool)> {
    pair.events[SERVER].iter().find_map(|event| {
        let Event::FlowHeld { flow: of, held } = event else {
            return None;
        };
        assert_eq!(held.destination, target().destination);
        let takes = held.hand_off.takes.clone();
        assert_eq!(
            held.hand_off,
            HandOff {
                takes,
                ..plain_wish()
            }
        );
        let remainder = &held.remainder;
        let text = String::from_utf8(remainder.bytes.concat()).unwrap();
        (*of == flow).then_some((remainder.start.0, text, remainder.fin))
    })
}

/// From there on, without an end.
fn whole(start: u64, text: &str) -> (u64, String, bool) {
    (start, text.to_owned(), false)
}

#[test]
fn what_the_application_has_not_acknowledged_is_held_from_the_last_boundary_on() {
    let mut pair = pair();
    let flow = opened(&mut pair, &[]);
    say(&mut pair, flow, "one\ntwo\nthree\nfo");
    deliver(&mut pair, flow, 7);
    assert_eq!(pair.ends[SERVER].released(flow), Offset(7));
    pair.lose_link();
    say(&mut pair, flow, "ur\nfi");

    pair.seconds(60);
    assert_eq!(held(&pair, flow), None);
    pair.seconds(31);

    assert_eq!(held(&pair, flow), Some(whole(4, "two\nthree\nfour\nfi")));
    let of = |wanted: &dyn Fn(&Event) -> bool| pair.events[SERVER].iter().position(wanted);
    let aborted = |e: &Event| matches!(e, Event::FlowAborted { .. });
    assert!(of(&|e| matches!(e, Event::FlowHeld { .. })) < of(&aborted));
    assert_eq!(pair.ends[SERVER].lost(), 0);
    assert_eq!(pair.ends[SERVER].lent(), 0);
}

#[test]
fn a_session_that_is_superseded_leaves_what_it_kept_and_one_that_is_closed_does_not() {
    for (code, expected) in [
        (CloseCode::Superseded, Some(whole(4, "two\n"))),
        (CloseCode::Asked, None),
        (CloseCode::KeyRemoved, None),
    ] {
        let mut pair = pair();
        let flow = opened(&mut pair, &[]);
        say(&mut pair, flow, "one\ntwo\n");
        deliver(&mut pair, flow, 4);

        pair.ends[SERVER].close(code, pair.now);
        pair.run();

        assert_eq!(held(&pair, flow), expected, "{code:?}");
    }
}

#[test]
fn what_the_user_ends_leaves_nothing() {
    let mut pair = pair();
    let flow = opened(&mut pair, &[]);
    say(&mut pair, flow, "one\n");

    let other = opened(&mut pair, &[]);
    say(&mut pair, other, "one\n");
    pair.ends[CLIENT].abort(other, FlowCode::Asked, pair.now);
    pair.run();
    assert_eq!(held(&pair, other), None);

    pair.ends[CLIENT].close(CloseCode::Asked, pair.now);
    pair.run();

    assert!(pair.ends[SERVER].is_ended());
    assert_eq!(held(&pair, flow), None);
}

#[test]
fn a_flow_whose_client_says_that_it_has_expired_or_was_never_used_is_held() {
    for (code, expected) in [
        (FlowCode::Expired, Some(whole(0, "one\n"))),
        (FlowCode::Cancelled, Some(whole(0, "one\n"))),
        (FlowCode::Asked, None),
    ] {
        let mut pair = pair();
        let flow = opened(&mut pair, &[]);
        say(&mut pair, flow, "one\n");

        pair.ends[CLIENT].abort(flow, code, pair.now);
        pair.run();

        assert_eq!(held(&pair, flow), expected, "{code:?}");
        assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
    }
}

#[test]
fn behind_a_reset_of_the_origin_nothing_more_is_to_come() {
    let mut pair = pair();
    let flow = opened(&mut pair, &[]);
    pair.lose_link();
    say(&mut pair, flow, "one\ntw");
    pair.ends[SERVER].reset(flow, FlowCode::PeerReset, pair.now);

    pair.seconds(91);

    assert_eq!(held(&pair, flow), Some((0, "one\ntw".to_owned(), true)));
}

#[test]
fn an_opaque_stream_is_not_held() {
    let mut pair = pair();
    let [flow, other] = [(); 2].map(|()| ask_for(&mut pair, plain_wish()));
    accept(&mut pair, flow, &[]);
    accept(&mut pair, other, &[]);
    say(&mut pair, other, "one\n");
    say(&mut pair, flow, "SSH-2.0-some");
    deliver(&mut pair, flow, 12);
    let opaque = |pair: &Pair| [flow, other].map(|flow| pair.ends[CLIENT].is_opaque(flow));
    assert_eq!(opaque(&pair), [true, false]);
    pair.lose_link();
    say(&mut pair, flow, "more\n");

    pair.seconds(91);
    assert!(pair.ends[CLIENT].is_ended());
    assert_eq!(opaque(&pair), [true, false]);

    assert_eq!(held(&pair, flow), None);
    assert_eq!(pair.ends[SERVER].lost(), 5);
}

#[test]
fn a_message_like_the_head_of_a_conversation_is_no_head_in_what_was_held() {
    let mut pair = pair();
    let flow = opened(&mut pair, &["SSH-2.0 scan\ntwo\n"]);
    deliver(&mut pair, flow, 14);
    assert!(!pair.ends[CLIENT].is_opaque(flow));
    pair.lose_link();

    pair.seconds(91);

    assert_eq!(held(&pair, flow), Some(whole(13, "two\n")));
}

#[test]
fn fin_counts_when_the_application_has_acknowledged_it() {
    let mut pair = pair();
    let flow = opened(&mut pair, &[]);
    say(&mut pair, flow, "one\n");
    pair.ends[SERVER].finish(flow, pair.now);
    pair.ends[CLIENT].finish(flow, pair.now);
    pair.run();
    pair.ends[SERVER].end_delivered(flow, pair.now);
    deliver(&mut pair, flow, 3);
    assert_eq!(pair.ends[SERVER].released(flow), Offset(3));

    pair.ends[CLIENT].drained(flow, 1, pair.now);
    pair.ends[CLIENT].end_delivered(flow, pair.now);
    pair.run();

    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
    assert_eq!(pair.ends.each_ref().map(Session::lent), [0, 0]);
}

#[test]
fn what_was_held_goes_before_what_the_origin_says() {
    let mut pair = pair();
    let flow = opened(&mut pair, &["held\n", "", "more\n"]);

    assert!(pair.saw(SERVER, &Event::FlowWritable { flow }));
    say(&mut pair, flow, "new\n");

    assert_eq!(readable(&pair, flow), "held\nmore\nnew\n");
}

#[test]
fn the_origin_is_not_read_before_all_that_was_held_is_under_way() {
    let mut pair = pair();
    let flow = ask(&mut pair);
    let long = Bytes::from([vec![b'x'; 999], b"\n".to_vec()].concat());
    let pieces = vec![long; 3_000];
    pair.ends[SERVER].accept_flow_after(flow, pieces, pair.now);
    pair.run();
    let mut got = 0;

    while got < 3_000_000 {
        assert_eq!(pair.ends[SERVER].intake(flow), 0);
        assert!(!pair.saw(SERVER, &Event::FlowWritable { flow }));
        assert!(pair.ends[SERVER].lent() + 1_000 > 3_000_000 - got);
        let some = pair.read(CLIENT, flow);
        assert!(some > 0);
        got += u64::try_from(some).unwrap();
        pair.run();
        if pair.ends[SERVER].intake(flow) > 0 {
            break;
        }
    }

    assert!(pair.saw(SERVER, &Event::FlowWritable { flow }));
    assert!(got > 1_000_000, "{got}");
}

#[test]
fn what_was_held_and_not_delivered_is_held_again() {
    let mut pair = pair();
    let flow = opened(&mut pair, &["one\ntwo\n", "three\n"]);
    say(&mut pair, flow, "new\n");
    deliver(&mut pair, flow, 5);
    pair.lose_link();

    pair.seconds(91);

    assert_eq!(held(&pair, flow), Some(whole(4, "two\nthree\nnew\n")));
}

#[test]
fn what_still_waits_for_room_is_held_again_behind_the_rest() {
    let mut pair = pair();
    let flow = ask(&mut pair);
    let pieces: Vec<_> = (0..300_000)
        .map(|n| Bytes::from(format!("{n:07}\n")))
        .collect();
    let all = String::from_utf8(pieces.concat()).unwrap();
    pair.ends[SERVER].accept_flow_after(flow, pieces, pair.now);
    pair.run();
    deliver(&mut pair, flow, 10);
    pair.lose_link();

    pair.seconds(91);

    let (start, text, fin) = held(&pair, flow).expect("it is held");
    assert_eq!((start, fin), (8, false));
    assert!(text == all[8..], "{} bytes of {}", text.len(), all.len());
    assert_eq!(pair.ends[SERVER].lent(), 0);
}

#[test]
fn an_application_that_ends_its_connection_leaves_nothing() {
    let mut pair = pair();
    let flow = opened(&mut pair, &["held\n"]);

    pair.ends[CLIENT].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();

    assert_eq!(pair.ends[SERVER].delivery(flow), Delivery::Reset);
    pair.ends[SERVER].end_delivered(flow, pair.now);
    pair.run();
    assert_eq!(held(&pair, flow), None);
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
    assert_eq!(pair.ends[SERVER].lent(), 0);
}

#[test]
fn what_waits_for_an_application_that_resets_is_let_go_of_and_lost() {
    let mut pair = pair();
    let flow = ask(&mut pair);
    let pieces = vec![Bytes::from(b"1234567\n".repeat(1_000)); 300];
    pair.ends[SERVER].accept_flow_after(flow, pieces, pair.now);
    pair.run();
    deliver(&mut pair, flow, 10);
    assert!(pair.ends[SERVER].prologue_bytes() > 1_000_000);

    pair.ends[CLIENT].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();

    assert_eq!(pair.ends[SERVER].prologue_bytes(), 0);
    pair.ends[SERVER].end_delivered(flow, pair.now);
    pair.run();
    let forgotten = Event::FlowForgotten {
        flow,
        lost: 8_000 * 300 - 10,
        dropped: 0,
    };
    assert!(pair.saw(SERVER, &forgotten));
}

#[test]
fn an_answer_to_a_flow_that_was_given_up_is_told() {
    let mut pair = pair();
    let flow = ask(&mut pair);
    pair.lose_link();
    pair.ends[CLIENT].abort(flow, FlowCode::Cancelled, pair.now);
    pair.ends[SERVER].accept_flow(flow, pair.now);
    assert!(!pair.saw(CLIENT, &Event::FlowAccepted { flow }));

    pair.resume();

    assert!(pair.saw(CLIENT, &Event::FlowAccepted { flow }));
}

#[test]
fn who_is_asked_learns_what_is_wanted_until_the_origin_has_answered() {
    let mut pair = pair();
    let flow = ask(&mut pair);
    let wanted = pair.ends[SERVER].wants_held(flow);
    assert_eq!(wanted, Some((&wish(Framing::Line), target().destination)));

    pair.ends[SERVER].accept_flow(flow, pair.now);

    assert_eq!(pair.ends[SERVER].wants_held(flow), None);
}

#[test]
fn a_message_of_the_greatest_length_passes_through_a_crowd() {
    let mut pair = pair();
    let flows: Vec<_> = (0..4).map(|_| opened(&mut pair, &[])).collect();
    let hog = pair.open_accepted();
    while pair.write(SERVER, hog, 100_000) > 0 {
        pair.run();
    }
    let line = [vec![b'x'; 64 * 1024 - 1], b"\n".to_vec()].concat();

    for flow in &flows {
        let (mut rest, mut got) = (Bytes::from(line.repeat(3)), 0);
        // The hog leaves a floor of the client's credit, so it takes some turns.
        for _ in 0..1_000 {
            let room = usize::try_from(pair.ends[SERVER].intake(*flow)).unwrap();
            let piece = rest.split_to(room.min(rest.len()));
            pair.ends[SERVER].write(*flow, piece, pair.now);
            pair.run();
            got += pair.read(CLIENT, *flow);
            pair.run();
        }
        assert_eq!((got, rest.len()), (3 * line.len(), 0));
    }
}

#[test]
fn a_flow_is_refused_while_the_server_has_no_room_for_a_message() {
    let mut pair = pair();
    for _ in 0..20 {
        ask(&mut pair);
    }

    let refused = |event: &&Event| matches!(event, Event::FlowRefused { error, .. } if *error == OpenError::Exhausted);
    let refused = pair.events[CLIENT].iter().filter(refused).count();
    assert!((5..8).contains(&refused), "{refused}");
    let counts = pair.ends.each_ref().map(Session::flow_count);
    assert_eq!(counts, [20 - refused; 2]);
}

/// What the ring of such a flow takes is not released at once.
fn releases_what_drains(client: &mut Session, flow: FlowId) -> bool {
    let (now, limit) = (Instant::from_nanos(1_000_000_000), Offset(100));
    let grace = Duration::from_secs(60);
    let message = wire::frame::Control::OpenOk { flow, limit, grace };
    let data = wire::frame::Data {
        flow,
        offset: Offset(0),
        fin: false,
        payload: Bytes::from_static(b"one\n"),
    };
    for frame in [Frame::Control { number: 1, message }, Frame::Data(data)] {
        let mut bytes = Vec::new();
        wire::codec::encode(&frame, &mut bytes);
        client.handle_bytes(LinkId(1), bytes.into(), now);
    }
    client.release(flow, 4, now);
    client.awaits_release(flow)
}

/// What WELCOME says to a client that has a flow waiting, and whether its OPEN wants anything held.
fn wanted_after_welcome(capabilities: u64, buffer_bytes: u64) -> bool {
    let now = Instant::from_nanos(1_000_000_000);
    let mut client = Session::new_client(&able(Role::Client), now);
    client
        .open_handed_off(&target(), wish(Framing::Line), now)
        .unwrap();
    client.handle_link_up(LinkId(1), secret(1), now);
    let mut out = Outbox::new();
    client.poll_transmit(LinkId(1), 10_000, &mut out, now);
    let welcome = Welcome {
        version: session::VERSION,
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
            let is_wanted = open.hand_off.is_some();
            assert_eq!(client.is_handed_off(open.flow), is_wanted);
            assert_eq!(releases_what_drains(&mut client, open.flow), is_wanted);
            return is_wanted;
        }
    }
    panic!("no OPEN");
}

#[test]
fn a_flow_asked_for_before_welcome_is_handed_off_where_welcome_agrees() {
    assert!(wanted_after_welcome(capability::HAND_OFF, 1 << 20));
    assert!(!wanted_after_welcome(0, 1 << 20));
    assert!(!wanted_after_welcome(capability::DELIVERY, 1 << 20));
    assert!(!wanted_after_welcome(capability::HAND_OFF, 50_000));
}

#[test]
fn where_it_was_not_agreed_bytes_are_released_when_the_ring_takes_them() {
    let mut pair = Pair::with(&able(Role::Client), &config(Role::Server));
    let flow = ask(&mut pair);
    assert!(!pair.ends[CLIENT].is_handed_off(flow));
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();
    say(&mut pair, flow, "one\n");

    deliver(&mut pair, flow, 0);

    assert_eq!(pair.ends[SERVER].released(flow), Offset(4));
    pair.lose_link();
    pair.seconds(91);
    assert_eq!(held(&pair, flow), None);
}

#[test]
fn open_hand_off_without_the_capability_is_a_violation() {
    let mut pair = Pair::new();
    let plain = open(FlowId(1), target().on_expiry);
    let wire::frame::Control::Open(mut open) = plain else {
        panic!("{plain:?}");
    };
    open.hand_off = Some(Box::new(wish(Framing::Line)));
    let message = wire::frame::Control::Open(open);

    pair.say(&Frame::Control { number: 1, message });

    let violation = EndReason::Violation {
        what: "OPEN_HAND_OFF without the capability",
    };
    assert_eq!(pair.ends[SERVER].end_reason(), Some(violation));
}

#[test]
fn a_client_that_will_ask_for_nothing_says_so() {
    let mut pair = pair();
    let wanted = |pair: &Pair| pair.events[SERVER].contains(&Event::ForgetHeld);
    assert!(!wanted(&pair));

    pair.ends[CLIENT].forget_held();
    pair.run();

    assert!(wanted(&pair));
    let mut plain = Pair::with(&able(Role::Client), &config(Role::Server));
    plain.ends[CLIENT].forget_held();
    plain.run();
    assert_eq!(plain.ends[SERVER].end_reason(), None);
    let message = wire::frame::Control::Forget;
    plain.say(&Frame::Control { number: 1, message });
    let violation = EndReason::Violation {
        what: "FORGET without the capability",
    };
    assert_eq!(plain.ends[SERVER].end_reason(), Some(violation));
}
