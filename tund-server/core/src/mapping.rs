//! Mappings at the server: which datagrams go out, and which that come in are handed on.

use crate::admission::{Admission, Denied, Protocol, Rule};
use crate::resolver;
use crate::shares::{Full, Shares};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tund_session::wire::frame::{self, OpenError};
use tund_session::{Contacts, Instant, SessionId, Strangers, limits};

/// Mappings of one session: each of UDP has a port of the server's host, which has some 28,000 of them
/// for all. As many as a client asks for.
pub const MAPPINGS_OF_SESSION: usize = 4096;
/// Mappings of all sessions; the rest of the ports is for the host.
pub const MAPPINGS: usize = 16_384;

/// What all mappings take of the server's ports, and each session of its link.
#[derive(Debug)]
pub struct Places {
    shares: Shares,
    strangers: BTreeMap<SessionId, Strangers>,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(MAPPINGS_OF_SESSION, MAPPINGS)
    }
}

impl Places {
    /// So many for each session, and so many in all.
    pub const fn new(of_session: usize, all: usize) -> Self {
        Self {
            shares: Shares::new(of_session, all),
            strangers: BTreeMap::new(),
        }
    }

    /// Takes a place for one more mapping, of a session's fair share.
    ///
    /// # Errors
    ///
    /// At either bound.
    pub fn take(&mut self, session: SessionId) -> Result<(), OpenError> {
        self.shares.take(session).map_err(|full| match full {
            Full::OfSession => OpenError::TooManyFlows,
            Full::OfAll => OpenError::Exhausted,
        })
    }

    /// A mapping that had a place has ended.
    pub fn give_back(&mut self, session: SessionId) {
        self.shares.give_back(session);
        if self.shares.of(session) == 0 {
            self.strangers.remove(&session);
        }
    }

    /// What strangers may send to a session.
    pub fn strangers(&mut self, session: SessionId) -> &mut Strangers {
        self.strangers.entry(session).or_default()
    }
}

/// What decides about the datagrams of one mapping.
#[derive(Debug)]
pub struct Mapping {
    protocol: Protocol,
    is_v4: bool,
    contacts: Contacts,
    /// Where the resolver of this host's daemon listens.
    resolver: Option<SocketAddr>,
    has_asked: bool,
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
    /// The mapping of an application's `source` address; none if the protocol is that of a stream.
    pub fn new(
        protocol: Protocol,
        source: SocketAddr,
        resolver: Option<SocketAddr>,
    ) -> Option<Self> {
        (protocol != Protocol::Tcp).then(|| Self {
            protocol,
            is_v4: source.is_ipv4(),
            contacts: Contacts::default(),
            resolver: resolver.filter(|_| protocol != Protocol::Icmp),
            has_asked: false,
        })
    }

    /// What it carries.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Its remotes are named by a sequence number in place of a port.
    pub const fn is_echo(&self) -> bool {
        matches!(self.protocol, Protocol::Icmp)
    }

    /// A remote as a person says it: an echo request goes to no port.
    pub const fn named(&self, remote: SocketAddr) -> SocketAddr {
        if self.is_echo() {
            SocketAddr::new(remote.ip(), 0)
        } else {
            remote
        }
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
        if let Some(resolver) = resolver::at(self.resolver, remote)
            && remote.is_ipv4() == self.is_v4
        {
            self.has_asked = true;
            return Ok(resolver);
        }
        let used = admission
            .check(client_allow, remote, self.protocol)
            .map_err(Unsent::Denied)?;
        let has_port = used.port() != 0 || self.is_echo();
        if used.is_ipv4() != self.is_v4 || !has_port {
            return Err(Unsent::Impossible);
        }
        self.contacts.note(used.ip());
        Ok(used)
    }

