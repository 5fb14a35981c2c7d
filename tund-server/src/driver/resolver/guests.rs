//! Guests: sockets that get answers, whose they are, and what those may ask and learn.

use super::lock;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tund_server_core::admission::{Admission, Rule};
use tund_server_core::resolver::Allowance;
use tund_session::{Instant, SessionId};

/// By which protocol a socket asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::driver) enum Over {
    Tcp,
    Udp,
}

/// A socket that asks, by its local address.
pub(in crate::driver) type Socket = (Over, SocketAddr);

/// Whose socket it is that a question comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) session: SessionId,
    socket: Socket,
    /// Never used twice, as ports are.
    number: u64,
}

/// What a client may learn.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    admission: Arc<Admission>,
    allow: Arc<[Rule]>,
}

impl Policy {
    pub(super) fn may_learn(&self, ip: IpAddr) -> bool {
        self.admission.shows(&self.allow, ip)
    }
}

/// Whether a question is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// From a guest.
    Guest(Guest),
    /// From a guest that has asked too much of late.
    TooMany,
    /// From somebody else on this host.
    Stranger,
}

/// What the loop has said of sockets and sessions.
#[derive(Debug)]
pub(super) struct Guests(Mutex<Known>);

#[derive(Debug)]
struct Known {
    sockets: BTreeMap<Socket, Guest>,
    sessions: BTreeMap<SessionId, Session>,
    admission: Arc<Admission>,
    introduced: u64,
}

/// A session that has had a socket here: it is known until it ends.
#[derive(Debug)]
struct Session {
    allowance: Allowance,
    allow: Arc<[Rule]>,
}

impl Guests {
    pub(super) fn new(admission: Admission) -> Self {
        Self(Mutex::new(Known {
            sockets: BTreeMap::new(),
            sessions: BTreeMap::new(),
            admission: Arc::new(admission),
            introduced: 0,
        }))
    }

    pub(super) fn introduce(&self, socket: Socket, session: SessionId, allow: &[Rule]) {
        let mut known = lock(&self.0);
        known.introduced += 1;
        let guest = Guest {
            session,
            socket,
            number: known.introduced,
        };
        known.sockets.insert(socket, guest);
        known.sessions.entry(session).or_insert_with(|| Session {
            allowance: Allowance::default(),
            allow: allow.into(),
        });
    }

    pub(super) fn forget(&self, socket: Socket) {
        lock(&self.0).sockets.remove(&socket);
    }

    pub(super) fn end_session(&self, session: SessionId) {
        let mut known = lock(&self.0);
        known.sessions.remove(&session);
        known.sockets.retain(|_, guest| guest.session != session);
    }

    /// What may be reached has changed.
    pub(super) fn set_admission(&self, admission: Admission) {
        lock(&self.0).admission = Arc::new(admission);
    }

