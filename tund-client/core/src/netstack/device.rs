//! The device that smoltcp sees: one packet in; each packet out is finished and given to the sink.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::event::Stats;
use super::offload::{self, GSO_NONE, GSO_TCPV4, GSO_TCPV6, VNET_HEADER_BYTES, VnetHeader};
use super::window::ReceiveWindow;

/// Where packets for the TUN device go.
pub trait Sink {
    /// Takes one packet as the device wants it: with the virtio-net header in front if offloads
    /// are on. One `write` to the device is enough; the bytes are gone when this returns.
    fn packet(&mut self, bytes: &[u8]);
}

/// The largest packet that has a length field for itself, of either IP version.
const MAX_PACKET_BYTES: usize = 65_535;
/// No IPv4 host takes less (RFC 791 §3.1), and headers must fit.
const MIN_MTU_BYTES: usize = 576;
/// TCP header without options.
pub(crate) const TCP_HEADER_BYTES: usize = 20;

const FLAG_SYN: u8 = 0x02;
const FLAG_RST: u8 = 0x04;
const FLAG_ACK: u8 = 0x10;

/// The one buffer in which every packet to the device is written, with room in front for the
/// virtio-net header.
#[derive(Debug)]
pub(crate) struct Outlet {
    buf: Vec<u8>,
    offload: bool,
    mtu: usize,
}

impl Outlet {
    pub(crate) fn new(offload: bool, mtu: usize) -> Self {
        Self {
            buf: vec![0; VNET_HEADER_BYTES + MAX_PACKET_BYTES],
            offload,
            mtu: mtu.clamp(MIN_MTU_BYTES, MAX_PACKET_BYTES),
        }
    }

    /// The MTU that smoltcp is told: with offloads the kernel cuts packets to size.
    fn smoltcp_mtu(&self) -> usize {
        if self.offload {
            MAX_PACKET_BYTES
        } else {
            self.mtu
        }
    }

    /// Largest TCP payload of a packet with this IP header, as smoltcp is to believe it.
    pub(crate) fn smoltcp_segment_bytes(&self, ip_header_bytes: usize) -> u16 {
        segment_bytes(self.smoltcp_mtu(), ip_header_bytes)
    }

    /// Largest TCP payload of a packet with this IP header, in truth.
    pub(crate) fn segment_bytes(&self, ip_header_bytes: usize) -> u16 {
        segment_bytes(self.mtu, ip_header_bytes)
    }

    /// Sends a packet written whole, checksums included, by `write`, which returns its length.
    pub(crate) fn send_complete(
        &mut self,
        stats: &mut Stats,
        sink: &mut dyn Sink,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        let Some(len) = write(&mut self.buf[VNET_HEADER_BYTES..]) else {
            return;
        };
        self.hand_over(len, VnetHeader::default(), stats, sink);
    }

    /// Largest packet that the device takes.
    pub(crate) const fn mtu(&self) -> usize {
        self.mtu
    }

    /// The device wants a virtio-net header, and completes checksums.
    pub(crate) const fn has_offload(&self) -> bool {
        self.offload
    }

    /// Sends a packet that stands in three places.
    pub(crate) fn send_parts(
        &mut self,
        parts: [&[u8]; 3],
        header: VnetHeader,
        stats: &mut Stats,
        sink: &mut dyn Sink,
    ) {
        let mut at = VNET_HEADER_BYTES;
        for part in parts {
            let Some(place) = self.buf.get_mut(at..at + part.len()) else {
                return;
            };
            place.copy_from_slice(part);
            at += part.len();
        }
        self.hand_over(at - VNET_HEADER_BYTES, header, stats, sink);
    }

    fn hand_over(
        &mut self,
        len: usize,
        header: VnetHeader,
        stats: &mut Stats,
        sink: &mut dyn Sink,
    ) {
        let end = VNET_HEADER_BYTES + len;
        stats.packets_out += 1;
        stats.bytes_out += u64::try_from(len).unwrap_or(0);
        stats.gso_out += u64::from(header.gso_type != GSO_NONE);
        if self.offload {
            self.buf[..VNET_HEADER_BYTES].copy_from_slice(&header.emit());
            sink.packet(&self.buf[..end]);
        } else {
            sink.packet(&self.buf[VNET_HEADER_BYTES..end]);
        }
    }
}

fn segment_bytes(mtu: usize, ip_header_bytes: usize) -> u16 {
    u16::try_from(mtu.saturating_sub(ip_header_bytes + TCP_HEADER_BYTES)).unwrap_or(u16::MAX)
}

/// What of a connection has to do with finishing its packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) window: ReceiveWindow,
    /// Payload of a segment, as the application's SYN and the MTU allow it.
    pub(crate) segment_bytes: u16,
    /// Number of our own SYN, once it was sent.
    pub(crate) isn: Option<u32>,
}

/// Why smoltcp sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// It had something to say by itself.
    Own,
    /// It answers a segment: said again even if it was said before.
    Reply,
}

