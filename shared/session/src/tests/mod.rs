//! Stories of a flow and of a session: open, outage, end.

mod crowded;
mod datagrams;
mod delivery;
mod hand_off;
mod hostile;
mod losses;
mod noticing;
mod pair;
mod records;
mod resuming;
mod steering;

use self::pair::{CLIENT, Pair, SERVER, config, secret};
use crate::wire::frame::{
    CloseCode, Control, FlowCode, Frame, OnExpiry, OpenError, Protocol, RejectReason, ResumeReject,
};
use crate::*;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

#[test]
fn bytes_and_both_ends_of_a_flow_arrive() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();

    let up = pair.write(CLIENT, flow, 5000);
    pair.ends[CLIENT].finish(flow, pair.now);
    let down = pair.write(SERVER, flow, 7000);
    pair.ends[SERVER].finish(flow, pair.now);
    pair.run();

    assert_eq!(pair.read(SERVER, flow), up);
    assert_eq!(pair.read(CLIENT, flow), down);
    assert_eq!(pair.ends[SERVER].delivery(flow), Delivery::Fin);
    assert_eq!(pair.ends[CLIENT].delivery(flow), Delivery::Fin);
    pair.ends[SERVER].end_delivered(flow, pair.now);
    pair.ends[CLIENT].end_delivered(flow, pair.now);
    pair.run();
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
    assert_eq!(pair.ends.each_ref().map(Session::lent), [0, 0]);
}

#[test]
fn what_was_under_way_on_a_lost_link_arrives_once() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.cut = true;
    let written = pair.write(CLIENT, flow, 10_000);
    pair.run();

    pair.lose_link();
    pair.resume();

    assert_eq!(written, 10_000);
    assert_eq!(pair.read(SERVER, flow), 10_000);
    pair.run();
    assert_eq!(pair.ends[CLIENT].buffered().0, 0);
}

#[test]
fn an_outage_lets_the_writer_fill_the_buffer() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.lose_link();

    let mut taken = 0;
    while pair.ends[CLIENT].intake(flow) > 0 {
        taken += pair.write(CLIENT, flow, 100_000);
    }

    assert!(taken > (1 << 20) * 9 / 10 && taken <= 1 << 20, "{taken}");
    pair.resume();
    let mut arrived = 0;
    while arrived < taken {
        let read = pair.read(SERVER, flow);
        assert!(read > 0, "stuck at {arrived} of {taken}");
        arrived += read;
        pair.run();
    }
    assert_eq!(arrived, taken);
}

#[test]
fn a_large_transfer_keeps_moving() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    let mut sent = 0;
    let mut got = 0;
    for _ in 0..500 {
        sent += pair.write(SERVER, flow, 100_000);
        pair.run();
        got += pair.read(CLIENT, flow);
        pair.run();
    }
    assert!(got > 10_000_000, "{got}");
    assert_eq!(sent, got);
}

#[test]
fn a_refused_origin_leaves_nothing() {
    let mut pair = Pair::new();
    let flow = pair.open();

    pair.ends[SERVER].refuse_flow(flow, OpenError::Refused, pair.now);
    pair.run();

    assert!(pair.saw(
        CLIENT,
        &Event::FlowRefused {
            flow,
            error: OpenError::Refused,
            remainder: None,
        }
    ));
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

#[test]
fn an_open_cancelled_before_its_answer_leaves_nothing() {
    let mut pair = Pair::new();
    let flow = pair.open();

    pair.ends[CLIENT].abort(flow, FlowCode::Cancelled, pair.now);
    pair.run();

    assert!(pair.saw(
        SERVER,
        &Event::FlowAborted {
            flow,
            code: FlowCode::Cancelled
        }
    ));
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

#[test]
fn a_reset_comes_behind_the_bytes_before_it() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    let sent = pair.write(SERVER, flow, 9000);
    pair.ends[SERVER].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();

    assert_eq!(pair.ends[CLIENT].delivery(flow), Delivery::Open);
    assert_eq!(pair.read(CLIENT, flow), sent);
    assert_eq!(pair.ends[CLIENT].delivery(flow), Delivery::Reset);
    pair.ends[CLIENT].end_delivered(flow, pair.now);
    pair.run();
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

#[test]
fn a_stuck_reader_does_not_hold_a_reset_for_ever() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.write(SERVER, flow, 9000);
    pair.ends[SERVER].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();

    pair.seconds(4);
    assert!(!pair.saw(
        CLIENT,
        &Event::FlowAborted {
            flow,
            code: FlowCode::PeerReset
        }
    ));
    pair.seconds(2);
    assert!(pair.saw(
        CLIENT,
        &Event::FlowAborted {
            flow,
            code: FlowCode::PeerReset
        }
    ));
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

#[test]
fn grace_ends_flows_on_both_sides_and_the_server_is_later() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.lose_link();

    pair.seconds(59);
    assert_eq!(pair.ends.each_ref().map(Session::is_ended), [false, false]);
    pair.seconds(2);
    assert!(pair.saw(
        CLIENT,
        &Event::FlowAborted {
            flow,
            code: FlowCode::Expired
        }
    ));
    assert_eq!(pair.ends.each_ref().map(Session::is_ended), [true, false]);
    pair.seconds(30);
    assert!(pair.saw(
        SERVER,
        &Event::FlowAborted {
            flow,
            code: FlowCode::Expired
        }
    ));
    assert_eq!(pair.ends.each_ref().map(Session::is_ended), [true, true]);
}

#[test]
fn a_flow_that_is_opened_in_an_outage_has_its_grace_from_then_on() {
    let mut pair = Pair::new();
    pair.open_accepted();
    pair.lose_link();
    pair.seconds(30);
    let late = pair.open_with_grace(Duration::from_secs(20));
    let expired = Event::FlowAborted {
        flow: late,
        code: FlowCode::Expired,
    };

    pair.seconds(19);
    assert!(!pair.saw(CLIENT, &expired));
    pair.seconds(2);
    assert!(pair.saw(CLIENT, &expired));
    assert!(!pair.ends[CLIENT].is_ended(), "the other flow lives");
}

#[test]
fn a_closed_session_ends_on_both_sides() {
    let mut pair = Pair::new();
    pair.open_accepted();

    pair.ends[CLIENT].close(CloseCode::Asked, pair.now);
    pair.run();

    assert!(pair.saw(
        SERVER,
        &Event::Ended {
            reason: EndReason::Peer(CloseCode::Asked)
        }
    ));
}

#[test]
fn a_second_link_takes_over_and_the_first_is_retired() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();

    pair.resume();
    let written = pair.write(CLIENT, flow, 4000);
    pair.run();

    assert_eq!(pair.read(SERVER, flow), written);
    for end in [CLIENT, SERVER] {
        assert_eq!(pair.ends[end].carrier(), Some(LinkId(2)));
        let dead = Event::LinkDead {
            link: LinkId(1),
            death: LinkDeath::Retired,
        };
        assert!(pair.saw(end, &dead));
    }
}

