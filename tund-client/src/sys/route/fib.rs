//! The kernel's choice of a route, repeated over a copy of its tables with one device left out.
//!
//! Only what a TCP socket without a source address can meet is modelled: rules on marks, devices,
//! destinations, ports and users; actions that look up, jump or refuse; the suppressors of the
//! result. What is missing makes a rule not match: VRF, DSCP and flow labels, source prefixes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// "No limit" in the suppressors of a rule: -1.
const UNSET: u32 = u32::MAX;
/// Attributes of rules that the parser does not know (`linux/fib_rules.h`).
const FRA_DSCP: u16 = 25;
const FRA_SOURCE_PORT_MASK: u16 = 28;
const FRA_DESTINATION_PORT_MASK: u16 = 29;
const FRA_DSCP_MASK: u16 = 30;
/// IPPROTO_TCP.
const TCP: u8 = 6;

/// A device, as far as routing cares.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) group: u32,
    /// A link may leave by it.
    pub(super) usable: bool,
}

/// What rules look at in the packets of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) mark: u32,
    pub(super) uid: u32,
}

/// What a rule does with packets that it matches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    Goto(u32),
    Lookup {
        table: u32,
        longer_than: Option<u32>,
        not_group: Option<u32>,
    },
    Nothing,
    Refuse,
}

/// A routing rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    priority: u32,
    inverted: bool,
    /// Selects packets by something that is not modelled.
    foreign: bool,
    mark: (u32, u32),
    from_device: Option<String>,
    by_device: Option<String>,
    destination: Option<(IpAddr, u8)>,
    ports: Option<(u16, u16)>,
    users: Option<(u32, u32)>,
    action: Action,
}

/// A route that covers the destination.
#[derive(Clone, Debug)]
pub(super) struct Route {
    table: u32,
    prefix_length: u8,
    metric: u32,
    kind: RouteType,
    /// The devices of its next hops that are alive.
    devices: Vec<u32>,
}

/// The tables, with what does not cover the destination left out.
#[derive(Debug)]
pub(super) struct Fib {
    devices: BTreeMap<u32, Device>,
    rules: Vec<Rule>,
    routes: Vec<Route>,
}

/// How good a route is: less is better.
type Rank = (bool, usize, Reverse<u8>, u32);

impl Rule {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the attributes are the kernel's and grow with it; most are of no interest"
    )]
    pub(super) fn read(message: &RuleMessage) -> Self {
        let header = &message.header;
        let mut rule = Self {
            priority: 0,
            inverted: header.flags.contains(RuleFlags::Invert),
            foreign: header.src_len != 0 || header.tos != 0,
            mark: (0, 0),
            from_device: None,
            by_device: None,
            destination: None,
            ports: None,
            users: None,
            action: Action::Nothing,
        };
        let mut table = u32::from(header.table);
        let mut target = 0;
        let (mut longer_than, mut not_group) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(value) => rule.priority = *value,
                RuleAttribute::Table(value) => table = *value,
                RuleAttribute::Goto(value) => target = *value,
                RuleAttribute::SuppressPrefixLen(value) => {
                    longer_than = Some(*value).filter(|value| *value != UNSET);
                }
                RuleAttribute::SuppressIfGroup(value) => {
                    not_group = Some(*value).filter(|value| *value != UNSET);
                }
                selector => rule.select(selector, header.dst_len),
            }
        }
        let refusals = [
            RuleAction::Blackhole,
            RuleAction::Unreachable,
            RuleAction::Prohibit,
        ];
        rule.action = if header.action == RuleAction::ToTable {
            Action::Lookup {
                table,
                longer_than,
                not_group,
            }
        } else if header.action == RuleAction::Goto {
            Action::Goto(target)
        } else if refusals.contains(&header.action) {
            Action::Refuse
        } else {
            Action::Nothing
        };
        rule
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the attributes are the kernel's and grow with it; most are of no interest"
    )]
    fn select(&mut self, selector: &RuleAttribute, destination_length: u8) {
        match selector {
            RuleAttribute::FwMark(value) => self.mark.0 = *value,
            RuleAttribute::FwMask(value) => self.mark.1 = *value,
            RuleAttribute::Iifname(name) => self.from_device = Some(name.clone()),
            RuleAttribute::Oifname(name) => self.by_device = Some(name.clone()),
            RuleAttribute::Destination(address) => {
                self.destination = Some((*address, destination_length));
            }
            RuleAttribute::DestinationPortRange(range) => {
                self.ports = Some((range.start, range.end));
            }
            RuleAttribute::UidRange(range) => self.users = Some((range.start, range.end)),
            RuleAttribute::IpProtocol(protocol) => {
                self.foreign |= u8::from(*protocol) != TCP;
            }
            RuleAttribute::SourcePortRange(_) => self.foreign = true,
            RuleAttribute::TunId(id) => self.foreign |= *id != 0,
            RuleAttribute::L3MDev(on) => self.foreign |= *on,
            RuleAttribute::Other(other) => self.foreign |= is_foreign(other),
            _ => {}
        }
    }

    /// Whether packets from a socket bound to `device` meet this rule.
    fn matches(&self, packet: &Packet, device: &Device) -> bool {
        let within = |range: Option<(u32, u32)>, value: u32| {
            range.is_none_or(|(first, last)| (first..=last).contains(&value))
        };
        let selected = !self.foreign
            && (packet.mark ^ self.mark.0) & self.mark.1 == 0
            // What this host sends comes from loopback, as far as rules are concerned.
            && self.from_device.as_deref().is_none_or(|name| name == "lo")
            && self.by_device.as_deref().is_none_or(|name| name == device.name)
            && self.destination.is_none_or(|prefix| covers(prefix, packet.destination))
            && self.ports.is_none_or(|(first, last)| (first..=last).contains(&packet.port))
            && within(self.users, packet.uid);
        selected != self.inverted
    }
}

