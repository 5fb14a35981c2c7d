//! The kernel's side of `[routes] mode = "auto"`: one rule, a table of our own, and marks for what was
//! there before.
//!
//! The rule sends whatever does not carry our mark to the table, ahead of all other tables but `local`.
//! It, the table and the filter table `inet tund-NAME-routes` outlive a daemon that crashes, so that
//! nothing leaves by another way until it is back or its successor has undone them.

mod connections;
mod marks;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tund_client_core::routing::{Mend, Route, Routing, Way};

use super::address::assigned;
use super::error::{ErrorKind, SystemError, is_errno};
use super::netlink::Netlink;
use super::tun::TunName;

/// The number of our table, and the priority of the rule that leads to it: before what network managers
/// and other tunnels add for themselves.
const TABLE: u32 = 32_000;
const PRIORITY: u32 = 5_000;
/// "This rule was added by tund" (`FRA_PROTOCOL`, `rtm_protocol`): as with addresses.
const OURS: RouteProtocol = RouteProtocol::Other(0x7d);
/// Only these bits of a mark are ours.
pub(super) const MARK_MASK: u32 = 0xff00_0000;
/// Metrics: the refusal beside a route must be worse.
const METRIC: u32 = 1;
const METRIC_REFUSED: u32 = 4_096;
/// With it, the reverse path of a packet is looked up with its mark, so that answers to our links pass.
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// Traffic of this host is led into the TUN.
#[derive(Debug)]
pub(crate) struct Steering {
    tun: TunName,
    index: u32,
    fwmark: u32,
    /// The addresses that applications' packets get.
    sources: (Option<IpAddr>, Option<IpAddr>),
    routing: Routing,
    /// We have switched [`SRC_VALID_MARK`] on.
    has_set_mark_check: bool,
}

/// The rule that leads to our table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    is_v6: bool,
    priority: u32,
    mark: u32,
    mask: u32,
    is_inverted: bool,
}

impl Steering {
    /// Begins to lead traffic to the device `tun`; what an earlier daemon has left is taken over.
    ///
    /// # Errors
    ///
    /// Without CAP_NET_ADMIN, without `nft`, or when another daemon steers.
    pub(crate) fn begin(
        tun: &TunName,
        fwmark: u32,
        addresses: &[IpAddr],
        mut routing: Routing,
    ) -> Result<Self, SystemError> {
        let index = tun.index().ok_or_else(|| {
            let gone = Errno::ENODEV.into();
            SystemError::from_io(format!("lead traffic into {tun}"), gone, "try again")
        })?;
        let first = |is_v6: bool| addresses.iter().find(|one| one.is_ipv6() == is_v6).copied();
        let sources = (first(false), first(true));
        routing.has = (sources.0.is_some(), sources.1.is_some());
        let mut steering = Self {
            tun: tun.clone(),
            index,
            fwmark,
            sources,
            routing,
            has_set_mark_check: false,
        };
        steering.check_alone()?;
        marks::install(tun, fwmark, addresses)?;
        steering.has_set_mark_check = check_marks();
        steering.mend()?;
        Ok(steering)
    }

    /// Makes rule and routes what they should be; returns how many changes that took.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one of them; the others are made all the same.
    pub(crate) fn mend(&self) -> Result<usize, SystemError> {
        self.reconcile(true).map_err(|error| self.failure(error))
    }

