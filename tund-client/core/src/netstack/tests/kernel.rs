//! The application's kernel: a TCP of its own, and the offloads that a TUN device stands for.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::HardwareAddress;
use tund_session::Instant;

use crate::netstack::offload::{
    GSO_NONE, GSO_TCPV4, GSO_TCPV6, VNET_HEADER_BYTES, VnetHeader, fold, pseudo_header_sum, sum,
};
use crate::netstack::to_smoltcp;

/// Packets between the kernel and the TUN device.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) mtu: usize,
    pub(crate) to_kernel: VecDeque<Vec<u8>>,
    pub(crate) from_kernel: VecDeque<Vec<u8>>,
}

pub(crate) struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Slot<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Packet, Slot<'_>)> {
        let packet = self.to_kernel.pop_front()?;
        Some((Packet(packet), Slot(&mut self.from_kernel)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Slot<'_>> {
        Some(Slot(&mut self.from_kernel))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

pub(crate) struct Kernel {
    interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) wire: Wire,
}

impl Kernel {
    pub(crate) fn new(mtu: usize, now: Instant) -> Self {
        let mut wire = Wire {
            mtu,
            ..Wire::default()
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 99;
        let mut interface = Interface::new(config, &mut wire, to_smoltcp(now));
        interface.set_any_ip(true);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
        }
    }

    /// A socket that has sent nothing yet but wants to.
    pub(crate) fn connect(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        ring_bytes: usize,
    ) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; ring_bytes]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.connect(self.interface.context(), to, from).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn poll(&mut self, now: Instant) {
        self.interface
            .poll(to_smoltcp(now), &mut self.wire, &mut self.sockets);
    }

    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(to_smoltcp(now), &self.sockets)?;
        Some(crate::netstack::from_smoltcp(at))
    }
}

/// What the TUN device checks of each packet written to it.
#[derive(Default)]
pub(crate) struct Inspector {
    pub(crate) offload: bool,
    /// Everything that came, as it came.
    pub(crate) seen: Vec<Vec<u8>>,
    pub(crate) gso_packets: usize,
    /// Longest packet that a kernel would see, in bytes.
    pub(crate) longest_segment: usize,
    /// Per application port: the number of its first byte.
    pub(crate) first: BTreeMap<u16, u32>,
    /// Per application port: window scale, and the highest edge that a packet announced.
    pub(crate) edges: BTreeMap<u16, (u8, u32)>,
}

impl Inspector {
    /// Checks a packet and yields it as the segments that a kernel would see, checksums complete.
    pub(crate) fn inspect(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.seen.push(bytes.to_vec());
        let segments = self.check(bytes);
        let longest = segments.iter().map(Vec::len).max().unwrap_or(0);
        self.longest_segment = self.longest_segment.max(longest);
        segments
    }

    fn check(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        let (header, packet) = if self.offload {
            let header = VnetHeader::parse(bytes.first_chunk::<VNET_HEADER_BYTES>().unwrap());
            (header, bytes.split_off(VNET_HEADER_BYTES))
        } else {
            (VnetHeader::default(), bytes)
        };
        let is_v4 = packet[0] >> 4 == 4;
        let at = if is_v4 { 20 } else { 40 };
        let protocol = if is_v4 { packet[9] } else { packet[6] };
        if is_v4 {
            assert_eq!(fold(sum(&packet[..20])), 0xffff, "IPv4 header checksum");
            assert_eq!(u16_at(&packet, 2), packet.len());
        } else {
            assert_eq!(u16_at(&packet, 4) + 40, packet.len());
        }
        if protocol != 6 {
            assert_eq!(header, VnetHeader::default());
            return vec![packet];
        }
        self.check_window(&packet[at..]);
        let headers = at + usize::from(packet[at + 12] >> 4) * 4;
        if !header.needs_csum {
            assert_eq!(header, VnetHeader::default());
            assert_eq!(tcp_sum(&packet, at), 0xffff, "whole TCP checksum");
            return vec![packet];
        }
        assert_eq!(
            (usize::from(header.csum_start), header.csum_offset),
            (at, 16)
        );
        assert_eq!(usize::from(header.header_bytes), headers);
        let pseudo = fold(pseudo_header_sum(&packet, packet.len() - at));
        assert_eq!(
            u16_at(&packet, at + 16),
            usize::from(pseudo),
            "pseudo header sum"
        );
        if header.gso_type == GSO_NONE {
            assert_eq!(header.gso_size, 0);
            return vec![complete(packet, at)];
        }
        self.gso_packets += 1;
        assert_eq!(header.gso_type, if is_v4 { GSO_TCPV4 } else { GSO_TCPV6 });
        assert!(packet.len() - headers > usize::from(header.gso_size));
        segments(&packet, at, headers, usize::from(header.gso_size))
    }

