//! The ranges that are not the public internet, and what it takes to reach each.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// "This network" and the unspecified address.
    Unspecified,
    /// Groups of receivers.
    Multicast,
    /// Set aside by the IETF, or not assigned.
    Reserved,
    /// All hosts of a network.
    Broadcast,
    /// The host itself.
    Loopback,
    /// The network segment.
    LinkLocal,
    /// Where a cloud provider's machines learn their credentials.
    Metadata,
    /// An address of this server.
    Own,
    /// Private networks, those of a carrier's NAT included.
    Private,
    /// Protocol assignments, benchmarks, discard and translation prefixes of a site.
    SpecialPurpose,
}

impl Kind {
    /// Whether no setting opens it.
    pub const fn is_never_allowed(self) -> bool {
        match self {
            Self::Unspecified | Self::Multicast | Self::Reserved | Self::Broadcast => true,
            Self::Loopback
            | Self::LinkLocal
            | Self::Metadata
            | Self::Own
            | Self::Private
            | Self::SpecialPurpose => false,
        }
    }

    /// The kind in words, as a plural subject.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified addresses",
            Self::Multicast => "multicast addresses",
            Self::Reserved => "reserved addresses",
            Self::Broadcast => "broadcast addresses",
            Self::Loopback => "loopback addresses",
            Self::LinkLocal => "link-local addresses",
            Self::Metadata => "cloud metadata services",
            Self::Own => "the server's own addresses",
            Self::Private => "private addresses",
            Self::SpecialPurpose => "special-purpose addresses",
        }
    }
}

const fn net4(a: u8, b: u8, c: u8, d: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn net6(segments: [u16; 8], len: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, d, e, f, g, h),
        len,
    ))
}

/// Special IPv4 ranges (RFC 6890 and IANA's registry). The documentation networks are left out:
/// nothing answers there unless somebody put it there.
const V4: [(IpNet, Kind); 19] = [
    (net4(0, 0, 0, 0, 8), Kind::Unspecified),
    (net4(10, 0, 0, 0, 8), Kind::Private),
    (net4(100, 64, 0, 0, 10), Kind::Private),
    (net4(100, 100, 100, 200, 32), Kind::Metadata), // Alibaba
    (net4(127, 0, 0, 0, 8), Kind::Loopback),
    (net4(168, 63, 129, 16, 32), Kind::Metadata), // Azure, in a public range
    (net4(169, 254, 0, 0, 16), Kind::LinkLocal),
    (net4(169, 254, 0, 23, 32), Kind::Metadata), // Tencent
    (net4(169, 254, 169, 0, 24), Kind::Metadata), // .254 nearly everywhere, and what is beside it
    (net4(169, 254, 170, 2, 32), Kind::Metadata), // AWS, containers
    (net4(169, 254, 170, 23, 32), Kind::Metadata), // AWS, pods
    (net4(172, 16, 0, 0, 12), Kind::Private),
    (net4(192, 0, 0, 0, 24), Kind::SpecialPurpose), // protocol assignments
    (net4(192, 0, 0, 192, 32), Kind::Metadata),     // Oracle
    (net4(192, 168, 0, 0, 16), Kind::Private),
    (net4(198, 18, 0, 0, 15), Kind::SpecialPurpose), // benchmarks
    (net4(224, 0, 0, 0, 4), Kind::Multicast),
    (net4(240, 0, 0, 0, 4), Kind::Reserved),
    (net4(255, 255, 255, 255, 32), Kind::Broadcast),
];

/// Special IPv6 ranges. What stands for an IPv4 address is also judged as that, see `spelling`.
const V6: [(IpNet, Kind); 16] = [
    (net6([0; 8], 128), Kind::Unspecified),
    (net6([0, 0, 0, 0, 0, 0, 0, 1], 128), Kind::Loopback),
    (
        net6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
        Kind::SpecialPurpose,
    ), // a site's NAT64
    (net6([0x100, 0, 0, 0, 0, 0, 0, 0], 63), Kind::SpecialPurpose), // discard, dummy
    (
        net6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48),
        Kind::SpecialPurpose,
    ), // benchmarks
    (
        net6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28),
        Kind::SpecialPurpose,
    ), // ORCHID
    (
        net6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28),
        Kind::SpecialPurpose,
    ), // ORCHIDv2
    (
        net6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
        Kind::SpecialPurpose,
    ), // segment routing
    (net6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Kind::Private),
    (net6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32), Kind::Metadata), // AWS: ::254, and ::23 for pods
    (
        net6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
        Kind::Metadata,
    ), // Scaleway
    (
        net6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
        Kind::Metadata,
    ), // Google
    (net6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Kind::LinkLocal),
    (
        net6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
        Kind::Metadata,
    ), // OpenStack
    (net6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Kind::Private), // site-local
    (net6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Kind::Multicast),
];

/// Where IPv6 has unicast that is no special range: global unicast, and the prefixes whose
/// addresses stand for IPv4 ones. All else is reserved (RFC 4291 §2.4).
const V6_UNICAST: [IpNet; 4] = [
    net6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3),
    net6([0; 8], 96),
    net6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96),
    net6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
];

/// The narrowest special range that `ip` lies in, or none: `ip` is on the public internet.
pub(super) fn narrowest(ip: IpAddr) -> Option<(IpNet, Kind)> {
    let table: &[(IpNet, Kind)] = if ip.is_ipv4() { &V4 } else { &V6 };
    let found = table.iter().filter(|(net, _)| net.contains(&ip));
    let found = found.max_by_key(|(net, _)| net.prefix_len()).copied();
    let assigned = ip.is_ipv4() || V6_UNICAST.iter().any(|net| net.contains(&ip));
    found.or_else(|| (!assigned).then(|| (IpNet::from(ip), Kind::Reserved)))
}