    /// Undoes everything; if `keeps_blocking`, what would have gone into the TUN goes nowhere instead.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) fn end(self, keeps_blocking: bool) -> Result<(), SystemError> {
        if keeps_blocking {
            self.reconcile(false).map_err(|error| self.failure(error))?;
            return Ok(());
        }
        remove(&self.tun)?;
        if self.has_set_mark_check
            && let Err(error) = fs::write(SRC_VALID_MARK, "0")
        {
            tracing::debug!(%error, "{SRC_VALID_MARK} stays 1");
        }
        Ok(())
    }

    fn failure(&self, error: io::Error) -> SystemError {
        let tried = format!("lead traffic into {} by table {TABLE}", self.tun);
        SystemError::from_io(
            tried,
            error,
            "see `ip rule` and `ip route show table 32000`",
        )
    }

    /// Fails when the table leads to another device that has a reader.
    fn check_alone(&self) -> Result<(), SystemError> {
        let look = || -> io::Result<Option<u32>> {
            let mut netlink = Netlink::open()?;
            let mut running = BTreeSet::new();
            let links = RouteNetlinkMessage::GetLink(Default::default());
            let _state = netlink.dump(links, |entry| {
                if let RouteNetlinkMessage::NewLink(link) = entry
                    && link
                        .header
                        .flags
                        .contains(rtnetlink::packet_route::link::LinkFlags::Running)
                {
                    running.insert(link.header.index);
                }
            })?;
            let found = found_routes(&mut netlink)?;
            let devices = found.iter().filter_map(device);
            let mut others = devices.filter(|index| *index != self.index);
            Ok(others.find(|index| running.contains(index)))
        };
        match look().map_err(|error| self.failure(error))? {
            None => Ok(()),
            Some(index) => Err(SystemError::new(
                ErrorKind::InUse,
                format!("lead traffic into {}", self.tun),
                format!("table {TABLE} leads to the device with index {index}, which is in use"),
                "let only one client have [routes] mode = \"auto\"",
            )),
        }
    }

    fn reconcile(&self, is_serving: bool) -> io::Result<usize> {
        let mut netlink = Netlink::open()?;
        let mut on_link = Vec::new();
        for one in assigned(&mut netlink)? {
            let net = IpNet::new(one.at.address, one.at.prefix_length);
            if one.index != self.index && !one.at.address.is_loopback() {
                on_link.extend(net);
            }
        }
        let wanted = self.routing.routes(on_link, is_serving);
        let (mut known, mut foreign) = (Vec::new(), Vec::new());
        for message in found_routes(&mut netlink)? {
            match self.read_route(&message) {
                Some(route) => known.push(route),
                None => foreign.push(message),
            }
        }
        let routes = Mend::between(&wanted, known);
        let rules = self.rules();
        let rules = Mend::between(&rules, found_rules(&mut netlink)?);
        let changes = foreign.len()
            + routes.add.len()
            + routes.remove.len()
            + rules.add.len()
            + rules.remove.len();
        let mut result = Ok(());
        let mut note = |done: io::Result<()>, is_v6: bool| {
            if let Err(error) = done {
                // A host whose IPv6 is switched off takes no such routes, and needs none.
                if is_v6 && self.sources.1.is_none() {
                    tracing::debug!(%error, "no routes for IPv6");
                } else {
                    result = Err(error);
                }
            }
        };
        for route in &routes.add {
            let message = self.message(*route);
            note(
                add(&mut netlink, RouteNetlinkMessage::NewRoute(message)),
                is_v6(&route.prefix),
            );
        }
        // Before what is not wanted goes, what is wanted is there.
        for rule in &rules.add {
            let message = RouteNetlinkMessage::NewRule(rule.message());
            note(add(&mut netlink, message), rule.is_v6);
        }
        for rule in &rules.remove {
            let message = RouteNetlinkMessage::DelRule(rule.message());
            note(delete(&mut netlink, message), rule.is_v6);
        }
        for route in &routes.remove {
            let message = RouteNetlinkMessage::DelRoute(self.message(*route));
            note(delete(&mut netlink, message), is_v6(&route.prefix));
        }
        for message in foreign {
            let is_v6 = message.header.address_family == AddressFamily::Inet6;
            note(
                delete(&mut netlink, RouteNetlinkMessage::DelRoute(message)),
                is_v6,
            );
        }
        result.map(|()| changes)
    }

    fn rules(&self) -> BTreeSet<Rule> {
        let rule = |is_v6| Rule {
            is_v6,
            priority: PRIORITY,
            mark: self.fwmark,
            mask: MARK_MASK,
            is_inverted: true,
        };
        BTreeSet::from([rule(false), rule(true)])
    }

    fn source(&self, prefix: &IpNet) -> Option<IpAddr> {
        if is_v6(prefix) {
            self.sources.1
        } else {
            self.sources.0
        }
    }

    fn message(&self, route: Route) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(is_v6(&route.prefix));
        header.destination_prefix_length = route.prefix.prefix_len();
        header.protocol = OURS;
        header.kind = match route.way {
            Way::Tun => RouteType::Unicast,
            Way::Past => RouteType::Throw,
            Way::Refused => RouteType::Unreachable,
        };
        header.scope = match (route.way, route.prefix) {
            (Way::Tun, IpNet::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        let metric = if route.way == Way::Refused {
            METRIC_REFUSED
        } else {
            METRIC
        };
        message.attributes = vec![
            RouteAttribute::Table(TABLE),
            RouteAttribute::Priority(metric),
        ];
        if route.prefix.prefix_len() > 0 {
            let address = RouteAddress::from(route.prefix.network());
            message
                .attributes
                .push(RouteAttribute::Destination(address));
        }
        if route.way == Way::Tun {
            message.attributes.push(RouteAttribute::Oif(self.index));
            let source = self.source(&route.prefix).map(RouteAddress::from);
            message
                .attributes
                .extend(source.map(RouteAttribute::PrefSource));
        }
        message
    }

    /// A route as we would have made it; none if it is another's.
    fn read_route(&self, message: &RouteMessage) -> Option<Route> {
        let way = if message.header.kind == RouteType::Unicast {
            Way::Tun
        } else if message.header.kind == RouteType::Throw {
            Way::Past
        } else if message.header.kind == RouteType::Unreachable {
            Way::Refused
        } else {
            return None;
        };
        let is_v6 = message.header.address_family == AddressFamily::Inet6;
        let mut address = if is_v6 {
            IpAddr::from([0; 16])
        } else {
            IpAddr::from([0; 4])
        };
        let (mut metric, mut source) = (0, None);
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(found) = attribute {
                address = ip(found)?;
            } else if let RouteAttribute::Priority(found) = attribute {
                metric = *found;
            } else if let RouteAttribute::PrefSource(found) = attribute {
                source = ip(found);
            }
        }
        let prefix = IpNet::new(address, message.header.destination_prefix_length).ok()?;
        let is_ours = match way {
            Way::Tun => {
                device(message) == Some(self.index)
                    && source == self.source(&prefix)
                    && metric == METRIC
            }
            Way::Past => metric == METRIC,
            Way::Refused => metric == METRIC_REFUSED,
        };
        is_ours.then_some(Route { prefix, way })
    }
}

