//! The kernel's side of `[routes] mode = "auto"`: one rule, a table of our own, and a filter table.
//!
//! The rule sends whatever does not carry our mark to the table, ahead of all other tables but `local`.
//! All of it outlives a daemon that crashes, so that nothing leaves by another way until it is back or
//! its successor has undone it.

mod connections;
mod kernel;
mod marks;
mod plan;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use self::kernel::{Rule, Rules, add, delete, is_v6};
use self::marks::Marks;
use self::plan::Mend;
pub(crate) use self::plan::{Plan, Planner, Route, Way};
use super::address::{InterfaceAddress, assigned, is_ipv6_off, reconcile as give_addresses};
use super::error::{ErrorKind, SystemError};
use super::netlink::{Netlink, family, ip};
use super::tun::TunName;

/// The number of our table, and the priority of the rule that leads to it: before what network managers
/// and other tunnels add for themselves.
const TABLE: u32 = 32_000;
const PRIORITY: u32 = 5_000;
/// "This rule was added by tund" (`FRA_PROTOCOL`, `rtm_protocol`): as with addresses.
const OURS: RouteProtocol = RouteProtocol::Other(0x7d);
/// Only these bits of a mark are ours.
const MARK_MASK: u32 = 0xff00_0000;
/// Metrics: the refusal beside a route must be worse.
const METRIC: u32 = 1;
const METRIC_REFUSED: u32 = 4_096;
/// With it, the reverse path of a packet is looked up with its mark, so that answers to our links pass.
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// Traffic of this host is led into the TUN.
pub(crate) struct Steering {
    tun: TunName,
    index: u32,
    fwmark: u32,
    /// Those that the device should have.
    addresses: Vec<InterfaceAddress>,
    /// Of IPv4 and IPv6, the addresses that applications' packets get: the first that the device has.
    sources: (Option<IpAddr>, Option<IpAddr>),
    planner: Planner,
    /// What was made of the filter table last.
    marks: Option<Marks>,
    /// A rule of another program comes before ours, and the log says so.
    is_overtaken: bool,
}

impl Steering {
    /// Begins to lead traffic to the device `tun`; what an earlier daemon has left is taken over.
    ///
    /// # Errors
    ///
    /// Without CAP_NET_ADMIN, without `nft`, or when another daemon steers. Nothing is left then that
    /// was not there before.
    pub(crate) fn begin(
        tun: &TunName,
        fwmark: u32,
        addresses: &[InterfaceAddress],
        planner: Planner,
    ) -> Result<Self, SystemError> {
        let index = tun.index().ok_or_else(|| {
            let gone = Errno::ENODEV.into();
            SystemError::from_io(format!("lead traffic into {tun}"), gone, "try again")
        })?;
        let mut steering = Self {
            tun: tun.clone(),
            index,
            fwmark,
            addresses: addresses.to_vec(),
            sources: (None, None),
            planner,
            marks: None,
            is_overtaken: false,
        };
        steering.check_alone()?;
        // Whatever is connected past a block that stands already was not there before the routes.
        let is_successor = steering.is_blocked()?;
        let begun = marks::remove_others(tun)
            .and_then(|()| steering.look(true))
            .and_then(|(plan, _)| steering.mark(plan, is_successor))
            .and_then(|()| {
                check_marks();
                steering.mend()
            });
        if let Err(error) = begun {
            if !is_successor && let Err(left) = undo(tun) {
                tracing::error!(error = %left, "rules or routes stay behind");
            }
            return Err(error);
        }
        Ok(steering)
    }

    /// Makes rules, routes and filter table what they should be; returns how many changes that took.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one of them; the others are made all the same.
    pub(crate) fn mend(&mut self) -> Result<usize, SystemError> {
        let (plan, mut netlink) = self.look(true)?;
        let rules = Rules::read(&mut netlink).map_err(|error| self.failure(error))?;
        let first = rules.first_of_others.filter(|first| *first <= PRIORITY);
        if let Some(priority) = first
            && !self.is_overtaken
        {
            tracing::warn!(
                priority,
                "a rule of another program comes before ours ({PRIORITY}): what it leads past {} is \
                 refused, unless it is excluded",
                self.tun
            );
        }
        self.is_overtaken = first.is_some();
        let changes = self.reconcile(&mut netlink, &plan.routes, rules.ours);
        let marked = self.mark_anew(plan);
        let changes = changes.map_err(|error| self.failure(error))?;
        Ok(changes + usize::from(marked?))
    }

