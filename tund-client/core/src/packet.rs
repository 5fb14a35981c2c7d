//! What an IP packet from the TUN device is: a TCP segment, or something to refuse or drop, and why.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Slice, Ipv6ExtensionSlice, Ipv6Slice, TcpSlice, UdpHeader,
    ip_number,
};

use crate::netstack::offload;

/// Both ends of a TCP connection as one number each, so that it hashes and compares quickly.
///
/// IPv4 addresses are kept in their IPv4-mapped form; [`classify`] refuses IPv6 packets that carry
/// such an address, so two different connections never share a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    source: u128,
    destination: u128,
    ports: u32,
}

impl FlowKey {
    /// The key of the connection from `source` to `destination`.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source: widen(source.ip()),
            destination: widen(destination.ip()),
            ports: (u32::from(source.port()) << 16) | u32::from(destination.port()),
        }
    }

    /// The application's end.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(narrow(self.source), self.source_port())
    }

    /// The end that the application wants to reach.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(narrow(self.destination), self.destination_port())
    }

    /// The application's port.
    pub const fn source_port(&self) -> u16 {
        let [high, low, _, _] = self.ports.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// The origin's port.
    pub const fn destination_port(&self) -> u16 {
        let [_, _, high, low] = self.ports.to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source(), self.destination())
    }
}

fn widen(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn narrow(address: u128) -> IpAddr {
    let v6 = Ipv6Addr::from(address);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// The control bits of a TCP header that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The acknowledgement number counts.
    pub ack: bool,
    /// The sender has no more to send.
    pub fin: bool,
    /// The sender knows of no such connection, or ends it.
    pub rst: bool,
    /// The sender asks for a connection.
    pub syn: bool,
}

impl Flags {
    /// Asks for a connection and says nothing else.
    pub const fn is_initial_syn(self) -> bool {
        self.syn && !self.ack && !self.rst && !self.fin
    }
}

/// Where the parts of a TCP segment lie in its packet, and what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its two ends.
    pub key: FlowKey,
    /// Length of the IP header in bytes.
    pub ip_header_bytes: usize,
    /// Length of the TCP header in bytes.
    pub tcp_header_bytes: usize,
    /// Length of the whole packet in bytes, by its own account; never more than there was.
    pub packet_bytes: usize,
    /// Number of the first byte of payload (of the SYN, if it is one).
    pub sequence: u32,
    /// The next byte that its sender waits for.
    pub acknowledgment: u32,
    /// The window field.
    pub window: u16,
    /// Control bits.
    pub flags: Flags,
}

impl Segment {
    /// Where the payload begins.
    pub const fn payload_at(&self) -> usize {
        self.ip_header_bytes + self.tcp_header_bytes
    }

    /// How many bytes of payload there are.
    pub const fn payload_bytes(&self) -> usize {
        self.packet_bytes - self.payload_at()
    }

    /// How far the segment reaches in the space of sequence numbers.
    pub fn sequence_bytes(&self) -> u32 {
        // A packet is at most 65,575 bytes long, so the fallback is never taken.
        u32::try_from(self.payload_bytes()).unwrap_or(u32::MAX)
            + u32::from(self.flags.syn)
            + u32::from(self.flags.fin)
    }
}

/// Length of the header of a datagram of either kind, in bytes.
pub const DATAGRAM_HEADER_BYTES: usize = 8;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DatagramKind {
    /// An ICMP or ICMPv6 echo request, or the reply to one: its identifier stands in place of the
    /// application's port, its sequence number in place of the remote's.
    Echo,
    /// One of UDP.
    Udp,
}

impl DatagramKind {
    /// The protocol in the IP header, of the version of `address`.
    pub const fn ip_number(self, address: IpAddr) -> IpNumber {
        match (self, address) {
            (Self::Udp, _) => IpNumber::UDP,
            (Self::Echo, IpAddr::V4(_)) => IpNumber::ICMP,
            (Self::Echo, IpAddr::V6(_)) => IpNumber::IPV6_ICMP,
        }
    }