impl Rule {
    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.is_v6);
        message.header.action = RuleAction::ToTable;
        if self.is_inverted {
            message.header.flags = RuleFlags::Invert;
        }
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(TABLE),
            RuleAttribute::Protocol(OURS),
        ];
        message
    }

    /// A rule of ours; none if it is another's.
    fn read(message: &RuleMessage) -> Option<Self> {
        let mut rule = Self {
            is_v6: message.header.family == AddressFamily::Inet6,
            priority: 0,
            mark: 0,
            mask: 0,
            is_inverted: message.header.flags.contains(RuleFlags::Invert),
        };
        let (mut is_ours, mut table) = (false, 0);
        for attribute in &message.attributes {
            if let RuleAttribute::Priority(value) = attribute {
                rule.priority = *value;
            } else if let RuleAttribute::FwMark(value) = attribute {
                rule.mark = *value;
            } else if let RuleAttribute::FwMask(value) = attribute {
                rule.mask = *value;
            } else if let RuleAttribute::Table(value) = attribute {
                table = *value;
            } else if let RuleAttribute::Protocol(value) = attribute {
                is_ours = *value == OURS;
            }
        }
        (is_ours && table == TABLE).then_some(rule)
    }
}

/// Removes what a daemon for `tun` has left behind; true if there was anything.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn remove(tun: &TunName) -> Result<bool, SystemError> {
    let undo = || -> io::Result<bool> {
        let mut netlink = Netlink::open()?;
        let (rules, routes) = (found_rules(&mut netlink)?, found_routes(&mut netlink)?);
        let is_any = !(rules.is_empty() && routes.is_empty());
        for rule in rules {
            delete(&mut netlink, RouteNetlinkMessage::DelRule(rule.message()))?;
        }
        for route in routes {
            delete(&mut netlink, RouteNetlinkMessage::DelRoute(route))?;
        }
        Ok(is_any)
    };
    let tried = "remove the rules and routes of table 32000";
    let is_any = undo().map_err(|error| SystemError::from_io(tried, error, "try again"))?;
    if is_any {
        marks::remove(tun)?;
    }
    Ok(is_any)
}

