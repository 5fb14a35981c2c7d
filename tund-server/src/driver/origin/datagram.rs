//! `DatagramOrigin`: connection C of a mapping, one socket for all its remotes.

use super::echo::{self, Echo, EchoSockets};
use nix::errno::Errno;
use nix::libc::sock_extended_err;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::task::unconstrained;
use tund_session::MappingError;

/// Errors that the kernel made itself, not an ICMP message (`SO_EE_ORIGIN_LOCAL`).
const ORIGIN_LOCAL: u8 = 1;
/// Errors that came by ICMP and ICMPv6 (`SO_EE_ORIGIN_ICMP`, `SO_EE_ORIGIN_ICMP6`).
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
/// Time exceeded (RFC 792, RFC 4443 §3.3); its code 0 says that it was on the way.
const EXCEEDED_V4: u8 = 11;
const EXCEEDED_V6: u8 = 3;

/// Errors of earlier datagrams that the kernel may report before it takes the next one: those that
/// came meanwhile, one call each.
const ERRORS_BEFORE: usize = 4;
/// Errors of other sockets' requests, of which raw ones are told too, that are passed over in one go.
const ERRORS_PASSED: usize = 64;

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
    /// As in [`MappingError`].
    pub(crate) info: u32,
}

/// Where a datagram has come from, and what it is.
pub(crate) type Came<'a> = (SocketAddr, &'a [u8]);

/// An unconnected socket with a port of its own, or an identifier for echo requests, from its
/// creation to its end.
///
/// With echo requests a sequence number stands in place of the remote's port.
#[derive(Debug)]
pub(crate) struct DatagramOrigin {
    /// Whatever it is, it sends and takes datagrams.
    socket: UdpSocket,
    echo: Option<Echo>,
}

impl DatagramOrigin {
    /// One for UDP, by a port of the kernel's choice.
    ///
    /// # Errors
    ///
    /// No port or no file descriptor left, or no such IP version here.
    pub(crate) fn udp(is_v4: bool) -> io::Result<Self> {
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if !is_v4 {
            socket.set_only_v6(true)?;
        }
        let any: SocketAddr = (echo::any(is_v4), 0).into();
        socket.bind(&any.into())?;
        Self::new(socket, None, is_v4)
    }

    /// One for echo requests, by an identifier that no other of this daemon has. `known` is which
    /// sockets it may open, once that is known.
    ///
    /// # Errors
    ///
    /// As [`Self::udp`], or the daemon may have no such socket.
    pub(crate) fn echo(is_v4: bool, known: &mut Option<EchoSockets>) -> io::Result<Self> {
        let (socket, echo, found) = Echo::open(is_v4, *known)?;
        *known = Some(found);
        Self::new(socket, Some(echo), is_v4)
    }

