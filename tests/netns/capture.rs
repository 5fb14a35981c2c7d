//! What a device has seen of TCP connections: their bytes, by sequence numbers, and their flags.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tund_tests::lab::Namespace;

use crate::sniffer::listen_along;

/// Packets that the kernel keeps until they are read: a burst of all flows of a test.
const QUEUE_BYTES: usize = 64 << 20;
/// The largest packet that offloads make, and its headers.
const PACKET_BYTES: usize = 1 << 17;
/// The thread that reads looks so often whether it is to end.
const LOOK_EVERY_MS: i64 = 50;

/// What has been seen of one end of a connection: what it sent, and what its peer acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// The sequence number of its SYN.
    first: Option<u32>,
    /// Bytes up to the last one that it has sent.
    pub(crate) sent: u64,
    /// Bytes that its peer has acknowledged.
    pub(crate) acknowledged: u64,
    /// When it said FIN first.
    pub(crate) fin: Option<Duration>,
    /// When it said RST first.
    pub(crate) reset: Option<Duration>,
}

/// What has been seen of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wire {
    /// Of who asked for it.
    pub(crate) up: End,
    /// Of who was asked.
    pub(crate) down: End,
}

impl Wire {
    /// The peer has answered.
    pub(crate) fn is_open(&self) -> bool {
        self.down.first.is_some()
    }

    /// Which bytes `end` has sent beyond its SYN, before the sequence number `to`.
    fn distance(end: &End, to: u32) -> Option<u64> {
        let past = to.wrapping_sub(end.first?).wrapping_sub(1);
        // What is "before the SYN" is a keep-alive probe, or of an earlier connection.
        (past < 1 << 31).then(|| u64::from(past))
    }

    fn add(&mut self, tcp: &TcpSlice<'_>, is_up: bool, at: Duration) {
        let (own, peer) = match is_up {
            true => (&mut self.up, &mut self.down),
            false => (&mut self.down, &mut self.up),
        };
        if tcp.rst() {
            own.reset.get_or_insert(at);
            return;
        }
        if tcp.syn() {
            own.first = Some(tcp.sequence_number());
        }
        let length = u32::try_from(tcp.payload().len()).expect("a packet's length");
        let behind = tcp.sequence_number().wrapping_add(length);
        // A segment without bytes may stand behind a FIN.
        if length > 0
            && let Some(bytes) = Self::distance(own, behind)
        {
            own.sent = own.sent.max(bytes);
        }
        if tcp.fin() {
            own.fin.get_or_insert(at);
        }
        if tcp.ack()
            && let Some(bytes) = Self::distance(peer, tcp.acknowledgment_number())
        {
            // FIN is acknowledged like a byte and is none.
            peer.acknowledged = peer.acknowledged.max(bytes.min(peer.sent));
        }
    }
}

/// Reads along at a device, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<BTreeMap<u16, Wire>>,
}

impl Capture {
    /// Takes down every connection whose peer's port is one that `is_ours`, from now on.
    #[track_caller]
    pub(crate) fn start(host: &Namespace, device: &str, is_ours: fn(u16) -> bool) -> Self {
        let socket = listen_along(host, device);
        let ready = || -> nix::Result<()> {
            setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES)?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            setsockopt(&socket, sockopt::RxqOvfl, &1)?;
            let patience = TimeVal::milliseconds(LOOK_EVERY_MS);
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience)
        };
        ready().expect("a packet socket takes options");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = thread::spawn(move || read(&socket, is_ours, &stopped));
        Self { stop, reader }
    }

    /// What it has seen of each connection, by its peer's port; panics if it missed a packet.
    #[track_caller]
    pub(crate) fn finish(self) -> BTreeMap<u16, Wire> {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().expect("its panic has been printed")
    }
}

/// Until it is told to stop and nothing is left in the queue.
fn read(socket: &OwnedFd, is_ours: fn(u16) -> bool, stop: &AtomicBool) -> BTreeMap<u16, Wire> {
    let mut wires: BTreeMap<u16, Wire> = BTreeMap::new();
    let mut space = vec![0; PACKET_BYTES];
    let mut control = nix::cmsg_space!(nix::libc::timespec, u32);
    loop {
        let mut pieces = [IoSliceMut::new(&mut space)];
        let fd = socket.as_raw_fd();
        let message = recvmsg::<LinkAddr>(fd, &mut pieces, Some(&mut control), MsgFlags::empty());
        let (length, at) = match message {
            Ok(message) => {
                let mut at = None;
                for told in message.cmsgs().expect("the space was large enough") {
                    if let ControlMessageOwned::ScmTimestampns(time) = told {
                        at = Some(Duration::from(time));
                    } else if let ControlMessageOwned::RxqOvfl(missed) = told {
                        assert_eq!(missed, 0, "packets that were not seen");
                    }
                }
                (message.bytes, at.expect("it was asked for"))
            }
            Err(Errno::EAGAIN) if stop.load(Ordering::Relaxed) => return wires,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => panic!("cannot read along: {error}"),
        };
        let Ok(packet) = SlicedPacket::from_ip(&space[..length]) else {
            continue;
        };
        let (Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_)), Some(TransportSlice::Tcp(tcp))) =
            (&packet.net, &packet.transport)
        else {
            continue;
        };
        let (from, to) = (tcp.source_port(), tcp.destination_port());
        if is_ours(to) {
            wires.entry(to).or_default().add(tcp, true, at);
        } else if is_ours(from) {
            wires.entry(from).or_default().add(tcp, false, at);
        }
    }
}
