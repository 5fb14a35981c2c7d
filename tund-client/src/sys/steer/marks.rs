//! The filter table `inet tund-NAME-routes`: marks for what was there before the routes and for answers
//! to our links, and an end to what goes astray.
//!
//! A socket that is bound to a device asks for routes of that device only, and so passes our table by;
//! another program's rule may come before ours, or take it away for a moment. So what should go into the
//! TUN and leaves by another device is refused, whatever led it there.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::MARK_MASK;
use super::connections::{self, Connection};
use super::plan::Plan;
use crate::sys::error::{ErrorKind, SystemError};
use crate::sys::nft;
use crate::sys::tun::TunName;

/// What the table is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) tun: TunName,
    pub(super) fwmark: u32,
    /// What goes into the TUN.
    pub(super) into: Vec<IpNet>,
    /// What goes past it by any device.
    pub(super) past: Vec<IpNet>,
    /// What goes past it by one device.
    pub(super) lan: Vec<(String, IpNet)>,
    /// What goes into it whatever lies around it.
    pub(super) stub: Option<IpAddr>,
    /// Versions, the first IPv4, of which the TUN has an address: no answer would come for the other.
    pub(super) has: (bool, bool),
}

impl Marks {
    pub(super) fn new((tun, fwmark): (&TunName, u32), plan: Plan, has: (bool, bool)) -> Self {
        Self {
            tun: tun.clone(),
            fwmark,
            into: plan.into,
            past: plan.past,
            lan: plan.lan,
            stub: plan.stub,
            has,
        }
    }

    /// Makes the table, with the connections that are there at this moment; or makes it anew and keeps
    /// those that were there at that of its beginning.
    ///
    /// # Errors
    ///
    /// Without `nft` or CAP_NET_ADMIN.
    pub(super) fn install(&self, own: &[IpAddr], keeps_before: bool) -> Result<(), SystemError> {
        let mut before = Vec::new();
        if !keeps_before {
            before = connections::established();
            before.retain(|one| {
                let source = one.source.ip();
                !source.is_loopback() && !own.contains(&source)
            });
        }
        let tried = format!("mark what goes past {}", self.tun);
        match nft::apply(&tried, &self.script(&before, keeps_before, true)) {
            Err(error) if error.kind() == ErrorKind::Failed => {
                // The one rule that needs a kernel with nft_socket; only a strict rp_filter misses it.
                tracing::debug!(%error, "answers to links are not marked");
                nft::apply(&tried, &self.script(&before, keeps_before, false))
            }
            result => result,
        }
    }

    /// One transaction. Where the table is kept, its set of connections is what stays.
    fn script(&self, before: &[Connection], keeps_before: bool, marks_answers: bool) -> String {
        let name = table(&self.tun);
        let mut script = String::new();
        if keeps_before {
            // Else a set or chain that was made otherwise would be in the way.
            script += &format!("table inet {name}\n");
            for chain in ["leaving", "arriving", "astray", "passing"] {
                script +=
                    &format!("add chain inet {name} {chain}\ndelete chain inet {name} {chain}\n");
            }
            for set in ["into4", "into6", "past4", "past6", "lan4", "lan6"] {
                let kind = kind_of(set);
                script +=
                    &format!("add set inet {name} {set} {kind}\ndelete set inet {name} {set}\n");
            }
        } else {
            script += &format!("table inet {name}\ndelete table inet {name}\n");
        }
        script += &format!("table inet {name} {{\n");
        for (version, is_v6) in [("4", false), ("6", true)] {
            let of = |net: &&IpNet| matches!(net, IpNet::V6(_)) == is_v6;
            let nets = |list: &[IpNet]| list.iter().filter(of).map(IpNet::to_string).collect();
            let lan = self.lan.iter().filter(|(_, net)| of(&net));
            let lan = lan.map(|(device, net)| format!("\"{device}\" . {net}"));
            let before = before.iter().filter(|one| one.source.is_ipv6() == is_v6);
            for (set, elements) in [
                (
                    "before",
                    before.map(Connection::to_string).collect::<Vec<_>>(),
                ),
                ("into", nets(&self.into)),
                ("past", nets(&self.past)),
                ("lan", lan.collect()),
            ] {
                let set = format!("{set}{version}");
                let kind = kind_of(&set);
                let kind = kind.trim_start_matches("{ ").trim_end_matches(" }");
                let _never = writeln!(script, "  set {set} {{\n    {kind}");
                if !elements.is_empty() {
                    let _never = writeln!(script, "    elements = {{ {} }}", elements.join(", "));
                }
                script += "  }\n";
            }
        }
        script += &self.chains(marks_answers);
        script += "}\n";
        script
    }

