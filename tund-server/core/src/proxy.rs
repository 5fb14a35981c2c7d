//! The PROXY protocol: which origins are told who speaks to them, and in which bytes.

use crate::admission::{Protocol, Rule};
use bytes::{Bytes, BytesMut};
use proxy_header::{ProxiedAddress, ProxyHeader, Tlv};
use std::net::{IpAddr, SocketAddr};
use tund_session::SessionId;

/// The longest header: 16 bytes, two IPv6 addresses with ports, and the id behind its 3 bytes.
const HEADER_MAX: usize = 16 + 36 + 3 + 32;

/// `[origin] proxy_protocol`: origins that get a PROXY protocol header, version 2, before the
/// first byte of a flow.
///
/// The source in it is the address from which the server saw the client's authenticated link, not
/// one that the client names; the destination is the origin's. PP2_TYPE_UNIQUE_ID is the session
/// id in the 32 hex digits that `status` and `sessions` show.
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocol {
    destinations: Vec<Rule>,
}

impl ProxyProtocol {
    /// For these destinations and no others.
    pub const fn new(destinations: Vec<Rule>) -> Self {
        Self { destinations }
    }

    /// What goes to the origin first, or nothing if it is not listed. `destination` is the one
    /// that admission named. Without a `source` the header says that the address is not known.
    pub fn header(
        &self,
        session: SessionId,
        source: Option<SocketAddr>,
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Bytes {
        let (ip, port) = (destination.ip(), destination.port());
        let is_listed = |rule: &Rule| rule.covers(ip, port, protocol);
        // An echo request has data, which come back, but nobody who would read a header.
        if protocol == Protocol::Icmp || !self.destinations.iter().any(is_listed) {
            return Bytes::new();
        }
        let mut header = match source {
            None => ProxyHeader::with_local(),
            Some(source) => {
                let (source, destination) = alike(source, destination);
                ProxyHeader::with_address(match protocol {
                    Protocol::Tcp => ProxiedAddress::stream(source, destination),
                    Protocol::Udp | Protocol::UdpAny | Protocol::Icmp => {
                        ProxiedAddress::datagram(source, destination)
                    }
                })
            }
        };
        let id = session.to_string();
        header.append_tlv(Tlv::UniqueId(id.as_bytes().into()));
        let mut bytes = BytesMut::zeroed(HEADER_MAX);
        // It fails only on a buffer that is too short, or on two families.
        let len = header.encode_to_slice_v2(&mut bytes).unwrap_or(0);
        debug_assert!(len > 0, "every header fits HEADER_MAX");
        bytes.truncate(len);
        bytes.freeze()
    }
}

/// Both addresses in one family, as the header has only one: IPv4 where both are, else an IPv4
/// address in its IPv6 form (`::ffff:a.b.c.d`).
fn alike(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    match (plain(source), plain(destination)) {
        (from @ (IpAddr::V4(_), _), to @ (IpAddr::V4(_), _)) => (from.into(), to.into()),
        (from, to) => (wide(from), wide(to)),
    }
}

fn wide((ip, port): (IpAddr, u16)) -> SocketAddr {
    let ip = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    (ip, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_header::ParseConfig;

    const ID: SessionId = SessionId([
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ]);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn listed(rules: &[&str]) -> ProxyProtocol {
        ProxyProtocol::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn of(rules: &[&str], source: &str, destination: &str) -> Bytes {
        let (source, destination) = (Some(address(source)), address(destination));
        listed(rules).header(ID, source, destination, Protocol::Tcp)
    }

    #[test]
    fn the_header_is_the_one_of_the_specification() {
        let header = of(&["10.0.0.5:80"], "192.0.2.7:4000", "10.0.0.5:80");

        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        expected.extend([0x21, 0x11, 0, 12 + 3 + 32]); // Version 2, PROXY; TCP over IPv4; length.
        expected.extend([192, 0, 2, 7, 10, 0, 0, 5]);
        expected.extend([0x0f, 0xa0, 0, 80]);
        expected.extend([0x05, 0, 32]); // PP2_TYPE_UNIQUE_ID.
        expected.extend(b"00112233445566778899aabbccddeeff");
        assert_eq!(header, expected);
    }

    #[test]
    fn only_what_is_listed_gets_one() {
        for (rule, destination, has_one) in [
            ("10.0.0.5:80", "10.0.0.5:80", true),
            ("10.0.0.5:80", "10.0.0.5:81", false),
            ("10.0.0.5:80", "10.0.0.6:80", false),
            ("10.0.0.0/8", "10.9.9.9:1", true),
            ("[fd00::/8]:443", "[fd00::1]:443", true),
            ("[fd00::/8]:443", "[fe00::1]:443", false),
        ] {
            let header = of(&[rule], "192.0.2.7:4000", destination);
            assert_eq!(!header.is_empty(), has_one, "{rule} and {destination}");
        }
        assert_eq!(of(&[], "192.0.2.7:4000", "10.0.0.5:80"), Bytes::new());
    }

    #[test]
    fn addresses_of_two_families_become_one() {
        let all = ["0.0.0.0/0", "::/0"];
        let (mapped, six, four) = (
            "[::ffff:192.0.2.7]:4000",
            "[fd00::7]:4000",
            "192.0.2.7:4000",
        );
        for (source, destination, seen) in [
            (mapped, "10.0.0.5:80", ("192.0.2.7:4000", "10.0.0.5:80")),
            (four, "[fd00::5]:80", (mapped, "[fd00::5]:80")),
            (six, "10.0.0.5:80", (six, "[::ffff:10.0.0.5]:80")),
            (six, "[fd00::5]:80", (six, "[fd00::5]:80")),
        ] {
            let header = of(&all, source, destination);

            let (parsed, len) = ProxyHeader::parse(&header, ParseConfig::default()).unwrap();
            assert_eq!(len, header.len());
            let proxied = parsed.proxied_address().unwrap();
            let expected = ProxiedAddress::stream(address(seen.0), address(seen.1));
            assert_eq!(*proxied, expected, "{source} to {destination}");
            assert_eq!(parsed.unique_id(), Some(ID.to_string().as_bytes()));
        }
    }

    #[test]
    fn a_datagram_says_that_it_is_one() {
        let to = address("[fd00::5]:53");
        let source = Some(address("[fd00::7]:4000"));
        let none = listed(&["::/0"]).header(ID, source, to, Protocol::Icmp);
        assert!(none.is_empty(), "a ping has nobody who would read it");
        let header = listed(&["::/0"]).header(ID, source, to, Protocol::Udp);

        assert_eq!(header[13], 0x22);
    }

    #[test]
    fn an_unknown_source_is_not_invented() {
        let to = address("10.0.0.5:80");
        let header = listed(&["10.0.0.5"]).header(ID, None, to, Protocol::Tcp);

        let (parsed, _) = ProxyHeader::parse(&header, ParseConfig::default()).unwrap();
        assert_eq!(parsed.proxied_address(), None);
        assert_eq!(parsed.unique_id(), Some(ID.to_string().as_bytes()));
    }
}
