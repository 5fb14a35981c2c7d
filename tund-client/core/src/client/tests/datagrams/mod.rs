//! Applications' datagrams through the whole client: into mappings, back as packets, and as ICMP.

mod carried;
mod echo;
mod judged;
mod lives;
mod stub;

use super::server::OriginId;
use super::world::{World, client_config, registry_config};
use crate::account::FlowAccount;
use crate::client::{ClientConfig, ClientEvent};
use crate::netstack::offload::{self, VNET_HEADER_BYTES};
use crate::netstack::tests::world::{APP_V4, APP_V6, Collector, ORIGIN_V4, ORIGIN_V6};
use bytes::Bytes;
use etherparse::{IpFragOffset, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder};
use std::net::{IpAddr, SocketAddr};
use tund_session::MappingError;
use tund_session::wire::frame::capability;

const APP_PORT: u16 = 4000;
const IP_NUMBER_UDP: u8 = 17;

fn both() -> [(SocketAddr, SocketAddr); 2] {
    [(APP_V4, ORIGIN_V4), (APP_V6, ORIGIN_V6)].map(|(app, origin)| {
        let app = SocketAddr::new(app, APP_PORT);
        (app, SocketAddr::new(origin, 53))
    })
}

fn v4() -> (SocketAddr, SocketAddr) {
    both()[0]
}

fn dual_stack() -> ClientConfig {
    let mut config = client_config();
    config.netstack.local_addresses = vec![APP_V4, APP_V6];
    config
}

fn world() -> World {
    World::with(dual_stack(), server(capability::DATAGRAM))
}

fn server(capabilities: u64) -> tund_server_core::registry::RegistryConfig {
    let mut config = registry_config(200);
    config.session.capabilities = capabilities;
    config
}

fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let step = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("two families"),
    };
    let mut bytes = Vec::new();
    step.udp(from.port(), to.port())
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251).to_le_bytes()[0]).collect()
}

/// A packet cut as a kernel cuts it, at this many bytes of IP payload.
fn cut(packet: &[u8], at: usize) -> Vec<Vec<u8>> {
    let head = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let payload = &packet[head..];
    let pieces = payload.chunks(at).enumerate();
    let count = payload.len().div_ceil(at);
    let cut = pieces.map(|(number, piece)| {
        let offset = u16::try_from(number * at / 8).unwrap();
        let offset = IpFragOffset::try_new(offset).unwrap();
        let has_more = number + 1 < count;
        let mut bytes = if head == 20 {
            let (mut header, _) = Ipv4Header::from_slice(packet).unwrap();
            header.dont_fragment = false;
            header.identification = 77;
            header.more_fragments = has_more;
            header.fragment_offset = offset;
            header.set_payload_len(piece.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        } else {
            let (mut header, _) = Ipv6Header::from_slice(packet).unwrap();
            let fragment = Ipv6FragmentHeader::new(header.next_header, offset, has_more, 77);
            header.next_header = etherparse::IpNumber::IPV6_FRAGMENTATION_HEADER;
            header.payload_length = u16::try_from(8 + piece.len()).unwrap();
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend_from_slice(&fragment.to_bytes());
            bytes
        };
        bytes.extend_from_slice(piece);
        bytes
    });
    cut.collect()
}

impl World {
    fn put(&mut self, packet: &[u8]) {
        let mut bytes = vec![0; VNET_HEADER_BYTES];
        bytes.extend_from_slice(packet);
        let mut sink = Collector::default();
        self.client.handle_packet(&mut bytes, self.now, &mut sink);
        self.deliver(sink);
    }

    fn throw(&mut self, (from, to): (SocketAddr, SocketAddr), payload: &[u8]) {
        self.put(&packet(from, to, payload));
        self.run();
    }

    fn mapping(&self) -> OriginId {
        self.opened.last().expect("a mapping was asked for").0
    }

    /// What the server has for its socket.
    fn at_server(&mut self, (session, flow): OriginId) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut caught = Vec::new();
        let now = self.now;
        self.registry.with(session, now, |s| {
            while let Some((remote, payload)) = s.datagram(flow, now) {
                caught.push((remote, payload.to_vec()));
                s.datagram_taken(flow);
            }
        });
        caught
    }

    fn answer(&mut self, (session, flow): OriginId, remote: SocketAddr, payload: &[u8]) {
        let (now, payload) = (self.now, Bytes::copy_from_slice(payload));
        self.registry.with(session, now, |s| {
            s.send_datagram(flow, remote, payload, now);
        });
        self.run();
    }

    fn bounce(&mut self, (session, flow): OriginId, remote: SocketAddr, errno: u32, info: u32) {
        let error = MappingError {
            remote,
            errno,
            info,
        };
        let now = self.now;
        self.registry
            .with(session, now, |s| s.send_datagram_error(flow, error));
        self.run();
    }

    /// What applications' kernels got since the last look.
    fn seen(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.datagrams)
    }

    fn accounts(&self) -> Vec<FlowAccount> {
        let events = self.events.iter();
        let accounts = events.filter_map(|(_, event)| {
            let ClientEvent::FlowEnded(account) = event else {
                return None;
            };
            Some(*account)
        });
        accounts.collect()
    }
}