    /// Whether a datagram of so many bytes from `remote` is handed on, and as from where.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn incoming(
        &mut self,
        (admission, client_allow): (&Admission, &[Rule]),
        strangers: &mut Strangers,
        (remote, bytes): (SocketAddr, usize),
        now: Instant,
    ) -> Result<SocketAddr, Unheard> {
        if self.is_resolver(remote) {
            return Ok(frame::resolver(self.is_v4));
        }
        let is_contact = self.contacts.has(remote.ip());
        if !is_contact && self.protocol != Protocol::UdpAny {
            return Err(Unheard::Stranger);
        }
        // What may not be sent to may not send either: its answer could not be answered, and the
        // settings may have changed since it was sent to.
        let checked = admission.check(client_allow, remote, self.protocol);
        if checked.is_err() {
            return Err(Unheard::Denied);
        }
        if !is_contact && !strangers.admit(bytes, limits::STRANGERS_AT_ONCE, now) {
            return Err(Unheard::TooMany);
        }
        Ok(remote)
    }

    /// Its application has asked the resolver.
    pub const fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// Where the resolver listens now; nowhere once it has ended.
    pub fn resolver_is_at(&mut self, address: Option<SocketAddr>) {
        self.resolver = address.filter(|_| !self.is_echo());
    }

    /// As whom an error that names `remote` is told of; none if it cannot be about a datagram of this
    /// mapping.
    pub fn bounced_by(&self, remote: SocketAddr) -> Option<SocketAddr> {
        if self.is_resolver(remote) {
            return Some(frame::resolver(self.is_v4));
        }
        self.contacts.has(remote.ip()).then_some(remote)
    }

    fn is_resolver(&self, remote: SocketAddr) -> bool {
        self.has_asked && self.resolver == Some(remote)
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
        Mapping::new(protocol, address("10.111.0.2:4000"), None).unwrap()
    }

    /// What comes from there, a hundred bytes long.
    fn heard(mapping: &mut Mapping, admission: &Admission, from: &str) -> Result<(), Unheard> {
        let now = Instant::default();
        let from = (address(from), 100);
        let mut strangers = Strangers::default();
        let heard = mapping.incoming((admission, &[]), &mut strangers, from, now);
        heard.map(|remote| assert_eq!(remote, from.0))
    }

    #[test]
    fn only_addresses_that_were_sent_to_may_answer_and_by_any_port() {
        let admission = open();
        let mut mapping = mapping(Protocol::Udp);
        let remote = address("1.1.1.1:53");
        let stranger = Err(Unheard::Stranger);
        assert_eq!(heard(&mut mapping, &admission, "1.1.1.1:53"), stranger);

        assert_eq!(mapping.outgoing(&admission, &[], remote), Ok(remote));

        for (from, verdict) in [
            ("1.1.1.1:53", Ok(())),
            ("1.1.1.1:5353", Ok(())),
            ("1.1.1.2:53", stranger),
        ] {
            assert_eq!(heard(&mut mapping, &admission, from), verdict);
        }
        assert_eq!(mapping.bounced_by(remote), Some(remote));
        assert_eq!(mapping.bounced_by(address("1.1.1.2:53")), None);
        // The settings have changed since.
        let deny = vec!["1.1.1.1".parse().unwrap()];
        let closed = Admission::new(Vec::new(), deny, Vec::new());
        let denied = Err(Unheard::Denied);
        assert_eq!(heard(&mut mapping, &closed, "1.1.1.1:53"), denied);
    }

    #[test]
    fn each_datagram_is_judged_by_the_address_that_is_used() {
        let admission = open();
        let mut mapping = mapping(Protocol::Udp);

        for denied in ["127.0.0.1:53", "10.0.0.1:53", "224.0.0.1:53", "0.0.0.0:53"] {
            let verdict = mapping.outgoing(&admission, &[], address(denied));
            assert!(matches!(verdict, Err(Unsent::Denied(_))), "{denied}");
            let heard = heard(&mut mapping, &admission, denied);
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
    fn strangers_of_a_whole_session_are_heard_within_one_rate() {
        let (admission, now) = (open(), Instant::from_nanos(1 << 40));
        let mut mappings = [mapping(Protocol::UdpAny), mapping(Protocol::UdpAny)];
        let (friend, stranger) = (address("1.1.1.1:1"), address("8.8.8.8:8"));
        let mut strangers = Strangers::default();
        assert!(mappings[0].outgoing(&admission, &[], friend).is_ok());
        let mut heard = |mapping: usize, from: SocketAddr, bytes: usize| {
            let of = &mut mappings[mapping];
            let heard = of.incoming((&admission, &[]), &mut strangers, (from, bytes), now);
            heard.map(|remote| assert_eq!(remote, from))
        };

        for number in 0..limits::STRANGERS_AT_ONCE {
            let mapping = usize::from(number % 2 == 0);
            assert_eq!(heard(mapping, stranger, 100), Ok(()));
        }
        let too_many = Err(Unheard::TooMany);
        assert_eq!(heard(0, stranger, 100), too_many);
        assert_eq!(heard(1, stranger, 100), too_many);
        assert_eq!(heard(0, friend, 60_000), Ok(()));
        assert_eq!(
            heard(0, address("192.168.0.9:9"), 100),
            Err(Unheard::Denied)
        );
    }

    #[test]
    fn ports_are_shared_out_and_what_strangers_sent_is_forgotten_with_the_last() {
        let mut places = Places::new(2, 2);
        let [one, other] = [1, 2].map(|n| SessionId([n; 16]));
        assert_eq!(places.take(one), Ok(()));
        assert_eq!(places.take(one), Err(OpenError::Exhausted));
        assert_eq!(places.take(other), Ok(()));
        places.strangers(one);
        places.strangers(other);
        places.give_back(one);
        assert_eq!(places.strangers.len(), 1);
        places.give_back(other);
        assert!(places.shares.is_empty() && places.strangers.is_empty());
        let mut one_each = Places::new(1, 9);
        assert_eq!(one_each.take(one), Ok(()));
        assert_eq!(one_each.take(one), Err(OpenError::TooManyFlows));
    }

    #[test]
    fn the_resolver_is_reached_by_its_name_and_answers_by_it() {
        let admission = open();
        let resolver = address("127.0.0.1:40053");
        let name = frame::resolver(true);
        let of = |protocol, resolver| {
            let source = address("10.111.0.2:4000");
            Mapping::new(protocol, source, resolver).unwrap()
        };
        let mut mapping = of(Protocol::Udp, Some(resolver));
        let mut strangers = Strangers::default();
        let mut answer = |mapping: &mut Mapping| {
            let by = (&admission, &[][..]);
            mapping.incoming(by, &mut strangers, (resolver, 100), Instant::default())
        };
        assert_eq!(answer(&mut mapping), Err(Unheard::Stranger), "not asked");
        assert_eq!(mapping.bounced_by(resolver), None, "not asked");
        assert_eq!(mapping.outgoing(&admission, &[], name), Ok(resolver));
        assert!(mapping.has_asked());
        assert_eq!(answer(&mut mapping), Ok(name));
        assert_eq!(mapping.bounced_by(resolver), Some(name));
        assert_eq!(mapping.bounced_by(address("127.0.0.1:53")), None);
        // By no other name, and what else is on loopback stays closed.
        for closed in [resolver, address("127.0.0.1:53"), address("0.0.0.0:54")] {
            let verdict = mapping.outgoing(&admission, &[], closed);
            assert!(matches!(verdict, Err(Unsent::Denied(_))), "{closed}");
        }
        // Its port may be somebody else's once it has ended.
        mapping.resolver_is_at(None);
        assert_eq!(answer(&mut mapping), Err(Unheard::Stranger), "ended");
        assert_eq!(mapping.bounced_by(resolver), None, "ended");
        for mut without in [
            mapping,
            of(Protocol::Udp, None),
            of(Protocol::Icmp, Some(resolver)),
        ] {
            let verdict = without.outgoing(&admission, &[], name);
            assert!(matches!(verdict, Err(Unsent::Denied(_))));
        }
    }

    #[test]
    fn a_stream_is_no_mapping() {
        assert!(Mapping::new(Protocol::Tcp, address("10.0.0.1:1"), None).is_none());
    }

    #[test]
    fn an_echo_request_needs_no_port_and_rules_with_one_are_not_about_it() {
        let open = open();
        let mut mapping = mapping(Protocol::Icmp);
        // Sequence numbers, of which 0 is the first of many programs.
        for sequence in [0, 1, 65_535] {
            let remote = SocketAddr::new([1, 1, 1, 1].into(), sequence);
            assert_eq!(mapping.outgoing(&open, &[], remote), Ok(remote));
            assert_eq!(mapping.named(remote), address("1.1.1.1:0"));
        }
        assert_eq!(heard(&mut mapping, &open, "1.1.1.1:9"), Ok(()));
        let stranger = heard(&mut mapping, &open, "1.1.1.2:9");
        assert_eq!(stranger, Err(Unheard::Stranger));

        let remote = address("10.0.0.1:7");
        let allow = |rule: &str| [rule.parse().unwrap()];
        let verdict = mapping.outgoing(&open, &allow("10.0.0.1:7"), remote);
        assert!(matches!(verdict, Err(Unsent::Denied(_))));
        let verdict = mapping.outgoing(&open, &allow("10.0.0.1"), remote);
        assert_eq!(verdict, Ok(remote));
        let deny = |rule: &str| Admission::new(Vec::new(), allow(rule).to_vec(), Vec::new());
        let remote = address("1.1.1.1:53");
        let by_port = deny("1.1.1.1:53");
        assert_eq!(mapping.outgoing(&by_port, &[], remote), Ok(remote));
        let verdict = mapping.outgoing(&deny("1.1.1.1"), &[], remote);
        assert!(matches!(verdict, Err(Unsent::Denied(_))));
    }
}
