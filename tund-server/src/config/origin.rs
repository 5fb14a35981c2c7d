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
        allow: section.or("allow", Vec::new(), allow),
        deny: section.or("deny", Vec::new(), rules(4096)),
        connect_timeout: section.or("connect_timeout", Duration::from_secs(30), timeout),
        proxy_protocol: section.or("proxy_protocol", Vec::new(), rules(256)),
    };
    check_allow(section, &origin.allow);
    origin
}

/// Up to 4096 destinations that may be opened.
pub(super) fn allow(list: &value::Value<'_>) -> value::Parsed<Vec<Rule>> {
    value::list(4096, allowed)(list)
}

fn allowed(item: &value::Value<'_>) -> value::Parsed<Rule> {
    let rule: Rule = value::from_text("a destination")(item)?;
    let mut never = NEVER.iter().filter_map(|text| text.parse::<IpNet>().ok());
    if never.any(|net| net.contains(&rule.net())) {
        return Err(value::Fault::new(
            format!("{rule} is never allowed: nothing can be reached there"),
            "remove it; name the address on which the origin listens",
        ));
    }
    Ok(rule)
}

/// Entries of an `allow` list that open nothing.
pub(super) fn check_allow(section: &mut Section<'_>, allow: &[Rule]) {
    for rule in allow.iter().filter(|rule| rule.net().prefix_len() == 0) {
        section.warn(
            "allow",
            format!("{rule} has no effect: a default route opens nothing"),
            "name the private ranges, loopback or own addresses that clients may reach; all \
             else is open already",
        );
    }
}