    /// Undoes everything; if `keeps_blocking`, what would have gone into the TUN goes nowhere instead.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) fn end(mut self, keeps_blocking: bool) -> Result<(), SystemError> {
        if !keeps_blocking {
            return undo(&self.tun);
        }
        let (plan, mut netlink) = self.look(false)?;
        let done = Rules::read(&mut netlink)
            .and_then(|rules| self.reconcile(&mut netlink, &plan.routes, rules.ours));
        let marked = self.mark_anew(plan);
        done.map_err(|error| self.failure(error))?;
        marked.map(drop)
    }

    fn failure(&self, error: io::Error) -> SystemError {
        let tried = format!("lead traffic into {} by table {TABLE}", self.tun);
        let remedy = "see `ip rule` and `ip route show table 32000`";
        SystemError::from_io(tried, error, remedy)
    }

    /// What should be, by what devices are on; and puts addresses back that the device has lost.
    fn look(&mut self, is_serving: bool) -> Result<(Plan, Netlink), SystemError> {
        let mut netlink = Netlink::open().map_err(|error| self.failure(error))?;
        let mut has = self.present(&mut netlink)?;
        let has_lost = |old: Option<IpAddr>, new: Option<IpAddr>| old.is_some() && new.is_none();
        if has_lost(self.sources.0, has.0) || has_lost(self.sources.1, has.1) {
            give_addresses(&mut netlink, self.index, &self.addresses)?;
            has = self.present(&mut netlink)?;
        }
        self.sources = has;
        let on_link = kernel::on_link(&mut netlink, self.index);
        let on_link = on_link.map_err(|error| self.failure(error))?;
        Ok(((self.planner)(&on_link, is_serving), netlink))
    }

    /// The first configured address of each version that the device has.
    fn present(
        &self,
        netlink: &mut Netlink,
    ) -> Result<(Option<IpAddr>, Option<IpAddr>), SystemError> {
        let all = assigned(netlink).map_err(|error| self.failure(error))?;
        let has = |one: &&InterfaceAddress| {
            all.iter()
                .any(|there| there.index == self.index && there.at.address == one.address)
        };
        let mut there = self.addresses.iter().filter(has).map(|one| one.address);
        let v4 = there.clone().find(IpAddr::is_ipv4);
        Ok((v4, there.find(IpAddr::is_ipv6)))
    }

    fn is_blocked(&self) -> Result<bool, SystemError> {
        let rules = Netlink::open().and_then(|mut netlink| Rules::read(&mut netlink));
        let rules = rules.map_err(|error| self.failure(error))?;
        Ok(!rules.ours.is_empty())
    }

    fn marks(&self, plan: Plan) -> Marks {
        let has = (self.sources.0.is_some(), self.sources.1.is_some());
        Marks::new((&self.tun, self.fwmark), plan, has)
    }

    /// Makes the filter table again unless it is there and as it should be; true if that was needed.
    fn mark_anew(&mut self, plan: Plan) -> Result<bool, SystemError> {
        let marks = self.marks(plan);
        let is_right = self.marks.as_ref() == Some(&marks) && marks::exists(&self.tun)?;
        if !is_right {
            self.install(marks, true)?;
        }
        Ok(!is_right)
    }

    fn mark(&mut self, plan: Plan, keeps_before: bool) -> Result<(), SystemError> {
        self.install(self.marks(plan), keeps_before)
    }

    fn install(&mut self, marks: Marks, keeps_before: bool) -> Result<(), SystemError> {
        let own: Vec<IpAddr> = self.addresses.iter().map(|one| one.address).collect();
        marks.install(&own, keeps_before)?;
        self.marks = Some(marks);
        Ok(())
    }

    /// Fails when the table leads to another device that has a reader.
    fn check_alone(&self) -> Result<(), SystemError> {
        match user(Some(self.index)).map_err(|error| self.failure(error))? {
            None => Ok(()),
            Some(name) => Err(SystemError::new(
                ErrorKind::InUse,
                format!("lead traffic into {}", self.tun),
                format!("table {TABLE} leads to {name}, which is in use"),
                "let only one client have [routes] mode = \"auto\"",
            )),
        }
    }

    fn reconcile(
        &self,
        netlink: &mut Netlink,
        wanted: &BTreeSet<Route>,
        rules: Vec<Rule>,
    ) -> io::Result<usize> {
        let (mut known, mut foreign) = (Vec::new(), Vec::new());
        for message in kernel::our_routes(netlink)? {
            match self.read_route(&message) {
                Some(route) => known.push(route),
                None => foreign.push(message),
            }
        }
        let routes = Mend::between(wanted, known);
        let rules = Mend::between(&self.rules(), rules);
        let mut result = Ok(0);
        let mut note = |done: io::Result<()>, is_v6: bool| match (&mut result, done) {
            (Ok(changes), Ok(())) => *changes += 1,
            (_, Err(error)) if is_v6 && is_ipv6_off(&error) => {
                tracing::debug!(%error, "no routes for IPv6, which is switched off");
            }
            (result, Err(error)) => *result = Err(error),
            (Err(_), Ok(())) => {}
        };
        // First, as one may stand where ours is to be; beside it is a refusal.
        for message in foreign {
            let is_v6 = message.header.address_family == family(true);
            let message = RouteNetlinkMessage::DelRoute(message);
            note(delete(netlink, message), is_v6);
        }
        for route in &routes.add {
            let message = RouteNetlinkMessage::NewRoute(self.message(*route));
            note(add(netlink, message), is_v6(&route.prefix));
        }
        // Before what is not wanted goes, what is wanted is there.
        for rule in &rules.add {
            let message = RouteNetlinkMessage::NewRule(rule.message());
            note(add(netlink, message), rule.is_v6);
        }
        for rule in &rules.remove {
            let message = RouteNetlinkMessage::DelRule(rule.message());
            note(delete(netlink, message), rule.is_v6);
        }
        for route in &routes.remove {
            let message = RouteNetlinkMessage::DelRoute(self.message(*route));
            note(delete(netlink, message), is_v6(&route.prefix));
        }
        result
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
        // Wide, so that it says nothing of gateways: else one of another program's routes, given
        // without its device, would be looked for in the TUN.
        header.scope = RouteScope::Universe;
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
        let prefix = kernel::prefix(message)?;
        let (mut metric, mut source) = (0, None);
        for attribute in &message.attributes {
            if let RouteAttribute::Priority(found) = attribute {
                metric = *found;
            } else if let RouteAttribute::PrefSource(found) = attribute {
                source = ip(found);
            }
        }
        let is_ours = match way {
            Way::Tun => {
                kernel::device(message) == Some(self.index)
                    && source == self.source(&prefix)
                    && metric == METRIC
            }
            Way::Past => metric == METRIC,
            Way::Refused => metric == METRIC_REFUSED,
        };
        is_ours.then_some(Route { prefix, way })
    }
}