/// What one packet carries, or all fragments of one, with everything about IP checked.
fn reassemble(packets: &[Vec<u8>], number: u8) -> (IpAddr, IpAddr, Vec<u8>) {
    let mut whole = Vec::new();
    let mut ends = None;
    for bytes in packets {
        let packet = &bytes[VNET_HEADER_BYTES..];
        assert!(packet.len() <= 1500, "{} bytes", packet.len());
        let is_last = bytes == packets.last().unwrap();
        let (source, destination, payload) = if packet[0] >> 4 == 4 {
            let (ip, rest) = Ipv4Header::from_slice(packet).unwrap();
            assert_eq!(ip.protocol.0, number);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len), packet.len());
            assert_eq!(ip.more_fragments, !is_last);
            assert_eq!(usize::from(ip.fragment_offset.byte_offset()), whole.len());
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), rest)
        } else {
            let (ip, rest) = Ipv6Header::from_slice(packet).unwrap();
            assert_eq!(usize::from(ip.payload_length), rest.len());
            let rest = if packets.len() > 1 {
                let (piece, rest) = Ipv6FragmentHeader::from_slice(rest).unwrap();
                assert_eq!(piece.more_fragments, !is_last);
                let at = usize::from(piece.fragment_offset.byte_offset());
                assert_eq!(at, whole.len());
                assert_eq!(piece.next_header.0, number);
                rest
            } else {
                assert_eq!(ip.next_header.0, number);
                rest
            };
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), rest)
        };
        whole.extend_from_slice(payload);
        ends = Some((source, destination));
    }
    let (source, destination) = ends.expect("packets");
    (source, destination, whole)
}

fn header_of(bytes: &[u8]) -> offload::VnetHeader {
    offload::VnetHeader::parse(bytes.first_chunk().unwrap())
}

/// The datagram in one packet, or in all fragments of one, with everything about it checked.
fn read(packets: &[Vec<u8>]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let (source, destination, whole) = reassemble(packets, IP_NUMBER_UDP);
    let first = &packets[0][VNET_HEADER_BYTES..];
    let pseudo = offload::pseudo_sum(first, IP_NUMBER_UDP, whole.len());
    if let [bytes] = packets {
        let header = header_of(bytes);
        let at = first.len() - whole.len();
        assert!(header.needs_csum);
        let place = (usize::from(header.csum_start), header.csum_offset);
        assert_eq!(place, (at, 6));
        assert_eq!(whole[6..8], offload::fold(pseudo).to_be_bytes());
    } else {
        let plain = offload::VnetHeader::default();
        assert!(packets.iter().all(|bytes| header_of(bytes) == plain));
        assert_eq!(offload::fold(pseudo + offload::sum(&whole)), 0xffff);
    }
    let port = |at: usize| u16::from_be_bytes([whole[at], whole[at + 1]]);
    assert_eq!(usize::from(port(4)), whole.len());
    (
        SocketAddr::new(source, port(0)),
        SocketAddr::new(destination, port(2)),
        whole[8..].to_vec(),
    )
}
