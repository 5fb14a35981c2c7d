//! By which devices the server can be reached past our own TUN, the best first.
//!
//! The user may send everything into the TUN (`0.0.0.0/1 dev tund0`); a link must go out all the
//! same. So the kernel's rules and routes are read and judged as if the TUN were not there, once
//! for each device, as the kernel does for a socket that is bound to it. What the kernel then says
//! about that device gives source and gateway.

mod fib;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType, RouteVia};
use rtnetlink::packet_route::rule::RuleMessage;

use self::fib::{Device, Fib, Packet, Route, Rule};
use super::error::{SystemError, is_errno};
use super::netlink::{Dump, Netlink, family, ip};
use super::tun::TunName;

/// Chosen: more ways to one server than this are not asked about; the best ones are.
const MAX_PATHS: usize = 8;
/// A table that changes all the time is read this often before it is taken as it was.
const MAX_READS: usize = 3;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathQuery<'a> {
    /// Where the link shall go.
    pub(crate) server: SocketAddr,
    /// The device that is never a way.
    pub(crate) tun: &'a TunName,
    /// The mark that the link's socket has; rules may look at it.
    pub(crate) fwmark: u32,
    /// Devices to put first, in this order; the others follow as the routing table says.
    pub(crate) preference: &'a [String],
}

/// A way to the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Path {
    /// The device.
    pub(crate) interface: String,
    /// The device's index.
    pub(crate) index: u32,
    /// The address that packets leave from.
    pub(crate) source: IpAddr,
    /// The next hop, if the server is not on the device's own network.
    pub(crate) gateway: Option<IpAddr>,
    /// The server is this host: nothing leaves it, and the socket is not bound to a device.
    pub(crate) local: bool,
}

/// Every way to the server past our TUN, the best first; empty when there is none at the moment.
///
/// # Errors
///
/// When the kernel's tables cannot be read.
pub(crate) fn paths(query: &PathQuery<'_>) -> Result<Vec<Path>, SystemError> {
    let look = || -> io::Result<Vec<Path>> {
        let mut netlink = Netlink::open()?;
        let devices = devices(&mut netlink, query.tun)?;
        if let Some(path) = local_path(&mut netlink, query, &devices)? {
            return Ok(vec![path]);
        }
        let fib = read_fib(&mut netlink, query, devices)?;
        let mut ranked = fib.rank(&packet(query));
        let preferred = |device: &Device| {
            let position = query
                .preference
                .iter()
                .position(|name| *name == device.name);
            position.unwrap_or(query.preference.len())
        };
        ranked.sort_by_key(|device| preferred(device)); // stable
        let mut paths = Vec::new();
        for device in ranked.into_iter().take(MAX_PATHS) {
            paths.extend(path_by(&mut netlink, query, device)?);
        }
        Ok(paths)
    };
    let tried = format!(
        "look for a route to {} past {}",
        query.server.ip(),
        query.tun
    );
    look().map_err(|error| SystemError::from_io(tried, error, "try again"))
}

fn destination(query: &PathQuery<'_>) -> IpAddr {
    query.server.ip().to_canonical()
}

fn packet(query: &PathQuery<'_>) -> Packet {
    Packet {
        destination: destination(query),
        port: query.server.port(),
        mark: query.fwmark,
        uid: nix::unistd::geteuid().as_raw(),
    }
}

fn devices(netlink: &mut Netlink, tun: &TunName) -> io::Result<BTreeMap<u32, Device>> {
    let mut devices = BTreeMap::new();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    // A device that comes or goes meanwhile is seen at the next attempt.
    let _state = netlink.dump(request, |entry| {
        let RouteNetlinkMessage::NewLink(link) = entry else {
            return;
        };
        let mut device = Device {
            index: link.header.index,
            ..Device::default()
        };
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                device.name = name;
            } else if let LinkAttribute::Group(group) = attribute {
                device.group = group;
            }
        }
        // "Running" is up, with a carrier, and not waiting for authentication.
        device.usable = link
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::Running)
            && !link.header.flags.contains(LinkFlags::Loopback)
            && device.name != tun.as_str();
        devices.insert(device.index, device);
    })?;
    Ok(devices)
}

