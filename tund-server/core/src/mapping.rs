//! Mappings at the server: which datagrams go out, and which that come in are handed on.

use crate::admission::{Admission, Denied, Protocol, Rule};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::{Contacts, Instant};

/// Datagrams of strangers that a mapping takes per second, where it takes any. Chosen: enough for
/// hole punching and for games that are asked by many, too few to fill a link.
const STRANGERS_EVERY: Duration = Duration::from_millis(20);
/// How many may come at once.
const STRANGERS_AT_ONCE: u32 = 100;

/// Who may send to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filtering {
    /// Whoever has an address that the application has sent to.
    Address,
    /// Anybody, within a rate.
    Endpoint,
}

/// What decides about the datagrams of one mapping.
#[derive(Debug)]
pub struct Mapping {
    is_v4: bool,
    filtering: Filtering,
    contacts: Contacts,
    /// When the next stranger's datagram would be due, were they to come evenly.
    strangers: Instant,
}

/// Why a datagram is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// A setting forbids its remote.
    Denied(Denied),
    /// Its remote is of the other IP version than the mapping's socket, or has no port.
    Impossible,
}

/// Why a datagram that has come is not handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// Nothing was ever sent to its source.
    Stranger,
    /// Too many of strangers have come.
    TooMany,
    /// A setting forbids its source.
    Denied,
}

impl Mapping {
    /// The mapping of an application's `source` address; none if the protocol is not UDP.
    pub fn new(protocol: Protocol, source: SocketAddr) -> Option<Self> {
        let filtering = match protocol {
            Protocol::Udp => Filtering::Address,
            Protocol::UdpAny => Filtering::Endpoint,
            Protocol::Tcp | Protocol::Icmp => return None,
        };
        Some(Self {
            is_v4: source.is_ipv4(),
            filtering,
            contacts: Contacts::default(),
            strangers: Instant::default(),
        })
    }

    /// Its socket is one for IPv4.
    pub const fn is_v4(&self) -> bool {
        self.is_v4
    }

    /// The address that a datagram to `remote` goes to, judged as the one that is used.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub fn outgoing(
        &mut self,
        admission: &Admission,
        client_allow: &[Rule],
        remote: SocketAddr,
    ) -> Result<SocketAddr, Unsent> {
        let used = admission
            .check(client_allow, remote, Protocol::Udp)
            .map_err(Unsent::Denied)?;
        if used.is_ipv4() != self.is_v4 || used.port() == 0 {
            return Err(Unsent::Impossible);
        }
        self.contacts.note(used.ip());
        Ok(used)
    }

    /// Whether a datagram from `remote` is handed on.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn incoming(
        &mut self,
        admission: &Admission,
        client_allow: &[Rule],
        remote: SocketAddr,
        now: Instant,
    ) -> Result<(), Unheard> {
        if self.contacts.has(remote.ip()) {
            return Ok(());
        }
        if self.filtering == Filtering::Address {
            return Err(Unheard::Stranger);
        }
        // What may not be sent to may not send either: its answer could not be answered.
        let checked = admission.check(client_allow, remote, Protocol::Udp);
        if checked.is_err() {
            return Err(Unheard::Denied);
        }
        if self.strangers > now + STRANGERS_EVERY * (STRANGERS_AT_ONCE - 1) {
            return Err(Unheard::TooMany);
        }
        self.strangers = self.strangers.max(now) + STRANGERS_EVERY;
        Ok(())
    }

    /// Whether an error that names `remote` can be about a datagram of this mapping.
    pub fn has_sent_to(&self, remote: SocketAddr) -> bool {
        self.contacts.has(remote.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn open() -> Admission {
        Admission::new(Vec::new(), Vec::new(), Vec::new())
    }

    fn mapping(protocol: Protocol) -> Mapping {
        Mapping::new(protocol, address("10.111.0.2:4000")).unwrap()
    }

    #[test]
    fn only_addresses_that_were_sent_to_may_answer_and_by_any_port() {
        let (admission, now) = (open(), Instant::default());
        let mut mapping = mapping(Protocol::Udp);
        let remote = address("1.1.1.1:53");
        let stranger = Err(Unheard::Stranger);
        assert_eq!(mapping.incoming(&admission, &[], remote, now), stranger);

        assert_eq!(mapping.outgoing(&admission, &[], remote), Ok(remote));

        for (from, verdict) in [
            ("1.1.1.1:53", Ok(())),
            ("1.1.1.1:5353", Ok(())),
            ("1.1.1.2:53", stranger),
        ] {
            let from = address(from);
            assert_eq!(mapping.incoming(&admission, &[], from, now), verdict);
        }
        assert!(mapping.has_sent_to(remote) && !mapping.has_sent_to(address("1.1.1.2:53")));
    }

    #[test]
    fn each_datagram_is_judged_by_the_address_that_is_used() {
        let admission = open();
        let mut mapping = mapping(Protocol::Udp);
        let now = Instant::default();

        for denied in ["127.0.0.1:53", "10.0.0.1:53", "224.0.0.1:53", "0.0.0.0:53"] {
            let denied = address(denied);
            let verdict = mapping.outgoing(&admission, &[], denied);
            assert!(matches!(verdict, Err(Unsent::Denied(_))), "{denied}");
            let heard = mapping.incoming(&admission, &[], denied, now);
            assert_eq!(heard, Err(Unheard::Stranger), "{denied}");
        }
        let allow = ["10.0.0.0/8".parse().unwrap()];
        let private = address("10.0.0.1:53");
        assert_eq!(mapping.outgoing(&admission, &allow, private), Ok(private));
        let mapped = address("[::ffff:1.1.1.1]:53");
        let used = mapping.outgoing(&admission, &[], mapped);
        assert_eq!(used, Ok(address("1.1.1.1:53")));
        for impossible in ["[2606:4700::1111]:53", "1.1.1.1:0"] {
            let verdict = mapping.outgoing(&admission, &[], address(impossible));
            assert_eq!(verdict, Err(Unsent::Impossible), "{impossible}");
        }
    }

    #[test]
    fn strangers_are_heard_where_they_are_wanted_within_a_rate() {
        let (admission, mut now) = (open(), Instant::default() + Duration::from_secs(9));
        let mut mapping = mapping(Protocol::UdpAny);
        let (friend, stranger) = (address("1.1.1.1:1"), address("8.8.8.8:8"));
        assert!(mapping.outgoing(&admission, &[], friend).is_ok());

        for _ in 0..STRANGERS_AT_ONCE {
            assert_eq!(mapping.incoming(&admission, &[], stranger, now), Ok(()));
        }
        let too_many = Err(Unheard::TooMany);
        assert_eq!(mapping.incoming(&admission, &[], stranger, now), too_many);
        assert_eq!(mapping.incoming(&admission, &[], friend, now), Ok(()));
        now = now + (STRANGERS_EVERY - Duration::from_nanos(1));
        assert_eq!(mapping.incoming(&admission, &[], stranger, now), too_many);
        now = now + Duration::from_nanos(1);
        assert_eq!(mapping.incoming(&admission, &[], stranger, now), Ok(()));
        assert_eq!(mapping.incoming(&admission, &[], stranger, now), too_many);

        let lan = address("192.168.0.9:9");
        now = now + Duration::from_secs(9);
        let heard = mapping.incoming(&admission, &[], lan, now);
        assert_eq!(heard, Err(Unheard::Denied));
    }

    #[test]
    fn a_stream_is_no_mapping() {
        for protocol in [Protocol::Tcp, Protocol::Icmp] {
            assert!(Mapping::new(protocol, address("10.0.0.1:1")).is_none());
        }
    }
}