    /// A remote as a person says it: an echo request goes to no port.
    pub const fn named(self, remote: SocketAddr) -> SocketAddr {
        match self {
            Self::Echo => SocketAddr::new(remote.ip(), 0),
            Self::Udp => remote,
        }
    }

    /// What its sender is told where the server carries none.
    pub const fn not_carried(self) -> Unreachable {
        match self {
            Self::Udp => Unreachable::Port,
            // As by a host whose firewall takes none: an echo request has no port.
            Self::Echo => Unreachable::Prohibited,
        }
    }

    /// Why one is counted that is not carried.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Udp => Reason::Udp,
            Self::Echo => Reason::Ping,
        }
    }
}

/// Where the parts of a datagram lie in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What it is.
    pub kind: DatagramKind,
    /// The application's end.
    pub source: SocketAddr,
    /// Where it is to go.
    pub destination: SocketAddr,
    /// Length of the IP header in bytes.
    pub ip_header_bytes: usize,
    /// Length of header and payload in bytes.
    pub datagram_bytes: usize,
}

impl Datagram {
    /// Where it is to go, as a person says it.
    pub const fn named_destination(&self) -> SocketAddr {
        self.kind.named(self.destination)
    }

    /// Header and payload.
    pub fn bytes<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let end = self.ip_header_bytes + self.datagram_bytes;
        packet.get(self.ip_header_bytes..end).unwrap_or_default()
    }

    /// The payload.
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        self.bytes(packet)
            .get(DATAGRAM_HEADER_BYTES..)
            .unwrap_or_default()
    }

    /// All headers: what an ICMP message about it has to quote.
    pub fn headers<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let end = self.ip_header_bytes + DATAGRAM_HEADER_BYTES;
        packet.get(..end).unwrap_or_default()
    }
}

/// A piece of a packet, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where the packet comes from.
    pub source: IpAddr,
    /// Where it is to go.
    pub destination: IpAddr,
    /// The packet's number.
    pub id: u32,
    /// What it carries.
    pub protocol: IpNumber,
    /// Where the piece begins.
    pub offset: IpFragOffset,
    /// There are more behind it.
    pub has_more: bool,
    /// Length of the IP header in bytes, without the header that says which piece this is.
    pub ip_header_bytes: usize,
    /// Where the piece's bytes begin in its packet.
    pub payload_at: usize,
    /// Where they end.
    pub packet_bytes: usize,
}

/// What a host may be told of a destination that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// The host does not answer: `EHOSTUNREACH`.
    Host,
    /// There is no route to it: `ENETUNREACH`.
    Network,
    /// Nothing listens at that port: `ECONNREFUSED`.
    Port,
    /// Somebody forbids it: `EHOSTUNREACH` with IPv4, `EACCES` with IPv6.
    Prohibited,
    /// The protocol is not spoken there: `ENOPROTOOPT` with IPv4, `EPROTO` with IPv6.
    Protocol,
}

