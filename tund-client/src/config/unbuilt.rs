//! Settings of features that this version does not have: none of them is ignored in silence.
//!
//! What would leave the user with less protection or other behaviour than asked is a mistake; what
//! merely has no effect is a warning. Each line here goes away with the feature it stands for.

use std::net::SocketAddr;

use tund_daemon::config::Section;

use super::policy::{ConnectDuringOutage, Downstream, OnExpiry, Policy};
use super::{Dns, DnsMode, Link, Routes, RoutesMode, Transport};

const NOT_BUILT: &str = "is not built in this version";

pub(super) fn link(section: &mut Section<'_>, link: &Link) {
    if link.transport == Transport::Quic {
        let found = format!("\"quic\" {NOT_BUILT}");
        section.reject("transport", found, "write transport = \"tls\" or \"auto\"");
    }
    if !link.interfaces.is_empty() {
        let found = format!("an order of preference {NOT_BUILT}, the routing table decides");
        section.warn(
            "interfaces",
            found,
            "steer with route metrics, and remove interfaces",
        );
    }
}

pub(super) fn routes(section: &mut Section<'_>, routes: &Routes) {
    if routes.mode == RoutesMode::Auto {
        section.reject(
            "mode",
            format!("\"auto\" {NOT_BUILT}"),
            "write mode = \"manual\" and steer with `ip route add PREFIX dev tund0`",
        );
    }
    if routes.kill_switch {
        section.reject(
            "kill_switch",
            format!("a kill switch {NOT_BUILT}"),
            "write kill_switch = false, and block the way around tund with your firewall",
        );
    }
    for key in ["include", "exclude", "lan"] {
        if routes.mode == RoutesMode::Manual && section.has(key) {
            section.warn(
                key,
                "has no effect with mode = \"manual\"",
                format!("remove {key}, and steer with `ip route add PREFIX dev tund0`"),
            );
        }
    }
}

pub(super) fn dns(section: &mut Section<'_>, dns: &Dns) {
    if dns.mode == DnsMode::Stub {
        section.reject(
            "mode",
            format!("\"stub\" {NOT_BUILT}"),
            "write mode = \"off\", and use a resolver that is reached over TCP",
        );
    } else if section.has("address") {
        section.warn(
            "address",
            "has no effect with mode = \"off\"",
            "remove address",
        );
    }
}

pub(super) fn udp(section: &mut Section<'_>) {
    for key in ["idle", "max_age", "filtering"] {
        if section.has(key) {
            section.warn(
                key,
                format!("has no effect: UDP {NOT_BUILT}"),
                format!("remove {key}"),
            );
        }
    }
}

pub(super) fn policy(section: &mut Section<'_>, policy: &Policy) {
    if policy.connect_during_outage == ConnectDuringOutage::Accept {
        section.reject(
            "connect_during_outage",
            format!("\"accept\" {NOT_BUILT}"),
            "write connect_during_outage = \"hold\" or \"refuse\"",
        );
    }
    if policy.on_expiry == OnExpiry::Store {
        let found = format!("\"store\" {NOT_BUILT}");
        section.reject("on_expiry", found, "write on_expiry = \"reset\"");
    }
    if policy.downstream == Downstream::Handoff {
        let found = format!("\"handoff\" {NOT_BUILT}");
        section.reject("downstream", found, "write downstream = \"discard\"");
    }
}

pub(super) fn spool(section: &mut Section<'_>) {
    for key in ["directory", "max_bytes"] {
        if section.has(key) {
            let found = format!("has no effect: storing {NOT_BUILT}");
            section.warn(key, found, format!("remove {key}"));
        }
    }
}

pub(super) fn metrics(section: &mut Section<'_>, listen: Option<SocketAddr>) {
    if listen.is_some() {
        section.reject(
            "listen",
            format!("serving metrics {NOT_BUILT}"),
            "write listen = \"\", and read `tund-client status --json`",
        );
    }
}
