//! Mappings between two sessions: datagrams each way, their bounds and their end.

mod refuse;
mod wait;

use super::pair::{CLIENT, Pair, SERVER, config, target};
use crate::session::VERSION;
use crate::wire::frame::{FlowCode, Frame, Limits, Protocol, Welcome, capability};
use crate::*;
use bytes::Bytes;
use std::net::SocketAddr;

const LARGE: usize = 60_000;

fn able(role: Role) -> Config {
    Config {
        capabilities: capability::DATAGRAM,
        ..config(role)
    }
}

fn pair() -> Pair {
    Pair::with(&able(Role::Client), &able(Role::Server))
}

fn remote() -> SocketAddr {
    "192.0.2.53:53".parse().unwrap()
}

fn mapping() -> Target {
    Target {
        protocol: Protocol::Udp,
        ..target()
    }
}

impl Pair {
    fn map(&mut self) -> FlowId {
        self.ends[CLIENT].open_flow(&mapping(), self.now).unwrap()
    }

    fn mapped(&mut self) -> FlowId {
        let flow = self.map();
        self.run();
        self.ends[SERVER].accept_flow(flow, self.now);
        self.run();
        flow
    }

    fn throw(&mut self, end: usize, flow: FlowId, payload: &[u8]) {
        let payload = Bytes::copy_from_slice(payload);
        self.ends[end].send_datagram(flow, remote(), payload, self.now);
    }

    /// All that has come, as the local socket takes it.
    fn caught(&mut self, end: usize, flow: FlowId) -> Vec<Vec<u8>> {
        let mut caught = Vec::new();
        while let Some((from, payload)) = self.ends[end].datagram(flow, self.now) {
            assert_eq!(from, remote());
            caught.push(payload.to_vec());
            self.ends[end].datagram_taken(flow);
        }
        caught
    }

    /// What one end sends in one go of that many bytes.
    fn sent(&mut self, end: usize, budget: usize) -> Vec<Frame> {
        let mut out = Outbox::new();
        let link = *self.links.last().unwrap();
        self.ends[end].poll_transmit(link, budget, &mut out, self.now);
        let mut bytes = Bytes::from(out.to_vec());
        self.ends[1 - end].handle_bytes(link, bytes.clone(), self.now);
        let mut frames = Vec::new();
        while let Some(frame) = wire::codec::decode(&mut bytes).unwrap() {
            frames.push(frame);
        }
        frames
    }

    fn is_clean(&self) {
        for end in &self.ends {
            assert_eq!(end.buffered(), (0, 0));
            assert!(!matches!(end.poll_timeout(), Some((_, Timer::Datagrams))));
        }
    }
}

fn welcome(capabilities: u64) -> Bytes {
    let mut bytes = Vec::new();
    let welcome = Frame::Welcome(Welcome {
        version: VERSION,
        capabilities,
        session: SessionId([7; 16]),
        instance: Instance([2; 16]),
        limits: Limits {
            max_flows: 5,
            buffer_bytes: 1 << 20,
            floor_bytes: 1,
        },
    });
    wire::codec::encode(&welcome, &mut bytes);
    bytes.into()
}

fn numbered(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
    bytes
}

#[test]
fn mappings_of_echo_requests_are_counted_as_such_until_they_are_forgotten() {
    let mut pair = pair();
    let udp = pair.mapped();
    let echo = Target {
        protocol: Protocol::Icmp,
        ..mapping()
    };
    let flow = pair.ends[CLIENT].open_flow(&echo, pair.now).unwrap();
    pair.run();
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.run();
    let counts = |pair: &Pair| {
        let of = |end: &Session| (end.mapping_count(), end.echo_count());
        [CLIENT, SERVER].map(|end| of(&pair.ends[end]))
    };
    assert_eq!(counts(&pair), [(2, 1); 2]);
    pair.throw(CLIENT, flow, b"ping");
    pair.run();
    assert_eq!(pair.caught(SERVER, flow), [b"ping".to_vec()]);

    pair.ends[CLIENT].abort(flow, FlowCode::Idle, pair.now);
    pair.run();
    assert_eq!(counts(&pair), [(1, 0); 2]);
    pair.ends[CLIENT].abort(udp, FlowCode::Idle, pair.now);
    pair.run();
    assert_eq!(counts(&pair), [(0, 0); 2]);
}

#[test]
fn the_first_datagram_goes_with_its_open_and_answers_come_back() {
    let mut pair = pair();
    let flow = pair.map();
    pair.throw(CLIENT, flow, b"question");

    pair.run();
    assert_eq!(pair.caught(SERVER, flow), [b"question"]);
    pair.throw(SERVER, flow, b"early");
    pair.ends[SERVER].accept_flow(flow, pair.now);
    pair.throw(SERVER, flow, b"");
    pair.run();

    assert_eq!(pair.caught(CLIENT, flow), [&b"early"[..], b""]);
    assert!(pair.saw(CLIENT, &Event::FlowAccepted { flow }));
    assert!(pair.saw(CLIENT, &Event::FlowReadable { flow }));
    let counts = pair.ends[SERVER].datagram_counts();
    assert_eq!((counts.sent, counts.delivered), (2, 1));
    pair.is_clean();
}

