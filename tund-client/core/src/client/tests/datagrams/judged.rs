//! Whose datagrams an application hears, and what ICMP tells it of its own.

use super::super::world::{SECOND, World};
use super::{both, dual_stack, packet, server, v4, world};
use crate::client::{ClientEvent, Network};
use crate::netstack::offload::VNET_HEADER_BYTES;
use crate::netstack::tests::world::{APP_V4, ORIGIN_V4, ORIGIN_V6};
use crate::packet::Reason;
use std::net::SocketAddr;
use tund_session::wire::frame::{DeniedBy, OpenError, Protocol, capability};

#[test]
fn what_a_datagram_met_is_told_as_icmp_that_quotes_its_own_headers() {
    for (app, origin) in both() {
        let mut world = world();
        let sent = packet(app, origin, b"anybody?");
        world.throw((app, origin), b"anybody?");
        let mapping = world.mapping();
        let head = if app.is_ipv4() { 20 } else { 40 };
        let v4 = app.is_ipv4();
        let cases = [
            (111, 0, if v4 { (3, 3) } else { (1, 4) }),
            (113, 0, if v4 { (3, 1) } else { (1, 3) }),
            (101, 0, if v4 { (3, 0) } else { (1, 0) }),
            (13, 6, if v4 { (3, 13) } else { (1, 1) }),
            (92, 0, if v4 { (3, 2) } else { (4, 1) }),
            (90, 1400, if v4 { (3, 4) } else { (2, 0) }),
            (90, 600, if v4 { (3, 4) } else { (2, 0) }),
        ];
        for (errno, info, icmp) in cases {
            world.bounce(mapping, origin, errno, info);

            let seen = world.seen();
            assert_eq!(seen.len(), 1, "errno {errno}");
            let message = &seen[0][VNET_HEADER_BYTES..];
            assert_eq!((message[head], message[head + 1]), icmp, "errno {errno}");
            assert_eq!(message[head + 8..], sent[..head + 8], "errno {errno}");
            if errno == 90 {
                let mtu = u16::from_be_bytes([message[head + 6], message[head + 7]]);
                assert_eq!(u32::from(mtu), info.max(1280));
            }
        }
        let denied = ClientEvent::Denied {
            destination: origin,
            by: DeniedBy::Default,
        };
        assert!(world.events.iter().any(|(_, event)| *event == denied));
        // About a datagram that was never sent, and of no known kind.
        world.bounce(mapping, SocketAddr::new(origin.ip(), 9), 111, 0);
        world.bounce(mapping, origin, 5, 0);
        assert_eq!(world.seen().len(), 0);
    }
}

#[test]
fn a_hostile_server_shows_an_application_nothing_it_did_not_ask_for() {
    let mut world = world();
    let (app, origin) = v4();
    world.throw((app, origin), b"question");
    let mapping = world.mapping();
    let never = [
        "127.0.0.1:53",
        "224.0.0.1:53",
        "10.111.0.2:53",
        "192.168.0.1:53",
        "203.0.113.9:0",
    ];
    for from in never {
        world.answer(mapping, from.parse().unwrap(), b"forged");
    }
    world.answer(mapping, SocketAddr::new(ORIGIN_V6, 53), b"forged");
    assert_eq!(world.seen().len(), 0);

    // The same address by another port is a friend.
    world.answer(mapping, SocketAddr::new(ORIGIN_V4, 54), b"friend");
    assert_eq!(world.seen().len(), 1);
}

