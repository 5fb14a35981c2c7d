//! How long datagrams wait, and how many: what goes first when there is no room.

use super::super::pair::{self, CLIENT, Pair, SERVER};
use super::{LARGE, able, mapping, numbered, pair, remote, welcome};
use crate::wire::frame::{Frame, capability};
use crate::*;
use bytes::Bytes;
use std::time::Duration;

#[test]
fn a_mapping_outlives_an_outage_and_what_waited_too_long_does_not() {
    let mut pair = pair();
    let flow = pair.mapped();
    pair.lose_link();
    pair.throw(CLIENT, flow, b"stale");
    pair.tenths(1);
    pair.throw(CLIENT, flow, b"fresh");

    // The first has waited for exactly as long as it may, and a nanosecond.
    pair.now = pair.now + (limits::DATAGRAM_AGE - Duration::from_millis(100));
    pair.now = pair.now + Duration::from_nanos(1);
    pair.resume();

    assert_eq!(pair.caught(SERVER, flow), [b"fresh"]);
    assert_eq!(pair.ends[CLIENT].datagram_counts().stale, 1);
    pair.throw(SERVER, flow, b"answer");
    pair.run();
    assert_eq!(pair.caught(CLIENT, flow), [b"answer"]);
}

#[test]
fn a_datagram_that_has_waited_as_long_as_it_may_still_goes() {
    let mut pair = pair();
    let flow = pair.mapped();
    pair.lose_link();
    pair.throw(CLIENT, flow, b"just");

    pair.now = pair.now + limits::DATAGRAM_AGE;
    pair.resume();

    assert_eq!(pair.caught(SERVER, flow), [b"just"]);
}

#[test]
fn the_age_at_the_server_counts_at_the_client() {
    let mut pair = pair();
    let flow = pair.mapped();
    pair.lose_link();
    pair.throw(SERVER, flow, b"old");
    pair.now = pair.now + (limits::DATAGRAM_AGE - Duration::from_millis(1));
    pair.resume();

    // The application's kernel takes nothing for a while.
    pair.now = pair.now + Duration::from_millis(2);
    assert_eq!(pair.caught(CLIENT, flow), [b""; 0]);
    assert_eq!(pair.ends[CLIENT].datagram_counts().stale, 1);
}

#[test]
fn how_long_datagrams_of_applications_wait_is_the_clients_to_say() {
    let patient = Config {
        datagram_age: Duration::from_secs(10),
        ..able(Role::Client)
    };
    let mut pair = Pair::with(&patient, &able(Role::Server));
    let flow = pair.mapped();
    pair.lose_link();
    pair.throw(CLIENT, flow, b"old");
    pair.seconds(9);
    pair.resume();

    // The server counts what it has waited there.
    pair.now = pair.now + limits::DATAGRAM_AGE;
    assert_eq!(pair.caught(SERVER, flow), [b"old"]);
    pair.throw(CLIENT, flow, b"stale");
    pair.run();
    pair.now = pair.now + limits::DATAGRAM_AGE + Duration::from_nanos(1);
    assert_eq!(pair.caught(SERVER, flow), [b""; 0]);
}

#[test]
fn what_has_waited_for_the_first_link_is_new_when_it_is_there() {
    let mut now = pair::START;
    let mut client = Session::new_client(&able(Role::Client), now);
    let flow = client.open_flow(&mapping(), now).unwrap();
    client.send_datagram(flow, remote(), Bytes::from_static(b"first"), now);
    now = now + Duration::from_secs(12);
    client.handle_timeout(now);
    client.send_datagram(flow, remote(), Bytes::from_static(b"second"), now);
    client.handle_link_up(LinkId(1), pair::secret(1), now);
    client.poll_transmit(LinkId(1), 1000, &mut Outbox::new(), now);
    now = now + Duration::from_millis(100);
    client.handle_bytes(LinkId(1), welcome(capability::DATAGRAM), now);
    let mut out = Outbox::new();
    client.poll_transmit(LinkId(1), 10_000, &mut out, now);

    let mut bytes = Bytes::from(out.to_vec());
    let mut sent = Vec::new();
    while let Some(frame) = wire::codec::decode(&mut bytes).unwrap() {
        if let Frame::Datagram(datagram) = frame {
            sent.push((datagram.head.age, datagram.payload));
        }
    }
    let new = |payload: &'static [u8]| (Duration::ZERO, Bytes::from_static(payload));
    assert_eq!(sent, [new(b"first"), new(b"second")]);
    // From now on it is as always.
    client.handle_link_down(LinkId(1), now);
    client.send_datagram(flow, remote(), Bytes::from_static(b"third"), now);
    client.handle_timeout(now + limits::DATAGRAM_AGE + Duration::from_millis(1));
    assert_eq!(client.datagram_counts().stale, 1);
}