/// Switches the check of marks on; true if it was off.
fn check_marks() -> bool {
    let look = || -> io::Result<bool> {
        let is_on = fs::read_to_string(SRC_VALID_MARK)?.trim() != "0";
        if !is_on {
            fs::write(SRC_VALID_MARK, "1")?;
        }
        Ok(!is_on)
    };
    look().unwrap_or_else(|error| {
        tracing::warn!(
            "cannot write {SRC_VALID_MARK}: {error}; where rp_filter is 1, answers to links are \
             dropped: run `sysctl -w net.ipv4.conf.all.src_valid_mark=1`"
        );
        false
    })
}

fn found_rules(netlink: &mut Netlink) -> io::Result<Vec<Rule>> {
    let mut found = Vec::new();
    for is_v6 in [false, true] {
        let mut request = RuleMessage::default();
        request.header.family = family(is_v6);
        let dump = netlink.dump(RouteNetlinkMessage::GetRule(request), |entry| {
            if let RouteNetlinkMessage::NewRule(message) = entry {
                found.extend(Rule::read(&message));
            }
        });
        unless_unknown(dump.map(drop), is_v6)?;
    }
    Ok(found)
}

/// Every route of our table.
fn found_routes(netlink: &mut Netlink) -> io::Result<Vec<RouteMessage>> {
    let mut found = Vec::new();
    for is_v6 in [false, true] {
        let mut request = RouteMessage::default();
        request.header.address_family = family(is_v6);
        request.attributes = vec![RouteAttribute::Table(TABLE)];
        let is_here = |attribute: &RouteAttribute| *attribute == RouteAttribute::Table(TABLE);
        let dump = netlink.dump(RouteNetlinkMessage::GetRoute(request), |entry| {
            if let RouteNetlinkMessage::NewRoute(message) = entry
                && message.attributes.iter().any(is_here)
            {
                found.push(message);
            }
        });
        unless_unknown(dump.map(drop), is_v6)?;
    }
    Ok(found)
}

/// A table that was never made, or a kernel without IPv6, has no entries.
fn unless_unknown(result: io::Result<()>, is_v6: bool) -> io::Result<()> {
    match result {
        Err(error) if is_errno(&error, &[Errno::ENOENT]) => Ok(()),
        Err(error) if is_v6 && is_errno(&error, &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]) => {
            Ok(())
        }
        result => result,
    }
}

fn add(netlink: &mut Netlink, message: RouteNetlinkMessage) -> io::Result<()> {
    match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if is_errno(&error, &[Errno::EEXIST]) => Ok(()),
        result => result,
    }
}

fn delete(netlink: &mut Netlink, message: RouteNetlinkMessage) -> io::Result<()> {
    match netlink.change(message, 0) {
        Err(error) if is_errno(&error, &[Errno::ENOENT, Errno::ESRCH]) => Ok(()),
        result => result,
    }
}

fn device(message: &RouteMessage) -> Option<u32> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

fn family(is_v6: bool) -> AddressFamily {
    if is_v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
