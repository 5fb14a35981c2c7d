//! Rules, routes and devices as the kernel has them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{OURS, TABLE};
use crate::sys::address::{assigned, is_ipv6_off};
use crate::sys::error::is_errno;
use crate::sys::netlink::{Dump, Netlink, family, ip};

/// RT_TABLE_MAIN and RT_TABLE_LOCAL.
const MAIN: u32 = 254;
const LOCAL: u32 = 255;
/// A table that changes all the time is read this often before it is taken as it was.
const MAX_READS: usize = 3;

/// The rule that leads to our table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) is_v6: bool,
    pub(super) priority: u32,
    pub(super) mark: u32,
    pub(super) mask: u32,
    pub(super) is_inverted: bool,
}

impl Rule {
    pub(super) fn message(self) -> RuleMessage {
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

/// The rules there are.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) ours: Vec<Rule>,
    /// The first of other programs that leads to a table, but for the one that all hosts have.
    pub(super) first_of_others: Option<u32>,
}

impl Rules {
    pub(super) fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut found = Self::default();
        for is_v6 in [false, true] {
            let messages = read(is_v6, || {
                let mut request = RuleMessage::default();
                request.header.family = family(is_v6);
                let mut messages = Vec::new();
                let dump = netlink.dump(RouteNetlinkMessage::GetRule(request), |entry| {
                    if let RouteNetlinkMessage::NewRule(message) = entry {
                        messages.push(message);
                    }
                });
                dump.map(|state| (state, messages))
            })?;
            for message in messages {
                if let Some(rule) = Rule::read(&message) {
                    found.ours.push(rule);
                } else if let Some(priority) = elsewhere(&message) {
                    let first = found.first_of_others.unwrap_or(priority);
                    found.first_of_others = Some(first.min(priority));
                }
            }
        }
        Ok(found)
    }
}

/// The priority of a rule that leads to another table than `local`.
fn elsewhere(message: &RuleMessage) -> Option<u32> {
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(value) = attribute {
            priority = *value;
        } else if let RuleAttribute::Table(value) = attribute {
            table = *value;
        }
    }
    (message.header.action == RuleAction::ToTable && table != LOCAL).then_some(priority)
}

/// Every route of our table.
pub(super) fn our_routes(netlink: &mut Netlink) -> io::Result<Vec<RouteMessage>> {
    routes(netlink, TABLE)
}

fn routes(netlink: &mut Netlink, table: u32) -> io::Result<Vec<RouteMessage>> {
    let mut found = Vec::new();
    for is_v6 in [false, true] {
        found.extend(read(is_v6, || {
            let mut request = RouteMessage::default();
            request.header.address_family = family(is_v6);
            request.attributes = vec![RouteAttribute::Table(table)];
            let is_here = |attribute: &RouteAttribute| *attribute == RouteAttribute::Table(table);
            let mut messages = Vec::new();
            let dump = netlink.dump(RouteNetlinkMessage::GetRoute(request), |entry| {
                if let RouteNetlinkMessage::NewRoute(message) = entry
                    && message.attributes.iter().any(is_here)
                {
                    messages.push(message);
                }
            });
            dump.map(|state| (state, messages))
        })?);
    }
    Ok(found)
}

/// Reads a table until it did not change meanwhile. One that was never made, or that of a kernel
/// without IPv6, has no entries.
fn read<T>(
    is_v6: bool,
    mut dump: impl FnMut() -> io::Result<(Dump, Vec<T>)>,
) -> io::Result<Vec<T>> {
    let mut entries = Vec::new();
    for _ in 0..MAX_READS {
        match dump() {
            Ok((Dump::Whole, found)) => return Ok(found),
            Ok((Dump::Interrupted, found)) => entries = found,
            Err(error) if is_errno(&error, &[Errno::ENOENT]) => return Ok(Vec::new()),
            Err(error) if is_v6 && is_ipv6_off(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// The names of the devices that are up and have a carrier, by index.
pub(super) fn running(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, String>> {
    let mut running = BTreeMap::new();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    // A device that comes or goes meanwhile is told of, and looked at again.
    let _state = netlink.dump(request, |entry| {
        let RouteNetlinkMessage::NewLink(link) = entry else {
            return;
        };
        let flags = link.header.flags;
        if !flags.contains(LinkFlags::Up | LinkFlags::Running)
            || flags.contains(LinkFlags::Loopback)
        {
            return;
        }
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                running.insert(link.header.index, name);
            }
        }
    })?;
    Ok(running)
}

/// The prefixes that running devices other than `tun` are on, as the main table has them: addresses
/// alone may be of a device that is down, or of a link whose other end is elsewhere. Those that have
/// an address of the device in them, or that the kernel itself or a router has told of: a DHCP server
/// may hand out others, and has only so many addresses to give.
pub(super) fn on_link(netlink: &mut Netlink, tun: u32) -> io::Result<Vec<(String, IpNet)>> {
    let running = running(netlink)?;
    let addresses = assigned(netlink)?;
    let mut found = Vec::new();
    for message in routes(netlink, MAIN)? {
        let has_gateway = message.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
            )
        });
        let (Some(index), Some(prefix)) = (device(&message), prefix(&message)) else {
            continue;
        };
        let mut own = addresses.iter().filter(|one| one.index == index);
        let is_told = [RouteProtocol::Kernel, RouteProtocol::Ra].contains(&message.header.protocol)
            || own.any(|one| prefix.contains(&one.at.address));
        if let Some(name) = running.get(&index)
            && is_told
            && index != tun
            && !has_gateway
        {
            found.push((name.clone(), prefix));
        }
    }
    Ok(found)
}

/// The destinations of a route.
pub(super) fn prefix(message: &RouteMessage) -> Option<IpNet> {
    let is_v6 = message.header.address_family == AddressFamily::Inet6;
    let mut address = if is_v6 {
        IpAddr::from([0; 16])
    } else {
        IpAddr::from([0; 4])
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(found) = attribute {
            address = ip(found)?;
        }
    }
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

pub(super) fn add(netlink: &mut Netlink, message: RouteNetlinkMessage) -> io::Result<()> {
    match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if is_errno(&error, &[Errno::EEXIST]) => Ok(()),
        result => result,
    }
}

pub(super) fn delete(netlink: &mut Netlink, message: RouteNetlinkMessage) -> io::Result<()> {
    match netlink.change(message, 0) {
        Err(error) if is_errno(&error, &[Errno::ENOENT, Errno::ESRCH]) => Ok(()),
        result => result,
    }
}

/// The device of a route that leads to one.
pub(super) fn device(message: &RouteMessage) -> Option<u32> {
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

pub(super) fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}
