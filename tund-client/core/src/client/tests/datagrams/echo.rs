//! Echo requests there, replies back, and what ICMP tells of those that were not answered.

use super::super::world::{SECOND, World};
use super::{both, cut, dual_stack, header_of, payload, reassemble, server, v4, world};
use crate::account::{EndedBy, HowEnded};
use crate::client::ClientEvent;
use crate::mappings::Filtering;
use crate::netstack::offload::{self, VNET_HEADER_BYTES};
use crate::netstack::tests::world::{APP_V4, ORIGIN_V4};
use crate::packet::Reason;
use etherparse::PacketBuilder;
use std::net::{IpAddr, SocketAddr};
use tund_session::wire::frame::{DeniedBy, OpenError, Protocol, capability};

const IDENTIFIER: u16 = 4711;

/// The ends of request `sequence` between these hosts.
fn ends((app, origin): (SocketAddr, SocketAddr), sequence: u16) -> (SocketAddr, SocketAddr) {
    let app = SocketAddr::new(app.ip(), IDENTIFIER);
    (app, SocketAddr::new(origin.ip(), sequence))
}

fn request((from, to): (SocketAddr, SocketAddr), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64)
            .icmpv4_echo_request(from.port(), to.port())
            .write(&mut bytes, data),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64)
            .icmpv6_echo_request(from.port(), to.port())
            .write(&mut bytes, data),
        _ => panic!("two families"),
    };
    written.unwrap();
    bytes
}

/// The reply in one packet, or in all fragments of one: where from, where to, its data.
fn read_reply(packets: &[Vec<u8>]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let first = &packets[0][VNET_HEADER_BYTES..];
    let (number, kind) = if first[0] >> 4 == 4 {
        (1, 0)
    } else {
        (58, 129)
    };
    let (source, destination, whole) = reassemble(packets, number);
    let pseudo = if number == 1 {
        0
    } else {
        offload::pseudo_sum(first, number, whole.len())
    };
    assert_eq!(offload::fold(pseudo + offload::sum(&whole)), 0xffff);
    // Raw sockets see what is written here.
    let plain = offload::VnetHeader::default();
    assert!(packets.iter().all(|bytes| header_of(bytes) == plain));
    assert_eq!(whole[..2], [kind, 0]);
    let word = |at: usize| u16::from_be_bytes([whole[at], whole[at + 1]]);
    (
        SocketAddr::new(source, word(6)),
        SocketAddr::new(destination, word(4)),
        whole[8..].to_vec(),
    )
}

impl World {
    fn ping(&mut self, ends: (SocketAddr, SocketAddr), data: &[u8]) {
        self.put(&request(ends, data));
        self.run();
    }

    /// Type and code of the one ICMP message that was seen, and what it quotes.
    fn told(&mut self) -> ((u8, u8), Vec<u8>) {
        let seen = self.seen();
        assert_eq!(seen.len(), 1);
        let message = &seen[0][VNET_HEADER_BYTES..];
        let head = if message[0] >> 4 == 4 { 20 } else { 40 };
        let quote = message[head + 8..].to_vec();
        ((message[head], message[head + 1]), quote)
    }
}

#[test]
fn requests_and_replies_keep_identifier_number_and_data_in_all_sizes() {
    for hosts in both() {
        let mut world = world();
        for (sequence, len) in (0..).zip([56, 0, 1, 1452, 1473, 16_385, 65_507]) {
            let ends = ends(hosts, sequence);
            let sent = payload(len);
            let whole = request(ends, &sent);
            if whole.len() <= 1500 {
                world.put(&whole);
            } else {
                cut(&whole, 1480).iter().for_each(|piece| world.put(piece));
            }
            world.run();

            let mapping = world.mapping();
            assert_eq!(world.at_server(mapping), [(ends.1, sent.clone())]);
            assert!(world.seen().is_empty(), "nobody answers in its place");
            world.answer(mapping, ends.1, &sent);
            let reply = read_reply(&world.seen());
            assert_eq!(reply, (ends.1, ends.0, sent), "{len} bytes");
        }
        assert_eq!(world.opened.len(), 1, "one mapping for all");
        let open = &world.opened[0].1;
        let app = SocketAddr::new(hosts.0.ip(), IDENTIFIER);
        assert_eq!((open.protocol, open.source), (Protocol::Icmp, app));
        assert_eq!(open.destination, SocketAddr::new(hosts.1.ip(), 0));
    }
}