#[test]
fn a_resume_with_another_secret_is_refused() {
    let mut pair = Pair::new();
    pair.lose_link();
    let link = LinkId(9);
    pair.ends[CLIENT].handle_link_up(link, secret(9), pair.now);
    let mut out = Outbox::new();
    pair.ends[CLIENT].poll_transmit(link, 10_000, &mut out, pair.now);
    let Ok(Some(Frame::Resume(resume))) = wire::codec::decode(&mut Bytes::from(out.to_vec()))
    else {
        panic!("no RESUME");
    };

    let stolen = pair.ends[SERVER].handle_resume(link, &resume, secret(10), pair.now);

    assert_eq!(stolen, Err(RejectReason::Proof));
}

#[test]
fn restarted_counts_only_where_the_session_was_made() {
    let mut pair = Pair::new();
    pair.open_accepted();
    pair.lose_link();
    let reject = |reason| {
        let mut bytes = Vec::new();
        let reject = ResumeReject {
            reason,
            released: Vec::new(),
            retry_after: Duration::ZERO,
        };
        wire::codec::encode(&Frame::ResumeReject(reject), &mut bytes);
        Bytes::from(bytes)
    };
    let now = pair.now;
    let attempt = |client: &mut Session, n, elsewhere, reason| {
        client.handle_link_up(LinkId(n), secret(n), now);
        if elsewhere {
            client.note_elsewhere(LinkId(n));
        }
        client.handle_bytes(LinkId(n), reject(reason), now);
        assert_eq!(client.link_count(), 0);
        client.is_ended()
    };

    let client = &mut pair.ends[CLIENT];
    assert!(!attempt(client, 5, true, RejectReason::Restarted));
    assert_eq!(client.flow_count(), 1);
    assert!(attempt(client, 6, false, RejectReason::Restarted));

    // Any other reason comes from the very server that knows the session.
    let mut pair = Pair::new();
    pair.open_accepted();
    pair.lose_link();
    let client = &mut pair.ends[CLIENT];
    assert!(attempt(client, 7, true, RejectReason::Expired));
}

#[test]
fn what_expires_is_counted_as_lost() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.lose_link();
    assert_eq!(pair.write(CLIENT, flow, 5000), 5000);

    pair.seconds(61);

    assert!(pair.ends[CLIENT].is_ended());
    assert_eq!(pair.ends[CLIENT].lost(), 5000);
}

#[test]
fn a_flow_given_up_before_its_open_was_sent_leaves_nothing() {
    let mut pair = Pair::new();
    pair.open_accepted();
    pair.lose_link();
    for _ in 0..1000 {
        let flow = pair.open();
        pair.ends[CLIENT].abort(flow, FlowCode::Cancelled, pair.now);
        pair.run();
        assert_eq!(
            pair.events[CLIENT].pop_back(),
            Some(Event::FlowForgotten {
                flow,
                lost: 0,
                dropped: 0
            })
        );
    }
    assert_eq!(pair.ends[CLIENT].flow_count(), 1);

    let kept = pair.open();
    pair.resume();

    let opened = pair.events[SERVER].iter().filter_map(|event| {
        let Event::FlowOpened { open, .. } = event else {
            return None;
        };
        Some(open.flow)
    });
    assert_eq!(opened.collect::<Vec<_>>(), [FlowId(1), kept]);
}

