//! Datagrams at the TUN device: those of applications on their way to the owner, answers on their way
//! to applications, and ICMP messages about what has met an error elsewhere.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};

use super::answer::{self, Speaker};
use super::device::{Outlet, Sink};
use super::event::Stats;
use super::offload::{self, GSO_NONE, VnetHeader};
use super::{Netstack, answer::HOP_LIMIT};
use crate::packet::{DATAGRAM_HEADER_BYTES, Datagram, DatagramKind, Reason, Unreachable};

/// Where a datagram lies that [`Netstack::handle_packet`] leaves to its owner.
#[derive(Debug)]
pub struct Taken {
    /// What it is.
    pub datagram: Datagram,
    /// The packet, if it was put together from fragments; else it is what was read from the device,
    /// from `at` on.
    pub whole: Option<Vec<u8>>,
    /// How many bytes stand before the packet.
    pub at: usize,
}

/// What the sender of a datagram is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounce {
    /// It cannot be delivered.
    Unreachable(Unreachable),
    /// Its path has too many hops.
    HopLimit,
    /// It is too big for its path, which takes packets of so many bytes.
    TooBig(u32),
}

impl Netstack {
    /// Whether a datagram from the TUN device may be carried at all; if not, its sender is told as a
    /// host would tell it.
    pub(super) fn is_carried(
        &mut self,
        packet: &[u8],
        datagram: &Datagram,
        sink: &mut dyn Sink,
    ) -> bool {
        let ends = (datagram.source.ip(), datagram.destination.ip());
        if !self.is_welcome(ends.0) {
            self.stats.count(Reason::ForeignSource);
        } else if self.local_addresses.contains(&ends.1) {
            self.stats.count(Reason::OwnDestination);
            let kind = Unreachable::Prohibited;
            self.send_icmp(packet, ends, Speaker::Nobody, kind, sink);
        } else if datagram.kind == DatagramKind::Udp && datagram.destination.port() == 0 {
            self.refuse_datagram(packet, datagram, Unreachable::Port, sink);
        } else {
            return true;
        }
        false
    }

    /// Tells the sender of `packet` that it is not carried.
    pub fn refuse_datagram(
        &mut self,
        packet: &[u8],
        datagram: &Datagram,
        kind: Unreachable,
        sink: &mut dyn Sink,
    ) {
        self.stats.count(datagram.kind.reason());
        let ends = (datagram.source.ip(), datagram.destination.ip());
        self.send_icmp(packet, ends, Speaker::Destination, kind, sink);
    }

    /// A datagram is dropped because there is no room for its mapping.
    pub fn drop_datagram(&mut self) {
        self.stats.count(Reason::TableFull);
    }

    /// Whether a packet from `address` may be shown to an application: nothing on a wire comes from
    /// loopback, multicast or reserved addresses, and nothing from afar from one of this host.
    pub fn may_come_from(&self, address: IpAddr) -> bool {
        !crate::packet::is_special(address)
            && !address.is_multicast()
            && !self.local_addresses.contains(&address)
    }

    /// Whether a stranger of that address can be one of the server's world: it is no neighbour of
    /// this host's, and not of a private network, for none of which the server may speak.
    pub fn is_from_afar(&self, address: IpAddr) -> bool {
        !crate::packet::is_private(address)
            && !self
                .local_networks
                .iter()
                .any(|network| network.contains(&address))
    }

    /// Shows an application a datagram, in fragments if it is larger than the device's MTU.
    pub fn send_datagram(
        &mut self,
        kind: DatagramKind,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        sink: &mut dyn Sink,
    ) {
        // IPv4 has 16 bits for it: whole packets use none up.
        let is_large = payload.len() + 48 > self.outlet.mtu();
        self.fragment_id = self.fragment_id.wrapping_add(u32::from(is_large));
        let datagram = Outgoing {
            kind,
            from,
            to,
            payload,
            id: self.fragment_id,
        };
        datagram.send(&mut self.outlet, &mut self.stats, sink);
    }

