//! Bytes and endings on a bad way: packets lost, repeated, reordered; a reader and windows at whim.

use std::time::Duration;

use proptest::prelude::*;
use smoltcp::socket::tcp::State;

use super::world::{KINDS, Weather, World, config, pattern};
use crate::netstack::NetEvent;
use crate::netstack::table::Notice;

/// What both sides do at whim, until everything has been said and heard.
struct Play {
    world: World,
    handle: smoltcp::iface::SocketHandle,
    connection: crate::netstack::ConnectionId,
    whim: Weather,
    up: Vec<u8>,
    down: Vec<u8>,
    written_up: usize,
    written_down: usize,
    read_up: Vec<u8>,
    read_down: Vec<u8>,
}

impl Play {
    fn new(seed: u64, ring_bytes: usize) -> Self {
        let kind = KINDS[usize::try_from(seed % 4).unwrap()];
        let mut world = World::with(kind, config(kind), ring_bytes, ring_bytes);
        let (handle, connection) = world.open_with(seed % 20_000);
        world.weather = Some(Weather(seed));
        Self {
            world,
            handle,
            connection,
            whim: Weather(!seed),
            up: pattern(60_000, seed),
            down: pattern(60_000, seed + 1),
            written_up: 0,
            written_down: 0,
            read_up: Vec::new(),
            read_down: Vec::new(),
        }
    }

    fn act(&mut self) {
        let kernel = self.world.kernel.socket(self.handle);
        let is_deaf_after = kernel.state() == State::CloseWait && kernel.send_queue() > 0;
        if self.written_up == self.up.len() && !is_deaf_after {
            kernel.close();
        }
        let some = usize::try_from(self.whim.roll(9000)).unwrap();
        match self.whim.roll(6) {
            0 if self.written_up < self.up.len() => {
                let end = self.up.len().min(self.written_up + some);
                let piece = &self.up[self.written_up..end];
                self.written_up += self.world.app_write(self.handle, piece);
            }
            1 if self.written_down < self.down.len() => {
                let end = self.down.len().min(self.written_down + some);
                let piece = &self.down[self.written_down..end];
                self.written_down += self.world.net.send(self.connection, piece);
                if self.written_down == self.down.len() {
                    self.world.net.finish(self.connection);
                }
            }
            2 => {
                let read_up = &mut self.read_up;
                self.world.net.recv(self.connection, some, |piece| {
                    read_up.extend_from_slice(piece)
                });
            }
            3 => self.read_down.extend(self.world.app_read(self.handle)),
            4 => {
                let bytes = self.whim.roll(30_000) + 1;
                self.world.net.set_intake(self.connection, bytes);
            }
            _ => {
                // This kernel forgets what was not read ten seconds after the last FIN.
                if self.world.kernel.socket(self.handle).state() == State::TimeWait {
                    self.read_down.extend(self.world.app_read(self.handle));
                }
                self.help_kernel();
                let time = Duration::from_millis(self.whim.roll(3000));
                self.world.pass(time);
            }
        }
    }

    /// Does for this kernel, which is the same TCP as ours but gets no nudge, what a kernel does by
    /// itself: probes a window that it believes shut, repeats a FIN.
    fn help_kernel(&mut self) {
        let kernel = self.world.kernel.socket(self.handle);
        let (state, queued) = (kernel.state(), kernel.send_queue());
        let has_fin = matches!(state, State::FinWait1 | State::Closing | State::LastAck);
        let Some(live) = self.world.net.table.owned_live(self.connection) else {
            return;
        };
        let fin = u64::from(live.drained == Notice::Given);
        let unsent = self.world.net.slots.get(live.slot).socket().send_queue();
        let acknowledged = live.sent - u64::try_from(unsent).unwrap() + 1 + fin;
        let acknowledged = u32::try_from(acknowledged).unwrap();
        let acknowledgment = live.wire.isn.unwrap().wrapping_add(acknowledged);
        let first = self.world.first();
        let packet = if queued > 0 && self.world.kernel.poll_at(self.world.now).is_none() {
            self.world.segment(first, acknowledgment, false, b"?")
        } else if queued == 0 && has_fin {
            self.world
                .segment(first.wrapping_add(60_000), acknowledgment, true, &[])
        } else {
            return;
        };
        self.world.kernel.wire.from_kernel.push_back(packet);
    }

    fn is_over(&self) -> bool {
        self.read_up.len() == self.up.len() && self.read_down.len() == self.down.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn everything_arrives_and_ends_as_it_was_meant(
        seed in any::<u64>(),
        ring_bytes in prop_oneof![Just(4096usize), Just(10_000), Just(100_000)],
    ) {
        let mut play = Play::new(seed, ring_bytes);

        for _ in 0..20_000 {
            if play.is_over() {
                break;
            }
            play.act();
        }
        for _ in 0..20 {
            play.world.kernel.socket(play.handle).close();
            play.world.pass(Duration::from_secs(100));
            play.help_kernel();
        }

        prop_assert!(play.is_over(), "{} up, {} down", play.read_up.len(), play.read_down.len());
        prop_assert!(play.read_up == play.up && play.read_down == play.down);
        let ends: Vec<_> = play.world.events_of(play.connection)
            .into_iter()
            .filter(|event| !matches!(event, NetEvent::Readable { .. }))
            .collect();
        let connection = play.connection;
        let finished = NetEvent::Finished { connection };
        let drained = NetEvent::Drained { connection };
        let closed = NetEvent::Closed { connection };
        // The kernel's last ACK may be lost until it has forgotten the connection: then it resets.
        let reset = NetEvent::ResetByApp { connection };
        let expected = [
            [finished, drained, closed],
            [drained, finished, closed],
            [finished, reset, closed],
        ];
        prop_assert!(expected.iter().any(|way| ends == way), "{:?}", ends);
        prop_assert_eq!(play.world.net.connections(), 0);
    }
}
