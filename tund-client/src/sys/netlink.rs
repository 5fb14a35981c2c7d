//! One blocking conversation with the kernel's routing socket: requests, answers, dumps.
//!
//! The kernel answers such a request before `send` returns, so a blocking socket never waits for
//! anybody: a dump of a usual routing table takes some 100 µs. Nothing is queued here.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::route::RouteAddress;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel fills at most 32 KiB per read of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Chosen: an answer that takes longer than this will not come; the request fails.
const ANSWER_SECONDS: i64 = 5;
/// "This dump was changed while it was read" (`linux/netlink.h`).
const NLM_F_DUMP_INTR: u16 = 0x10;

/// A socket to the kernel's routing tables, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// The address in a route's attribute.
pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some((*address).into())
    } else if let RouteAddress::Inet6(address) = address {
        Some((*address).into())
    } else {
        None
    }
}

/// The version of IP, as messages name it.
pub(super) fn family(is_ipv6: bool) -> AddressFamily {
    if is_ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

/// Whether a dump shows one state of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Dump {
    /// The table changed while it was read: entries may be missing or doubled.
    Interrupted,
    /// The table did not change meanwhile.
    Whole,
}

impl Netlink {
    /// Opens a routing socket.
    ///
    /// # Errors
    ///
    /// What the kernel answers to `socket`, `bind` and `connect`.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Kernels before 4.20 do not know it; every dump is filtered here as well.
        if let Err(error) = socket.set_netlink_get_strict_chk(true) {
            tracing::debug!(%error, "no strict checks on the routing socket");
        }
        set_answer_timeout(&socket, ANSWER_SECONDS)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
        })
    }

    /// Orders a change and waits for its acknowledgement.
    ///
    /// # Errors
    ///
    /// The errno with which the kernel refused it.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(|_| {})?;
        Ok(())
    }

    /// Asks for one thing.
    ///
    /// # Errors
    ///
    /// The errno with which the kernel answered; ENODATA when it said nothing.
    pub(crate) fn ask(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        // With the acknowledgement after it, the end of the answer is known.
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut answer = None;
        self.receive(|message| answer = Some(message))?;
        answer.ok_or_else(|| Errno::ENODATA.into())
    }

    /// Hands every entry of a table to `each`.
    ///
    /// # Errors
    ///
    /// The errno with which the kernel answered.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<Dump> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.receive(each)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Reads up to the acknowledgement, the error or the end of the dump.
    fn receive(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<Dump> {
        let mut state = Dump::Whole;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while let Ok(raw) = NetlinkBuffer::new_checked(rest) {
                let length = usize::try_from(raw.length()).unwrap_or(usize::MAX);
                let (current, sequence, flags) =
                    (rest.get(..length), raw.sequence_number(), raw.flags());
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                let Some(current) = current else { break };
                if sequence != self.sequence {
                    continue; // a late answer to a request that was given up
                }
                if flags & NLM_F_DUMP_INTR != 0 {
                    state = Dump::Interrupted;
                }
                // An entry of a kind that the parser does not know is none of ours.
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(current)
                else {
                    continue;
                };
                if take(message.payload, &mut each)? == Answer::Complete {
                    return Ok(state);
                }
            }
        }
    }
}

/// Whether more is to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    Complete,
    Going,
}

fn take(
    payload: NetlinkPayload<RouteNetlinkMessage>,
    each: &mut impl FnMut(RouteNetlinkMessage),
) -> io::Result<Answer> {
    if let NetlinkPayload::InnerMessage(inner) = payload {
        each(inner);
        Ok(Answer::Going)
    } else if let NetlinkPayload::Error(error) = payload {
        // An error of zero is the acknowledgement.
        error
            .code
            .map_or(Ok(Answer::Complete), |_| Err(error.to_io()))
    } else if let NetlinkPayload::Done(done) = payload {
        match done.code {
            0 => Ok(Answer::Complete),
            code => Err(io::Error::from_raw_os_error(code.saturating_abs())),
        }
    } else if let NetlinkPayload::Overrun(_) = payload {
        Err(Errno::ENOBUFS.into())
    } else {
        Ok(Answer::Going) // a filler
    }
}

#[expect(
    unsafe_code,
    reason = "the crate's socket lends its descriptor only as a number"
)]
pub(super) fn set_answer_timeout(socket: &Socket, seconds: i64) -> io::Result<()> {
    // SAFETY: `socket` is open and outlives this function's use of the borrowed descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let limit = TimeVal::seconds(seconds);
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;
    use crate::sys::testing::in_namespace;

    #[test]
    fn a_dump_shows_the_loopback_device_of_the_namespace() {
        in_namespace(|| {
            let mut netlink = Netlink::open().unwrap();
            let mut indexes = Vec::new();

            let state = netlink
                .dump(
                    RouteNetlinkMessage::GetLink(LinkMessage::default()),
                    |entry| {
                        if let RouteNetlinkMessage::NewLink(link) = entry {
                            indexes.push(link.header.index);
                        }
                    },
                )
                .unwrap();

            assert_eq!(state, Dump::Whole);
            assert!(indexes.contains(&1), "{indexes:?}");
        });
    }

    #[test]
    fn a_refused_change_returns_the_errno() {
        in_namespace(|| {
            let mut netlink = Netlink::open().unwrap();
            let mut nothing = LinkMessage::default();
            nothing.header.index = 4_000_000;

            let error = netlink
                .change(RouteNetlinkMessage::SetLink(nothing), 0)
                .unwrap_err();

            assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
        });
    }
}