/// Why a packet did not become part of a connection; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The IP header's or the segment's checksum does not fit.
    Checksum,
    /// IP options that route, or IPv6 extension headers.
    ExtensionHeader,
    /// Its source is not an address of this host, and forwarded packets are not wanted.
    ForeignSource,
    /// A piece of a packet whose rest has not come, or that does not fit the others.
    Fragment,
    /// An ICMP message other than an echo request.
    Icmp,
    /// One of the daemon's own links was steered into the TUN device.
    Loop,
    /// Its fields contradict each other, or its end is missing.
    Malformed,
    /// Sent to many.
    Multicast,
    /// Sent to an address of this host.
    OwnDestination,
    /// An ICMP echo request that the server does not carry.
    Ping,
    /// Sent to, or from, loopback, unspecified, reserved or IPv4-mapped addresses.
    SpecialAddress,
    /// Belongs to no connection that is known here; answered by a reset where one is due.
    Stray,
    /// As many connections, or held SYNs, as the configuration allows; the application asks again.
    TableFull,
    /// A UDP datagram that the server does not carry.
    Udp,
    /// Neither TCP, UDP nor ICMP.
    UnknownProtocol,
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All of them, in the order of [`Reason::index`].
    pub const ALL: [Self; 15] = [
        Self::Checksum,
        Self::ExtensionHeader,
        Self::ForeignSource,
        Self::Fragment,
        Self::Icmp,
        Self::Loop,
        Self::Malformed,
        Self::Multicast,
        Self::OwnDestination,
        Self::Ping,
        Self::SpecialAddress,
        Self::Stray,
        Self::TableFull,
        Self::Udp,
        Self::UnknownProtocol,
    ];

    /// What a person who steers packets into the device should know of it; nothing of what is
    /// everyday.
    pub const fn advice(self) -> Option<&'static str> {
        match self {
            Self::ForeignSource => {
                Some("sources that are not this host's ([tun] accept_forwarded takes them)")
            }
            Self::Loop => Some("a link of this daemon that was steered into its own device"),
            Self::OwnDestination => Some("this host's own addresses (no setting opens them)"),
            Self::SpecialAddress => {
                Some("loopback, unspecified and reserved addresses (no setting opens them)")
            }
            Self::TableFull => Some("more connections at once than there is room for"),
            Self::Checksum
            | Self::ExtensionHeader
            | Self::Fragment
            | Self::Icmp
            | Self::Malformed
            | Self::Multicast
            | Self::Ping
            | Self::Stray
            | Self::Udp
            | Self::UnknownProtocol => None,
        }
    }

    /// Its place in a table of counters.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A packet that is answered by an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why it is not taken.
    pub reason: Reason,
    /// What its source is told.
    pub unreachable: Unreachable,
    /// Where it came from.
    pub source: IpAddr,
    /// Where it was to go.
    pub destination: IpAddr,
}

/// What is to be done with a packet, as far as the packet itself says.
///
/// Whether its source is one of this host's addresses is for the caller to ask: for a segment of a
/// known connection it was answered at the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not taken, without an answer.
    Drop(Reason),
    /// Not taken; its source is told so, if it is one of ours.
    Refuse(Refused),
    /// A UDP datagram or an echo request; its checksum is not yet looked at.
    Datagram(Datagram),
    /// A piece of a packet.
    Fragment(Fragment),
    /// A whole TCP segment; its TCP checksum is not yet looked at.
    Segment(Segment),
}

/// Says what `packet`, as it came from the TUN device, is. Never panics, whatever the bytes.
pub fn classify(packet: &[u8]) -> Verdict {
    match packet.first().map(|first| first >> 4) {
        Some(4) => classify_v4(packet),
        Some(6) => classify_v6(packet),
        _ => Verdict::Drop(Reason::Malformed),
    }
}

fn classify_v4(packet: &[u8]) -> Verdict {
    let Ok(ip) = Ipv4Slice::from_slice(packet) else {
        return Verdict::Drop(Reason::Malformed);
    };
    let header = ip.header();
    if offload::fold(offload::sum(header.slice())) != 0xffff {
        return Verdict::Drop(Reason::Checksum);
    }
    let (source, destination) = (header.source_addr(), header.destination_addr());
    if destination.is_multicast() || destination.is_broadcast() {
        return Verdict::Drop(Reason::Multicast);
    }
    if is_special_v4(source) || source.is_multicast() {
        return Verdict::Drop(Reason::SpecialAddress);
    }
    if ip.extensions().auth.is_some() {
        return Verdict::Drop(Reason::ExtensionHeader);
    }
    if ip.is_payload_fragmented() {
        let at = header.slice().len();
        return Verdict::Fragment(Fragment {
            source: IpAddr::V4(source),
            destination: IpAddr::V4(destination),
            id: u32::from(header.identification()),
            protocol: header.protocol(),
            offset: header.fragments_offset(),
            has_more: header.more_fragments(),
            ip_header_bytes: at,
            payload_at: at,
            packet_bytes: at + ip.payload().payload.len(),
        });
    }
    let end = Ends {
        source: IpAddr::V4(source),
        destination: IpAddr::V4(destination),
        ip_header_bytes: header.slice().len(),
        special: is_special_v4(destination),
    };
    by_protocol(ip.payload_ip_number(), ip.payload().payload, &end)
}

