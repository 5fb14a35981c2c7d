//! Mappings at the server: which datagrams go out, and which that come in are handed on.

use crate::admission::{Admission, Denied, Protocol, Rule};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tund_session::wire::frame::OpenError;
use tund_session::{Contacts, Instant, SessionId, Strangers, limits};

/// Mappings of one session: each of UDP has a port of the server's host, which has some 28,000 of them
/// for all. As many as a client asks for.
pub const MAPPINGS_OF_SESSION: usize = 4096;
/// Mappings of all sessions; the rest of the ports is for the host.
pub const MAPPINGS: usize = 16_384;

/// What all mappings take of the server's ports, and each session of its link.
#[derive(Debug)]
pub struct Places {
    of_session: BTreeMap<SessionId, Place>,
    all: usize,
    most: (usize, usize),
}

#[derive(Debug, Default)]
struct Place {
    mappings: usize,
    strangers: Strangers,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(MAPPINGS_OF_SESSION, MAPPINGS)
    }
}

impl Places {
    /// So many for each session, and so many in all.
    pub fn new(of_session: usize, all: usize) -> Self {
        Self {
            of_session: BTreeMap::new(),
            all: 0,
            most: (of_session, all),
        }
    }

    /// Takes a place for one more mapping. Of what nobody has, a session leaves as much as it has
    /// itself: a greedy one leaves room for the next, and many share alike.
    ///
    /// # Errors
    ///
    /// At either bound.
    pub fn take(&mut self, session: SessionId) -> Result<(), OpenError> {
        let taken = self.of_session.get(&session).map_or(0, |of| of.mappings);
        if taken >= self.most.0 {
            return Err(OpenError::TooManyFlows);
        }
        let left = self.most.1 - self.all;
        if left == 0 || taken >= left.max(1) {
            return Err(OpenError::Exhausted);
        }
        self.all += 1;
        self.of_session.entry(session).or_default().mappings += 1;
        Ok(())
    }

    /// A mapping that had a place has ended.
    pub fn give_back(&mut self, session: SessionId) {
        if let Some(of) = self.of_session.get_mut(&session) {
            self.all -= 1;
            of.mappings -= 1;
            if of.mappings == 0 {
                self.of_session.remove(&session);
            }
        }
    }

    /// What strangers may send to a session.
    pub fn strangers(&mut self, session: SessionId) -> &mut Strangers {
        &mut self.of_session.entry(session).or_default().strangers
    }
}

/// What decides about the datagrams of one mapping.
#[derive(Debug)]
pub struct Mapping {
    protocol: Protocol,
    is_v4: bool,
    contacts: Contacts,
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
    pub fn new(protocol: Protocol, source: SocketAddr) -> Option<Self> {
        (protocol != Protocol::Tcp).then(|| Self {
            protocol,
            is_v4: source.is_ipv4(),
            contacts: Contacts::default(),
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

    /// Whether a datagram of so many bytes from `remote` is handed on.
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
    ) -> Result<(), Unheard> {
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

    /// What comes from there, a hundred bytes long.
    fn heard(mapping: &mut Mapping, admission: &Admission, from: &str) -> Result<(), Unheard> {
        let now = Instant::default();
        let from = (address(from), 100);
        mapping.incoming((admission, &[]), &mut Strangers::default(), from, now)
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
        assert!(mapping.has_sent_to(remote) && !mapping.has_sent_to(address("1.1.1.2:53")));
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
            of.incoming((&admission, &[]), &mut strangers, (from, bytes), now)
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
    fn no_session_takes_all_ports_and_newcomers_find_some() {
        let mut places = Places::new(4, 8);
        let of: Vec<SessionId> = (1..=5).map(|n| SessionId([n; 16])).collect();
        let mut had = Vec::new();
        let mut refused = Vec::new();
        for session in &of {
            let mut count = 0;
            refused.push(loop {
                match places.take(*session) {
                    Ok(()) => count += 1,
                    Err(why) => break why,
                }
            });
            had.push(count);
        }
        assert_eq!(had, [4, 2, 1, 1, 0]);
        let (full, none) = (OpenError::TooManyFlows, OpenError::Exhausted);
        assert_eq!(refused, [full, none, none, none, none]);

        places.give_back(of[0]);
        assert_eq!(places.take(of[4]), Ok(()));
        for (session, had) in of.iter().zip([3, 2, 1, 1, 1]) {
            (0..had).for_each(|_| places.give_back(*session));
        }
        assert!(places.of_session.is_empty());
        assert_eq!(places.all, 0);
    }

    #[test]
    fn a_stream_is_no_mapping() {
        assert!(Mapping::new(Protocol::Tcp, address("10.0.0.1:1")).is_none());
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
