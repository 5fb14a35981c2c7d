//! Marks for what was there before the routes, and for answers to our links.

use std::net::IpAddr;

use super::MARK_MASK;
use super::connections::{self, Connection};
use crate::sys::error::{ErrorKind, SystemError};
use crate::sys::nft::apply;
use crate::sys::tun::TunName;

/// Connections from other addresses than the TUN's go on as they were, and so do answers to links.
///
/// # Errors
///
/// Without `nft` or CAP_NET_ADMIN.
pub(super) fn install(tun: &TunName, fwmark: u32, addresses: &[IpAddr]) -> Result<(), SystemError> {
    let list = connections::established();
    let list = list.unwrap_or_else(|error| {
        tracing::warn!(%error, "connections that are there already may end");
        Vec::new()
    });
    let is_foreign =
        |one: &&Connection| !one.source.ip().is_loopback() && !addresses.contains(&one.source.ip());
    let foreign: Vec<&Connection> = list.iter().filter(is_foreign).collect();
    let tried = format!("mark what goes past {tun}");
    match apply(&tried, &ruleset(tun, fwmark, &foreign, true)) {
        Err(error) if error.kind() == ErrorKind::Failed => {
            // The one rule that needs a kernel with nft_socket; only a strict rp_filter misses it.
            tracing::debug!(%error, "answers to links are not marked");
            apply(&tried, &ruleset(tun, fwmark, &foreign, false))
        }
        result => result,
    }
}

/// Removes the table, also if it is not there.
///
/// # Errors
///
/// Without `nft` or CAP_NET_ADMIN.
pub(super) fn remove(tun: &TunName) -> Result<(), SystemError> {
    let table = table(tun);
    let script = format!("table inet {table}\ndelete table inet {table}\n");
    apply(&format!("remove the filter table {table}"), &script)
}

fn table(tun: &TunName) -> String {
    format!("tund-{tun}-routes")
}

fn ruleset(tun: &TunName, mark: u32, before: &[&Connection], marks_answers: bool) -> String {
    let (table, rest) = (table(tun), !MARK_MASK);
    let set = |name: &str, kind: &str, is_v6: bool| {
        let here = before.iter().filter(|one| one.source.is_ipv6() == is_v6);
        let elements: Vec<String> = here.map(|one| one.to_string()).collect();
        let elements = if elements.is_empty() {
            String::new()
        } else {
            format!("    elements = {{ {} }}\n", elements.join(", "))
        };
        format!(
            "  set {name} {{\n    type inet_proto . {kind} . inet_service . {kind} . inet_service\n{elements}  }}\n"
        )
    };
    let set_mark = format!("meta mark set meta mark & {rest:#010x} | {mark:#010x}");
    let leaving = |family: &str, name: &str| {
        format!(
            "    meta l4proto . {family} saddr . th sport . {family} daddr . th dport @{name} \
             {set_mark}\n"
        )
    };
    // Where a packet must have come from is looked up as well, by a strict rp_filter.
    let arriving = format!(
        "    meta l4proto . ip daddr . th dport . ip saddr . th sport @before4 {set_mark}\n"
    );
    let answers = if marks_answers {
        format!("    meta l4proto tcp socket mark & {MARK_MASK:#010x} == {mark:#010x} {set_mark}\n")
    } else {
        String::new()
    };
    format!(
        "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{}{}  \
         chain leaving {{\n    type route hook output priority mangle; policy accept;\n{}{}  }}\n  \
         chain arriving {{\n    type filter hook prerouting priority mangle; policy accept;\n\
         {arriving}{answers}  }}\n}}\n",
        set("before4", "ipv4_addr", false),
        set("before6", "ipv6_addr", true),
        leaving("ip", "before4"),
        leaving("ip6", "before6"),
    )
}