/// The name of a running device other than `own` that our table leads to.
fn user(own: Option<u32>) -> io::Result<Option<String>> {
    let mut netlink = Netlink::open()?;
    let running = kernel::running(&mut netlink)?;
    let found = kernel::our_routes(&mut netlink)?;
    let devices = found.iter().filter_map(kernel::device);
    let mut others = devices.filter(|index| Some(*index) != own);
    Ok(others.find_map(|index| running.get(&index).cloned()))
}

/// Removes what a daemon for `tun` has left behind; true if there was anything. What the daemon of
/// another device has made stays.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn remove(tun: &TunName) -> Result<bool, SystemError> {
    let tried = "look for rules and routes of an earlier daemon";
    let look = || -> io::Result<(bool, bool)> {
        let mut netlink = Netlink::open()?;
        let routes = kernel::our_routes(&mut netlink)?;
        let mut devices = routes.iter().filter_map(kernel::device);
        let is_own = devices.any(|index| Some(index) == tun.index());
        Ok((is_own, user(tun.index())?.is_some()))
    };
    let (is_own, is_used) =
        look().map_err(|error| SystemError::from_io(tried, error, "try again"))?;
    if is_used || !(is_own || marks::exists(tun)?) {
        return Ok(false);
    }
    undo(tun).map(|()| true)
}

fn undo(tun: &TunName) -> Result<(), SystemError> {
    let undo = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        for rule in Rules::read(&mut netlink)?.ours {
            delete(&mut netlink, RouteNetlinkMessage::DelRule(rule.message()))?;
        }
        for route in kernel::our_routes(&mut netlink)? {
            delete(&mut netlink, RouteNetlinkMessage::DelRoute(route))?;
        }
        Ok(())
    };
    let tried = "remove the rules and routes of table 32000";
    undo().map_err(|error| SystemError::from_io(tried, error, "try again"))?;
    marks::remove(tun)
}

/// Has the kernel look at marks when it asks where a packet may come from. It stays so: others may rely
/// on it by the time we end.
fn check_marks() {
    let look = || -> io::Result<()> {
        if fs::read_to_string(SRC_VALID_MARK)?.trim() == "0" {
            fs::write(SRC_VALID_MARK, "1")?;
        }
        Ok(())
    };
    if let Err(error) = look() {
        tracing::warn!(
            "cannot write {SRC_VALID_MARK}: {error}; where rp_filter is 1, answers to links are \
             dropped: run `sysctl -w net.ipv4.conf.all.src_valid_mark=1`"
        );
    }
}

#[cfg(test)]
mod tests;
