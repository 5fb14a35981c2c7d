//! Admission: which origins may be reached, and the setting that refuses or opens each.

mod ranges;
mod rule;
mod spelling;
#[cfg(test)]
mod tests;

pub use ranges::Kind;
pub use rule::{Rule, RuleError};
pub use tund_session::wire::frame::Protocol;

use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use tund_session::wire::frame::DeniedBy;

/// Who may be reached (INTERFACE.md, "What a server refuses to connect to").
///
/// Asked for every connect and every datagram with the address that is about to be used, never
/// with a name. The answer is the address to use; the one that was asked about is not to be used.
///
/// An `allow` entry *names* a special range only if it lies within it, and then opens what it
/// covers; a wider one, such as `0.0.0.0/0` or `0.0.0.0/1`, opens nothing. Of nested ranges the
/// narrowest counts: the server's own address inside `10.0.0.0/8` is opened by itself alone.
#[derive(Clone, Debug)]
pub struct Admission {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    /// What the server's own networks make special: its addresses, and their broadcast addresses.
    own: BTreeMap<IpAddr, Kind>,
}

impl Admission {
    /// Admission by `[origin] allow` and `deny`, on a server with these addresses.
    pub fn new(
        allow: Vec<Rule>,
        deny: Vec<Rule>,
        own_addresses: impl IntoIterator<Item = IpNet>,
    ) -> Self {
        let mut admission = Self {
            allow,
            deny,
            own: BTreeMap::new(),
        };
        admission.set_own_addresses(own_addresses);
        admission
    }

    /// Replaces `[origin] allow` and `deny`, for connects to come.
    pub fn set_rules(&mut self, allow: Vec<Rule>, deny: Vec<Rule>) {
        self.allow = allow;
        self.deny = deny;
    }

    /// Replaces the server's own addresses, each with the prefix of its network.
    pub fn set_own_addresses(&mut self, own_addresses: impl IntoIterator<Item = IpNet>) {
        self.own.clear();
        for net in own_addresses {
            let net = rule::unmapped(net);
            if net.addr().is_loopback() {
                continue; // A range of its own, whichever of its addresses are set.
            }
            if let Some(broadcast) = broadcast(net) {
                self.own.entry(broadcast).or_insert(Kind::Broadcast);
            }
            self.own.insert(net.addr(), Kind::Own);
        }
    }

    /// Whether a client with these `allow` entries of its own may reach `destination`.
    ///
    /// # Errors
    ///
    /// [`Denied`] says by which setting not, and which one would open it.
    pub fn check(
        &self,
        client_allow: &[Rule],
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Result<SocketAddr, Denied> {
        let ip = destination.ip().to_canonical();
        self.judge(client_allow, ip, destination.port(), protocol)
            .map_err(|cause| Denied {
                cause,
                embedded: false,
            })?;
        for v4 in spelling::embedded(ip) {
            self.judge(client_allow, IpAddr::V4(v4), destination.port(), protocol)
                .map_err(|cause| Denied {
                    cause,
                    embedded: true,
                })?;
        }
        Ok(match (ip, destination) {
            (IpAddr::V6(_), SocketAddr::V6(same)) => SocketAddr::V6(same),
            (ip, _) => SocketAddr::new(ip, destination.port()),
        })
    }

    /// Whether a client with these `allow` entries of its own may learn that `ip` is somebody's
    /// address: it lies in no special range, or an entry names that, for whichever port; and no entry
    /// of `deny` closes it for all of them.
    pub fn shows(&self, client_allow: &[Rule], ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let meant = spelling::embedded(ip).map(IpAddr::V4);
        std::iter::once(ip).chain(meant).all(|ip| {
            let mut deny = self.deny.iter();
            if deny.any(|rule| rule.port().is_none() && rule.net().contains(&ip)) {
                return false;
            }
            self.special(ip).is_none_or(|(range, kind)| {
                let mut rules = self.allow.iter().chain(client_allow);
                !kind.is_never_allowed()
                    && rules.any(|rule| {
                        rule.net().contains(&ip) && rule.net().prefix_len() >= range.prefix_len()
                    })
            })
        })
    }

    /// Judges one address, which is not IPv4-mapped, as what it looks like.
    fn judge(
        &self,
        client_allow: &[Rule],
        ip: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Result<(), Cause> {
        let special = self.special(ip);
        if let Some((_, kind)) = special
            && kind.is_never_allowed()
        {
            return Err(Cause::Never(kind));
        }
        if let Some(rule) = self
            .deny
            .iter()
            .find(|rule| rule.covers(ip, port, protocol))
        {
            return Err(Cause::Entry(*rule));
        }
        let Some((range, kind)) = special else {
            return Ok(());
        };
        let named = self.allow.iter().chain(client_allow).any(|rule| {
            rule.covers(ip, port, protocol) && rule.net().prefix_len() >= range.prefix_len()
        });
        if named {
            Ok(())
        } else {
            Err(Cause::Unnamed { range, kind })
        }
    }

    /// The narrowest special range around `ip`; an own address is as narrow as can be.
    fn special(&self, ip: IpAddr) -> Option<(IpNet, Kind)> {
        let listed = ranges::narrowest(ip);
        let own = self.own.get(&ip).map(|kind| (IpNet::from(ip), *kind));
        match (listed, own) {
            (Some((_, kind)), _) if kind.is_never_allowed() => listed,
            (_, None) => listed,
            (_, Some(_)) => own,
        }
    }
}

/// The broadcast address of an IPv4 network that has one (RFC 3021: not the two-address ones).
fn broadcast(net: IpNet) -> Option<IpAddr> {
    const LONGEST_WITH_BROADCAST: u8 = 30;
    match net {
        IpNet::V4(v4) if (1..=LONGEST_WITH_BROADCAST).contains(&v4.prefix_len()) => {
            Some(IpAddr::V4(Ipv4Net::broadcast(&v4)))
        }
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// Why a destination may not be reached.
///
/// Its text names the setting and the range, never the destination itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    cause: Cause,
    /// It was refused for an IPv4 address that its IPv6 address stands for.
    embedded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Never(Kind),
    Unnamed { range: IpNet, kind: Kind },
    Entry(Rule),
}

impl Denied {
    /// Which setting it was, for the wire.
    pub const fn by(&self) -> DeniedBy {
        match self.cause {
            Cause::Never(_) => DeniedBy::Never,
            Cause::Unnamed { .. } => DeniedBy::Default,
            Cause::Entry(_) => DeniedBy::Deny,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Never(kind) => {
                write!(
                    f,
                    "{} are never reached, and no setting opens them",
                    kind.describe()
                )
            }
            Cause::Unnamed {
                kind: Kind::Own, ..
            } => f.write_str(
                "the server's own addresses are refused unless an entry of [origin] allow, or of \
                 the client's allow, names exactly that address",
            ),
            Cause::Unnamed { range, kind } => write!(
                f,
                "{} ({range}) are refused unless an entry of [origin] allow, or of the client's \
                 allow, that lies within {range} covers them",
                kind.describe(),
            ),
            Cause::Entry(rule) => write!(f, "refused by the entry \"{rule}\" of [origin] deny"),
        }?;
        if self.embedded {
            f.write_str("; its IPv6 address stands for such an IPv4 address")?;
        }
        Ok(())
    }
}

impl std::error::Error for Denied {}