#[test]
fn in_an_outage_what_is_stale_is_let_go_of_though_nobody_sends() {
    let mut pair = pair();
    let flow = pair.mapped();
    pair.lose_link();
    pair.throw(CLIENT, flow, &[1; 5000]);
    pair.throw(SERVER, flow, &[1; LARGE]);
    assert_eq!(pair.ends[CLIENT].buffered(), (5000, 0));

    pair.seconds(5);

    pair.is_clean();
    assert_eq!(pair.ends[CLIENT].datagram_counts().stale, 1);
    assert_eq!(pair.ends[SERVER].datagram_counts().stale, 1);
}

#[test]
fn of_too_many_the_oldest_goes() {
    let with = |role| Config {
        buffer_bytes: 64 << 20,
        ..able(role)
    };
    let mut pair = Pair::with(&with(Role::Client), &with(Role::Server));
    let flow = pair.mapped();
    pair.lose_link();
    for number in 0..=limits::MAPPING_DATAGRAMS {
        pair.throw(CLIENT, flow, &numbered(number, 8));
    }
    pair.resume();

    let caught = pair.caught(SERVER, flow);
    assert_eq!(caught.len(), limits::MAPPING_DATAGRAMS);
    assert_eq!(caught[0], numbered(1, 8));
    assert_eq!(pair.ends[CLIENT].datagram_counts().crowded_out, 1);
}

#[test]
fn a_full_room_takes_from_the_mapping_that_holds_most() {
    let mut pair = pair();
    let (greedy, quiet) = (pair.mapped(), pair.mapped());
    let many: Vec<FlowId> = (0..20).map(|_| pair.mapped()).collect();
    pair.lose_link();
    let most = u64::try_from(limits::DATAGRAM_BYTES_LEAST).unwrap();

    for number in 0..10 {
        pair.throw(CLIENT, greedy, &numbered(number, LARGE));
        assert!(pair.ends[CLIENT].buffered().0 <= most);
    }
    for flow in &many {
        for number in 0..10 {
            pair.throw(CLIENT, *flow, &numbered(number, 1000));
        }
    }
    assert!(pair.ends[CLIENT].buffered().0 > most / 2);
    pair.throw(CLIENT, quiet, b"question");
    pair.throw(CLIENT, greedy, &[0; 65_536]);
    pair.resume();

    assert_eq!(pair.caught(SERVER, quiet), [b"question"]);
    let shares: Vec<usize> = many
        .iter()
        .map(|flow| pair.caught(SERVER, *flow).len())
        .collect();
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(*least >= 3 && most - least <= 1, "{shares:?}");
}

#[test]
fn datagrams_in_pieces_keep_no_other_out() {
    let mut pair = pair();
    let (one, two) = (pair.mapped(), pair.mapped());
    let quiet = pair.mapped();
    let whole = limits::DATAGRAM_BYTES_LEAST / 2 - limits::DATAGRAM_COST;
    pair.throw(CLIENT, one, &numbered(1, whole));
    pair.throw(CLIENT, two, &numbered(2, whole));
    // Both are under way, and take all the room there is at either end.
    pair.sent(CLIENT, 40_000);

    pair.throw(CLIENT, quiet, b"question");
    pair.run();

    assert_eq!(pair.caught(SERVER, quiet), [b"question"]);
    assert_eq!(pair.ends[CLIENT].datagram_counts().crowded_out, 1);
    pair.caught(SERVER, one);
    pair.caught(SERVER, two);
    pair.seconds(5);
    pair.is_clean();
    assert_eq!([0, 1].map(|end| pair.ends[end].lent()), [0, 0]);
}

#[test]
fn what_is_stale_makes_room_for_what_is_fresh() {
    let mut pair = pair();
    let (old, fresh) = (pair.mapped(), pair.mapped());
    pair.lose_link();
    pair.throw(CLIENT, old, b"begins the time between two looks");
    pair.tenths(15);
    pair.throw(CLIENT, old, &[1; LARGE]);
    pair.throw(CLIENT, old, &[1; LARGE]);
    pair.tenths(21);

    // One that is larger than what is left, between two looks.
    pair.throw(CLIENT, fresh, &[2; LARGE]);
    pair.throw(CLIENT, fresh, &[2; LARGE]);
    pair.resume();

    assert_eq!(pair.caught(SERVER, fresh).len(), 2);
    assert_eq!(pair.ends[CLIENT].datagram_counts().crowded_out, 0);
    assert_eq!(pair.ends[CLIENT].datagram_counts().stale, 3);
}

#[test]
fn an_owner_is_told_when_too_many_wait_or_back_up() {
    let mut pair = pair();
    let flow = pair.mapped();
    for number in 1..=limits::DATAGRAMS_WAITING {
        assert!(!pair.ends[SERVER].has_datagrams_waiting());
        pair.throw(CLIENT, flow, &numbered(number, 8));
        pair.run();
    }
    assert!(pair.ends[SERVER].has_datagrams_waiting());
    pair.caught(SERVER, flow);
    assert!(!pair.ends[SERVER].has_datagrams_waiting());

    pair.throw(SERVER, flow, &[0; LARGE]);
    assert!(!pair.ends[SERVER].has_datagrams_backed_up());
    pair.throw(SERVER, flow, &[0; LARGE]);
    assert!(pair.ends[SERVER].has_datagrams_backed_up());
}
