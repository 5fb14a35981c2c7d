//! Link settings and addresses of the TUN device, through the routing socket.
//!
//! The device outlives the daemon, so everything here is idempotent: what is there stays, what is
//! missing is added. Addresses that the daemon adds carry its mark (`IFA_PROTO`, kernel 5.18 and
//! later); marked ones that the configuration no longer lists are removed. Those of the user stay.

use std::fmt;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{ErrorKind, SystemError, is_errno};
use super::netlink::Netlink;
use super::tun::TunName;

/// "This address was added by tund" in `IFA_PROTO`: the byte that leads the default `fwmark` too.
const OURS: AddressProtocol = AddressProtocol::Other(0x7d);

/// An address with the length of its prefix, as `ip address` writes it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct InterfaceAddress {
    /// The address.
    pub(crate) address: IpAddr,
    /// Bits of the network's part: at most 32 for IPv4, 128 for IPv6.
    pub(crate) prefix_length: u8,
}

impl From<(IpAddr, u8)> for InterfaceAddress {
    fn from((address, prefix_length): (IpAddr, u8)) -> Self {
        Self {
            address,
            prefix_length,
        }
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

/// An address that some device of this host has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Assigned {
    pub(super) index: u32,
    pub(super) at: InterfaceAddress,
    ours: bool,
}

/// Every address of every device in this network namespace.
pub(super) fn assigned(netlink: &mut Netlink) -> io::Result<Vec<Assigned>> {
    let mut found = Vec::new();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    // An address that comes or goes during the dump is one that came or went just after it.
    let _state = netlink.dump(request, |entry| {
        if let RouteNetlinkMessage::NewAddress(message) = entry {
            found.extend(read(&message));
        }
    })?;
    Ok(found)
}

fn read(message: &AddressMessage) -> Option<Assigned> {
    let mut address = None;
    let mut local = None;
    let mut ours = false;
    for attribute in &message.attributes {
        if let AddressAttribute::Address(value) = attribute {
            address = Some(*value);
        } else if let AddressAttribute::Local(value) = attribute {
            local = Some(*value); // of a point-to-point pair, ADDRESS is the far end
        } else if let AddressAttribute::Protocol(value) = attribute {
            ours = *value == OURS;
        }
    }
    Some(Assigned {
        index: message.header.index,
        at: InterfaceAddress {
            address: local.or(address)?,
            prefix_length: message.header.prefix_len,
        },
        ours,
    })
}

/// Sets MTU and queue length, keeps IPv6 from inventing addresses of its own, and brings it up.
pub(super) fn set_up(
    netlink: &mut Netlink,
    index: u32,
    mtu: u32,
    queue_packets: u32,
) -> io::Result<()> {
    let mut quiet = LinkMessage::default();
    quiet.header.index = index;
    quiet.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
        vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
    )])];
    // Before "up", which would make a link-local address and send router solicitations.
    if let Err(error) = netlink.change(RouteNetlinkMessage::SetLink(quiet), 0) {
        tracing::debug!(%error, "no say in the IPv6 addresses of the TUN device");
    }

    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    up.attributes = vec![
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(queue_packets),
    ];
    netlink.change(RouteNetlinkMessage::SetLink(up), 0)
}

/// Fails when another device has one of the `wanted` addresses: the guard would cut it off.
pub(super) fn check_free(
    tun: &TunName,
    index: Option<u32>,
    present: &[Assigned],
    wanted: &[InterfaceAddress],
) -> Result<(), SystemError> {
    let taken = present.iter().find(|one| {
        Some(one.index) != index && wanted.iter().any(|own| own.address == one.at.address)
    });
    match taken {
        None => Ok(()),
        Some(one) => Err(SystemError::new(
            ErrorKind::Conflict,
            format!("give {} to {tun}", one.at.address),
            format!("the network device with index {} has it already", one.index),
            "choose an address in [tun] addresses that nothing else uses",
        )),
    }
}

/// Makes the addresses of device `index` those that are `wanted`, and returns all that it has then.
///
/// IPv6 addresses are left out with a warning where the host has IPv6 switched off.
pub(super) fn reconcile(
    netlink: &mut Netlink,
    index: u32,
    wanted: &[InterfaceAddress],
) -> Result<Vec<InterfaceAddress>, SystemError> {
    let present = on_device(netlink, index)?;
    let stale = |one: &&Assigned| one.ours && !wanted.contains(&one.at);
    // An IPv6 address exists once per device whatever its prefix, so the old one has to go first.
    for one in present
        .iter()
        .filter(stale)
        .filter(|one| one.at.address.is_ipv6())
    {
        remove(netlink, index, one.at)?;
    }
    add_missing(netlink, index, wanted)?;
    // IPv4 the other way round: without any address the kernel drops the device's routes. Those
    // that lose their primary address go with it, hence the second look.
    let mut removed = false;
    for one in present
        .iter()
        .filter(stale)
        .filter(|one| one.at.address.is_ipv4())
    {
        remove(netlink, index, one.at)?;
        removed = true;
    }
    if removed {
        add_missing(netlink, index, wanted)?;
    }
    Ok(on_device(netlink, index)?
        .into_iter()
        .map(|one| one.at)
        .collect())
}

fn on_device(netlink: &mut Netlink, index: u32) -> Result<Vec<Assigned>, SystemError> {
    let mut all = assigned(netlink).map_err(|error| {
        SystemError::from_io("list the addresses of this host", error, "try again")
    })?;
    all.retain(|one| one.index == index);
    Ok(all)
}

fn add_missing(
    netlink: &mut Netlink,
    index: u32,
    wanted: &[InterfaceAddress],
) -> Result<(), SystemError> {
    for &one in wanted {
        let request = RouteNetlinkMessage::NewAddress(message(index, one));
        match netlink.change(request, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => {}
            Err(error) if is_errno(&error, &[Errno::EEXIST]) => {}
            Err(error) if one.address.is_ipv6() && is_ipv6_off(&error) => {
                tracing::warn!(%error, "IPv6 is switched off on this host: the TUN device has none");
            }
            Err(error) => {
                let tried = format!("add the address {one} to the TUN device");
                return Err(SystemError::from_io(tried, error, "check [tun] addresses"));
            }
        }
    }
    Ok(())
}

/// EACCES is what `disable_ipv6 = 1` gives, the others a kernel without IPv6.
pub(super) fn is_ipv6_off(error: &io::Error) -> bool {
    is_errno(
        error,
        &[
            Errno::EACCES,
            Errno::EAFNOSUPPORT,
            Errno::EOPNOTSUPP,
            Errno::ENODEV,
        ],
    )
}

fn remove(netlink: &mut Netlink, index: u32, one: InterfaceAddress) -> Result<(), SystemError> {
    let request = RouteNetlinkMessage::DelAddress(message(index, one));
    match netlink.change(request, 0) {
        Err(error) if !is_errno(&error, &[Errno::EADDRNOTAVAIL]) => {
            let tried = format!("remove the address {one} of an earlier configuration");
            Err(SystemError::from_io(tried, error, "try again"))
        }
        _ => Ok(()),
    }
}

fn message(index: u32, one: InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = one.prefix_length;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(one.address),
        AddressAttribute::Address(one.address),
        AddressAttribute::Protocol(OURS),
    ];
    message.header.family = match one.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => {
            // Usable at once: nobody else is on a point-to-point device to have it too.
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
            AddressFamily::Inet6
        }
    };
    message
}
