//! Addresses as configuration files write them: prefixes, destinations with a port, servers by name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A CIDR prefix: all addresses that begin with the same bits. Host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits around `address`; none if it has fewer bits than that.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = (len <= 32).then(|| !u32::MAX.checked_shr(len.into()).unwrap_or(0))?;
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = (len <= 128).then(|| !u128::MAX.checked_shr(len.into()).unwrap_or(0))?;
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Some(Self { address, len })
    }

    /// The first address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub const fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `address` lies in it. Families are not mixed: reduce mapped addresses before.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.len) == Some(self)
    }

    /// Whether everything in `other` lies in it too.
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// What is wrong with a text that should be an address, a prefix or an endpoint; a whole remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(String);

impl FromStr for Prefix {
    type Err = BadAddress;

    /// Reads `10.0.0.0/8`, or a bare address as a prefix of its full length.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (address, len) = parse_interface_address(text)?;
        let prefix = Self::new(address, len)
            .ok_or_else(|| BadAddress(format!("/{len} is longer than the address")))?;
        if prefix.address != address {
            return Err(BadAddress(format!(
                "the address has bits set behind its prefix length; write \"{prefix}\" for the \
                 network or \"{address}\" for the one address"
            )));
        }
        Ok(prefix)
    }
}

/// Reads an address of an interface, like `10.111.0.2/32`: host bits are allowed, and kept.
///
/// # Errors
///
/// The remedy, if it is not an address or the prefix is too long.
pub(super) fn parse_interface_address(text: &str) -> Result<(IpAddr, u8), BadAddress> {
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| {
        BadAddress("write an IPv4 or IPv6 address, like \"10.0.0.0/8\" or \"fd00::/8\"".to_owned())
    })?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => bits,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|len| *len <= bits && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| {
                BadAddress(format!(
                    "the prefix length must be a number from 0 to {bits}"
                ))
            })?,
    };
    Ok((address, len))
}

/// A set of destinations: a prefix, and one port of it or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The addresses.
    pub prefix: Prefix,
    /// The port; none means every port.
    pub port: Option<u16>,
}

impl FromStr for Destination {
    type Err = BadAddress;

    /// Reads `10.0.0.9`, `10.0.0.0/8`, `10.0.0.0/8:443`, `fd00::/8`, `[fd00::/8]:443`.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (prefix, port) = split_port(text)?;
        Ok(Self {
            prefix: prefix.parse()?,
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.prefix.address) {
            (None, _) => write!(f, "{}", self.prefix),
            (Some(port), IpAddr::V4(_)) => write!(f, "{}:{port}", self.prefix),
            (Some(port), IpAddr::V6(_)) => write!(f, "[{}]:{port}", self.prefix),
        }
    }
}

/// Parts `text` into an address (brackets removed) and a port, if it has one.
fn split_port(text: &str) -> Result<(&str, Option<u16>), BadAddress> {
    let (address, port) = if let Some(inside) = text.strip_prefix('[') {
        let (address, rest) = inside
            .split_once(']')
            .ok_or_else(|| BadAddress("close the bracket: \"[fd00::/8]:443\"".to_owned()))?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or_else(|| {
                BadAddress("put a colon between bracket and port: \"[fd00::/8]:443\"".to_owned())
            })?),
        };
        (address, port)
    } else if text.bytes().filter(|byte| *byte == b':').count() == 1 {
        text.split_once(':')
            .map_or((text, None), |(address, port)| (address, Some(port)))
    } else {
        (text, None)
    };
    let port = port.map(parse_port).transpose()?;
    Ok((address, port))
}

fn parse_port(text: &str) -> Result<u16, BadAddress> {
    text.parse()
        .ok()
        .filter(|port| *port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| BadAddress("the port must be a number from 1 to 65535".to_owned()))
}

/// The address part of an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, to be resolved outside the TUN at each attempt.
    Name(String),
}

/// Where a daemon listens: an address or a host name, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its address or name.
    pub host: Host,
    /// Its port, never 0.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = BadAddress;

    /// Reads `203.0.113.7:443`, `[2001:db8::7]:443` or `tund.example.org:443`.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            let port = parse_port(&address.port().to_string())?;
            return Ok(Self {
                host: Host::Address(address.ip()),
                port,
            });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            let example = SocketAddr::new(address, 443);
            return Err(BadAddress(format!("add the port, like \"{example}\"")));
        }
        let Some((name, port)) = text.rsplit_once(':') else {
            return Err(BadAddress(format!("add the port, like \"{text}:443\"")));
        };
        let port = parse_port(port)?;
        if !is_host_name(name) {
            return Err(BadAddress(
                "write an address or a host name and a port, like \"203.0.113.7:443\", \
                 \"[2001:db8::7]:443\" or \"tund.example.org:443\""
                    .to_owned(),
            ));
        }
        Ok(Self {
            host: Host::Name(name.to_owned()),
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Whether it can be a host name; what ends in a number is a mistyped IPv4 address.
fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or("");
    name.len() <= 253
        && name.split('.').all(good_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_written_alike() {
        for text in [
            "10.0.0.9/32:514",
            "10.0.0.0/8",
            "10.0.0.0/8:443",
            "fd00::/8",
            "[fd00::/8]:443",
            "0.0.0.0/0",
            "::/0",
        ] {
            let destination: Destination = text.parse().expect(text);
            assert_eq!(destination.to_string(), text);
        }
        let bare: Destination = "10.0.0.9:514".parse().expect("an address with a port");
        assert_eq!(bare.to_string(), "10.0.0.9/32:514");
    }

    #[test]
    fn bad_destinations_get_a_remedy_that_fits() {
        for (text, remedy) in [
            ("10.0.0.5/8", "write \"10.0.0.0/8\""),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("10.0.0.0/8:0", "from 1 to 65535"),
            ("10.0.0.0/8:65536", "from 1 to 65535"),
            ("[fd00::/8", "close the bracket"),
            ("[fd00::/8]443", "put a colon"),
            ("example.org", "write an IPv4 or IPv6 address"),
            ("", "write an IPv4 or IPv6 address"),
        ] {
            let error = text.parse::<Destination>().expect_err(text).to_string();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }

    #[test]
    fn a_prefix_contains_its_first_and_last_address_only() {
        let prefix: Prefix = "172.16.0.0/12".parse().expect("a prefix");
        for (address, inside) in [
            ("172.16.0.0", true),
            ("172.31.255.255", true),
            ("172.15.255.255", false),
            ("172.32.0.0", false),
            ("::ac10:1", false),
        ] {
            assert_eq!(
                prefix.contains(address.parse().expect(address)),
                inside,
                "{address}"
            );
        }
        let everything: Prefix = "::/0".parse().expect("a prefix");
        assert!(everything.contains("ffff::1".parse().expect("an address")));
        assert!(!everything.contains("1.1.1.1".parse().expect("an address")));
    }

    #[test]
    fn endpoints_are_addresses_or_names_with_a_port() {
        for text in [
            "203.0.113.7:443",
            "[2001:db8::7]:443",
            "tund.example.org:8443",
            "host:1",
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), text);
        }
        for (text, remedy) in [
            ("203.0.113.7", "\"203.0.113.7:443\""),
            ("2001:db8::7", "\"[2001:db8::7]:443\""),
            ("[2001:db8::7]", "\"[2001:db8::7]:443\""),
            ("tund.example.org", "\"tund.example.org:443\""),
            ("203.0.113.256:443", "write an address"),
            ("203.0.113.7:0", "from 1 to 65535"),
            ("-bad-.org:443", "write an address"),
            (":443", "write an address"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }
}
