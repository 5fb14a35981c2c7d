//! What holds for a destination: the first policy that names it, and what holds for all.

use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::Framing;

/// What happens to a new connection while there is no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuringOutage {
    /// It is accepted, and its bytes are taken.
    Accept,
    /// It waits for the end of the outage, or for the application's patience.
    Hold,
    /// It is refused at once.
    Refuse,
}

/// How bytes are kept that are left when a flow's grace is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Where messages end.
    pub framing: Framing,
    /// How long they are worth delivering.
    pub retain: Duration,
}

/// How bytes that an application does not get are held at the server, for its user's next connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// Where messages end.
    pub framing: Framing,
    /// How long they are worth having.
    pub retain: Duration,
}

/// All that holds for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long an outage a flow outlives.
    pub grace: Duration,
    /// What happens to a new connection during an outage.
    pub during_outage: DuringOutage,
    /// What becomes of bytes that are left behind grace; none: they are lost.
    pub store: Option<Store>,
    /// What becomes of bytes that the application does not get before; none: they are lost.
    pub hand_off: Option<HandOff>,
}

/// Other rules for some destinations: what is not said here is as for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The addresses.
    pub network: IpNet,
    /// The port; none means every port.
    pub port: Option<u16>,
    /// Overrides [`Rules::grace`].
    pub grace: Option<Duration>,
    /// Overrides [`Rules::during_outage`].
    pub during_outage: Option<DuringOutage>,
    /// Overrides [`Rules::store`].
    pub store: Option<Store>,
    /// Overrides [`Rules::hand_off`].
    pub hand_off: Option<HandOff>,
}

impl Policy {
    fn names(&self, destination: SocketAddr) -> bool {
        self.network.contains(&destination.ip())
            && self.port.is_none_or(|port| port == destination.port())
    }
}

/// The policies for TCP in the order of the configuration, over what holds for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    all: Rules,
    some: Vec<Policy>,
}

impl Policies {
    /// `some` in the order in which they are asked; `all` where none of them says otherwise.
    pub fn new(all: Rules, some: Vec<Policy>) -> Self {
        Self { all, some }
    }

    /// Some destination's bytes are handed on.
    pub fn hand_off(&self) -> bool {
        let some = self.some.iter().map(|policy| policy.hand_off);
        some.chain([self.all.hand_off]).any(|rule| rule.is_some())
    }

    /// What holds for `destination`: the first policy that names it, and no other, counts.
    pub fn rules(&self, destination: SocketAddr) -> Rules {
        let Some(policy) = self.some.iter().find(|policy| policy.names(destination)) else {
            return self.all;
        };
        Rules {
            grace: policy.grace.unwrap_or(self.all.grace),
            during_outage: policy.during_outage.unwrap_or(self.all.during_outage),
            store: policy.store.or(self.all.store),
            hand_off: policy.hand_off.or(self.all.hand_off),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn all() -> Rules {
        Rules {
            grace: 10 * MINUTE,
            during_outage: DuringOutage::Hold,
            store: None,
            hand_off: None,
        }
    }

    fn policy(network: &str, port: Option<u16>) -> Policy {
        Policy {
            network: network.parse().unwrap(),
            port,
            grace: None,
            during_outage: None,
            store: None,
            hand_off: None,
        }
    }

    fn rules(policies: &Policies, destination: &str) -> Rules {
        policies.rules(destination.parse().unwrap())
    }

    #[test]
    fn without_a_policy_the_same_holds_for_all() {
        let policies = Policies::new(all(), Vec::new());

        assert_eq!(rules(&policies, "192.0.2.1:80"), all());
        assert_eq!(rules(&policies, "[2001:db8::1]:80"), all());
    }

    #[test]
    fn the_first_policy_that_names_a_destination_wins_whole() {
        let store = Store {
            framing: Framing::Line,
            retain: 60 * MINUTE,
        };
        let hand_off = HandOff {
            framing: Framing::OctetCount,
            retain: MINUTE,
        };
        let one = Policy {
            grace: Some(MINUTE),
            store: Some(store),
            hand_off: Some(hand_off),
            ..policy("10.0.0.9/32", Some(514))
        };
        let other = Policy {
            grace: Some(2 * MINUTE),
            during_outage: Some(DuringOutage::Refuse),
            ..policy("10.0.0.0/8", None)
        };
        let policies = Policies::new(all(), vec![one, other]);

        // What the first one leaves open is as for all, not as in the second.
        let first = Rules {
            grace: MINUTE,
            store: Some(store),
            hand_off: Some(hand_off),
            ..all()
        };
        let second = Rules {
            grace: 2 * MINUTE,
            during_outage: DuringOutage::Refuse,
            store: None,
            hand_off: None,
        };
        assert_eq!(rules(&policies, "10.0.0.9:514"), first);
        assert_eq!(rules(&policies, "10.0.0.9:515"), second);
        assert_eq!(rules(&policies, "10.255.0.1:514"), second);
        assert_eq!(rules(&policies, "11.0.0.1:514"), all());

        let swapped = Policies::new(all(), vec![other, one]);
        assert_eq!(rules(&swapped, "10.0.0.9:514"), second);
    }

    #[test]
    fn families_are_not_mixed() {
        let four = Policy {
            grace: Some(MINUTE),
            ..policy("0.0.0.0/0", None)
        };
        let six = Policy {
            grace: Some(2 * MINUTE),
            ..policy("fd00::/8", Some(443))
        };
        let policies = Policies::new(all(), vec![four, six]);

        assert_eq!(rules(&policies, "192.0.2.1:443").grace, MINUTE);
        assert_eq!(rules(&policies, "[fd12::1]:443").grace, 2 * MINUTE);
        assert_eq!(rules(&policies, "[fd12::1]:80"), all());
        assert_eq!(rules(&policies, "[2001:db8::1]:443"), all());
    }
}