#[test]
fn no_datagram_goes_ahead_of_its_open() {
    let with = |role| Config {
        max_flows: 2000,
        buffer_bytes: 64 << 20,
        ..able(role)
    };
    let mut pair = Pair::with(&with(Role::Client), &with(Role::Server));
    pair.mapped();
    pair.lose_link();
    let count = usize::try_from(limits::CONTROL_WINDOW).unwrap() + 100;
    let flows: Vec<FlowId> = (0..count).map(|_| pair.map()).collect();
    for flow in &flows {
        pair.throw(CLIENT, *flow, b"question");
    }

    pair.resume();

    let unheard = flows
        .iter()
        .filter(|flow| pair.caught(SERVER, **flow).is_empty());
    assert_eq!(unheard.count(), 0);
}

#[test]
fn a_large_datagram_goes_in_pieces_between_which_others_have_their_turn() {
    let mut pair = pair();
    let (flow, stream) = (pair.mapped(), pair.open_accepted());
    let large: Vec<u8> = (0..LARGE).map(|n| n.to_le_bytes()[0]).collect();
    // The stream has used up its first turn, so both stand in one line.
    pair.write(CLIENT, stream, 16_384);
    pair.run();
    pair.read(SERVER, stream);
    pair.run();
    pair.throw(CLIENT, flow, &large);
    pair.write(CLIENT, stream, 16_384);

    let frames = pair.sent(CLIENT, 1 << 20);

    let places = |of: fn(&Frame) -> bool| frames.iter().position(of).unwrap();
    let data = places(|frame| matches!(frame, Frame::Data(_)));
    let last = frames
        .iter()
        .rposition(|frame| matches!(frame, Frame::DatagramPiece(_)));
    assert!(data < last.unwrap(), "{frames:?}");
    pair.read(SERVER, stream);
    pair.run();
    assert_eq!(pair.caught(SERVER, flow), [large]);
    pair.is_clean();
}

#[test]
fn a_large_datagram_whose_link_dies_begins_anew_on_the_next() {
    let mut pair = pair();
    let flow = pair.mapped();
    pair.throw(CLIENT, flow, &numbered(1, LARGE));
    let frames = pair.sent(CLIENT, 20_000);
    assert!(
        frames
            .iter()
            .any(|frame| matches!(frame, Frame::DatagramPiece(_)))
    );

    pair.lose_link();
    pair.resume();

    assert_eq!(pair.caught(SERVER, flow), [numbered(1, LARGE)]);
    assert_eq!(pair.ends[SERVER].datagram_counts().abandoned, 1);
    pair.is_clean();
}

#[test]
fn neither_bulk_streams_nor_bulk_datagrams_keep_a_small_datagram_or_byte_waiting() {
    let mut pair = pair();
    let (bulk, quiet) = (pair.mapped(), pair.mapped());
    let (stream, typing) = (pair.open_accepted(), pair.open_accepted());
    for _ in 0..20 {
        pair.write(CLIENT, stream, 100_000);
        pair.run();
        pair.read(SERVER, stream);
        pair.run();
    }
    assert!(pair.write(CLIENT, stream, 100_000) > 60_000);
    for number in 0..200 {
        pair.throw(CLIENT, bulk, &numbered(number, 400));
    }
    // Both have had their first turn, and stand in line.
    pair.sent(CLIENT, 40_000);
    pair.throw(CLIENT, quiet, b"ping");
    pair.write(CLIENT, typing, 1);

    let frames = pair.sent(CLIENT, 50_000);

    let flow_of = |frame: &Frame| {
        if let Frame::Data(data) = frame {
            return Some(data.flow);
        }
        let Frame::Datagram(datagram) = frame else {
            return None;
        };
        Some(datagram.head.flow)
    };
    let order: Vec<FlowId> = frames.iter().filter_map(flow_of).collect();
    assert_eq!(order[..2], [quiet, typing]);
    assert!(
        order.contains(&stream) && order.contains(&bulk),
        "{order:?}"
    );
    let datagrams = order.iter().filter(|flow| **flow == bulk).count();
    assert!(datagrams < 80, "a turn is 16 KiB: {datagrams}");
}

#[test]
fn a_mapping_that_is_stopped_leaves_nothing_at_either_end() {
    let mut pair = pair();
    let flow = pair.mapped();
    pair.cut = true;
    pair.throw(CLIENT, flow, b"under way");
    pair.throw(SERVER, flow, &[2; LARGE]);
    pair.lose_link();
    pair.throw(CLIENT, flow, b"waits");

    pair.ends[CLIENT].abort(flow, FlowCode::Idle, pair.now);
    pair.resume();

    let code = FlowCode::Idle;
    assert!(pair.saw(SERVER, &Event::FlowAborted { flow, code }));
    let forgotten = Event::FlowForgotten {
        flow,
        lost: 5 + 9,
        dropped: 0,
    };
    assert!(pair.saw(CLIENT, &forgotten), "{:?}", pair.events);
    assert_eq!([0, 1].map(|end| pair.ends[end].flow_count()), [0, 0]);
    pair.throw(CLIENT, flow, b"late");
    pair.is_clean();
}

#[test]
fn errors_come_back_in_their_order_and_of_too_many_the_last_are_dropped() {
    let mut pair = pair();
    let flow = pair.mapped();
    let error = |errno| MappingError {
        remote: remote(),
        errno,
        info: 1400,
    };
    for errno in 0..20 {
        pair.ends[SERVER].send_datagram_error(flow, error(errno));
    }
    pair.run();

    for errno in 0..16 {
        assert_eq!(
            pair.ends[CLIENT].take_datagram_error(flow),
            Some(error(errno))
        );
    }
    assert_eq!(pair.ends[CLIENT].take_datagram_error(flow), None);
}
