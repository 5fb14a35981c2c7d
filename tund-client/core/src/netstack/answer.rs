//! Packets that are made here whole: resets, ICMP messages, and segments that only smoltcp sees.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::{self, DestUnreachableHeader};
use etherparse::icmpv6::{self, DestUnreachableCode, ParameterProblemCode, ParameterProblemHeader};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader,
    TcpOptionElement, TcpOptions,
};

use crate::packet::{FlowKey, Segment, Unreachable};

pub(super) const HOP_LIMIT: u8 = 64;

/// An ICMP message quotes so much that it stays within 576 bytes (RFC 1812 §4.3.2.3).
const QUOTE_V4_BYTES: usize = 576 - 28;
/// An ICMPv6 message quotes so much that it stays within 1280 bytes (RFC 4443 §2.4).
const QUOTE_V6_BYTES: usize = 1280 - 48;

/// Speaks where no address may: the dummy address for ICMP errors (RFC 7600 §4.8).
const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// The same for IPv6, which has no such address: one of the discard prefix (RFC 6666).
const DUMMY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8);

fn ip(from: IpAddr, to: IpAddr) -> Option<PacketBuilderStep<IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Some(PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Some(PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Writes the reset that answers `segment` where no connection is (RFC 9293 §3.10.7.1).
pub(crate) fn reset(segment: &Segment, out: &mut [u8]) -> Option<usize> {
    let key = segment.key;
    let step = ip(key.destination().ip(), key.source().ip())?;
    let sequence = if segment.flags.ack {
        segment.acknowledgment
    } else {
        0
    };
    let mut step = step
        .tcp(key.destination_port(), key.source_port(), sequence, 0)
        .rst();
    if !segment.flags.ack {
        step = step.ack(segment.sequence.wrapping_add(segment.sequence_bytes()));
    }
    step.write_to_slice(out, &[]).ok()
}

/// Whether an ICMP message may come from the destination of what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// From the destination itself, as if it had answered.
    Destination,
    /// From an address that belongs to nobody: the destination is not one a packet may come from.
    Nobody,
}

/// Writes the ICMP message that tells the sender of `packet`, from `source` to `destination`, that
/// its destination cannot be had.
pub(crate) fn unreachable(
    packet: &[u8],
    (source, destination): (IpAddr, IpAddr),
    speaker: Speaker,
    kind: Unreachable,
    out: &mut [u8],
) -> Option<usize> {
    let from = match (speaker, destination) {
        (Speaker::Destination, _) => destination,
        (Speaker::Nobody, IpAddr::V4(_)) => IpAddr::V4(DUMMY_V4),
        (Speaker::Nobody, IpAddr::V6(_)) => IpAddr::V6(DUMMY_V6),
    };
    let step = ip(from, source)?;
    if source.is_ipv4() {
        let quote = &packet[..packet.len().min(QUOTE_V4_BYTES)];
        step.icmpv4(icmpv4_type(kind))
            .write_to_slice(out, quote)
            .ok()
    } else {
        let quote = &packet[..packet.len().min(QUOTE_V6_BYTES)];
        step.icmpv6(icmpv6_type(kind))
            .write_to_slice(out, quote)
            .ok()
    }
}

/// Writes the ICMP message that tells the sender of `packet` that it is too big for its path.
pub(crate) fn too_big(
    packet: &[u8],
    (source, destination): (IpAddr, IpAddr),
    mtu: u32,
    out: &mut [u8],
) -> Option<usize> {
    let step = ip(destination, source)?;
    if source.is_ipv4() {
        let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
        let quote = &packet[..packet.len().min(QUOTE_V4_BYTES)];
        step.icmpv4(Icmpv4Type::DestinationUnreachable(header))
            .write_to_slice(out, quote)
            .ok()
    } else {
        let quote = &packet[..packet.len().min(QUOTE_V6_BYTES)];
        step.icmpv6(Icmpv6Type::PacketTooBig { mtu })
            .write_to_slice(out, quote)
            .ok()
    }
}

/// Writes the ICMP message that tells the sender of `packet` that its path has too many hops.
pub(crate) fn hop_limit_exceeded(
    packet: &[u8],
    (source, destination): (IpAddr, IpAddr),
    out: &mut [u8],
) -> Option<usize> {
    let step = ip(destination, source)?;
    if source.is_ipv4() {
        let quote = &packet[..packet.len().min(QUOTE_V4_BYTES)];
        let code = icmpv4::TimeExceededCode::TtlExceededInTransit;
        step.icmpv4(Icmpv4Type::TimeExceeded(code))
            .write_to_slice(out, quote)
            .ok()
    } else {
        let quote = &packet[..packet.len().min(QUOTE_V6_BYTES)];
        let code = icmpv6::TimeExceededCode::HopLimitExceeded;
        step.icmpv6(Icmpv6Type::TimeExceeded(code))
            .write_to_slice(out, quote)
            .ok()
    }
}

/// Where a packet came from that begins with these bytes.
pub(crate) fn source_of(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            Some(IpAddr::from(source))
        }
        _ => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            Some(IpAddr::from(source))
        }
    }
}