/// A device for one call of smoltcp.
pub(crate) struct Port<'a> {
    pub(crate) incoming: Option<&'a [u8]>,
    pub(crate) occasion: Occasion,
    pub(crate) wire: &'a mut Wire,
    pub(crate) outlet: &'a mut Outlet,
    pub(crate) stats: &'a mut Stats,
    pub(crate) sink: &'a mut dyn Sink,
}

impl Port<'_> {
    /// Finishes the packet of `len` bytes that smoltcp has written, and sends it.
    fn finish(&mut self, len: usize) {
        let end = VNET_HEADER_BYTES + len;
        let packet = &mut self.outlet.buf[VNET_HEADER_BYTES..end];
        let is_v4 = packet[0] >> 4 == 4;
        // smoltcp writes neither IP options nor extension headers.
        let tcp_at = if is_v4 { 20 } else { 40 };
        let header_bytes = tcp_at + usize::from(packet[tcp_at + 12] >> 4) * 4;
        let payload_bytes = len - header_bytes;
        let flags = packet[tcp_at + 13];
        if flags & FLAG_RST == 0 {
            let acknowledgment = read_u32(packet, tcp_at + 8);
            let says_nothing_else = flags == FLAG_ACK && payload_bytes == 0;
            if self.occasion == Occasion::Own
                && says_nothing_else
                && self.wire.window.is_old_news(acknowledgment)
            {
                return;
            }
            let is_syn = flags & FLAG_SYN != 0;
            let field = self.wire.window.announce(acknowledgment, is_syn);
            packet[tcp_at + 14..tcp_at + 16].copy_from_slice(&field.to_be_bytes());
            if is_syn {
                self.wire.isn = Some(read_u32(packet, tcp_at + 4));
                let honest = segment_bytes(self.outlet.mtu, tcp_at);
                set_segment_size(&mut packet[tcp_at..header_bytes], honest);
            }
        }
        let header = self.finish_checksum(len, tcp_at, header_bytes);
        self.outlet.hand_over(len, header, self.stats, self.sink);
    }

    /// Writes the checksum, as much of it as is ours to do, and says the rest in the header.
    fn finish_checksum(&mut self, len: usize, tcp_at: usize, header_bytes: usize) -> VnetHeader {
        let packet = &mut self.outlet.buf[VNET_HEADER_BYTES..VNET_HEADER_BYTES + len];
        let field = tcp_at + 16..tcp_at + 18;
        packet[field.clone()].fill(0);
        let pseudo = offload::pseudo_header_sum(packet, len - tcp_at);
        if !self.outlet.offload {
            let checksum = !offload::fold(pseudo + offload::sum(&packet[tcp_at..]));
            packet[field].copy_from_slice(&checksum.to_be_bytes());
            return VnetHeader::default();
        }
        packet[field].copy_from_slice(&offload::fold(pseudo).to_be_bytes());
        let is_large = len - header_bytes > usize::from(self.wire.segment_bytes);
        let gso_type = if tcp_at == 20 { GSO_TCPV4 } else { GSO_TCPV6 };
        VnetHeader {
            needs_csum: true,
            data_valid: false,
            gso_type: if is_large { gso_type } else { GSO_NONE },
            header_bytes: u16::try_from(header_bytes).unwrap_or(0),
            gso_size: if is_large { self.wire.segment_bytes } else { 0 },
            csum_start: u16::try_from(tcp_at).unwrap_or(0),
            csum_offset: 16,
        }
    }
}

fn read_u32(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// Puts `size` into the MSS option, which smoltcp writes first.
fn set_segment_size(tcp_header: &mut [u8], size: u16) {
    if let Some([2, 4, value @ ..]) = tcp_header.get_mut(TCP_HEADER_BYTES..TCP_HEADER_BYTES + 4) {
        value.copy_from_slice(&size.to_be_bytes());
    }
}

pub(crate) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct Outgoing<'a, 'b>(&'b mut Port<'a>);

impl TxToken for Outgoing<'_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // smoltcp keeps to the MTU that `capabilities` states, which fits the buffer.
        let result = f(&mut self.0.outlet.buf[VNET_HEADER_BYTES..VNET_HEADER_BYTES + len]);
        self.0.finish(len);
        result
    }
}

impl<'a> Device for Port<'a> {
    type RxToken<'b>
        = Incoming<'a>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'a, 'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'a>, Outgoing<'a, '_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'a, '_>> {
        Some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.outlet)
    }
}

/// What smoltcp is told of the device. TCP checksums are ours, both ways.
fn capabilities(outlet: &Outlet) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = outlet.smoltcp_mtu();
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = Checksum::None;
    capabilities
}

/// A device without packets, for making an interface.
pub(crate) struct Blank<'a>(pub(crate) &'a Outlet);

pub(crate) struct Never;

impl RxToken for Never {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&[])
    }
}

impl TxToken for Never {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        f(&mut vec![0; len])
    }
}

impl Device for Blank<'_> {
    type RxToken<'b>
        = Never
    where
        Self: 'b;
    type TxToken<'b>
        = Never
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Never, Never)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Never> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.0)
    }
}
