//! `Rule`: one entry of an `allow` or `deny` list, an address or a network, either with a port.

use super::Protocol;
use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// One entry of an `allow` or `deny` list.
///
/// Spelled `10.0.0.9`, `10.0.0.0/8`, `10.0.0.9:514`, `10.0.0.0/8:443`, `fd00::1`, `fd00::/8`,
/// `[fd00::1]:80` or `[fd00::/8]:443`. An IPv4-mapped spelling is the IPv4 entry it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    net: IpNet,
    port: Option<u16>,
}

impl Rule {
    /// The network that the entry names; a single address has the longest prefix.
    pub const fn net(&self) -> IpNet {
        self.net
    }

    /// The only port the entry is about, or none: then it is about all, and about ICMP too.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether the entry is about this destination.
    ///
    /// An entry with a port says nothing about a protocol that has none.
    pub(crate) fn covers(&self, ip: IpAddr, port: u16, protocol: Protocol) -> bool {
        let port_fits = match (self.port, protocol) {
            (None, _) => true,
            (Some(wanted), Protocol::Tcp | Protocol::Udp | Protocol::UdpAny) => wanted == port,
            (Some(_), Protocol::Icmp) => false,
        };
        port_fits && self.net.contains(&ip)
    }
}

impl From<IpAddr> for Rule {
    fn from(ip: IpAddr) -> Self {
        Self {
            net: IpNet::from(ip.to_canonical()),
            port: None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.net.prefix_len() == self.net.max_prefix_len();
        let bracketed = self.port.is_some() && matches!(self.net, IpNet::V6(_));
        if bracketed {
            f.write_str("[")?;
        }
        write!(f, "{}", self.net.addr())?;
        if !whole {
            write!(f, "/{}", self.net.prefix_len())?;
        }
        if bracketed {
            f.write_str("]")?;
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Why a text is no [`Rule`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The part before the port is neither an address nor a network.
    #[error(
        "\"{0}\" is neither an address nor a network; write for example \"10.0.0.9\", \
         \"10.0.0.0/8\", \"10.0.0.9:514\", \"10.0.0.0/8:443\", \"fd00::/8\" or \"[fd00::/8]:443\""
    )]
    Address(String),
    /// The part after the last colon is no port.
    #[error("\"{0}\" is not a port; write a number from 1 to 65535, or no port to mean all")]
    Port(String),
    /// Bits are set behind the prefix, so that it is unclear what was meant.
    #[error(
        "\"{given}\" has bits set behind its prefix; write \"{network}\" for the network, or the \
         address without a prefix"
    )]
    HostBits {
        /// What was written.
        given: IpNet,
        /// The network it lies in.
        network: IpNet,
    },
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (net, port) = split(text)?;
        let port = port.map(parse_port).transpose()?;
        Ok(Self {
            net: parse_net(net)?,
            port,
        })
    }
}

/// Parts the network from the port; whether a bare IPv6 ends in a port cannot be told, so it has none.
fn split(text: &str) -> Result<(&str, Option<&str>), RuleError> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((net, after)) = rest.split_once(']') else {
            return Err(RuleError::Address(text.to_owned()));
        };
        if !net.contains(':') {
            return Err(RuleError::Address(text.to_owned()));
        }
        return match after.strip_prefix(':') {
            Some(port) => Ok((net, Some(port))),
            None if after.is_empty() => Ok((net, None)),
            None => Err(RuleError::Address(text.to_owned())),
        };
    }
    match text.split_once(':') {
        Some((net, port)) if !port.contains(':') && net.contains('.') => Ok((net, Some(port))),
        _ => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, RuleError> {
    let error = || RuleError::Port(text.to_owned());
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(error)
}

fn parse_net(text: &str) -> Result<IpNet, RuleError> {
    let error = || RuleError::Address(text.to_owned());
    if !text.contains('/') {
        let ip: IpAddr = text.parse().map_err(|_| error())?;
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let net: IpNet = text.parse().map_err(|_| error())?;
    if net != net.trunc() {
        return Err(RuleError::HostBits {
            given: net,
            network: net.trunc(),
        });
    }
    Ok(unmapped(net))
}

/// A network of IPv4-mapped addresses as the IPv4 network it stands for.
pub(super) fn unmapped(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let IpNet::V6(v6) = net else { return net };
    let v4 = Ipv6Addr::to_ipv4_mapped(&v6.addr())
        .zip(v6.prefix_len().checked_sub(MAPPED_BITS))
        .and_then(|(addr, len)| Ipv4Net::new(addr, len).ok());
    v4.map_or(net, IpNet::V4)
}
