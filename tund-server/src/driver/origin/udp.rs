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

/// Errors of earlier datagrams that the kernel may report before it takes the next one: those that
/// came meanwhile, one call each.
const ERRORS_BEFORE: usize = 4;

/// What a socket may hold while its daemon serves others: asked for, the kernel gives as much as its
/// `rmem_max` allows, and takes the memory only for what comes.
const RECEIVE_BYTES: usize = 1 << 20;

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
        socket.set_recv_buffer_size(RECEIVE_BYTES)?;
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
        loop {
            match self.send_past_errors(preface, payload, to) {
                Err(Errno::EAGAIN) => {}
                // With IP_RECVERR the kernel tells that a queue of its own was full. Other programs
                // do not hear of it either: it was sent, and lost on its way.
                Err(Errno::ENOBUFS) => return Poll::Ready(Ok(())),
                other => return Poll::Ready(other.map_err(io::Error::from)),
            }
            ready!(self.socket.poll_send_ready(cx))?;
            // Readiness is taken back, unless there is room again.
            let full = self.socket.try_io(tokio::io::Interest::WRITABLE, || {
                match self.send_past_errors(preface, payload, to) {
                    Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
                    other => Ok(other),
                }
            });
            match full {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(Err(Errno::ENOBUFS) | Ok(())) => return Poll::Ready(Ok(())),
                Ok(Err(errno)) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    /// Sends it; what the kernel reports of earlier datagrams is not about this one.
    fn send_past_errors(
        &self,
        preface: &[u8],
        payload: &[u8],
        to: SocketAddr,
    ) -> Result<(), Errno> {
        let mut sent = self.send(preface, payload, to);
        for _ in 0..ERRORS_BEFORE {
            if !sent.is_err_and(|errno| !matches!(errno, Errno::EAGAIN | Errno::ENOBUFS)) {
                break;
            }
            sent = self.send(preface, payload, to);
        }
        match sent {
            // It can only be another's, whatever this one is to meet.
            Err(Errno::ECONNREFUSED) => Ok(()),
            other => other,
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

fn ip_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some((v6.ip(), v6.port()).into())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Failures;
    use super::*;
    use std::net::IpAddr;
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(4);

    fn loopback(is_v4: bool) -> IpAddr {
        if is_v4 {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        }
    }

    async fn far(is_v4: bool) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((loopback(is_v4), 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    async fn send(origin: &UdpOrigin, both: (&[u8], &[u8]), to: SocketAddr) -> io::Result<()> {
        poll_fn(|cx| origin.poll_send(cx, both, to)).await
    }

    #[tokio::test]
    async fn one_port_speaks_to_many_and_a_preface_is_part_of_the_datagram() {
        for is_v4 in [true, false] {
            let origin = UdpOrigin::open(is_v4).unwrap();
            let port = origin.local_addr().unwrap().port();
            for _ in 0..2 {
                let (far, to) = far(is_v4).await;
                send(&origin, (b"header ", b"payload"), to).await.unwrap();
                let mut buffer = [0; 100];
                let (len, from) = far.recv_from(&mut buffer).await.unwrap();
                assert_eq!(&buffer[..len], b"header payload");
                assert_eq!(from, SocketAddr::new(loopback(is_v4), port));

                far.send_to(b"answer", from).await.unwrap();
                let mut into = ReadBuf::new(&mut buffer);
                let answered = poll_fn(|cx| origin.poll_recv(cx, &mut into));
                assert_eq!(answered.await.unwrap(), to);
                assert_eq!(into.filled(), b"answer");
            }
        }
    }

    #[tokio::test]
    async fn an_error_names_its_remote_and_harms_no_other() {
        for is_v4 in [true, false] {
            let origin = UdpOrigin::open(is_v4).unwrap();
            let mut failures = Failures::new().unwrap();
            failures.watch(&origin, 7).unwrap();
            let (gone, nobody) = far(is_v4).await;
            drop(gone);
            let (far, somebody) = far(is_v4).await;

            send(&origin, (b"", b"anybody?"), nobody).await.unwrap();
            let mut tokens = Vec::new();
            let failed = poll_fn(|cx| failures.poll_failed(cx, &mut tokens));
            let told = tokio::time::timeout(DEADLINE, failed).await;
            told.expect("the kernel tells of it").unwrap();
            send(&origin, (b"", b"hello"), somebody).await.unwrap();

            assert_eq!(tokens, [7]);
            let bounced = origin.bounced().expect("it is kept");
            assert_eq!(bounced.remote, nobody);
            assert_eq!(bounced.errno, Errno::ECONNREFUSED as u32);
            assert_eq!(origin.bounced(), None);
            let mut buffer = [0; 10];
            assert_eq!(far.recv(&mut buffer).await.unwrap(), 5);
        }
    }

    #[tokio::test]
    async fn what_is_too_long_for_any_datagram_is_said_at_once() {
        let origin = UdpOrigin::open(true).unwrap();
        let (_far, to) = far(true).await;

        let error = send(&origin, (b"header", &[0; 65_507]), to)
            .await
            .unwrap_err();

        assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        assert_eq!(origin.bounced(), None, "told once");
    }
}