    pub(super) fn new(socket: Socket, echo: Option<Echo>, is_v4: bool) -> io::Result<Self> {
        socket.set_recv_buffer_size(RECEIVE_BYTES)?;
        if is_v4 {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            echo,
        })
    }

    /// Sends one datagram: `preface` and `payload`.
    ///
    /// The kernel reports an ICMP error of an earlier datagram by the next call, which then does
    /// nothing; it is kept for [`DatagramOrigin::bounced`] too, so the call is made again.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        (preface, payload): (&[u8], &[u8]),
        to: SocketAddr,
    ) -> Poll<io::Result<()>> {
        let Some(echo) = &self.echo else {
            return self.poll_send_whole(cx, (preface, payload), to);
        };
        debug_assert!(preface.is_empty(), "nobody would read it");
        let header = echo.header(to.port(), payload);
        let host = SocketAddr::new(to.ip(), 0);
        self.poll_send_whole(cx, (&header, payload), host)
    }

    fn poll_send_whole(
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
        if self.echo.as_ref().is_some_and(Echo::is_raw) {
            // Of whomever that is; those of its own requests stay in the queue of errors.
            drop(self.socket.take_error());
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let to = SockaddrStorage::from(to);
        sendmsg(self.socket.as_raw_fd(), pieces, &[], flags, Some(&to)).map(drop)
    }

    /// Takes the next datagram that has come, and where from; what does not fit in `into` is cut off.
    /// None if it is nothing for this mapping.
    pub(crate) fn poll_recv<'a>(
        &self,
        cx: &mut Context<'_>,
        into: &'a mut [u8],
    ) -> Poll<io::Result<Option<Came<'a>>>> {
        let mut buffer = ReadBuf::new(into);
        // Unconstrained: see `ReadBuffer`.
        let recv = poll_fn(|cx| self.socket.poll_recv_from(cx, &mut buffer));
        let from = ready!(pin!(unconstrained(recv)).poll(cx))?;
        let len = buffer.filled().len();
        let given = into.get(..len).unwrap_or_default();
        let Some(echo) = &self.echo else {
            return Poll::Ready(Ok(Some((from, given))));
        };
        let reply = echo.reply(given).map(|(at, sequence)| {
            let data = given.get(at..).unwrap_or_default();
            (SocketAddr::new(from.ip(), sequence), data)
        });
        Poll::Ready(Ok(reply))
    }

    /// The next error that the kernel keeps; none when there is no more, or too many of others' are.
    pub(crate) fn bounced(&self) -> Option<Bounced> {
        for _ in 0..ERRORS_PASSED {
            let mut request = [0; echo::HEADER_BYTES];
            let mut pieces = [IoSliceMut::new(&mut request)];
            let mut control = nix::cmsg_space!(sock_extended_err, nix::libc::sockaddr_in6);
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
            let remote = remote.and_then(|remote| self.named(remote, &request));
            if let (Some(remote), Some(error)) = (remote, error)
                && error.ee_origin != ORIGIN_LOCAL
            {
                return Some(Bounced {
                    remote,
                    errno: error.ee_errno,
                    info: info_of(&error),
                });
            }
        }
        None
    }

    /// The remote as a mapping names it, of whose datagram the kernel quotes `request`.
    fn named(&self, remote: SocketAddr, request: &[u8]) -> Option<SocketAddr> {
        let Some(echo) = &self.echo else {
            return Some(remote);
        };
        let sequence = echo.quoted(request)?;
        Some(SocketAddr::new(remote.ip(), sequence))
    }

    /// The port that it has at every remote that is not behind another NAT.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl AsFd for DatagramOrigin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn info_of(error: &sock_extended_err) -> u32 {
    let exceeded = [
        (ORIGIN_ICMP, EXCEEDED_V4, 0),
        (ORIGIN_ICMP6, EXCEEDED_V6, 0),
    ];
    if error.ee_errno == Errno::EMSGSIZE as u32 {
        error.ee_info
    } else if exceeded.contains(&(error.ee_origin, error.ee_type, error.ee_code)) {
        MappingError::HOPS
    } else {
        0
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
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

    async fn send(origin: &DatagramOrigin, both: (&[u8], &[u8]), to: SocketAddr) -> io::Result<()> {
        poll_fn(|cx| origin.poll_send(cx, both, to)).await
    }

    async fn recv(origin: &DatagramOrigin) -> io::Result<(SocketAddr, Vec<u8>)> {
        let mut buffer = vec![0; 65_536];
        loop {
            let came = poll_fn(|cx| {
                let came = ready!(origin.poll_recv(cx, &mut buffer))?;
                Poll::Ready(io::Result::Ok(
                    came.map(|(from, data)| (from, data.to_vec())),
                ))
            });
            if let Some(came) = came.await? {
                return Ok(came);
            }
        }
    }

    #[tokio::test]
    async fn one_port_speaks_to_many_and_a_preface_is_part_of_the_datagram() {
        for is_v4 in [true, false] {
            let origin = DatagramOrigin::udp(is_v4).unwrap();
            let port = origin.local_addr().unwrap().port();
            for _ in 0..2 {
                let (far, to) = far(is_v4).await;
                send(&origin, (b"header ", b"payload"), to).await.unwrap();
                let mut buffer = [0; 100];
                let (len, from) = far.recv_from(&mut buffer).await.unwrap();
                assert_eq!(&buffer[..len], b"header payload");
                assert_eq!(from, SocketAddr::new(loopback(is_v4), port));

                far.send_to(b"answer", from).await.unwrap();
                let answer = recv(&origin).await.unwrap();
                assert_eq!(answer, (to, b"answer".to_vec()));
            }
        }
    }

    #[tokio::test]
    async fn an_error_names_its_remote_and_harms_no_other() {
        for is_v4 in [true, false] {
            let origin = DatagramOrigin::udp(is_v4).unwrap();
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
        let origin = DatagramOrigin::udp(true).unwrap();
        let (_far, to) = far(true).await;

        let error = send(&origin, (b"header", &[0; 65_507]), to)
            .await
            .unwrap_err();

        assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        assert_eq!(origin.bounced(), None, "told once");
    }
}
