//! Mappings between two sessions: datagrams each way, their bounds and their end.

use super::pair::{CLIENT, Pair, SERVER, config, target};
use crate::session::VERSION;
use crate::wire::frame::{
    Control, Data, Datagram, DatagramHead, DatagramPiece, FlowCode, Frame, Limits, OpenError,
    Protocol, Welcome, capability,
};
use crate::*;
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;

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

#[test]
fn a_server_that_carries_no_datagrams_refuses_those_asked_for_before_it_was_known() {
    let now = pair::START;
    let mut client = Session::new_client(&able(Role::Client), now);
    let flow = client.open_flow(&mapping(), now).unwrap();
    client.send_datagram(flow, remote(), Bytes::from_static(b"x"), now);
    client.handle_link_up(LinkId(1), pair::secret(1), now);
    client.poll_transmit(LinkId(1), 1000, &mut Outbox::new(), now);

    client.handle_bytes(LinkId(1), welcome(0), now);

    let refused = Event::FlowRefused {
        flow,
        error: OpenError::Other(93),
        remainder: None,
    };
    assert_eq!(client.poll_event(), Some(refused));
    assert_eq!((client.flow_count(), client.buffered()), (0, (0, 0)));
    let again = client.open_flow(&mapping(), now);
    assert_eq!(again, Err(OpenRefused::NotAgreed));
}

use super::pair;

fn datagram(flow: FlowId) -> Frame {
    let head = DatagramHead {
        flow,
        remote: remote(),
        age: Duration::ZERO,
    };
    Frame::Datagram(Datagram {
        head,
        payload: Bytes::from_static(b"x"),
    })
}

fn violation(pair: &mut Pair, frame: &Frame) -> Option<EndReason> {
    pair.say(frame);
    pair.ends[SERVER].end_reason()
}

#[test]
fn what_belongs_to_the_other_kind_of_flow_is_a_violation() {
    let mut pair = pair();
    let (stream, flow) = (pair.open_accepted(), pair.mapped());
    let what = "a datagram of a stream";
    assert_eq!(
        violation(&mut pair, &datagram(stream)),
        Some(EndReason::Violation { what })
    );

    let mut pair = self::pair();
    let stream = pair.mapped();
    assert_eq!(stream, FlowId(1));
    let data = Data {
        flow: stream,
        offset: Offset(0),
        fin: true,
        payload: Bytes::new(),
    };
    let what = "DATA of a mapping";
    let seen = violation(&mut pair, &Frame::Data(data));
    assert_eq!(seen, Some(EndReason::Violation { what }));
    let _ = flow;

    let mut pair = Pair::new();
    let stream = pair.open_accepted();
    let what = "a frame of a capability that was not agreed";
    assert_eq!(
        violation(&mut pair, &datagram(stream)),
        Some(EndReason::Violation { what })
    );
}

#[test]
fn a_datagram_ahead_of_its_open_is_dropped_and_harms_nobody() {
    let mut pair = pair();
    assert_eq!(violation(&mut pair, &datagram(FlowId(9))), None);
    let flow = pair.mapped();
    pair.throw(CLIENT, flow, b"now");
    pair.run();
    assert_eq!(pair.caught(SERVER, flow), [b"now"]);
}

#[test]
fn pieces_that_continue_nothing_are_dropped() {
    let mut pair = pair();
    let flow = pair.mapped();
    let piece = |offset, whole| {
        let head = DatagramHead {
            flow,
            remote: remote(),
            age: Duration::ZERO,
        };
        Frame::DatagramPiece(DatagramPiece {
            head,
            offset,
            whole,
            payload: Bytes::from(vec![1; 100]),
        })
    };
    for frame in [
        piece(100, 200),
        piece(0, 300),
        piece(200, 300),
        piece(0, 300),
        piece(100, 200),
    ] {
        assert_eq!(violation(&mut pair, &frame), None);
    }
    assert_eq!(pair.caught(SERVER, flow), [b""; 0]);
    for frame in [piece(100, 300), piece(200, 300)] {
        assert_eq!(violation(&mut pair, &frame), None);
    }
    assert_eq!(pair.caught(SERVER, flow), [[1; 300]]);
}

#[test]
fn an_open_without_the_capability_is_refused() {
    let mut pair = Pair::with(&config(Role::Client), &config(Role::Server));
    let open = Control::Open(wire::frame::Open {
        flow: FlowId(1),
        protocol: Protocol::Udp,
        source: remote(),
        destination: remote(),
        limit: Offset(0),
        grace: Duration::from_secs(1),
        on_expiry: wire::frame::OnExpiry::Reset,
    });
    let number = 1;
    assert_eq!(
        violation(
            &mut pair,
            &Frame::Control {
                number,
                message: open
            }
        ),
        None
    );
    pair.run();
    assert_eq!(pair.ends[SERVER].flow_count(), 0);
    assert!(
        !pair.events[SERVER]
            .iter()
            .any(|e| matches!(e, Event::FlowOpened { .. }))
    );
}
