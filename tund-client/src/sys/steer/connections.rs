//! The connections of this host that are there at a moment, as the kernel lists them.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rtnetlink::packet_core::{NLM_F_DUMP, NetlinkMessage, NetlinkPayload};

use crate::sys::user::ask;

/// The kernel fills at most 32 KiB per read of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// More connections than this are not kept apart; the others end.
const CONNECTIONS: usize = 65_536;

/// A connection, or a datagram socket that has one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    protocol: u8,
    pub(super) source: SocketAddr,
    destination: SocketAddr,
}

/// As an element of a set of `inet_proto . address . port . address . port`.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.source, self.destination);
        write!(
            f,
            "{} . {} . {} . {} . {}",
            self.protocol,
            from.ip(),
            from.port(),
            to.ip(),
            to.port()
        )
    }
}

/// Every connection in the network namespace of this thread; a kernel may list only some kinds.
pub(super) fn established() -> Vec<Connection> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
            if let Err(error) = list(family, protocol, &mut found) {
                tracing::warn!(
                    %error,
                    family,
                    protocol,
                    "cannot list connections: some that are there already may end"
                );
            }
        }
    }
    found
}

fn list(family: u8, protocol: u8, found: &mut Vec<Connection>) -> io::Result<()> {
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: if family == AF_INET {
            SocketId::new_v4()
        } else {
            SocketId::new_v6()
        },
    };
    let socket = ask(request, NLM_F_DUMP)?;
    let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::other(error.to_string()))?;
            if let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(one)) =
                message.payload
            {
                found.extend(connection(protocol, &one.header.socket_id));
                if found.len() >= CONNECTIONS {
                    return Ok(());
                }
            } else if let NetlinkPayload::Error(error) = message.payload {
                return Err(error.to_io());
            } else if let NetlinkPayload::Done(_) = message.payload {
                return Ok(());
            }
            // Messages are aligned to four bytes.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn connection(protocol: u8, id: &SocketId) -> Option<Connection> {
    let plain = |address: IpAddr| address.to_canonical();
    (id.destination_port != 0).then(|| Connection {
        protocol,
        source: SocketAddr::new(plain(id.source_address), id.source_port),
        destination: SocketAddr::new(plain(id.destination_address), id.destination_port),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::sys::testing::in_namespace;

    #[test]
    fn what_has_a_peer_is_listed_and_what_waits_for_one_is_not() {
        in_namespace(|| {
            let listener = TcpListener::bind("[::]:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let near = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let far = listener.accept().unwrap();
            let unbound = UdpSocket::bind("127.0.0.1:0").unwrap();
            let bound = UdpSocket::bind("[::1]:0").unwrap();
            bound.connect("[::1]:53").unwrap();

            let found = established();

            let ends = |one: &Connection| (one.protocol, one.source, one.destination);
            let found: Vec<_> = found.iter().map(ends).collect();
            let (mine, its) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
            assert!(found.contains(&(IPPROTO_TCP, mine, its)), "{found:?}");
            assert!(
                found.contains(&(IPPROTO_TCP, its, mine)),
                "the mapped end: {found:?}"
            );
            let udp = (
                IPPROTO_UDP,
                bound.local_addr().unwrap(),
                "[::1]:53".parse().unwrap(),
            );
            assert!(found.contains(&udp), "{found:?}");
            assert_eq!(found.len(), 3, "{found:?} {far:?} {unbound:?}");
        });
    }
}