fn classify_v6(packet: &[u8]) -> Verdict {
    let Ok(ip) = Ipv6Slice::from_slice(packet) else {
        return Verdict::Drop(Reason::Malformed);
    };
    let header = ip.header();
    let (source, destination) = (header.source_addr(), header.destination_addr());
    if destination.is_multicast() {
        return Verdict::Drop(Reason::Multicast);
    }
    if is_special_v6(source) || source.is_multicast() {
        return Verdict::Drop(Reason::SpecialAddress);
    }
    if !ip.extensions().is_empty() {
        return by_fragment_v6(&ip, (source, destination));
    }
    if header.payload_length() == 0 {
        return Verdict::Drop(Reason::Malformed);
    }
    let end = Ends {
        source: IpAddr::V6(source),
        destination: IpAddr::V6(destination),
        ip_header_bytes: header.slice().len(),
        special: is_special_v6(destination),
    };
    by_protocol(ip.payload().ip_number, ip.payload().payload, &end)
}

/// A piece of an IPv6 packet that has no other extension header, or all of it in one piece (RFC
/// 6946).
fn by_fragment_v6(ip: &Ipv6Slice<'_>, (source, destination): (Ipv6Addr, Ipv6Addr)) -> Verdict {
    let mut extensions = ip.extensions().clone().into_iter();
    let (Some(Ipv6ExtensionSlice::Fragment(piece)), None) = (extensions.next(), extensions.next())
    else {
        return Verdict::Drop(Reason::ExtensionHeader);
    };
    let at = ip.header().slice().len();
    let payload_at = at + piece.slice().len();
    Verdict::Fragment(Fragment {
        source: IpAddr::V6(source),
        destination: IpAddr::V6(destination),
        id: piece.identification(),
        protocol: piece.next_header(),
        offset: piece.fragment_offset(),
        has_more: piece.more_fragments(),
        ip_header_bytes: at,
        payload_at,
        packet_bytes: payload_at + ip.payload().payload.len(),
    })
}

/// Addresses that mean another host in each network.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let is_shared = first == 100 && second & 0xc0 == 64; // RFC 6598
            v4.is_private() || v4.is_link_local() || is_shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Addresses that no packet on a wire comes from or goes to.
pub fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => is_special_v6(v6),
    }
}

/// Unspecified ("this network"), loopback, reserved (240/4, broadcast with it).
fn is_special_v4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 240
}

/// Unspecified, loopback, IPv4-mapped (which no packet may carry, RFC 4942 §2.2).
fn is_special_v6(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unspecified() || address.to_ipv4_mapped().is_some()
}

/// What the IP header told, of either version.
struct Ends {
    source: IpAddr,
    destination: IpAddr,
    ip_header_bytes: usize,
    /// The destination is one that no packet on a wire may have.
    special: bool,
}

impl Ends {
    const fn refuse(&self, reason: Reason, unreachable: Unreachable) -> Verdict {
        Verdict::Refuse(Refused {
            reason,
            unreachable,
            source: self.source,
            destination: self.destination,
        })
    }
}

fn by_protocol(protocol: IpNumber, payload: &[u8], ends: &Ends) -> Verdict {
    match protocol {
        ip_number::TCP => by_segment(payload, ends),
        _ if ends.special => Verdict::Drop(Reason::SpecialAddress),
        ip_number::UDP => by_datagram(payload, ends),
        ip_number::ICMP if ends.source.is_ipv4() => {
            by_icmp(payload, etherparse::icmpv4::TYPE_ECHO_REQUEST, ends)
        }
        ip_number::IPV6_ICMP if ends.source.is_ipv6() => {
            by_icmp(payload, etherparse::icmpv6::TYPE_ECHO_REQUEST, ends)
        }
        _ => ends.refuse(Reason::UnknownProtocol, Unreachable::Protocol),
    }
}

