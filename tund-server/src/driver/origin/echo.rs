//! Echo requests as a socket wants them, and what it gives back: of a ping socket, or a raw one.

use crate::sys::icmp;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of the header of an echo request or reply in bytes.
pub(super) const HEADER_BYTES: usize = 8;

/// Where a message names its identifier.
const IDENTIFIER_AT: u32 = 4;

const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

/// Instructions of a socket filter (`linux/filter.h`).
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_BEHIND: u16 = 0x50;
const LOAD_HALF_BEHIND: u16 = 0x48;
const LOAD_IPV4_HEADER_BYTES: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Which sockets the kernel permits, as was found out with the first; kept to, because identifiers of
/// the one kind are not known to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EchoSockets {
    Ping,
    Raw,
}

/// What a socket for echo requests has beside itself.
#[derive(Debug)]
pub(super) struct Echo {
    is_v4: bool,
    raw: Option<Raw>,
}

/// Of a raw socket, which the kernel gives no identifier.
#[derive(Debug)]
struct Raw {
    /// A UDP port's number: its socket is held for it, so that no other raw socket of this daemon has
    /// it. Another program's ping or raw socket may.
    identifier: u16,
    _held: Socket,
}

impl Echo {
    /// A ping socket, which the kernel gives an identifier that no other ping socket of this host has;
    /// a raw one where ping sockets are not permitted. Says which.
    ///
    /// # Errors
    ///
    /// Neither is permitted, nothing is left, or no such IP version is here.
    pub(super) fn open(
        is_v4: bool,
        known: Option<EchoSockets>,
    ) -> io::Result<(Socket, Self, EchoSockets)> {
        if known != Some(EchoSockets::Raw) {
            match Self::open_ping(is_v4) {
                Ok((socket, echo)) => return Ok((socket, echo, EchoSockets::Ping)),
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                Err(error) if known.is_some() => return Err(error),
                Err(_) => {}
            }
        }
        let (socket, echo) = Self::open_raw(is_v4)?;
        Ok((socket, echo, EchoSockets::Raw))
    }

    fn open_ping(is_v4: bool) -> io::Result<(Socket, Self)> {
        let (domain, protocol) = kind(is_v4);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol))?;
        let any: SocketAddr = (any(is_v4), 0).into();
        socket.bind(&any.into())?;
        Ok((socket, Self { is_v4, raw: None }))
    }

    fn open_raw(is_v4: bool) -> io::Result<(Socket, Self)> {
        let (domain, protocol) = kind(is_v4);
        let (held, identifier) = hold_identifier(is_v4)?;
        let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
        icmp::hear_only(&socket, is_v4, if is_v4 { REPLY_V4 } else { REPLY_V6 })?;
        socket.attach_filter(&only_replies(is_v4, identifier))?;
        let raw = Some(Raw {
            identifier,
            _held: held,
        });
        Ok((socket, Self { is_v4, raw }))
    }

    /// The kernel tells such a socket of errors of others, too.
    pub(super) const fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// What goes before the data of an echo request. The kernel fills in a ping socket's identifier,
    /// and every checksum but that of raw IPv4.
    pub(super) fn header(&self, sequence: u16, data: &[u8]) -> [u8; HEADER_BYTES] {
        let kind = if self.is_v4 { REQUEST_V4 } else { REQUEST_V6 };
        let [id_high, id_low] = self
            .raw
            .as_ref()
            .map_or(0, |raw| raw.identifier)
            .to_be_bytes();
        let [high, low] = sequence.to_be_bytes();
        let mut header = [kind, 0, 0, 0, id_high, id_low, high, low];
        if self.is_v4 && self.raw.is_some() {
            [header[2], header[3]] = checksum(&header, data).to_be_bytes();
        }
        header
    }

    /// Where the data of a reply begins in what the socket gave, and its sequence number; none if it
    /// is no reply to a request of this socket.
    pub(super) fn reply(&self, given: &[u8]) -> Option<(usize, u16)> {
        let at = if self.is_v4 && self.raw.is_some() {
            usize::from(given.first()? & 0xf) * 4
        } else {
            0
        };
        let message = given.get(at..)?;
        let reply = if self.is_v4 { REPLY_V4 } else { REPLY_V6 };
        let sequence = self.sequence(message, reply)?;
        // The kernel looks at it for everybody but raw sockets of IPv4.
        let is_right = at == 0 || checksum(message, &[]) == 0;
        is_right.then_some((at + HEADER_BYTES, sequence))
    }

    /// The sequence number of the request that an error quotes; none if it is another's.
    pub(super) fn quoted(&self, request: &[u8]) -> Option<u16> {
        let kind = if self.is_v4 { REQUEST_V4 } else { REQUEST_V6 };
        self.sequence(request, kind)
    }

    fn sequence(&self, message: &[u8], wanted: u8) -> Option<u16> {
        let [kind, 0, _, _, id_high, id_low, high, low] = *message.first_chunk()? else {
            return None;
        };
        let identifier = u16::from_be_bytes([id_high, id_low]);
        // A ping socket hears of its own only.
        let is_ours = self
            .raw
            .as_ref()
            .is_none_or(|raw| raw.identifier == identifier);
        (kind == wanted && is_ours).then_some(u16::from_be_bytes([high, low]))
    }
}

