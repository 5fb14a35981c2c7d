//! A client that asks for far more flows than its server has room for, before it can know.

use super::pair::{CLIENT, Pair, SERVER, START, config, target};
use super::*;
use crate::wire::codec;

const ROOM: u64 = 50;
const LINK: LinkId = LinkId(1);

/// A client that has asked for `count` flows before WELCOME, and a server that has room for few.
fn crowd(count: u64) -> Pair {
    let roomy = Config {
        max_flows: count,
        ..config(Role::Client)
    };
    let scarce = Config {
        max_flows: ROOM,
        ..config(Role::Server)
    };
    let mut client = Session::new_client(&roomy, START);
    for _ in 0..count {
        client.open_flow(&target(), START).unwrap();
    }
    Pair::greeted(client, &scarce)
}

/// Moves what the server says frame by frame, and lets the client answer each: the most that an
/// honest client can say before it has read what it was answered. Returns the most messages of the
/// server that were without acknowledgement.
fn run_frame_by_frame(pair: &mut Pair) -> u64 {
    let (mut out, mut most) = (Outbox::new(), 0);
    loop {
        out.clear();
        pair.ends[CLIENT].poll_transmit(LINK, 60_000, &mut out, pair.now);
        pair.ends[SERVER].handle_bytes(LINK, out.to_vec().into(), pair.now);
        most = most.max(pair.ends[SERVER].kept(FlowId(1)).messages);
        out.clear();
        if !pair.ends[SERVER].poll_transmit(LINK, 60_000, &mut out, pair.now) {
            return most;
        }
        let mut bytes = Bytes::from(out.to_vec());
        while let Ok(Some(len)) = codec::frame_len(&bytes) {
            let frame = bytes.split_to(len);
            pair.ends[CLIENT].handle_bytes(LINK, frame, pair.now);
            out.clear();
            pair.ends[CLIENT].poll_transmit(LINK, 60_000, &mut out, pair.now);
            pair.ends[SERVER].handle_bytes(LINK, out.to_vec().into(), pair.now);
            most = most.max(pair.ends[SERVER].kept(FlowId(1)).messages);
        }
    }
}

/// How many flows the client was refused.
fn refused(pair: &mut Pair) -> u64 {
    let events = std::iter::from_fn(|| pair.ends[CLIENT].poll_event());
    pair.events[CLIENT].extend(events);
    let is_refusal = |event: &&Event| matches!(event, Event::FlowRefused { .. });
    let count = pair.events[CLIENT].iter().filter(is_refusal).count();
    u64::try_from(count).unwrap()
}

/// 1,024 OPENs were answered in one turn, and the client said the next ones ahead of CONTROL_ACK:
/// the server took it for one that never acknowledges, and every connection was reset.
#[test]
fn held_connections_beyond_the_servers_room_are_refused_and_end_nothing() {
    let mut pair = crowd(2_000);

    pair.run();

    assert!(!pair.ends.iter().any(Session::is_ended));
    assert_eq!(refused(&mut pair), 2_000 - ROOM);
}

/// Each CONTROL_ACK lets the client ask for 1,024 more before it has read what it was answered.
/// Acknowledged without regard to that, the answers pile up by as many in each turn.
#[test]
fn answers_that_are_read_one_by_one_do_not_pile_up() {
    let mut pair = crowd(16_384);

    let most = run_frame_by_frame(&mut pair);

    assert!(!pair.ends.iter().any(Session::is_ended));
    assert_eq!(refused(&mut pair), 16_384 - ROOM);
    assert!(most <= ROOM * 4 + limits::CONTROL_WINDOW, "{most}");
}

/// What a link carried away when it died is said again, and nobody is taken for another.
#[test]
fn a_link_that_dies_in_the_middle_of_it_changes_nothing() {
    let mut pair = crowd(5_000);
    let mut out = Outbox::new();
    for _ in 0..3 {
        for (from, to) in [(SERVER, CLIENT), (CLIENT, SERVER)] {
            out.clear();
            pair.ends[from].poll_transmit(LINK, 60_000, &mut out, pair.now);
            pair.ends[to].handle_bytes(LINK, out.to_vec().into(), pair.now);
        }
    }
    pair.cut = true;
    pair.run();

    pair.lose_link();
    pair.resume();

    assert!(!pair.ends.iter().any(Session::is_ended));
    assert_eq!(refused(&mut pair), 5_000 - ROOM);
}