#[test]
fn a_port_is_no_identifier_though_both_have_one_number() {
    let mut world = world();
    let (app, origin) = ends(v4(), 1);
    world.ping((app, origin), b"ping");
    let pings = world.mapping();
    world.throw((app, origin), b"datagram");
    let datagrams = world.mapping();
    assert_eq!(world.at_server(pings), [(origin, b"ping".to_vec())]);
    assert_eq!(world.at_server(datagrams), [(origin, b"datagram".to_vec())]);
    let mappings = world.client.mappings();
    assert_eq!((mappings.len(), mappings.echoes()), (2, 1));

    world.answer(pings, origin, b"pong");
    let reply = read_reply(&world.seen());
    assert_eq!(reply, (origin, app, b"pong".to_vec()));
}

#[test]
fn what_is_no_whole_request_with_a_right_checksum_is_counted_and_dropped() {
    let mut world = world();
    let hosts = both();
    for hosts in hosts {
        let mut wrong = request(ends(hosts, 1), b"wrong");
        *wrong.last_mut().unwrap() ^= 1;
        world.put(&wrong);
    }
    let head = 20;
    let whole = request(ends(v4(), 1), b"code");
    for (at, change) in [(head, 8 ^ 13), (head + 1, 1)] {
        let mut other = whole.clone();
        other[at] ^= change;
        world.put(&other);
    }
    let mut short = request(ends(hosts[1], 1), b"");
    short.truncate(47);
    short[5] = 7;
    world.put(&short);
    world.run();

    assert!(world.opened.is_empty() && world.seen().is_empty());
    let stats = world.client.netstack().stats();
    assert_eq!(stats.untaken(Reason::Checksum), 2);
    assert_eq!(stats.untaken(Reason::Icmp), 2);
    assert_eq!(stats.untaken(Reason::Malformed), 1);
}

#[test]
fn what_a_request_met_is_told_as_icmp_that_quotes_that_request() {
    for hosts in both() {
        let mut world = world();
        let is_v4 = hosts.0.is_ipv4();
        let all: Vec<_> = (0..20).map(|sequence| ends(hosts, sequence)).collect();
        for ends in &all {
            world.ping(*ends, &ends.1.port().to_be_bytes());
        }
        let mapping = world.mapping();
        let cases = [
            (113, 0, if is_v4 { (3, 1) } else { (1, 3) }),
            (113, 1, if is_v4 { (11, 0) } else { (3, 0) }),
            (101, 0, if is_v4 { (3, 0) } else { (1, 0) }),
            (13, 6, if is_v4 { (3, 13) } else { (1, 1) }),
            (90, 1400, if is_v4 { (3, 4) } else { (2, 0) }),
        ];
        let headers = if is_v4 { 28 } else { 48 };
        for (ends, (errno, info, icmp)) in all[4..].iter().zip(cases) {
            world.bounce(mapping, ends.1, errno, info);

            let sent = request(*ends, &ends.1.port().to_be_bytes());
            assert_eq!(world.told(), (icmp, sent[..headers].to_vec()), "{errno}");
        }
        let denied = ClientEvent::Denied {
            destination: SocketAddr::new(hosts.1.ip(), 0),
            by: DeniedBy::Default,
        };
        assert!(world.events.iter().any(|(_, event)| *event == denied));
        // It was too long ago, and nobody waits for it.
        world.bounce(mapping, all[3].1, 113, 0);
        assert!(world.seen().is_empty());
    }
}