fn read_fib(
    netlink: &mut Netlink,
    query: &PathQuery<'_>,
    devices: BTreeMap<u32, Device>,
) -> io::Result<Fib> {
    let destination = destination(query);
    let (mut rules, mut routes) = (Vec::new(), Vec::new());
    for _ in 0..MAX_READS {
        rules.clear();
        let mut request = RuleMessage::default();
        request.header.family = family(destination.is_ipv6());
        let first = netlink.dump(RouteNetlinkMessage::GetRule(request), |entry| {
            if let RouteNetlinkMessage::NewRule(message) = entry {
                rules.push(Rule::read(&message));
            }
        })?;
        routes.clear();
        let mut request = RouteMessage::default();
        request.header.address_family = family(destination.is_ipv6());
        let second = netlink.dump(RouteNetlinkMessage::GetRoute(request), |entry| {
            if let RouteNetlinkMessage::NewRoute(message) = entry {
                // Only those that cover the server are kept: a full table is no burden.
                routes.extend(Route::read(&message, destination));
            }
        })?;
        if (first, second) == (Dump::Whole, Dump::Whole) {
            break;
        }
    }
    Ok(Fib::new(devices, rules, routes))
}

/// The path within this host, if the server's address is one of its own.
fn local_path(
    netlink: &mut Netlink,
    query: &PathQuery<'_>,
    devices: &BTreeMap<u32, Device>,
) -> io::Result<Option<Path>> {
    let Some(answer) = ask(netlink, query, None)? else {
        return Ok(None);
    };
    let named = answer.device.and_then(|index| devices.get(&index));
    let (Some(device), RouteType::Local, Some(source)) = (named, answer.kind, answer.source) else {
        return Ok(None);
    };
    Ok(Some(Path {
        interface: device.name.clone(),
        index: device.index,
        source,
        gateway: None,
        local: true,
    }))
}

/// The path by `device`, if the kernel agrees that there is one.
fn path_by(
    netlink: &mut Netlink,
    query: &PathQuery<'_>,
    device: &Device,
) -> io::Result<Option<Path>> {
    let Some(answer) = ask(netlink, query, Some(device.index))? else {
        return Ok(None);
    };
    let agrees = answer.kind == RouteType::Unicast && answer.device == Some(device.index);
    Ok(answer.source.filter(|_| agrees).map(|source| Path {
        interface: device.name.clone(),
        index: device.index,
        source,
        gateway: answer.gateway,
        local: false,
    }))
}

#[derive(Debug, Default)]
struct Answer {
    kind: RouteType,
    device: Option<u32>,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// How the kernel would send a packet of ours, by `device` if one is named; `None` if it would not.
fn ask(
    netlink: &mut Netlink,
    query: &PathQuery<'_>,
    device: Option<u32>,
) -> io::Result<Option<Answer>> {
    let destination = destination(query);
    let mut request = RouteMessage::default();
    request.header.address_family = family(destination.is_ipv6());
    request.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    request
        .attributes
        .push(RouteAttribute::Destination(destination.into()));
    request.attributes.push(RouteAttribute::Mark(query.fwmark));
    request.attributes.extend(device.map(RouteAttribute::Oif));

    let unreachable = [
        Errno::ENETUNREACH,
        Errno::EHOSTUNREACH,
        Errno::EACCES,
        Errno::EINVAL,
        Errno::ENODEV,
        Errno::ENETDOWN,
        Errno::ENODATA,
    ];
    let message = match netlink.ask(RouteNetlinkMessage::GetRoute(request)) {
        Ok(RouteNetlinkMessage::NewRoute(message)) => message,
        Ok(_) => return Ok(None),
        Err(error) if is_errno(&error, &unreachable) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut answer = Answer {
        kind: message.header.kind,
        ..Answer::default()
    };
    for attribute in message.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            answer.device = Some(index);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            answer.source = ip(&address);
        } else if let RouteAttribute::Gateway(address) = attribute {
            answer.gateway = ip(&address);
        } else if let RouteAttribute::Via(RouteVia::Inet6(address)) = attribute {
            answer.gateway = Some(IpAddr::V6(address)); // IPv4 behind an IPv6 next hop
        }
    }
    Ok(Some(answer))
}

#[cfg(test)]
mod tests;