    /// What each client may reach beside has changed.
    pub(super) fn set_allow<'a>(&self, of: impl Fn(SessionId) -> &'a [Rule]) {
        for (session, known) in &mut lock(&self.0).sessions {
            known.allow = of(*session).into();
        }
    }

    pub(super) fn at(&self, socket: Socket) -> Option<Guest> {
        lock(&self.0).sockets.get(&socket).copied()
    }

    /// Who asks from there, if one more question is allowed now.
    pub(super) fn admit(&self, socket: Socket, now: Instant) -> Admitted {
        let mut known = lock(&self.0);
        let guest = known.sockets.get(&socket).copied();
        let taken = guest.and_then(|guest| {
            let session = known.sessions.get_mut(&guest.session)?;
            Some((guest, session.allowance.take(now)))
        });
        match taken {
            Some((guest, Ok(()))) => Admitted::Guest(guest),
            Some((_, Err(_))) => Admitted::TooMany,
            None => Admitted::Stranger,
        }
    }

    /// One more question of a session; or when it is allowed. None if the session has ended.
    pub(super) fn take(&self, session: SessionId, now: Instant) -> Option<Result<(), Instant>> {
        let mut known = lock(&self.0);
        let session = known.sessions.get_mut(&session)?;
        Some(session.allowance.take(now))
    }

    /// What a guest may learn, as the settings are now; none if the socket is no longer his.
    pub(super) fn policy(&self, guest: Guest) -> Option<Policy> {
        let known = lock(&self.0);
        if known.sockets.get(&guest.socket) != Some(&guest) {
            return None;
        }
        let session = known.sessions.get(&guest.session)?;
        Some(Policy {
            admission: Arc::clone(&known.admission),
            allow: Arc::clone(&session.allow),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SessionId = SessionId([1; 16]);
    const OTHER: SessionId = SessionId([2; 16]);

    fn guests() -> Guests {
        Guests::new(Admission::new(Vec::new(), Vec::new(), []))
    }

    fn socket(port: u16) -> Socket {
        (Over::Udp, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn rules(rule: &str) -> Vec<Rule> {
        vec![rule.parse().unwrap()]
    }

    #[test]
    fn a_port_that_changes_hands_makes_another_guest() {
        let guests = guests();
        guests.introduce(socket(7), ONE, &[]);
        let first = guests.at(socket(7)).unwrap();
        assert!(guests.policy(first).is_some());
        guests.forget(socket(7));
        assert!(guests.policy(first).is_none());
        guests.introduce(socket(7), ONE, &[]);
        let second = guests.at(socket(7)).unwrap();
        assert!(guests.policy(first).is_none() && guests.policy(second).is_some());
        assert_eq!(guests.at((Over::Tcp, socket(7).1)), None);
    }

    #[test]
    fn a_session_that_has_ended_leaves_nothing_and_nothing_comes_back() {
        let (guests, now) = (guests(), Instant::from_nanos(1 << 40));
        guests.introduce(socket(7), ONE, &[]);
        guests.introduce(socket(8), OTHER, &[]);
        let guest = guests.at(socket(7)).unwrap();
        assert_eq!(guests.take(ONE, now), Some(Ok(())));
        guests.end_session(ONE);
        assert_eq!(guests.take(ONE, now), None);
        assert_eq!(guests.admit(socket(7), now), Admitted::Stranger);
        assert!(guests.policy(guest).is_none());
        assert_eq!(lock(&guests.0).sessions.len(), 1);
        assert!(matches!(guests.admit(socket(8), now), Admitted::Guest(_)));
    }

    #[test]
    fn sockets_of_a_session_share_its_allowance() {
        let (guests, now) = (guests(), Instant::from_nanos(1 << 40));
        guests.introduce(socket(7), ONE, &[]);
        guests.introduce(socket(8), ONE, &[]);
        guests.introduce(socket(9), OTHER, &[]);
        let admitted = |port| matches!(guests.admit(socket(port), now), Admitted::Guest(_));
        let taken = (0..300).filter(|n| admitted(7 + n % 2)).count();
        assert_eq!(taken, 200);
        assert_eq!(guests.admit(socket(7), now), Admitted::TooMany);
        assert!(admitted(9));
    }

    #[test]
    fn settings_count_as_they_are_when_the_answer_comes() {
        let guests = guests();
        guests.introduce(socket(7), ONE, &rules("10.0.0.0/8"));
        let guest = guests.at(socket(7)).unwrap();
        let shows = |ip: [u8; 4]| guests.policy(guest).unwrap().may_learn(ip.into());
        assert!(shows([10, 0, 0, 1]) && !shows([192, 168, 0, 1]));
        guests.set_allow(|session| {
            assert_eq!(session, ONE);
            &[]
        });
        assert!(!shows([10, 0, 0, 1]));
        let open = Admission::new(rules("192.168.0.0/16"), rules("192.0.2.1"), []);
        guests.set_admission(open);
        assert!(shows([192, 168, 0, 1]) && !shows([192, 0, 2, 1]));
    }
}
