//! `[origin]`: what the server connects to for its clients.

use std::time::Duration;

use ipnet::IpNet;
use tund_daemon::config::{Section, value};
use tund_server_core::admission::Rule;

use super::rules;

/// What no `allow` opens: this host and network, multicast, reserved and broadcast.
const NEVER: [&str; 5] = [
    "0.0.0.0/8",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "ff00::/8",
];

/// `[origin]`.
pub(super) struct Origin {
    pub(super) allow: Vec<Rule>,
    pub(super) deny: Vec<Rule>,
    pub(super) connect_timeout: Duration,
    pub(super) proxy_protocol: Vec<Rule>,
}

pub(super) fn origin(section: &mut Section<'_>) -> Origin {
    let timeouts = Duration::from_secs(1)..=Duration::from_secs(600);
    let timeout = value::duration(timeouts);
    let origin = Origin {
        allow: section.or("allow", Vec::new(), rules(4096)),
        deny: section.or("deny", Vec::new(), rules(4096)),
        connect_timeout: section.or("connect_timeout", Duration::from_secs(30), timeout),
        proxy_protocol: section.or("proxy_protocol", Vec::new(), rules(256)),
    };
    check_allow(section, &origin.allow);
    origin
}

/// Entries of an `allow` list that open nothing.
pub(super) fn check_allow(section: &mut Section<'_>, allow: &[Rule]) {
    let never: Vec<IpNet> = NEVER.iter().filter_map(|text| text.parse().ok()).collect();
    for rule in allow {
        if never.iter().any(|net| net.contains(&rule.net())) {
            section.reject(
                "allow",
                format!("{rule} is never allowed: nothing can be reached there"),
                "remove it; name the address on which the origin listens",
            );
        } else if rule.net().prefix_len() == 0 {
            section.warn(
                "allow",
                format!("{rule} has no effect: a default route opens nothing"),
                "name the private ranges, loopback or own addresses that clients may reach; all \
                 else is open already",
            );
        }
    }
}
