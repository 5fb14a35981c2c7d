//! An application's kernel, as far as one small connection over a lossless device needs it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader, TransportSlice};
use tund_session::Instant;

/// A SYN is repeated so often.
const SYN_EVERY: Duration = Duration::from_secs(1);
/// The TUN device's address, as in every lab.
const OWN: [u8; 4] = [10, 111, 0, 2];
/// The first bytes to the lab's origin: send back what comes.
const ECHO: [u8; 17] = *b"e\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    SynSent { again_at: Instant },
    Open,
}

/// What a packet changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Connected,
    Nothing,
    Received(usize),
    Reset,
}

/// One connection at a time to an IPv4 origin.
#[derive(Debug)]
pub(super) struct Application {
    origin: SocketAddr,
    port: u16,
    state: State,
    /// The next byte to be sent.
    next: u32,
    /// The next byte expected.
    expected: u32,
    /// Packets for the device.
    pub(super) out: Vec<Vec<u8>>,
}

impl Application {
    pub(super) fn new(origin: SocketAddr) -> Self {
        Self {
            origin,
            port: 40_000,
            state: State::Closed,
            next: 0,
            expected: 0,
            out: Vec::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Opens the next connection.
    pub(super) fn connect(&mut self, now: Instant) {
        self.port += 1;
        self.next = u32::from(self.port) << 8;
        self.send_syn(now);
    }

    fn send_syn(&mut self, now: Instant) {
        self.state = State::SynSent {
            again_at: now + SYN_EVERY,
        };
        self.push(|tcp| tcp.syn(), &[]);
    }

    /// Sends a small request: one byte, and before the first one what shall become of it.
    pub(super) fn request(&mut self, is_first: bool) {
        let mut bytes = Vec::new();
        if is_first {
            bytes.extend(ECHO);
        }
        bytes.push(0x5a);
        let expected = self.expected;
        self.push(|tcp| tcp.ack(expected).psh(), &bytes);
        self.next = self
            .next
            .wrapping_add(u32::try_from(bytes.len()).expect("at most 18"));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::SynSent { again_at } => Some(again_at),
            State::Closed | State::Open => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.send_syn(now);
        }
    }

    /// A packet from the device.
    pub(super) fn handle_packet(&mut self, packet: &[u8]) -> News {
        let Ok(packet) = SlicedPacket::from_ip(packet) else {
            return News::Nothing;
        };
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            // ICMP: refused; the next connection asks again, as after a RST.
            return self.reset();
        };
        if tcp.destination_port() != self.port {
            return News::Nothing;
        }
        if tcp.rst() {
            return self.reset();
        }
        match self.state {
            State::SynSent { .. } if tcp.syn() && tcp.ack() => {
                self.next = self.next.wrapping_add(1);
                self.expected = tcp.sequence_number().wrapping_add(1);
                self.state = State::Open;
                News::Connected
            }
            State::Open if tcp.sequence_number() == self.expected && !tcp.payload().is_empty() => {
                let count = tcp.payload().len();
                self.expected = self
                    .expected
                    .wrapping_add(u32::try_from(count).expect("a packet's length"));
                let expected = self.expected;
                self.push(|tcp| tcp.ack(expected), &[]);
                News::Received(count)
            }
            State::Closed | State::SynSent { .. } | State::Open => News::Nothing,
        }
    }

    fn reset(&mut self) -> News {
        if self.state == State::Closed {
            return News::Nothing;
        }
        self.state = State::Closed;
        News::Reset
    }

    fn push(
        &mut self,
        flags: impl FnOnce(PacketBuilderStep<TcpHeader>) -> PacketBuilderStep<TcpHeader>,
        payload: &[u8],
    ) {
        let IpAddr::V4(to) = self.origin.ip() else {
            panic!("members speak IPv4 to {}", self.origin);
        };
        let builder = PacketBuilder::ipv4(OWN, to.octets(), 64).tcp(
            self.port,
            self.origin.port(),
            self.next,
            0xffff,
        );
        let mut packet = Vec::new();
        flags(builder)
            .write(&mut packet, payload)
            .expect("memory takes all bytes");
        self.out.push(packet);
    }
}
