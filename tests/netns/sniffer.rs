//! Packets seen at a device, and packets of any kind sent: what only raw sockets can do.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
    sendmsg, socket,
};
use socket2::{Domain, Protocol, Socket, Type};
use tund_tests::lab::{Namespace, wait};

/// Reads along at one device of a host.
#[derive(Debug)]
pub(crate) struct Sniffer(File);

impl Sniffer {
    /// Sees everything from now on.
    #[track_caller]
    pub(crate) fn start(host: &Namespace, device: &str) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Self(File::from(packet_socket(
            host,
            device,
            SockType::Raw,
            flags,
        )))
    }

    /// What has been seen since the last call.
    pub(crate) fn packets(&mut self) -> Vec<Vec<u8>> {
        let mut space = vec![0; 1 << 17];
        let mut packets = Vec::new();
        loop {
            match self.0.read(&mut space) {
                Ok(length) => packets.push(space[..length].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return packets,
                Err(error) => panic!("cannot read along: {error}"),
            }
        }
    }

    /// Waits for a packet in which `find` finds something.
    #[track_caller]
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&[u8]) -> Option<T>,
    ) -> T {
        wait::until(what, limit, || {
            let mut found = self
                .packets()
                .into_iter()
                .filter_map(|packet| find(&packet));
            found.next_back()
        })
    }
}

/// A socket that blocks, on which every packet of a device comes from its IP header on.
#[track_caller]
pub(crate) fn listen_along(host: &Namespace, device: &str) -> OwnedFd {
    packet_socket(host, device, SockType::Datagram, SockFlag::SOCK_CLOEXEC)
}

#[track_caller]
fn packet_socket(host: &Namespace, device: &str, kind: SockType, flags: SockFlag) -> OwnedFd {
    let opened = host.enter(|| -> io::Result<OwnedFd> {
        let raw = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll)?;
        bind(raw.as_raw_fd(), &link_address(if_nametoindex(device)?))?;
        Ok(raw)
    });
    opened.expect("root may read along")
}

/// Puts packets into a device of a host as if its kernel had routed them there.
#[track_caller]
pub(crate) fn inject(host: &Namespace, device: &str, packets: &[Vec<u8>]) {
    let sent = host.enter(|| -> io::Result<()> {
        let device = link_address(if_nametoindex(device)?);
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        for packet in packets {
            let (pieces, none) = ([IoSlice::new(packet)], MsgFlags::empty());
            sendmsg(raw.as_raw_fd(), &pieces, &[], none, Some(&device))?;
        }
        Ok(())
    });
    sent.unwrap();
}

/// Sends a whole IP packet, whatever its source, by the host's routes.
#[track_caller]
pub(crate) fn send_raw(host: &Namespace, packet: &[u8], to: IpAddr) {
    let to = SocketAddr::new(to, 0);
    let sent = host.enter(|| {
        let raw = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(raw))?;
        socket.send_to(packet, &to.into())
    });
    assert_eq!(sent.unwrap(), packet.len());
}

/// The address of a device for packet sockets; nix can read one, but not make one.
fn link_address(index: u32) -> LinkAddr {
    let raw = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("17"),
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index).expect("devices are counted from 1"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of_val(&raw)).expect("20");
    #[expect(
        unsafe_code,
        reason = "a socket address of a kind that has no safe constructor"
    )]
    // SAFETY: `raw` is a whole sockaddr_ll, of that length and family.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.expect("its family and length are right")
}
