//! Which IPv4 addresses an IPv6 address stands for: what a refused address might hide behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most IPv4 addresses that one IPv6 address can stand for: four places within a local NAT64
/// prefix, and one in an ISATAP interface identifier.
const MAX_EMBEDDED: usize = 5;

/// The IPv4 addresses that `ip` stands for; all of them have to be allowed.
///
/// IPv4-mapped addresses are no case of this: whoever asks has unmapped them.
pub(super) fn embedded(ip: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let mut found = [None; MAX_EMBEDDED];
    if let IpAddr::V6(v6) = ip {
        let (transport, isatap) = (by_prefix(v6), isatap(v6));
        for (slot, v4) in found.iter_mut().zip(transport.into_iter().chain([isatap])) {
            *slot = v4;
        }
    }
    found.into_iter().flatten()
}

/// By the prefix: which mechanism would turn a packet to this address into one to an IPv4 address.
fn by_prefix(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let last = at(ip, [12, 13, 14, 15]);
    match ip.segments() {
        // The unspecified address and loopback are IPv6's own, no IPv4-compatible addresses.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None; 4],
        // IPv4-compatible (RFC 4291 §2.5.5.1), -mapped (§2.5.5.2) and -translated (RFC 2765 §2.1).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => {
            [Some(last), None, None, None]
        }
        // NAT64, the well-known prefix (RFC 6052 §2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => [Some(last), None, None, None],
        [0x64, 0xff9b, 1, ..] => local_nat64(ip),
        // 6to4 (RFC 3056 §2).
        [0x2002, ..] => [Some(at(ip, [2, 3, 4, 5])), None, None, None],
        // Teredo (RFC 4380 §4): the server's address, and the client's with every bit inverted.
        [0x2001, 0, ..] => {
            let client = Ipv4Addr::from_bits(!last.to_bits());
            [Some(client), Some(at(ip, [4, 5, 6, 7])), None, None]
        }
        _ => [None; 4],
    }
}

/// NAT64 with a local prefix (RFC 8215): the translator may use any length within 64:ff9b:1::/48,
/// so every place that RFC 6052 §2.2 has for the IPv4 address is taken for it. Byte 8 is skipped.
///
/// A place that holds 0.0.0.0/8 is one this translator does not use, unless all of them do: the
/// bits that a prefix leaves over are zero.
fn local_nat64(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let places = [
        [6, 7, 9, 10],
        [7, 9, 10, 11],
        [9, 10, 11, 12],
        [12, 13, 14, 15],
    ];
    let found = places.map(|place| Some(at(ip, place)).filter(|v4| v4.octets()[0] != 0));
    if found.iter().all(Option::is_none) {
        [Some(Ipv4Addr::UNSPECIFIED); 4]
    } else {
        found
    }
}

/// ISATAP (RFC 5214 §6.1): under any prefix, an interface identifier that holds an IPv4 address.
fn isatap(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, _, _] = ip.segments();
    (matches!(a, 0 | 0x200) && b == 0x5efe).then(|| at(ip, [12, 13, 14, 15]))
}

fn at(ip: Ipv6Addr, place: [usize; 4]) -> Ipv4Addr {
    let octets = ip.octets();
    Ipv4Addr::from(place.map(|index| octets[index]))
}
