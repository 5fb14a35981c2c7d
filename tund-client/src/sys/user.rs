//! Whose socket an application's connection is, as the kernel knows it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr as KernelAddr, protocols::NETLINK_SOCK_DIAG};

use super::netlink;

/// One answer, with room to spare.
const RECEIVE_BYTES: usize = 4096;
/// Chosen: the kernel answers at once or not at all.
const ANSWER_SECONDS: i64 = 1;
/// Any socket with these addresses (`linux/inet_diag.h`).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The user whose TCP socket leads from `source` to `destination`, in the network namespace of the
/// calling thread.
///
/// # Errors
///
/// ENOENT where there is no such socket, as for a connection that is forwarded; else what the
/// kernel answers.
pub(crate) fn owner(source: SocketAddr, destination: SocketAddr) -> io::Result<u32> {
    let request = InetRequest {
        family: match source.ip() {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: source.port(),
            destination_port: destination.port(),
            source_address: source.ip(),
            destination_address: destination.ip(),
            interface_id: 0,
            cookie: NO_COOKIE,
        },
    };
    let socket = ask(request, 0)?;
    let mut answer = Vec::with_capacity(RECEIVE_BYTES);
    socket.recv(&mut answer, 0)?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer)
        .map_err(|error| io::Error::other(error.to_string()))?;
    if let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) = answer.payload {
        Ok(found.header.uid)
    } else if let NetlinkPayload::Error(error) = answer.payload {
        Err(error.to_io())
    } else {
        Err(Errno::EBADMSG.into())
    }
}

/// Asks the kernel about sockets, with `flags` beside that of a request; the answer is to be read.
pub(super) fn ask(request: InetRequest, flags: u16) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&KernelAddr::new(0, 0))?;
    netlink::set_answer_timeout(&socket, ANSWER_SECONDS)?;
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::unistd::{Uid, fchown};

    use super::*;
    use crate::sys::testing::in_namespace;

    #[test]
    fn the_owner_of_a_connection_is_its_user() {
        in_namespace(|| {
            for any in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(any).unwrap();
                let destination = listener.local_addr().unwrap();
                let stream = TcpStream::connect(destination).unwrap();
                // Whose socket it is says its inode.
                fchown(stream.as_fd(), Some(Uid::from_raw(4711)), None).unwrap();
                let source = stream.local_addr().unwrap();

                assert_eq!(owner(source, destination).unwrap(), 4711);
            }
        });
    }

    #[test]
    fn a_connection_that_is_not_there_belongs_to_nobody() {
        in_namespace(|| {
            let source = "127.0.0.1:40000".parse().unwrap();
            let destination = "127.0.0.1:40001".parse().unwrap();

            let error = owner(source, destination).unwrap_err();

            assert_eq!(error.raw_os_error(), Some(Errno::ENOENT as i32));
        });
    }
}