fn by_datagram(payload: &[u8], ends: &Ends) -> Verdict {
    let Ok((udp, _)) = UdpHeader::from_slice(payload) else {
        return Verdict::Drop(Reason::Malformed);
    };
    let udp_bytes = usize::from(udp.length);
    // Without a source port nobody could answer, and no socket has none.
    if !(DATAGRAM_HEADER_BYTES..=payload.len()).contains(&udp_bytes) || udp.source_port == 0 {
        return Verdict::Drop(Reason::Malformed);
    }
    Verdict::Datagram(Datagram {
        kind: DatagramKind::Udp,
        source: SocketAddr::new(ends.source, udp.source_port),
        destination: SocketAddr::new(ends.destination, udp.destination_port),
        ip_header_bytes: ends.ip_header_bytes,
        datagram_bytes: udp_bytes,
    })
}

fn by_icmp(message: &[u8], echo_request: u8, ends: &Ends) -> Verdict {
    let [kind, code, _, _, id_high, id_low, high, low, ..] = message else {
        return Verdict::Drop(Reason::Malformed);
    };
    if (*kind, *code) != (echo_request, 0) {
        return Verdict::Drop(Reason::Icmp);
    }
    let identifier = u16::from_be_bytes([*id_high, *id_low]);
    let sequence = u16::from_be_bytes([*high, *low]);
    Verdict::Datagram(Datagram {
        kind: DatagramKind::Echo,
        source: SocketAddr::new(ends.source, identifier),
        destination: SocketAddr::new(ends.destination, sequence),
        ip_header_bytes: ends.ip_header_bytes,
        datagram_bytes: message.len(),
    })
}

fn by_segment(payload: &[u8], ends: &Ends) -> Verdict {
    let Ok(tcp) = TcpSlice::from_slice(payload) else {
        return Verdict::Drop(Reason::Malformed);
    };
    if tcp.source_port() == 0 {
        return Verdict::Drop(Reason::Malformed);
    }
    let flags = Flags {
        ack: tcp.ack(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        syn: tcp.syn(),
    };
    if ends.special {
        // Only a SYN is worth an answer: nothing was ever connected there.
        return if flags.is_initial_syn() {
            ends.refuse(Reason::SpecialAddress, Unreachable::Prohibited)
        } else {
            Verdict::Drop(Reason::SpecialAddress)
        };
    }
    Verdict::Segment(Segment {
        key: FlowKey::new(
            SocketAddr::new(ends.source, tcp.source_port()),
            SocketAddr::new(ends.destination, tcp.destination_port()),
        ),
        ip_header_bytes: ends.ip_header_bytes,
        tcp_header_bytes: tcp.header_len(),
        packet_bytes: ends.ip_header_bytes + payload.len(),
        sequence: tcp.sequence_number(),
        acknowledgment: tcp.acknowledgment_number(),
        window: tcp.window_size(),
        flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_both_ends_and_tells_directions_and_versions_apart() {
        let v4: SocketAddr = "10.0.0.1:65535".parse().unwrap();
        let other: SocketAddr = "203.0.113.9:80".parse().unwrap();
        let v6: SocketAddr = "[fd00::1]:1".parse().unwrap();
        let key = FlowKey::new(v4, other);

        assert_eq!((key.source(), key.destination()), (v4, other));
        assert_eq!((key.source_port(), key.destination_port()), (65_535, 80));
        assert_ne!(key, FlowKey::new(other, v4));
        let key = FlowKey::new(v6, v6);
        assert_eq!((key.source(), key.destination()), (v6, v6));
    }

    #[test]
    fn reasons_are_counted_in_places_of_their_own() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place);
        }
    }

    #[test]
    fn a_segment_knows_its_parts() {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [203, 0, 113, 9], 64)
            .tcp(4000, 80, 7, 1000)
            .ack(9)
            .fin()
            .write(&mut packet, b"abc")
            .unwrap();
        // What lies beyond the packet's own length is not part of it.
        packet.extend_from_slice(b"padding");

        let Verdict::Segment(segment) = classify(&packet) else {
            panic!();
        };

        assert_eq!((segment.payload_at(), segment.payload_bytes()), (40, 3));
        assert_eq!((segment.sequence, segment.acknowledgment), (7, 9));
        assert_eq!((segment.sequence_bytes(), segment.window), (4, 1000));
        assert!(segment.flags.fin && segment.flags.ack && !segment.flags.syn);
    }
}
