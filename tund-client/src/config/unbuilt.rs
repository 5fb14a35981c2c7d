//! Keys of features that this version does not have: checked all the same, and never ignored in
//! silence.
//!
//! What would leave the user with less than he asked for is a mistake; what merely has no effect is
//! a warning. A feature that gets built takes its keys from here into [`super::Config`].

use std::net::{IpAddr, Ipv4Addr};

use tund_daemon::config::{Destination, Prefix, Section, value};

use super::{Duration, HOUR, LONGEST, MINUTE, SECOND};

const NOT_BUILT: &str = "is not built in this version";

/// `[link]`: QUIC and the standby link.
pub(super) fn link(section: &mut Section<'_>) {
    let transports = [("auto", true), ("tls", true), ("quic", false)];
    if !section.or("transport", true, value::choice(&transports)) {
        let found = format!("\"quic\" {NOT_BUILT}");
        section.reject("transport", found, "write transport = \"tls\" or \"auto\"");
    }
    if section.optional("standby", value::boolean) == Some(true) {
        let found = format!("a standby link {NOT_BUILT}");
        section.warn("standby", found, "remove standby");
    }
}

/// `[routes]`: what the daemon steers itself.
pub(super) fn routes(root: &mut Section<'_>) {
    root.table("routes", |section| {
        let steer = "steer with `ip route add PREFIX dev tund0`";
        let is_manual = section.or(
            "mode",
            true,
            value::choice(&[("manual", true), ("auto", false)]),
        );
        if !is_manual {
            let found = format!("\"auto\" {NOT_BUILT}");
            section.reject(
                "mode",
                found,
                format!("write mode = \"manual\" and {steer}"),
            );
        }
        if section.or("kill_switch", false, value::boolean) {
            section.reject(
                "kill_switch",
                format!("a kill switch {NOT_BUILT}"),
                "write kill_switch = false, and block the way around tund with your firewall",
            );
        }
        section.optional("include", prefixes);
        section.optional("exclude", prefixes);
        section.optional("lan", value::choice(&[("direct", ()), ("tund", ())]));
        for key in ["include", "exclude", "lan"] {
            if is_manual && section.has(key) {
                let found = "has no effect with mode = \"manual\"";
                section.warn(key, found, format!("remove {key}, and {steer}"));
            }
        }
    });
}

fn prefixes(list: &value::Value<'_>) -> value::Parsed<Vec<Prefix>> {
    value::list(4096, value::from_text::<Prefix>("a prefix"))(list)
}

/// `[dns]`: the resolver on the far side.
pub(super) fn dns(root: &mut Section<'_>) {
    root.table("dns", |section| {
        let is_off = section.or(
            "mode",
            true,
            value::choice(&[("off", true), ("stub", false)]),
        );
        section.or(
            "address",
            IpAddr::V4(Ipv4Addr::new(10, 111, 0, 1)),
            value::address,
        );
        if !is_off {
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
    });
}

/// `[udp]`: mappings.
pub(super) fn udp(root: &mut Section<'_>) {
    root.table("udp", |section| {
        section.optional("idle", value::duration(10 * SECOND..=24 * HOUR));
        section.optional("max_age", value::duration(SECOND / 100..=MINUTE));
        section.optional(
            "filtering",
            value::choice(&[("address", ()), ("endpoint", ())]),
        );
        for key in ["idle", "max_age", "filtering"] {
            if section.has(key) {
                let found = format!("has no effect: UDP {NOT_BUILT}");
                section.warn(key, found, format!("remove {key}"));
            }
        }
    });
}

/// `[[policy]]`: other rules for some destinations.
pub(super) fn policies(root: &mut Section<'_>) {
    root.tables("policy", |section| {
        policy(section);
        section.reject(
            "destination",
            format!("a policy for some destinations {NOT_BUILT}"),
            "remove this [[policy]], and write in [session] what shall hold for all",
        );
        Some(())
    });
}

fn policy(section: &mut Section<'_>) {
    section.required(
        "destination",
        "add destination = \"ADDRESS, CIDR, or either with a port\" to this [[policy]]",
        value::from_text::<Destination>("a destination"),
    );
    let protocols = [("tcp", true), ("udp", false), ("icmp", false)];
    let is_tcp = section.or("protocol", false, value::choice(&protocols));
    section.optional("grace", value::duration(Duration::ZERO..=LONGEST));
    let connects = [("hold", ()), ("refuse", ()), ("accept", ())];
    section.optional("connect_during_outage", value::choice(&connects));
    let expiries = [("reset", false), ("store", true)];
    let is_stored = section.or("on_expiry", false, value::choice(&expiries));
    let framings = [("line", ()), ("octet-count", ()), ("whole", ())];
    section.optional("framing", value::choice(&framings));
    section.optional("retain", value::duration(MINUTE..=LONGEST));
    section.optional(
        "downstream",
        value::choice(&[("discard", ()), ("handoff", ())]),
    );

    if is_stored && !section.has("framing") {
        section.reject(
            "framing",
            "is required with on_expiry = \"store\" and missing",
            "add framing = \"line\", \"octet-count\" or \"whole\"",
        );
    }
    if is_stored && !is_tcp {
        section.reject(
            "protocol",
            "only TCP bytes can be stored",
            "add protocol = \"tcp\" to this [[policy]]",
        );
    }
    for key in ["framing", "retain", "downstream"] {
        if !is_stored && section.has(key) {
            section.reject(
                key,
                "has no effect without on_expiry = \"store\"",
                format!("remove {key}, or add on_expiry = \"store\""),
            );
        }
    }
}

/// `[spool]`: what waits for delivery.
pub(super) fn spool(root: &mut Section<'_>) {
    root.table("spool", |section| {
        section.optional("directory", value::path);
        section.optional("max_bytes", value::size(1 << 20..=1 << 50));
        for key in ["directory", "max_bytes"] {
            if section.has(key) {
                let found = format!("has no effect: storing {NOT_BUILT}");
                section.warn(key, found, format!("remove {key}"));
            }
        }
    });
}

/// `[metrics]`.
pub(super) fn metrics(root: &mut Section<'_>) {
    root.table("metrics", |section| {
        if section
            .or("listen", None, value::optional_socket_address)
            .is_some()
        {
            section.reject(
                "listen",
                format!("serving metrics {NOT_BUILT}"),
                "write listen = \"\", and read `tund-client status --json`",
            );
        }
    });
}