#[test]
fn a_hostile_server_answers_for_nobody_who_was_not_asked() {
    for filtering in [Filtering::Address, Filtering::Endpoint] {
        let mut config = dual_stack();
        config.mappings.filtering = filtering;
        let mut world = World::with(config, server(capability::DATAGRAM));
        let (app, origin) = ends(v4(), 1);
        world.ping((app, origin), b"ping");
        let mapping = world.mapping();
        assert_eq!(world.opened[0].1.protocol, Protocol::Icmp);
        for from in [
            "127.0.0.1:1",
            "10.111.0.2:1",
            "224.0.0.1:1",
            "192.168.0.1:1",
            "198.51.100.77:1",
        ] {
            world.answer(mapping, from.parse().unwrap(), b"forged");
        }
        assert!(world.seen().is_empty(), "{filtering:?}");
        // A number is the origin's to choose, 0 too.
        world.answer(mapping, SocketAddr::new(ORIGIN_V4, 0), b"pong");
        assert_eq!(world.seen().len(), 1);
    }
}

#[test]
fn own_addresses_and_foreign_sources_are_refused_and_any_number_is_taken() {
    let mut world = world();
    let foreign: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let (app, origin) = ends(v4(), 0);
    world.ping((foreign, origin), b"forwarded");
    assert!(world.seen().is_empty());
    world.ping((app, SocketAddr::new(APP_V4, 1)), b"own");
    assert_eq!(world.told().0, (3, 13));
    assert!(world.opened.is_empty());

    world.ping((SocketAddr::new(APP_V4, 0), origin), b"zeros");
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(origin, b"zeros".to_vec())]);
}

#[test]
fn where_the_server_may_not_each_request_is_prohibited() {
    let mut world = world();
    for hosts in both() {
        let prohibited = if hosts.0.is_ipv4() { (3, 13) } else { (1, 1) };
        for sequence in 0..3 {
            world.answers.insert(0, OpenError::Other(1));
            world.ping(ends(hosts, sequence), b"may I?");
            assert_eq!(world.told().0, prohibited);
        }
        world.answers.insert(0, OpenError::Other(97));
        world.ping(ends(hosts, 3), b"may I?");
        let no_route = if hosts.0.is_ipv4() { (3, 0) } else { (1, 0) };
        assert_eq!(world.told().0, no_route);
    }
    let mut world = World::with(dual_stack(), server(0));
    world.ping(ends(v4(), 1), b"may I?");
    world.pass(SECOND);
    assert_eq!(world.told().0, (3, 13));
    // It is known now.
    world.ping(ends(v4(), 2), b"may I?");
    assert_eq!(world.told().0, (3, 13));
    assert_eq!(world.client.netstack().stats().untaken(Reason::Ping), 1);
}

#[test]
fn all_that_waited_for_a_server_that_may_not_are_told() {
    let mut world = world();
    world.answers.insert(0, OpenError::Other(1));
    for sequence in 0..3 {
        world.put(&request(ends(v4(), sequence), b"may I?"));
    }
    world.run();
    assert_eq!(world.seen().len(), 3);
}

#[test]
fn an_identifier_is_kept_for_a_minute_after_the_last_request_and_outages_do_not_count() {
    let mut world = world();
    world.ping(ends(v4(), 1), b"ping");
    world.throw(v4(), b"datagram");
    world.pass(SECOND * 30);
    world.fail();
    world.pass(SECOND * 50);
    world.heal();
    world.pass(SECOND * 20);
    world.ping(ends(v4(), 2), b"ping");
    assert_eq!(world.opened.len(), 2, "the same mapping");

    world.pass(SECOND * 59);
    assert_eq!(world.client.mappings().len(), 2);
    world.pass(SECOND * 2);

    let mappings = world.client.mappings();
    assert_eq!((mappings.len(), mappings.echoes()), (1, 0));
    let account = world.accounts().pop().expect("an account");
    assert_eq!(account.protocol, Protocol::Icmp);
    assert_eq!((account.by, account.how), (EndedBy::Client, HowEnded::Idle));
    assert_eq!((account.up_bytes, account.outages), (8, 1));
}