    fn chains(&self, marks_answers: bool) -> String {
        let (tun, mark) = (&self.tun, self.fwmark);
        let is_marked = format!("meta mark & {MARK_MASK:#010x} == {mark:#010x}");
        let set_mark = format!(
            "meta mark set meta mark & {:#010x} | {mark:#010x}",
            !MARK_MASK
        );
        let answers = if marks_answers {
            format!(
                "    meta l4proto {{ tcp, udp }} socket mark & {MARK_MASK:#010x} == {mark:#010x} \
                 {set_mark}\n"
            )
        } else {
            String::new()
        };
        let stub = self.stub.map_or_else(String::new, |stub| {
            let family = if stub.is_ipv6() { "ip6" } else { "ip" };
            format!("    {family} daddr {stub} reject with icmpx type no-route\n")
        });
        let unanswered = [("ipv4", self.has.0), ("ipv6", self.has.1)];
        let unanswered: String = unanswered
            .into_iter()
            .filter(|(_, has)| !has)
            .map(|(version, _)| {
                // A TCP socket that is still connecting hears of no ICMP for a second.
                format!(
                    "    oifname \"{tun}\" meta nfproto {version} meta l4proto tcp reject with tcp reset\n    \
                     oifname \"{tun}\" meta nfproto {version} reject with icmpx type no-route\n"
                )
            })
            .collect();
        format!(
            "  chain leaving {{\n    type route hook output priority mangle; policy accept;\n    \
             meta l4proto . ip saddr . th sport . ip daddr . th dport @before4 {set_mark}\n    \
             meta l4proto . ip6 saddr . th sport . ip6 daddr . th dport @before6 {set_mark}\n  }}\n  \
             chain arriving {{\n    type filter hook prerouting priority raw; policy accept;\n    \
             meta l4proto . ip daddr . th dport . ip saddr . th sport @before4 {set_mark}\n    \
             meta l4proto . ip6 daddr . th dport . ip6 saddr . th sport @before6 {set_mark}\n\
             {answers}  }}\n  \
             chain astray {{\n    type filter hook output priority filter; policy accept;\n    \
             {is_marked} accept\n{unanswered}    \
             oifname {{ \"lo\", \"{tun}\" }} accept\n{stub}    \
             ip daddr @past4 accept\n    ip6 daddr @past6 accept\n    \
             oifname . ip daddr @lan4 accept\n    oifname . ip6 daddr @lan6 accept\n    \
             fib daddr type {{ local, broadcast, multicast }} accept\n    \
             icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept\n    \
             udp sport 68 udp dport 67 accept\n    udp sport 546 udp dport 547 accept\n    \
             ip daddr @into4 reject with icmpx type no-route\n    \
             ip6 daddr @into6 reject with icmpx type no-route\n  }}\n  \
             chain passing {{\n    type filter hook forward priority filter; policy accept;\n    \
             {is_marked} accept\n    oifname \"{tun}\" accept\n{stub}    \
             ip daddr @past4 accept\n    ip6 daddr @past6 accept\n    \
             oifname . ip daddr @lan4 accept\n    oifname . ip6 daddr @lan6 accept\n    \
             ip daddr @into4 reject with icmpx type no-route\n    \
             ip6 daddr @into6 reject with icmpx type no-route\n  }}\n"
        )
    }
}

/// The type of a set.
fn kind_of(set: &str) -> String {
    let (name, version) = set.split_at(set.len().saturating_sub(1));
    let address = if version == "6" {
        "ipv6_addr"
    } else {
        "ipv4_addr"
    };
    match name {
        "before" => {
            format!("{{ type inet_proto . {address} . inet_service . {address} . inet_service; }}")
        }
        "lan" => format!("{{ type ifname . {address}; flags interval; }}"),
        _ => format!("{{ type {address}; flags interval; auto-merge; }}"),
    }
}

/// Whether there is such a table for the device.
///
/// # Errors
///
/// Without `nft` or CAP_NET_ADMIN.
pub(super) fn exists(tun: &TunName) -> Result<bool, SystemError> {
    Ok(tables()?.contains(&table(tun)))
}

/// Removes the tables of other devices: their daemons are gone.
///
/// # Errors
///
/// Without `nft` or CAP_NET_ADMIN.
pub(super) fn remove_others(tun: &TunName) -> Result<(), SystemError> {
    let own = table(tun);
    for name in tables()?.into_iter().filter(|name| *name != own) {
        delete(&name)?;
    }
    Ok(())
}

/// Removes the table, also if it is not there.
///
/// # Errors
///
/// Without `nft` or CAP_NET_ADMIN.
pub(super) fn remove(tun: &TunName) -> Result<(), SystemError> {
    delete(&table(tun))
}

fn delete(name: &str) -> Result<(), SystemError> {
    let script = format!("table inet {name}\ndelete table inet {name}\n");
    nft::apply(&format!("remove the filter table {name}"), &script)
}

/// The tables of this kind.
fn tables() -> Result<Vec<String>, SystemError> {
    let listing = nft::list_tables()?;
    let names = listing
        .lines()
        .filter_map(|line| line.strip_prefix("table inet "));
    let ours = names.filter(|name| name.starts_with("tund-") && name.ends_with("-routes"));
    Ok(ours.map(str::to_owned).collect())
}

fn table(tun: &TunName) -> String {
    format!("tund-{tun}-routes")
}