const fn icmpv4_type(kind: Unreachable) -> Icmpv4Type {
    Icmpv4Type::DestinationUnreachable(match kind {
        Unreachable::Host => DestUnreachableHeader::Host,
        Unreachable::Network => DestUnreachableHeader::Network,
        Unreachable::Port => DestUnreachableHeader::Port,
        Unreachable::Prohibited => DestUnreachableHeader::FilterProhibited,
        Unreachable::Protocol => DestUnreachableHeader::Protocol,
    })
}

const fn icmpv6_type(kind: Unreachable) -> Icmpv6Type {
    Icmpv6Type::DestinationUnreachable(match kind {
        Unreachable::Host => DestUnreachableCode::Address,
        Unreachable::Network => DestUnreachableCode::NoRoute,
        Unreachable::Port => DestUnreachableCode::Port,
        Unreachable::Prohibited => DestUnreachableCode::Prohibited,
        Unreachable::Protocol => {
            return Icmpv6Type::ParameterProblem(ParameterProblemHeader {
                code: ParameterProblemCode::UnrecognizedNextHeader,
                // Where the fixed header names what follows it (RFC 8200 §3).
                pointer: 6,
            });
        }
    })
}

/// What a SYN offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Largest segment that the application's kernel takes.
    pub(crate) segment_bytes: Option<u16>,
    /// Its window scale.
    pub(crate) window_scale: Option<u8>,
    /// It understands selective acknowledgements.
    pub(crate) selective: bool,
    /// Its window, unscaled.
    pub(crate) window: u16,
}

/// Reads the offer out of a TCP header; what cannot be read is not offered.
pub(crate) fn read_offer(header: &[u8]) -> Offer {
    let mut offer = Offer::default();
    let Ok(tcp) = etherparse::TcpSlice::from_slice(header) else {
        return offer;
    };
    offer.window = tcp.window_size();
    let mut options = tcp.options();
    loop {
        options = match options {
            [] | [0, ..] => break,
            [1, rest @ ..] => rest,
            [2, 4, high, low, rest @ ..] => {
                // Zero counts as absent, as with Linux.
                let bytes = u16::from_be_bytes([*high, *low]);
                offer.segment_bytes = (bytes != 0).then_some(bytes);
                rest
            }
            [3, 3, shift, rest @ ..] => {
                offer.window_scale = Some(*shift);
                rest
            }
            [4, 2, rest @ ..] => {
                offer.selective = true;
                rest
            }
            [_, len @ 2..=255, ..] => options.get(usize::from(*len)..).unwrap_or_default(),
            [_, ..] => break,
        };
    }
    offer
}

/// Writes the SYN that smoltcp gets to see: what the application offered, but for the size of a
/// segment.
pub(crate) fn syn(
    key: &FlowKey,
    sequence: u32,
    offer: &Offer,
    segment_bytes: u16,
    out: &mut [u8],
) -> Option<usize> {
    let mut options = [const { TcpOptionElement::Noop }; 3];
    options[0] = TcpOptionElement::MaximumSegmentSize(segment_bytes);
    if let Some(shift) = offer.window_scale {
        options[1] = TcpOptionElement::WindowScale(shift);
    }
    if offer.selective {
        options[2] = TcpOptionElement::SelectiveAcknowledgementPermitted;
    }
    let mut header = TcpHeader::new(
        key.source_port(),
        key.destination_port(),
        sequence,
        offer.window,
    );
    header.syn = true;
    header.options = TcpOptions::try_from_elements(&options).ok()?;
    let step = ip(key.source().ip(), key.destination().ip())?;
    step.tcp_header(header).write_to_slice(out, &[]).ok()
}

/// Writes a segment with one byte that was acknowledged before, as if the application had sent it
/// again: smoltcp answers it with an ACK that states the window, and takes nothing from it.
pub(crate) fn repeated_byte(
    key: &FlowKey,
    sequence: u32,
    acknowledgment: u32,
    out: &mut [u8],
) -> Option<usize> {
    let step = ip(key.source().ip(), key.destination().ip())?;
    step.tcp(key.source_port(), key.destination_port(), sequence, 0)
        .ack(acknowledgment)
        .write_to_slice(out, &[0])
        .ok()
}

/// Writes an ACK as the application would send it, with these sequence and acknowledgement numbers.
pub(crate) fn ack_from_app(
    key: &FlowKey,
    (sequence, acknowledgment): (u32, u32),
    window: u16,
    out: &mut [u8],
) -> Option<usize> {
    let step = ip(key.source().ip(), key.destination().ip())?;
    step.tcp(key.source_port(), key.destination_port(), sequence, window)
        .ack(acknowledgment)
        .write_to_slice(out, &[])
        .ok()
}

/// Writes a FIN to the application, with these sequence and acknowledgement numbers.
pub(crate) fn fin(
    key: &FlowKey,
    (sequence, acknowledgment): (u32, u32),
    window: u16,
    out: &mut [u8],
) -> Option<usize> {
    let step = ip(key.destination().ip(), key.source().ip())?;
    step.tcp(key.destination_port(), key.source_port(), sequence, window)
        .ack(acknowledgment)
        .fin()
        .write_to_slice(out, &[])
        .ok()
}
