//! Flows whose messages are kept, and flows that deliver them later.

mod records;
mod remainders;

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

    fn send(&mut self, flow: FlowId, text: &str) {
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

    pair.send(flow, "one\ntw");
    assert_eq!(pair.readable(flow), "one\n");
    pair.send(flow, "o\nthree");
    assert_eq!(pair.readable(flow), "one\ntwo\n");
    pair.ends[CLIENT].finish(flow, pair.now);
    pair.run();

    assert_eq!(pair.readable(flow), "one\ntwo\nthree");
}

#[test]
fn an_opaque_stream_is_handed_on_as_it_comes() {
    let mut pair = pair();
    let flow = pair.stored();

    pair.send(flow, "SSH-2.0-some");

    assert_eq!(pair.readable(flow), "SSH-2.0-some");
}

#[test]
fn what_a_reset_cuts_off_is_handed_on_before_it() {
    let mut pair = pair();
    let flow = pair.stored();
    pair.send(flow, "one\ntw");
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
    pair.send(flow, "one\ntwo\n");

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
    pair.send(flow, "one\ntwo\nthree\n");

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
    pair.send(flow, "one\n");
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
