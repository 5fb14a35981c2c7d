//! The 10-byte virtio-net header in front of packets of a TUN device, and Internet checksums.

/// Length of the header in bytes.
pub const VNET_HEADER_BYTES: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// `gso_type` of a packet that is one segment.
pub const GSO_NONE: u8 = 0;
/// `gso_type` of a TCP packet over IPv4 that stands for several segments.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type` of a TCP packet over IPv6 that stands for several segments.
pub const GSO_TCPV6: u8 = 4;

/// What the kernel and we tell each other about a packet's checksum and segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum field holds the pseudo header's sum only; the rest is to be added.
    pub needs_csum: bool,
    /// The checksum was verified before the packet came here.
    pub data_valid: bool,
    /// One of the `GSO_` constants.
    pub gso_type: u8,
    /// Length of all headers in bytes.
    pub header_bytes: u16,
    /// Payload of each segment in bytes, if there are several.
    pub gso_size: u16,
    /// Where the bytes that the checksum covers begin.
    pub csum_start: u16,
    /// Where the checksum lies, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Cuts the header off the front of what was read from the device; `None` if it is too short.
    pub fn split(bytes: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (head, packet) = bytes.split_first_chunk_mut::<VNET_HEADER_BYTES>()?;
        Some((Self::parse(head), packet))
    }

    /// Reads the header.
    pub const fn parse(bytes: &[u8; VNET_HEADER_BYTES]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            data_valid: flags & DATA_VALID != 0,
            gso_type,
            header_bytes: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The header's bytes, in the byte order of this machine, as the device wants them.
    pub fn emit(&self) -> [u8; VNET_HEADER_BYTES] {
        let mut bytes = [0; VNET_HEADER_BYTES];
        bytes[0] = if self.needs_csum { NEEDS_CSUM } else { 0 }
            | if self.data_valid { DATA_VALID } else { 0 };
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.header_bytes.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// The checksum of the packet behind this header need not be verified: it was, or the packet
    /// never left this host.
    pub const fn is_trusted(&self) -> bool {
        self.needs_csum || self.data_valid
    }
}

/// The sum of 16-bit words in one's complement (RFC 1071), unfolded; sums can be added.
pub fn sum(bytes: &[u8]) -> u64 {
    // The byte order of the words does not matter to the sum but for a swap at its end (RFC 1071
    // §2.B), and wider words only move carries: hence 32 bits at a time, in the machine's order.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    u64::from(fold_native(total).to_be())
}

/// A sum brought down to 16 bits.
pub fn fold(total: u64) -> u16 {
    fold_native(total)
}

fn fold_native(mut total: u64) -> u16 {
    loop {
        match u16::try_from(total) {
            Ok(folded) => return folded,
            Err(_) => total = (total & 0xffff) + (total >> 16),
        }
    }
}

/// The sum of the pseudo header of a TCP segment of `tcp_bytes` bytes in `packet`, whose IP header
/// was written or checked before.
pub fn pseudo_header_sum(packet: &[u8], tcp_bytes: usize) -> u64 {
    pseudo_sum(packet, 6, tcp_bytes)
}

/// The same for `bytes` bytes of any protocol.
pub fn pseudo_sum(packet: &[u8], protocol: u8, bytes: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    sum(addresses) + u64::from(protocol) + u64::try_from(bytes).unwrap_or(0)
}

/// The TCP checksum in `packet`, whose TCP header begins at `tcp_at`, fits.
pub fn is_tcp_checksum_right(packet: &[u8], tcp_at: usize) -> bool {
    let tcp = &packet[tcp_at..];
    fold(pseudo_header_sum(packet, tcp.len()) + sum(tcp)) == 0xffff
}

/// The UDP checksum of `datagram`, header and payload, in `packet` fits; with IPv4 there may be none.
pub fn is_udp_checksum_right(packet: &[u8], datagram: &[u8]) -> bool {
    if datagram.get(6..8) == Some(&[0, 0]) {
        return packet[0] >> 4 == 4;
    }
    fold(pseudo_sum(packet, 17, datagram.len()) + sum(datagram)) == 0xffff
}

/// The checksum of an ICMP or ICMPv6 `message` in `packet` fits.
pub fn is_icmp_checksum_right(packet: &[u8], message: &[u8]) -> bool {
    let pseudo = if packet[0] >> 4 == 4 {
        0
    } else {
        pseudo_sum(packet, 58, message.len())
    };
    fold(pseudo + sum(message)) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        let header = VnetHeader {
            needs_csum: true,
            data_valid: false,
            gso_type: GSO_TCPV6,
            header_bytes: 60,
            gso_size: 1440,
            csum_start: 40,
            csum_offset: 16,
        };

        assert_eq!(VnetHeader::parse(&header.emit()), header);
        assert_eq!(header.emit()[..2], [1, 4]);
        assert!(VnetHeader::split(&mut [0; 9]).is_none());
        assert_eq!(VnetHeader::split(&mut [0; 10]).unwrap().1.len(), 0);
    }

    #[test]
    fn the_sum_is_that_of_rfc_1071() {
        // The example of RFC 1071 §3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

        assert_eq!(fold(sum(&bytes)), 0xddf2);
        assert_eq!(
            fold(sum(&bytes[..7])),
            fold(sum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0]))
        );
        assert_eq!(fold(sum(&[])), 0);
    }

    #[test]
    fn sums_of_all_lengths_agree_with_the_plain_way() {
        let bytes: Vec<u8> = (0u32..2000)
            .map(|n| (n * 37 + 11).to_le_bytes()[0])
            .collect();

        for len in 0..bytes.len() {
            let plain: u64 = bytes[..len]
                .chunks(2)
                .map(|c| u64::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
                .sum();
            assert_eq!(fold(sum(&bytes[..len])), fold(plain), "{len} bytes");
        }
    }
}
