//! `UdpOrigin`: connection C of a mapping, one socket for all its remotes.

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::task::unconstrained;

/// Errors that the kernel made itself, not an ICMP message (`SO_EE_ORIGIN_LOCAL`).
const ORIGIN_LOCAL: u8 = 1;

/// An ICMP error that the kernel has kept for a socket (`IP_RECVERR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounced {
    /// Where the datagram was to go.
    pub(crate) remote: SocketAddr,
    /// What its sender would see.
    pub(crate) errno: u32,
    /// The path's MTU with EMSGSIZE.
    pub(crate) info: u32,
}

/// An unconnected UDP socket with a port of its own, from its creation to its end.
#[derive(Debug)]
pub(crate) struct UdpOrigin {
    socket: UdpSocket,
}

impl UdpOrigin {
    /// Takes a port of the kernel's choice.
    ///
    /// # Errors
    ///
    /// No port or no file descriptor left, or no such IP version here.
    pub(crate) fn open(is_v4: bool) -> io::Result<Self> {
        let (domain, any) = if is_v4 {
            (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into())
        } else {
            (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into())
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if is_v4 {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        let any: SocketAddr = any;
        socket.bind(&any.into())?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
        })
    }

    /// Sends one datagram: `preface` and `payload`.
    ///
    /// The kernel reports an ICMP error of an earlier datagram by the next call, which then does
    /// nothing; it is kept for [`UdpOrigin::bounced`] too, so the call is made again.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        (preface, payload): (&[u8], &[u8]),
        to: SocketAddr,
    ) -> Poll<io::Result<()>> {
        let mut sent = self.send(preface, payload, to);
        if sent.is_err_and(|errno| !is_full(errno)) {
            sent = self.send(preface, payload, to);
        }
        match sent {
            Err(errno) if is_full(errno) => {}
            other => return Poll::Ready(other.map_err(io::Error::from)),
        }
        loop {
            ready!(self.socket.poll_send_ready(cx))?;
            let again = self.socket.try_io(tokio::io::Interest::WRITABLE, || {
                self.send(preface, payload, to).map_err(|errno| {
                    if is_full(errno) {
                        io::ErrorKind::WouldBlock.into()
                    } else {
                        io::Error::from(errno)
                    }
                })
            });
            match again {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn send(&self, preface: &[u8], payload: &[u8], to: SocketAddr) -> Result<(), Errno> {
        let both = [IoSlice::new(preface), IoSlice::new(payload)];
        let pieces = if preface.is_empty() {
            &both[1..]
        } else {
            &both[..]
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let to = SockaddrStorage::from(to);
        sendmsg(self.socket.as_raw_fd(), pieces, &[], flags, Some(&to)).map(drop)
    }

    /// Takes the next datagram that has come; what does not fit in `into` is cut off.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        // Unconstrained: see `ReadBuffer`.
        let recv = poll_fn(|cx| self.socket.poll_recv_from(cx, into));
        pin!(unconstrained(recv)).poll(cx)
    }

    /// The next error that the kernel keeps; none when there is no more.
    pub(crate) fn bounced(&self) -> Option<Bounced> {
        loop {
            let mut payload = [0; 1];
            let mut pieces = [IoSliceMut::new(&mut payload)];
            let mut control =
                nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in6);
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let fd = self.socket.as_raw_fd();
            let message =
                recvmsg::<SockaddrStorage>(fd, &mut pieces, Some(&mut control), flags).ok()?;
            let remote = message.address.and_then(ip_address);
            let mut errors = message.cmsgs().ok()?;
            let error = errors.find_map(|control| {
                #[expect(
                    clippy::wildcard_enum_match_arm,
                    reason = "only these two were asked for"
                )]
                match control {
                    ControlMessageOwned::Ipv4RecvErr(error, _)
                    | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error),
                    _ => None,
                }
            });
            if let (Some(remote), Some(error)) = (remote, error)
                && error.ee_origin != ORIGIN_LOCAL
            {
                let is_mtu = error.ee_errno == Errno::EMSGSIZE as u32;
                return Some(Bounced {
                    remote,
                    errno: error.ee_errno,
                    info: if is_mtu { error.ee_info } else { 0 },
                });
            }
        }
    }

    /// The port that it has at every remote that is not behind another NAT.
    #[cfg(test)]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl AsFd for UdpOrigin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::ENOBUFS)
}

fn ip_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some((v6.ip(), v6.port()).into())
    })
}
