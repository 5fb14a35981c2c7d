//! What holds for one destination, and not for others.

use super::world::{GRACE, RULES, SECOND, World, client_config, registry_config};
use crate::client::ClientConfig;
use crate::netstack::tests::world::ORIGIN_V4;
use crate::policy::{DuringOutage, Policies, Policy};
use smoltcp::socket::tcp;

/// For one port of the origin.
fn policy(port: u16) -> Policy {
    Policy {
        network: ORIGIN_V4.into(),
        port: Some(port),
        grace: None,
        during_outage: None,
        store: None,
        hand_off: None,
    }
}

#[test]
fn a_policy_says_who_is_refused_and_who_waits() {
    let refused = Policy {
        during_outage: Some(DuringOutage::Refuse),
        ..policy(81)
    };
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![refused]),
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    let (_, _) = world.open();
    world.fail();
    world.pass(SECOND * 2);

    let held = world.connect(80);
    assert!(world.icmp.is_empty());
    world.connect(81);
    assert_eq!(world.icmp, [(3, 1)]);

    world.heal();
    world.pass(SECOND);
    assert_eq!(world.state(held), tcp::State::Established);
}

#[test]
fn each_flow_has_the_grace_of_its_destination() {
    let longer = Policy {
        grace: Some(GRACE * 2),
        ..policy(81)
    };
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![longer]),
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    let (short, long) = (world.connect(80), world.connect(81));
    world.fail();

    world.pass(GRACE - SECOND);
    assert_eq!(world.state(short), tcp::State::Established);
    world.pass(SECOND * 2);
    assert_eq!(world.state(short), tcp::State::Closed);
    assert_eq!(world.state(long), tcp::State::Established);
    world.pass(GRACE - SECOND * 3);
    assert_eq!(world.state(long), tcp::State::Established);
    world.pass(SECOND * 3);
    assert_eq!(world.state(long), tcp::State::Closed);
}