#[test]
fn with_filtering_by_endpoint_strangers_are_shown_but_never_special_addresses() {
    let mut config = dual_stack();
    config.mappings.filtering = crate::mappings::Filtering::Endpoint;
    let mut world = World::with(config, server(capability::DATAGRAM));
    world.throw(v4(), b"question");
    let mapping = world.mapping();
    assert_eq!(world.opened[0].1.protocol, Protocol::UdpAny);

    world.answer(mapping, "198.51.100.77:1".parse().unwrap(), b"stranger");
    assert_eq!(world.seen().len(), 1);
    let lan = [
        "192.168.0.1:53",
        "10.0.0.1:53",
        "100.64.0.1:53",
        "169.254.1.1:53",
    ];
    for from in ["127.0.0.1:53", "224.0.0.1:53", "10.111.0.2:53"]
        .iter()
        .chain(&lan)
    {
        world.answer(mapping, from.parse().unwrap(), b"forged");
    }
    assert_eq!(world.seen().len(), 0);

    // Who speaks to one host of a private network hears no other.
    world.throw((v4().0, "10.9.9.9:53".parse().unwrap()), b"question");
    for from in lan {
        world.answer(mapping, from.parse().unwrap(), b"forged");
    }
    assert_eq!(world.seen().len(), 0);
    world.answer(mapping, "10.9.9.9:54".parse().unwrap(), b"friend");
    assert_eq!(world.seen().len(), 1);
    assert_eq!(world.client.datagram_counts().unwanted, 11);
}

#[test]
fn where_the_server_carries_no_datagrams_nobody_listens() {
    let mut world = World::with(dual_stack(), server(0));
    for _ in 0..2 {
        world.throw(v4(), b"hello");
        world.pass(SECOND);
        let seen = world.seen();
        assert_eq!(seen.len(), 1);
        let message = &seen[0][VNET_HEADER_BYTES..];
        assert_eq!((message[20], message[21]), (3, 3));
    }
    assert_eq!(world.client.mappings().kept(), 0);
    assert!(world.opened.is_empty());
}

#[test]
fn own_addresses_foreign_sources_and_port_0_are_refused_as_before() {
    let mut world = world();
    let (app, origin) = v4();
    let foreign: SocketAddr = "192.0.2.1:1".parse().unwrap();
    world.throw((foreign, origin), b"forwarded");
    world.throw((app, SocketAddr::new(APP_V4, 1)), b"own");
    world.throw((app, SocketAddr::new(ORIGIN_V4, 0)), b"nowhere");

    assert!(world.opened.is_empty());
    let stats = world.client.netstack().stats().clone();
    assert_eq!(stats.untaken(Reason::ForeignSource), 1);
    assert_eq!(stats.untaken(Reason::OwnDestination), 1);
    assert_eq!(stats.untaken(Reason::Udp), 1);
    let codes: Vec<_> = world.seen().iter().map(|m| (m[30], m[31])).collect();
    assert_eq!(codes, [(3, 13), (3, 3)]);
}

#[test]
fn a_server_without_that_version_of_ip_has_no_route_and_one_without_room_is_asked_again() {
    let mut world = world();
    let (app, origin) = both()[1];
    world.answers.insert(53, OpenError::Other(97));
    world.throw((app, origin), b"six");
    let seen = world.seen();
    assert_eq!(seen.len(), 1);
    let message = &seen[0][VNET_HEADER_BYTES..];
    assert_eq!((message[40], message[41]), (1, 0));
    assert_eq!(world.accounts().len(), 1);

    world.answers.insert(53, OpenError::Exhausted);
    world.throw((app, origin), b"again");
    assert_eq!(world.seen().len(), 0);
    world.answers.clear();
    world.throw((app, origin), b"and again");
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(origin, b"and again".to_vec())]);
}

#[test]
fn neighbours_with_public_addresses_are_not_the_servers_to_speak_for() {
    let mut config = dual_stack();
    config.mappings.filtering = crate::mappings::Filtering::Endpoint;
    let mut world = World::with(config, server(capability::DATAGRAM));
    let (app, origin) = both()[1];
    let network = Network {
        running: [2].into(),
        addresses: [APP_V4, app.ip()].into(),
        networks: ["2001:db8:7::/64".parse().unwrap()].into(),
    };
    world.client.handle_network(network, false, world.now);
    world.throw((app, origin), b"question");
    let mapping = world.mapping();

    world.answer(mapping, "[2001:db8:7::1]:1900".parse().unwrap(), b"forged");
    assert_eq!(world.seen().len(), 0);
    let afar = "[2606:4700::1111]:53".parse().unwrap();
    world.answer(mapping, afar, b"stranger");
    assert_eq!(world.seen().len(), 1);
}