#[test]
fn the_last_words_of_a_session_wait_for_nothing() {
    let now = Instant::from_nanos(1_000_000_000);
    let config = Config {
        max_flows: 5000,
        ..config(Role::Client)
    };
    let mut client = Session::new_client(&config, now);
    client.handle_link_up(LinkId(1), secret(1), now);
    let mut bytes = Vec::new();
    let welcome = wire::frame::Welcome {
        version: session::VERSION,
        capabilities: 0,
        session: SessionId([7; 16]),
        instance: Instance([2; 16]),
        limits: wire::frame::Limits {
            max_flows: 5000,
            buffer_bytes: 1 << 20,
            floor_bytes: 1,
        },
    };
    wire::codec::encode(&Frame::Welcome(welcome), &mut bytes);
    client.handle_bytes(LinkId(1), bytes.into(), now);
    let target = Target {
        protocol: Protocol::Tcp,
        source: "10.0.0.1:1000".parse().unwrap(),
        destination: "192.0.2.1:80".parse().unwrap(),
        grace: Duration::from_secs(60),
        on_expiry: OnExpiry::Reset,
        accept_early: false,
    };
    for _ in 0..3000 {
        client.open_flow(&target, now).unwrap();
    }
    let mut out = Outbox::new();
    while client.poll_transmit(LinkId(1), 1 << 20, &mut out, now) {
        out.clear();
    }

    client.close(CloseCode::Asked, now);
    assert!(client.has_transmit(LinkId(1)));
    client.poll_transmit(LinkId(1), 1 << 20, &mut out, now);

    let message = Control::SessionClose {
        code: CloseCode::Asked,
    };
    let number = limits::CONTROL_WINDOW + 1;
    let last = wire::codec::decode(&mut out.to_vec().into());
    assert_eq!(last, Ok(Some(Frame::Control { number, message })));
}

#[test]
fn a_session_outlives_any_number_of_answers_that_were_lost() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.lose_link();

    for n in 10..10 + 2 * u64::try_from(limits::SECRETS).unwrap() {
        let (link, mine) = (LinkId(n), Secret::new([u8::try_from(n % 251).unwrap(); 32]));
        pair.ends[CLIENT].handle_link_up(link, mine.clone(), pair.now);
        let mut out = Outbox::new();
        pair.ends[CLIENT].poll_transmit(link, 10_000, &mut out, pair.now);
        let frame = wire::codec::decode(&mut Bytes::from(out.to_vec()));
        let Ok(Some(Frame::Resume(resume))) = frame else {
            panic!("{frame:?}");
        };
        let verdict = pair.ends[SERVER].handle_resume(link, &resume, mine, pair.now);
        assert_eq!(verdict, Ok(()), "attempt {n}");
        for end in &mut pair.ends {
            end.handle_link_down(link, pair.now);
        }
    }
    pair.resume();

    assert!(pair.ends[CLIENT].is_attached());
    assert_eq!(pair.write(CLIENT, flow, 100), 100);
    pair.run();
    assert_eq!(pair.read(SERVER, flow), 100);
}

#[test]
fn early_timeouts_are_harmless() {
    let mut pair = Pair::new();
    let before = pair.ends[CLIENT].poll_timeout();

    pair.ends[CLIENT].handle_timeout(pair.now);
    pair.run();

    assert_eq!(pair.ends[CLIENT].poll_timeout(), before);
}

#[test]
fn a_claim_that_was_never_possible_ends_the_session_only() {
    let mut pair = Pair::new();
    let mut bytes = Vec::new();
    wire::codec::encode(&Frame::ControlAck { number: 999 }, &mut bytes);

    pair.ends[SERVER].handle_bytes(LinkId(1), bytes.into(), pair.now);
    pair.run();

    assert!(pair.ends[SERVER].is_ended());
    let told = Event::Ended {
        reason: EndReason::Peer(CloseCode::Violation),
    };
    assert!(pair.saw(CLIENT, &told));
}

#[test]
fn a_reset_behind_more_than_the_credit_is_not_held_by_a_stuck_reader() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    // The reader stands still from the start: no credit beyond the first.
    while pair.write(SERVER, flow, 50_000) > 0 {
        pair.run();
    }
    pair.ends[SERVER].fail(flow);
    let mut more = 0;
    for _ in 0..20 {
        more += pair.write(SERVER, flow, 50_000);
    }
    assert!(more > 100_000, "{more}");
    pair.ends[SERVER].reset(flow, FlowCode::PeerReset, pair.now);
    pair.run();

    pair.seconds(4);
    let reset = Event::FlowAborted {
        flow,
        code: FlowCode::PeerReset,
    };
    assert!(!pair.saw(CLIENT, &reset));
    pair.seconds(2);

    assert!(pair.saw(CLIENT, &reset));
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
    assert_eq!(pair.ends.each_ref().map(Session::lent), [0, 0]);
}
