//! IPv4 addresses as an IPv6-only network reaches them: RFC 6052 addresses, RFC 7050 discovery.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The name whose IPv6 addresses show the prefix of a network, if it has one.
pub(crate) const WELL_KNOWN_NAME: &str = "ipv4only.arpa";
/// Its two IPv4 addresses.
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// Where the four bytes of an IPv4 address stand, by the length of the prefix in bits (RFC 6052
/// §2.2); the longest first, as the most usual.
const PLACES: [(u8, [usize; 4]); 6] = [
    (96, [12, 13, 14, 15]),
    (64, [9, 10, 11, 12]),
    (56, [7, 9, 10, 11]),
    (48, [6, 7, 9, 10]),
    (40, [5, 6, 7, 9]),
    (32, [4, 5, 6, 7]),
];

/// Where a network translates IPv6 to IPv4.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Nat64Prefix {
    /// With zeros behind its length.
    network: [u8; 16],
    places: [usize; 4],
}

impl Nat64Prefix {
    /// `64:ff9b::/96`, which networks use that have none of their own.
    pub(crate) fn well_known() -> Self {
        let (_, places) = PLACES[0];
        Self {
            network: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0).octets(),
            places,
        }
    }

    /// What an IPv6 address of the well-known name shows.
    pub(crate) fn shown_by(address: Ipv6Addr) -> Option<Self> {
        let octets = address.octets();
        let at = |places: [usize; 4]| {
            let [a, b, c, d] = places.map(|place| octets.get(place).copied().unwrap_or(0));
            Ipv4Addr::new(a, b, c, d)
        };
        let found = PLACES
            .iter()
            .find(|(_, places)| WELL_KNOWN.contains(&at(*places)));
        found.map(|&(bits, places)| {
            let mut network = octets;
            for byte in network.iter_mut().skip(usize::from(bits) / 8) {
                *byte = 0;
            }
            Self { network, places }
        })
    }

    /// The IPv6 address that stands for an IPv4 address there.
    pub(crate) fn address_of(&self, address: Ipv4Addr) -> Ipv6Addr {
        let mut octets = self.network;
        for (place, byte) in self.places.into_iter().zip(address.octets()) {
            if let Some(octet) = octets.get_mut(place) {
                *octet = byte;
            }
        }
        octets.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6052 §2.4: 192.0.2.33 below 2001:db8::.
    const EXAMPLES: [(u8, &str); 6] = [
        (32, "2001:db8:c000:221::"),
        (40, "2001:db8:1c0:2:21::"),
        (48, "2001:db8:122:c000:2:2100::"),
        (56, "2001:db8:122:3c0:0:221::"),
        (64, "2001:db8:122:344:c0:2:2100:0"),
        (96, "2001:db8:122:344::192.0.2.33"),
    ];

    #[test]
    fn prefixes_of_every_length_are_found_and_used() {
        for (bits, example) in EXAMPLES {
            let example: Ipv6Addr = example.parse().unwrap();
            let (_, places) = PLACES.into_iter().find(|(of, _)| *of == bits).unwrap();
            let mut shown = example.octets();
            for (place, byte) in places.into_iter().zip(WELL_KNOWN[1].octets()) {
                shown[place] = byte;
            }

            let prefix = Nat64Prefix::shown_by(shown.into()).unwrap();

            let address = prefix.address_of(Ipv4Addr::new(192, 0, 2, 33));
            assert_eq!(address, example, "/{bits}");
        }
    }

    #[test]
    fn an_address_that_holds_none_of_the_two_shows_nothing() {
        let other: Ipv6Addr = "64:ff9b::192.0.0.172".parse().unwrap();
        assert_eq!(Nat64Prefix::shown_by(other), None);
        let one: Ipv6Addr = "64:ff9b::192.0.0.170".parse().unwrap();
        assert_eq!(Nat64Prefix::shown_by(one), Some(Nat64Prefix::well_known()));
    }
}
