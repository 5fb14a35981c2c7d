//! The configuration's policies as the core asks for them.

use crate::config::{self, Config, ConnectDuringOutage, Protocol};
use ipnet::IpNet;
use tund_client_core::{
    DuringOutage, Filtering, HandOff, MappingConfig, Policies, Policy, Rules, Store,
};
use tund_session::wire::frame::Framing;

/// What holds for which destination of a TCP connection.
pub(super) fn policies(config: &Config) -> Policies {
    let all = Rules {
        grace: config.grace,
        during_outage: during_outage(config.connect_during_outage),
        store: None,
        hand_off: None,
    };
    Policies::new(all, config.policies.iter().filter_map(policy).collect())
}

/// What holds for mappings of datagrams.
pub(super) const fn mappings(config: &Config) -> MappingConfig {
    MappingConfig {
        idle: config.udp.idle,
        filtering: match config.udp.filtering {
            config::Filtering::Address => Filtering::Address,
            config::Filtering::Endpoint => Filtering::Endpoint,
        },
        grace: config.grace,
    }
}

/// None for a policy that is not for TCP.
fn policy(policy: &config::Policy) -> Option<Policy> {
    if policy.protocol.is_some_and(|of| of != Protocol::Tcp) {
        return None;
    }
    let prefix = policy.destination.prefix;
    Some(Policy {
        network: IpNet::new(prefix.address(), prefix.prefix_len()).ok()?,
        port: policy.destination.port,
        grace: policy.grace,
        during_outage: policy.connect_during_outage.map(during_outage),
        store: policy.store.map(store),
        hand_off: policy.hand_off.map(hand_off),
    })
}

const fn during_outage(connect: ConnectDuringOutage) -> DuringOutage {
    match connect {
        ConnectDuringOutage::Accept => DuringOutage::Accept,
        ConnectDuringOutage::Hold => DuringOutage::Hold,
        ConnectDuringOutage::Refuse => DuringOutage::Refuse,
    }
}

const fn store(kept: config::Kept) -> Store {
    Store {
        framing: framing(kept.framing),
        retain: kept.retain,
    }
}

const fn hand_off(kept: config::Kept) -> HandOff {
    HandOff {
        framing: framing(kept.framing),
        retain: kept.retain,
    }
}

const fn framing(framing: config::Framing) -> Framing {
    match framing {
        config::Framing::Line => Framing::Line,
        config::Framing::OctetCount => Framing::OctetCount,
        config::Framing::Whole => Framing::Whole,
    }
}
