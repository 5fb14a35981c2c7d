//! Plays a script before a netstack, in virtual time.

use super::super::kernel::Inspector;
use super::super::world::{APP_V4, APP_V6, Collector, Kind, ORIGIN_V4, ORIGIN_V6, bare, config};
use super::script::{Line, Number, Owner, Script, Segment, TcpOption};
use crate::netstack::offload::VNET_HEADER_BYTES;
use crate::netstack::{ConnectionId, NetEvent, Netstack, Refusal};
use crate::packet::Unreachable;
use etherparse::PacketBuilder;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;
use tund_session::Instant;

const APP_PORT: u16 = 40_000;
const ORIGIN_PORT: u16 = 80;
/// Number of the application's SYN: its bytes wrap soon.
const APP_ISN: u32 = u32::MAX - 50;

pub(super) struct Player {
    kind: Kind,
    net: Netstack,
    inspector: Inspector,
    now: Instant,
    said: VecDeque<Vec<u8>>,
    events: VecDeque<NetEvent>,
    connection: Option<ConnectionId>,
    /// Number of the netstack's SYN, once it was seen.
    isn: Option<u32>,
    taken: u32,
    sent: u32,
}

impl Player {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            net: bare(&config(kind)),
            inspector: Inspector {
                offload: kind.offload,
                ..Inspector::default()
            },
            now: Instant::default() + Duration::from_secs(1000),
            said: VecDeque::new(),
            events: VecDeque::new(),
            connection: None,
            isn: None,
            taken: 0,
            sent: 0,
        }
    }

    pub(super) fn play(mut self, script: &Script) -> Result<(), String> {
        for (number, text, line) in &script.lines {
            self.line(line)
                .map_err(|fault| format!("line {number}: {text}\n    {fault}"))?;
        }
        self.is_quiet().map_err(|fault| format!("end: {fault}"))?;
        match self.events.pop_front() {
            None => Ok(()),
            Some(event) => Err(format!("end: {event:?}")),
        }
    }

    fn line(&mut self, line: &Line) -> Result<(), String> {
        match line {
            Line::In(segment) => {
                self.is_quiet()?;
                let packet = self.build(segment);
                let mut bytes = match self.kind.offload {
                    true => vec![0; VNET_HEADER_BYTES],
                    false => Vec::new(),
                };
                bytes.extend(packet);
                let mut sink = Collector::default();
                self.net.handle_packet(&mut bytes, self.now, &mut sink);
                self.collect(sink);
                self.flush();
                Ok(())
            }
            Line::Out(segment) => self.expect(segment),
            Line::Unreachable => {
                let packet = self.next()?;
                let (at, kind) = if self.kind.is_v6 { (6, 58) } else { (9, 1) };
                let is_icmp = packet[at] == kind;
                is_icmp
                    .then_some(())
                    .ok_or_else(|| format!("{packet:02x?}"))
            }
            Line::Nothing => self.is_quiet(),
            Line::Rest => {
                self.said.clear();
                Ok(())
            }
            Line::Wait(time) => self.wait(*time),
            Line::Event(name) => self.event(name),
            Line::Owner(command) => {
                self.is_quiet()?;
                self.command(*command)?;
                self.flush();
                Ok(())
            }
        }
    }

    fn is_quiet(&mut self) -> Result<(), String> {
        match self.said.pop_front() {
            None => Ok(()),
            Some(packet) => Err(format!("before that: {}", self.show(&packet))),
        }
    }

    fn collect(&mut self, sink: Collector) {
        for packet in sink.0 {
            self.said.extend(self.inspector.inspect(&packet));
        }
        while let Some(event) = self.net.poll_event() {
            match event {
                NetEvent::Readable { .. } | NetEvent::Writable { .. } => {}
                NetEvent::Syn { connection, .. } => {
                    self.connection = Some(connection);
                    self.net.set_intake(connection, u64::MAX);
                    self.events.push_back(event);
                }
                NetEvent::SynGone { .. }
                | NetEvent::Finished { .. }
                | NetEvent::Drained { .. }
                | NetEvent::ResetByApp { .. }
                | NetEvent::Closed { .. } => self.events.push_back(event),
            }
        }
    }

    fn flush(&mut self) {
        let mut sink = Collector::default();
        self.net.flush(self.now, &mut sink);
        self.collect(sink);
    }

    fn wait(&mut self, time: Duration) -> Result<(), String> {
        self.is_quiet()?;
        let end = self.now + time;
        for _ in 0..10_000 {
            let Some(due) = self.net.poll_timeout().filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            let mut sink = Collector::default();
            self.net.handle_timeout(self.now, &mut sink);
            self.collect(sink);
        }
        self.now = end;
        Ok(())
    }

    fn event(&mut self, name: &str) -> Result<(), String> {
        let event = self.events.pop_front().ok_or("no event")?;
        let is_called = match event {
            NetEvent::Syn { .. } => "syn",
            NetEvent::SynGone { .. } => "gone",
            NetEvent::Finished { .. } => "finished",
            NetEvent::Drained { .. } => "drained",
            NetEvent::ResetByApp { .. } => "reset by app",
            NetEvent::Closed { .. } => "closed",
            NetEvent::Readable { .. } | NetEvent::Writable { .. } => "never kept",
        };
        (is_called == name)
            .then_some(())
            .ok_or_else(|| format!("{event:?}"))
    }

    fn command(&mut self, command: Owner) -> Result<(), String> {
        let connection = self.connection.ok_or("no SYN has come")?;
        match command {
            Owner::Accept => self.net.accept(connection).map_err(|e| e.to_string())?,
            Owner::Refuse => self.net.refuse(connection, Refusal::Reset),
            Owner::Forbid => {
                let kind = Refusal::Unreachable(Unreachable::Prohibited);
                self.net.refuse(connection, kind);
            }
            Owner::Intake(bytes) => self.net.set_intake(connection, bytes),
            Owner::Read(count) => {
                let mut got = Vec::new();
                let net = &mut self.net;
                net.recv(connection, count, |piece| got.extend_from_slice(piece));
                let begin = self.taken + 1;
                self.taken += length(got.len());
                let wanted = bytes(begin, begin + length(count));
                if got != wanted {
                    return Err(format!("{} bytes, right: {}", got.len(), got == wanted));
                }
            }
            Owner::Send(count) => {
                let begin = self.sent + 1;
                self.sent += length(count);
                let sent = self.net.send(connection, &bytes(begin, self.sent + 1));
                if sent != count {
                    return Err(format!("{sent} taken"));
                }
            }
            Owner::Finish => self.net.finish(connection),
            Owner::Reset => self.net.reset(connection),
            Owner::ResetWhenDrained => self.net.reset_when_drained(connection),
        }
        Ok(())
    }

    fn value(&self, number: Number) -> u32 {
        match (number, self.kind.is_v6) {
            (Number::Plain(value), _) => value,
            (Number::Mss(more), false) => 1460 + more,
            (Number::Mss(more), true) => 1440 + more,
            (Number::Least(more), false) => 536 + more,
            (Number::Least(more), true) => 1220 + more,
        }
    }

    fn build(&self, segment: &Segment) -> Vec<u8> {
        let begin = segment.begin.map_or(0, |at| self.value(at));
        let end = segment.end.map_or(begin, |at| self.value(at));
        let first = begin + u32::from(segment.flags.contains('S'));
        let payload = bytes(first.max(begin), end.max(first));
        let window = segment.window.unwrap_or(60_000);
        let step = match self.kind.is_v6 {
            false => PacketBuilder::ipv4(v4(APP_V4), v4(ORIGIN_V4), 64),
            true => PacketBuilder::ipv6(v6(APP_V6), v6(ORIGIN_V6), 64),
        };
        let number = APP_ISN.wrapping_add(begin);
        let mut step = step.tcp(APP_PORT, ORIGIN_PORT, number, window);
        for flag in segment.flags.chars() {
            let ack = segment.ack.map_or(0, |at| self.value(at));
            step = match flag {
                'S' => step.syn(),
                'A' => step.ack(self.isn.unwrap_or(0).wrapping_add(ack)),
                'F' => step.fin(),
                'R' => step.rst(),
                _ => step.urg(segment.urgent),
            };
        }
        let step = step.options_raw(&self.options(segment)).unwrap();
        let mut packet = Vec::new();
        step.write(&mut packet, &payload).unwrap();
        let checksum = if self.kind.is_v6 { 40 + 16 } else { 20 + 16 };
        packet[checksum] ^= u8::from(segment.is_spoiled);
        packet
    }

    fn options(&self, segment: &Segment) -> Vec<u8> {
        let mut raw = Vec::new();
        for option in &segment.options {
            match option {
                TcpOption::Mss(bytes) => {
                    let bytes = u16::try_from(self.value(*bytes)).unwrap();
                    raw.extend([2, 4]);
                    raw.extend(bytes.to_be_bytes());
                }
                TcpOption::Scale(shift) => raw.extend([3, 3, *shift]),
                TcpOption::SackPermitted => raw.extend([4, 2]),
                TcpOption::Timestamp(value) => {
                    raw.extend([8, 10]);
                    raw.extend(value.to_be_bytes());
                    raw.extend([0; 4]);
                }
                TcpOption::Odd => raw.extend([254, 6, 1, 2, 3, 4]),
            }
        }
        if !segment.blocks.is_empty() {
            raw.extend([5, u8::try_from(2 + segment.blocks.len() * 8).unwrap()]);
            for block in &segment.blocks {
                for edge in [block.start, block.end] {
                    let edge = self.isn.unwrap_or(0).wrapping_add(edge);
                    raw.extend(edge.to_be_bytes());
                }
            }
        }
        raw
    }

    fn next(&mut self) -> Result<Vec<u8>, String> {
        self.said
            .pop_front()
            .ok_or_else(|| "nothing is said".to_owned())
    }

    fn expect(&mut self, wanted: &Segment) -> Result<(), String> {
        let packet = self.next()?;
        let fault = |what: &str, player: &Self| Err(format!("{what}: {}", player.show(&packet)));
        let Some(tcp) = self.tcp(&packet) else {
            return fault("no segment", self);
        };
        let flags: String = [(2, 'S'), (16, 'A'), (1, 'F'), (4, 'R'), (32, 'U')]
            .into_iter()
            .filter_map(|(bit, name)| (tcp[13] & bit != 0).then_some(name))
            .collect();
        if flags.contains('S') {
            self.isn.get_or_insert_with(|| number(tcp, 4));
        }
        let sorted = |flags: &str| {
            let mut flags: Vec<char> = flags.chars().collect();
            flags.sort_unstable();
            flags
        };
        if sorted(&flags) != sorted(&wanted.flags) {
            return fault("flags", self);
        }
        let begin = wanted.begin.map_or(0, |at| self.value(at));
        if number(tcp, 4) != self.isn.unwrap_or(0).wrapping_add(begin) {
            return fault("place", self);
        }
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let end = wanted.end.map_or(begin, |at| self.value(at));
        if payload != bytes(begin, end) {
            return fault("payload", self);
        }
        let ack = wanted.ack.map_or(0, |at| self.value(at));
        if tcp[13] & 16 != 0 && number(tcp, 8) != APP_ISN.wrapping_add(ack) {
            return fault("acknowledgement", self);
        }
        let window = u16::from_be_bytes([tcp[14], tcp[15]]);
        if wanted.window.is_some_and(|wanted| wanted != window) {
            return fault("window", self);
        }
        if self.read_options(tcp) != self.wanted_options(wanted) {
            return fault("options", self);
        }
        Ok(())
    }

    /// The segment in a packet, if it belongs to the connection.
    fn tcp<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let (protocol, at) = if self.kind.is_v6 {
            (packet[6], 40)
        } else {
            (packet[9], 20)
        };
        let tcp = packet.get(at..).filter(|_| protocol == 6)?;
        let ports = [ORIGIN_PORT.to_be_bytes(), APP_PORT.to_be_bytes()].concat();
        (tcp[..4] == ports).then_some(tcp)
    }

    /// As words of the language.
    fn read_options(&self, tcp: &[u8]) -> Vec<String> {
        let mut raw = &tcp[20..usize::from(tcp[12] >> 4) * 4];
        let mut read = Vec::new();
        while let [kind, rest @ ..] = raw {
            if *kind < 2 {
                raw = rest;
                continue;
            }
            let (option, after) = raw.split_at(usize::from(rest[0]));
            raw = after;
            match (kind, &option[2..]) {
                (2, [high, low]) => {
                    read.push(format!("mss {}", u16::from_be_bytes([*high, *low])));
                }
                (3, [shift]) => read.push(format!("scale {shift}")),
                (4, []) => read.push("sack".to_owned()),
                (5, blocks) => read.extend(blocks.chunks(8).map(|block| {
                    let edge = |at| number(block, at).wrapping_sub(APP_ISN);
                    format!("block {}..{}", edge(0), edge(4))
                })),
                (kind, _) => read.push(format!("option {kind}")),
            }
        }
        read.sort();
        read
    }

    fn wanted_options(&self, wanted: &Segment) -> Vec<String> {
        let options = wanted.options.iter().map(|option| match option {
            TcpOption::Mss(bytes) => format!("mss {}", self.value(*bytes)),
            TcpOption::Scale(shift) => format!("scale {shift}"),
            TcpOption::SackPermitted => "sack".to_owned(),
            TcpOption::Timestamp(_) => "option 8".to_owned(),
            TcpOption::Odd => "option 254".to_owned(),
        });
        let blocks = wanted.blocks.iter();
        let blocks = blocks.map(|block| format!("block {}..{}", block.start, block.end));
        let mut all: Vec<_> = options.chain(blocks).collect();
        all.sort();
        all
    }

    /// A packet as it would be written in a script.
    fn show(&self, packet: &[u8]) -> String {
        let Some(tcp) = self.tcp(packet) else {
            return format!("{packet:02x?}");
        };
        let flags: String = (0..6)
            .filter(|bit| tcp[13] >> bit & 1 != 0)
            .map(|bit| char::from(b"FSRPAU"[bit]))
            .collect();
        let begin = number(tcp, 4).wrapping_sub(self.isn.unwrap_or(0));
        let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let ack = number(tcp, 8).wrapping_sub(APP_ISN);
        let window = u16::from_be_bytes([tcp[14], tcp[15]]);
        let options = self.read_options(tcp).join(", ");
        format!("{flags} {begin}+{payload} ack {ack} win {window} {options}")
    }
}

/// The bytes from one place of a stream to before another.
fn bytes(begin: u32, end: u32) -> Vec<u8> {
    (begin..end)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().unwrap())
}

fn v4(address: IpAddr) -> [u8; 4] {
    let IpAddr::V4(address) = address else {
        panic!("{address} is no IPv4 address")
    };
    address.octets()
}

fn v6(address: IpAddr) -> [u8; 16] {
    let IpAddr::V6(address) = address else {
        panic!("{address} is no IPv6 address")
    };
    address.octets()
}