impl Route {
    /// The route in `message`, if it covers `destination` and can be met by our packets.
    pub(super) fn read(message: &RouteMessage, destination: IpAddr) -> Option<Self> {
        let header = &message.header;
        let cached = header.flags.contains(RouteFlags::Cloned);
        if cached || header.source_prefix_length != 0 || header.tos != 0 {
            return None;
        }
        let dead = header
            .flags
            .intersects(RouteFlags::Dead | RouteFlags::Linkdown);
        let mut route = Self {
            table: u32::from(header.table),
            prefix_length: header.destination_prefix_length,
            metric: 0,
            kind: header.kind,
            devices: Vec::new(),
        };
        let mut network = None;
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(address) = attribute {
                network = Some(super::ip(address)?);
            } else if let RouteAttribute::Table(table) = attribute {
                route.table = *table;
            } else if let RouteAttribute::Priority(metric) = attribute {
                route.metric = *metric;
            } else if let RouteAttribute::Oif(index) = attribute {
                route.devices.extend((!dead).then_some(*index));
            } else if let RouteAttribute::MultiPath(hops) = attribute {
                let unusable = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                let alive = hops.iter().filter(|hop| !hop.flags.intersects(unusable));
                route.devices.extend(alive.map(|hop| hop.interface_index));
            }
        }
        let covered = match network {
            Some(network) => covers((network, route.prefix_length), destination),
            None => route.prefix_length == 0,
        };
        covered.then_some(route)
    }
}

impl Fib {
    /// The tables with `rules` in the kernel's order and `routes` in any.
    pub(super) fn new(
        devices: BTreeMap<u32, Device>,
        rules: Vec<Rule>,
        mut routes: Vec<Route>,
    ) -> Self {
        routes.sort_by_key(|route| (route.table, Reverse(route.prefix_length), route.metric));
        Self {
            devices,
            rules,
            routes,
        }
    }

    /// The usable devices that lead to the destination, the best first.
    pub(super) fn rank(&self, packet: &Packet) -> Vec<&Device> {
        let named: BTreeSet<u32> = self
            .routes
            .iter()
            .flat_map(|route| &route.devices)
            .copied()
            .collect();
        let usable = named
            .iter()
            .filter_map(|index| self.devices.get(index))
            .filter(|one| one.usable);
        let mut ranked: Vec<(Rank, &Device)> = usable
            .filter_map(|device| Some((self.look_up(packet, device)?, device)))
            .collect();
        ranked.sort_by_key(|(rank, device)| (*rank, device.index));
        ranked.into_iter().map(|(_, device)| device).collect()
    }

    /// What the kernel would find for a socket bound to `device`.
    fn look_up(&self, packet: &Packet, device: &Device) -> Option<Rank> {
        let mut next = 0;
        while let Some(rule) = self.rules.get(next) {
            let position = next;
            next += 1;
            if !rule.matches(packet, device) {
                continue;
            }
            match rule.action {
                Action::Nothing => {}
                Action::Refuse => return None,
                // Jumps go forward only, as in the kernel: no loop.
                Action::Goto(target) => {
                    let ahead = self.rules.iter().skip(next);
                    next += ahead.take_while(|rule| rule.priority < target).count();
                }
                Action::Lookup {
                    table,
                    longer_than,
                    not_group,
                } => {
                    let route = match self.find(table, device) {
                        Found::Route(route) => route,
                        Found::Nothing => continue,
                        Found::Refusal => return None,
                    };
                    let suppressed = longer_than
                        .is_some_and(|limit| u32::from(route.prefix_length) <= limit)
                        || not_group == Some(device.group);
                    if !suppressed {
                        // A route for those who ask for this very device comes after those that
                        // anybody is given.
                        let asked = rule.by_device.is_some();
                        return Some((asked, position, Reverse(route.prefix_length), route.metric));
                    }
                }
            }
        }
        None
    }

    fn find(&self, table: u32, device: &Device) -> Found<'_> {
        let refusals = [
            RouteType::BlackHole,
            RouteType::Unreachable,
            RouteType::Prohibit,
        ];
        for route in self.routes.iter().filter(|route| route.table == table) {
            if refusals.contains(&route.kind) {
                return Found::Refusal;
            }
            if route.kind == RouteType::Throw {
                return Found::Nothing;
            }
            if route.kind == RouteType::Unicast && route.devices.contains(&device.index) {
                return Found::Route(route);
            }
        }
        Found::Nothing
    }
}

enum Found<'a> {
    Nothing,
    Refusal,
    Route(&'a Route),
}

/// Whether an attribute selects packets by what is not modelled.
fn is_foreign(attribute: &DefaultNla) -> bool {
    match attribute.kind() {
        // Of a whole port there is a mask of ones.
        FRA_DESTINATION_PORT_MASK => {
            let mut mask = vec![0; attribute.value_len()];
            attribute.emit_value(&mut mask);
            mask != [0xff, 0xff]
        }
        // Told by the attributes that they belong to.
        FRA_SOURCE_PORT_MASK | FRA_DSCP_MASK => false,
        kind => kind >= FRA_DSCP,
    }
}

/// Whether `address` lies in the network of `prefix`; never across families.
fn covers((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differing = (network.to_bits() ^ address.to_bits()).leading_zeros();
            differing >= u32::from(length)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differing = (network.to_bits() ^ address.to_bits()).leading_zeros();
            differing >= u32::from(length)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}