    /// The right edge is never taken back by more than the scale rounds (RFC 7323 §2.4).
    fn check_window(&mut self, tcp: &[u8]) {
        let flags = tcp[13];
        if flags & 0x04 != 0 {
            return;
        }
        let port = u16::from_be_bytes([tcp[2], tcp[3]]);
        let acknowledged = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        let field = u32::from(u16::from_be_bytes([tcp[14], tcp[15]]));
        if flags & 0x02 != 0 {
            // Our TCP writes MSS, window scale, SACK permitted, in this order.
            let shift = if tcp.get(24..26) == Some(&[3, 3]) {
                tcp[26]
            } else {
                0
            };
            self.first.insert(port, acknowledged);
            self.edges
                .insert(port, (shift, acknowledged.wrapping_add(field)));
            return;
        }
        let (shift, edge) = self.edges.get_mut(&port).expect("a SYN came first");
        let told = acknowledged.wrapping_add(field << *shift);
        let ahead = told.wrapping_sub(*edge).cast_signed();
        assert!(
            ahead > -(1 << *shift),
            "the right edge went back by {}",
            -ahead
        );
        if ahead > 0 {
            *edge = told;
        }
    }

    /// How far beyond the application's SYN it has been told that it may send.
    pub(crate) fn edge(&self, port: u16) -> u32 {
        self.edges[&port].1
    }
}

fn u16_at(packet: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]))
}

pub(crate) fn tcp_sum(packet: &[u8], at: usize) -> u16 {
    fold(pseudo_header_sum(packet, packet.len() - at) + sum(&packet[at..]))
}

/// Finishes the checksum as the kernel does where it is told to.
fn complete(mut packet: Vec<u8>, at: usize) -> Vec<u8> {
    packet[at + 16..at + 18].fill(0);
    let checksum = !tcp_sum(&packet, at);
    packet[at + 16..at + 18].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Cuts a packet to segments as TCP segmentation offload does.
fn segments(packet: &[u8], at: usize, headers: usize, size: usize) -> Vec<Vec<u8>> {
    let sequence = u32::from_be_bytes(packet[at + 4..at + 8].try_into().unwrap());
    let pieces: Vec<_> = packet[headers..].chunks(size).collect();
    let last = pieces.len() - 1;
    let mut sent = 0;
    pieces
        .iter()
        .enumerate()
        .map(|(n, piece)| {
            let mut segment = packet[..headers].to_vec();
            segment.extend_from_slice(piece);
            let number = sequence.wrapping_add(sent);
            sent += u32::try_from(piece.len()).unwrap();
            segment[at + 4..at + 8].copy_from_slice(&number.to_be_bytes());
            if n < last {
                segment[at + 13] &= !0x09;
            }
            let len = if at == 20 {
                segment.len()
            } else {
                segment.len() - 40
            };
            let field = if at == 20 { 2 } else { 4 };
            let len = u16::try_from(len).unwrap();
            segment[field..field + 2].copy_from_slice(&len.to_be_bytes());
            if at == 20 {
                segment[10..12].fill(0);
                let checksum = !fold(sum(&segment[..20]));
                segment[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            complete(segment, at)
        })
        .collect()
}