const fn kind(is_v4: bool) -> (Domain, Protocol) {
    if is_v4 {
        (Domain::IPV4, Protocol::ICMPV4)
    } else {
        (Domain::IPV6, Protocol::ICMPV6)
    }
}

/// A UDP socket that hears nothing, and its port: nothing from outside reaches it, and what comes from
/// inside is dropped before it would be queued.
fn hold_identifier(is_v4: bool) -> io::Result<(Socket, u16)> {
    let (domain, loopback): (_, IpAddr) = if is_v4 {
        (Domain::IPV4, Ipv4Addr::LOCALHOST.into())
    } else {
        (Domain::IPV6, Ipv6Addr::LOCALHOST.into())
    };
    let held = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    held.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
    held.bind(&SocketAddr::new(loopback, 0).into())?;
    let bound = held.local_addr()?.as_socket();
    Ok((held, bound.map_or(0, |bound| bound.port())))
}

pub(super) fn any(is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

/// The checksum of both together (RFC 1071); 0 of what bears its right one.
fn checksum(header: &[u8], data: &[u8]) -> u16 {
    debug_assert!(header.len().is_multiple_of(2) || data.is_empty(), "words");
    let words = header.chunks(2).chain(data.chunks(2));
    let total: u64 = words
        .map(|word| {
            let [high, low] = [word.first(), word.get(1)].map(|byte| byte.map_or(0, |b| *b));
            u64::from(u16::from_be_bytes([high, low]))
        })
        .sum();
    let mut folded = total;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !u16::try_from(folded).unwrap_or(0)
}

/// Of all replies that come to the host, those to that identifier: the others would fill the socket's
/// buffer, and wake the daemon, once for each mapping.
fn only_replies(is_v4: bool, identifier: u16) -> Vec<SockFilter> {
    let is = |value: u32, otherwise: u8| SockFilter::new(JUMP_IF_EQUAL, 0, otherwise, value);
    let load = |code: u16, at: u32| SockFilter::new(code, 0, 0, at);
    let (byte, half, reply) = if is_v4 {
        (LOAD_BYTE_BEHIND, LOAD_HALF_BEHIND, REPLY_V4)
    } else {
        (LOAD_BYTE, LOAD_HALF, REPLY_V6)
    };
    let mut filter = Vec::new();
    if is_v4 {
        filter.push(load(LOAD_IPV4_HEADER_BYTES, 0));
    }
    filter.extend([
        load(byte, 0),
        is(reply.into(), 3),
        load(half, IDENTIFIER_AT),
        is(identifier.into(), 1),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]);
    filter
}

#[cfg(test)]
mod tests {
    use super::super::DatagramOrigin;
    use super::*;
    use std::future::poll_fn;
    use std::task::{Poll, ready};
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(4);

    fn raw(is_v4: bool) -> Echo {
        Echo::open_raw(is_v4).expect("tests run as root").1
    }

    fn host(is_v4: bool) -> IpAddr {
        if is_v4 {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        }
    }

    /// A reply of this host's to `echo`, as its socket gives it.
    fn reply(echo: &Echo, sequence: u16, data: &[u8]) -> Vec<u8> {
        let mut message = echo.header(sequence, data).to_vec();
        message.extend_from_slice(data);
        message[0] = if echo.is_v4 { REPLY_V4 } else { REPLY_V6 };
        message[2..4].fill(0);
        let right = checksum(&message, &[]);
        message[2..4].copy_from_slice(&right.to_be_bytes());
        if !echo.is_v4 {
            return message;
        }
        // An IP header with one option.
        let mut given = vec![0x46; 24];
        given.append(&mut message);
        given
    }

    #[test]
    fn a_reply_is_known_by_its_identifier_and_anything_else_is_none() {
        for is_v4 in [true, false] {
            let (echo, other) = (raw(is_v4), raw(is_v4));
            let at = if is_v4 { 24 } else { 0 };
            for data in [&b""[..], b"x", b"data of a reply"] {
                let given = reply(&echo, 7, data);
                assert_eq!(echo.reply(&given), Some((at + 8, 7)));
                assert_eq!(other.reply(&given), None, "of another identifier");
            }
            let given = reply(&echo, 7, b"data");
            // Its type, its code, its identifier.
            for place in [0, 1, 4, 5] {
                let mut changed = given.clone();
                changed[at + place] ^= 1;
                assert_eq!(echo.reply(&changed), None, "{place}");
            }
            for len in 0..at + 8 {
                assert_eq!(echo.reply(&given[..len]), None, "{len} bytes");
            }
        }
        let echo = raw(true);
        let mut given = reply(&echo, 7, b"data");
        *given.last_mut().unwrap() ^= 1;
        assert_eq!(echo.reply(&given), None, "a wrong checksum");
    }

    #[test]
    fn an_error_names_the_request_that_it_is_about_and_no_other() {
        for is_v4 in [true, false] {
            let (echo, other) = (raw(is_v4), raw(is_v4));
            let request = echo.header(7, b"");
            assert_eq!(echo.quoted(&request), Some(7));
            assert_eq!(other.quoted(&request), None);
            assert_eq!(echo.quoted(&[0; 8]), None, "no request");
        }
    }

    async fn exchange(origin: &DatagramOrigin, to: SocketAddr, data: &[u8]) {
        poll_fn(|cx| origin.poll_send(cx, (b"", data), to))
            .await
            .unwrap();
        let mut buffer = vec![0; 65_535];
        let came = poll_fn(|cx| {
            loop {
                // What came before the filters stood is nothing for it.
                if let Some((from, data)) = ready!(origin.poll_recv(cx, &mut buffer)).unwrap() {
                    return Poll::Ready((from, data.to_vec()));
                }
            }
        });
        let came = tokio::time::timeout(DEADLINE, came).await;
        let came = came.expect("this host answers");
        assert!(came == (to, data.to_vec()), "{} bytes", came.1.len());
    }

    #[tokio::test]
    async fn raw_sockets_get_the_replies_to_their_own_requests_only() {
        for is_v4 in [true, false] {
            let origins = [(), ()].map(|()| {
                let (socket, echo) = Echo::open_raw(is_v4).unwrap();
                DatagramOrigin::new(socket, Some(echo), is_v4).unwrap()
            });
            for (sequence, len) in (65_530..).zip([0, 1, 30_000]) {
                let data: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[0]).collect();
                for origin in &origins {
                    let to = SocketAddr::new(host(is_v4), sequence);
                    exchange(origin, to, &data).await;
                }
            }
        }
    }

    #[test]
    fn what_holds_an_identifier_is_reached_by_nobody_and_queues_nothing() {
        for is_v4 in [true, false] {
            let (held, port) = hold_identifier(is_v4).unwrap();
            let to = SocketAddr::new(host(is_v4), port);
            assert_eq!(held.local_addr().unwrap().as_socket(), Some(to));
            let stranger = std::net::UdpSocket::bind((host(is_v4), 0)).unwrap();
            stranger.send_to(b"for nobody", to).unwrap();
            assert_eq!(crate::sys::queue::unread(&held).unwrap(), 0);
            let taken = std::net::UdpSocket::bind((any(is_v4), port));
            assert!(taken.is_err(), "nobody else has that number");
        }
    }

    #[test]
    fn what_was_found_out_is_kept_to() {
        let raw = Echo::open(true, Some(EchoSockets::Raw)).unwrap();
        assert!(raw.1.is_raw() && raw.2 == EchoSockets::Raw);
        let (_, echo, found) = Echo::open(true, None).unwrap();
        assert_eq!(echo.is_raw(), found == EchoSockets::Raw);
        if found == EchoSockets::Raw {
            let error = Echo::open(true, Some(EchoSockets::Ping)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