    /// Tells the application that sent what begins with `quote`, to `remote`, what became of it.
    pub fn send_bounce(
        &mut self,
        quote: &[u8],
        remote: IpAddr,
        bounce: Bounce,
        sink: &mut dyn Sink,
    ) {
        let Some(source) = answer::source_of(quote) else {
            return;
        };
        match bounce {
            Bounce::Unreachable(kind) => {
                let ends = (source, remote);
                self.send_icmp(quote, ends, Speaker::Destination, kind, sink);
            }
            Bounce::HopLimit => {
                self.stats.icmp_out += 1;
                self.outlet.send_complete(&mut self.stats, sink, |out| {
                    answer::hop_limit_exceeded(quote, (source, remote), out)
                });
            }
            Bounce::TooBig(mtu) => {
                self.stats.icmp_out += 1;
                self.outlet.send_complete(&mut self.stats, sink, |out| {
                    answer::too_big(quote, (source, remote), mtu, out)
                });
            }
        }
    }
}

/// A datagram for an application.
struct Outgoing<'a> {
    kind: DatagramKind,
    from: SocketAddr,
    to: SocketAddr,
    payload: &'a [u8],
    /// Names its fragments.
    id: u32,
}

impl Outgoing<'_> {
    fn send(&self, outlet: &mut Outlet, stats: &mut Stats, sink: &mut dyn Sink) {
        let bytes = DATAGRAM_HEADER_BYTES + self.payload.len();
        let Ok(length) = u16::try_from(bytes) else {
            return;
        };
        let mut front = [0; 40];
        let Some(ip_bytes) = self.write_ip(None, bytes, &mut front) else {
            return;
        };
        let Some(head) = front.get(..ip_bytes) else {
            return;
        };
        let pseudo = match (self.kind, self.from) {
            (DatagramKind::Echo, SocketAddr::V4(_)) => 0,
            (DatagramKind::Echo, SocketAddr::V6(_)) | (DatagramKind::Udp, _) => {
                offload::pseudo_sum(head, self.ip_number().0, bytes)
            }
        };
        let is_whole = ip_bytes + bytes <= outlet.mtu();
        // Sockets that see whole ICMP messages would see what the kernel has yet to complete.
        if is_whole && outlet.has_offload() && self.kind == DatagramKind::Udp {
            let header = VnetHeader {
                needs_csum: true,
                data_valid: false,
                gso_type: GSO_NONE,
                header_bytes: u16::try_from(ip_bytes + DATAGRAM_HEADER_BYTES).unwrap_or(0),
                gso_size: 0,
                csum_start: u16::try_from(ip_bytes).unwrap_or(0),
                csum_offset: 6,
            };
            let parts = [
                head,
                &self.header(length, offload::fold(pseudo)),
                self.payload,
            ];
            outlet.send_parts(parts, header, stats, sink);
            return;
        }
        let sum = pseudo + offload::sum(&self.header(length, 0)) + offload::sum(self.payload);
        let header = self.header(
            length,
            match (self.kind, !offload::fold(sum)) {
                // Zero would say that there is no checksum (RFC 768, RFC 8200 §8.1).
                (DatagramKind::Udp, 0) => 0xffff,
                (_, checksum) => checksum,
            },
        );
        if is_whole {
            let parts = [head, &header[..], self.payload];
            outlet.send_parts(parts, VnetHeader::default(), stats, sink);
        } else {
            self.send_fragments(&header, outlet, stats, sink);
        }
    }

    const fn ip_number(&self) -> IpNumber {
        self.kind.ip_number(self.from.ip())
    }

    /// The header of a datagram of that length, header included, with that checksum.
    fn header(&self, length: u16, checksum: u16) -> [u8; DATAGRAM_HEADER_BYTES] {
        let words = match (self.kind, self.from) {
            (DatagramKind::Udp, _) => [self.from.port(), self.to.port(), length, checksum],
            (DatagramKind::Echo, from) => {
                let reply = match from {
                    SocketAddr::V4(_) => etherparse::icmpv4::TYPE_ECHO_REPLY,
                    SocketAddr::V6(_) => etherparse::icmpv6::TYPE_ECHO_REPLY,
                };
                let kind = u16::from_be_bytes([reply, 0]);
                [kind, checksum, self.to.port(), from.port()]
            }
        };
        let [[a, b], [c, d], [e, f], [g, h]] = words.map(u16::to_be_bytes);
        [a, b, c, d, e, f, g, h]
    }

    /// The pieces, each but the last as long as the MTU allows in steps of 8 bytes.
    fn send_fragments(
        &self,
        header: &[u8; DATAGRAM_HEADER_BYTES],
        outlet: &mut Outlet,
        stats: &mut Stats,
        sink: &mut dyn Sink,
    ) {
        let whole = DATAGRAM_HEADER_BYTES + self.payload.len();
        let head_bytes = if self.from.is_ipv4() { 20 } else { 48 };
        let most = (outlet.mtu() - head_bytes) & !7;
        let mut at = 0;
        while at < whole {
            let end = (at + most).min(whole);
            let mut head = [0; 48];
            let place = Some((at, end < whole));
            let Some(written) = self.write_ip(place, end - at, &mut head) else {
                return;
            };
            // That header is in the first piece, whose length is a multiple of 8 and more.
            let from = at.saturating_sub(DATAGRAM_HEADER_BYTES);
            let payload = self.payload.get(from..end - DATAGRAM_HEADER_BYTES);
            let front: &[u8] = if at == 0 { header } else { &[] };
            if let (Some(head), Some(payload)) = (head.get(..written), payload) {
                let parts = [head, front, payload];
                outlet.send_parts(parts, VnetHeader::default(), stats, sink);
            }
            at = end;
        }
    }

    /// Writes the IP header of a packet, or with a place (offset, more behind it) of a fragment, that
    /// carries so many bytes.
    fn write_ip(
        &self,
        place: Option<(usize, bool)>,
        bytes: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let offset = place.map_or(0, |(at, _)| at / 8);
        let offset = IpFragOffset::try_new(u16::try_from(offset).ok()?).ok()?;
        let has_more = place.is_some_and(|(_, has_more)| has_more);
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = u16::try_from(bytes).ok()?;
                let number = self.ip_number();
                let mut header =
                    Ipv4Header::new(length, HOP_LIMIT, number, from.octets(), to.octets()).ok()?;
                let [_, _, high, low] = self.id.to_be_bytes();
                header.identification = place.map_or(0, |_| u16::from_be_bytes([high, low]));
                header.dont_fragment = place.is_none();
                header.more_fragments = has_more;
                header.fragment_offset = offset;
                header.header_checksum = header.calc_header_checksum();
                copy(&header.to_bytes(), &[], out)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let fragment = place.map(|_| {
                    Ipv6FragmentHeader::new(self.ip_number(), offset, has_more, self.id).to_bytes()
                });
                let behind = fragment.as_ref().map_or(&[][..], |bytes| &bytes[..]);
                let header = Ipv6Header {
                    payload_length: u16::try_from(bytes + behind.len()).ok()?,
                    next_header: match fragment {
                        Some(_) => IpNumber::IPV6_FRAGMENTATION_HEADER,
                        None => self.ip_number(),
                    },
                    hop_limit: HOP_LIMIT,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                copy(&header.to_bytes(), behind, out)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }
}

fn copy(head: &[u8], behind: &[u8], out: &mut [u8]) -> Option<usize> {
    let end = head.len() + behind.len();
    out.get_mut(..head.len())?.copy_from_slice(head);
    out.get_mut(head.len()..end)?.copy_from_slice(behind);
    Some(end)
}
