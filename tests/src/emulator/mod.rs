//! A link with delay, jitter, loss, reordering, rate and queue, in user space between two TUN
//! devices: what the kernel's netem would do, on machines that lack it.
//!
//! One thread sleeps until a packet comes or is due. It reads and writes packets one by one, so it
//! has a ceiling of its own: about 0.5 to 0.8 Gbit/s of one TCP connection, or 50,000 to 80,000
//! packets a second (release build, MTU 1500, 2 cores that builds kept busy meanwhile; the test
//! `long_the_ceiling_of_the_emulator` measures it). Rates to be emulated must stay well below.

mod line;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

pub use line::{Fate, Line, Profile};

use crate::lab::{Namespace, wait};

/// The device's MTU.
const MTU: u16 = 1500;

/// Packets read from one end before the other has its turn.
const BATCH: usize = 64;

/// Bytes on the way in one direction; beyond it packets are dropped, as when a link with a long
/// delay and no rate is flooded.
const MOST_IN_FLIGHT: u64 = 256 << 20;

/// Buffers kept for packets to come.
const MOST_SPARE: usize = 4096;

/// A packet on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    arrival: Instant,
    /// Keeps packets that arrive at the same time in order.
    number: u64,
    packet: Vec<u8>,
}

/// What has happened in one direction so far.
#[derive(Debug, Default)]
struct Counters {
    carried: AtomicU64,
    dropped: AtomicU64,
    lost: AtomicU64,
}

/// Packets of one direction so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Brought to the other end.
    pub carried: u64,
    /// Dropped at a full queue.
    pub dropped: u64,
    /// Lost by chance.
    pub lost: u64,
}

/// The direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the far end to the near one.
    ToNear,
    /// From the near end to the far one.
    ToFar,
}

/// An emulated link between two namespaces; it ends when it is dropped.
#[derive(Debug)]
pub struct Emulator {
    shared: Arc<Shared>,
    /// Its end is what tells the thread to stop.
    lifeline: Option<UnixStream>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// To the far end, to the near end.
    profiles: Mutex<[Profile; 2]>,
    counters: [Counters; 2],
}

impl Emulator {
    /// Makes a TUN device in each of two namespaces, up, and carries packets between them.
    ///
    /// The chances of loss, jitter and reordering follow from `seed`.
    #[track_caller]
    pub fn start(
        near: (&Namespace, &str),
        far: (&Namespace, &str),
        profile: Profile,
        seed: u64,
    ) -> Self {
        let ends = [open(near.0, near.1), open(far.0, far.1)];
        let shared = Arc::new(Shared {
            profiles: Mutex::new([profile; 2]),
            counters: [Counters::default(), Counters::default()],
        });
        let (lifeline, stop) = UnixStream::pair().expect("a socket pair can be had");
        let worker = Worker {
            ends,
            stop,
            lines: [Line::new(seed), Line::new(seed ^ u64::MAX)],
            flights: [BinaryHeap::new(), BinaryHeap::new()],
            bytes_in_flight: [0; 2],
            spare: Vec::new(),
            number: 0,
            shared: Arc::clone(&shared),
        };
        let worker = thread::Builder::new()
            .name("link emulator".to_owned())
            .spawn(move || worker.run())
            .expect("a thread can be started");
        Self {
            shared,
            lifeline: Some(lifeline),
            worker: Some(worker),
        }
    }

    /// Changes what happens to packets that are sent from now on, both ways.
    pub fn set(&self, profile: Profile) {
        *self.shared.profiles() = [profile; 2];
    }

    /// Changes what happens to packets that are sent from now on, one way.
    pub fn set_way(&self, way: Way, profile: Profile) {
        self.shared.profiles()[index(way)] = profile;
    }

    /// Packets so far, one way.
    pub fn counts(&self, way: Way) -> Counts {
        let counters = &self.shared.counters[index(way)];
        Counts {
            carried: counters.carried.load(Ordering::Relaxed),
            dropped: counters.dropped.load(Ordering::Relaxed),
            lost: counters.lost.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        if let Some(worker) = self.worker.take() {
            // Its panic has been printed; the devices are gone either way.
            drop(worker.join());
        }
    }
}

impl Shared {
    fn profiles(&self) -> MutexGuard<'_, [Profile; 2]> {
        self.profiles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ways are numbered by the end that packets come from: 0 is the near one.
fn index(way: Way) -> usize {
    match way {
        Way::ToFar => 0,
        Way::ToNear => 1,
    }
}

/// The thread's own: devices, lines and packets on the way.
#[derive(Debug)]
struct Worker {
    ends: [File; 2],
    stop: UnixStream,
    lines: [Line; 2],
    flights: [BinaryHeap<Reverse<Flight>>; 2],
    bytes_in_flight: [u64; 2],
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    number: u64,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let next = self.deliver(wait::now());
            let timeout = next.map(|at| at.saturating_duration_since(wait::now()));
            let mut polled = [
                PollFd::new(self.ends[0].as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ends[1].as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            if ppoll(&mut polled, timeout.map(TimeSpec::from_duration), None).is_err() {
                continue;
            }
            let [near, far, stop] = polled.map(|end| end.any().unwrap_or(false));
            if stop {
                return;
            }
            for (way, ready) in [near, far].into_iter().enumerate() {
                if ready {
                    self.take(way);
                }
            }
        }
    }

    /// Writes what is due, and gives when the next packet will be.
    fn deliver(&mut self, now: Instant) -> Option<Instant> {
        for way in 0..2 {
            while let Some(next) = self.flights[way].peek_mut() {
                if next.0.arrival > now {
                    break;
                }
                let Reverse(flight) = PeekMut::pop(next);
                self.bytes_in_flight[way] -= flight.packet.len() as u64;
                // A device that is down or full drops packets, as a link does.
                if self.ends[1 - way].write(&flight.packet).is_ok() {
                    self.shared.counters[way]
                        .carried
                        .fetch_add(1, Ordering::Relaxed);
                }
                if self.spare.len() < MOST_SPARE {
                    self.spare.push(flight.packet);
                }
            }
        }
        self.flights
            .iter()
            .filter_map(|heap| heap.peek())
            .map(|next| next.0.arrival)
            .min()
    }

    /// Reads a batch of packets at one end and sends them on their way.
    fn take(&mut self, way: usize) {
        let profile = self.shared.profiles()[way];
        for _ in 0..BATCH {
            let mut packet = self.spare.pop().unwrap_or_default();
            packet.resize(usize::from(MTU), 0);
            let Ok(count) = self.ends[way].read(&mut packet) else {
                self.spare.push(packet);
                return;
            };
            packet.truncate(count);
            self.send(way, &profile, packet);
        }
    }

    fn send(&mut self, way: usize, profile: &Profile, packet: Vec<u8>) {
        let bytes = packet.len() as u64;
        let counters = &self.shared.counters[way];
        if self.bytes_in_flight[way] + bytes > MOST_IN_FLIGHT {
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.spare.push(packet);
            return;
        }
        match self.lines[way].send(profile, bytes, wait::now()) {
            Fate::Arrives(arrival) => {
                self.number += 1;
                self.bytes_in_flight[way] += bytes;
                self.flights[way].push(Reverse(Flight {
                    arrival,
                    number: self.number,
                    packet,
                }));
            }
            Fate::Dropped => {
                counters.dropped.fetch_add(1, Ordering::Relaxed);
                self.spare.push(packet);
            }
            Fate::Lost => {
                counters.lost.fetch_add(1, Ordering::Relaxed);
                self.spare.push(packet);
            }
        }
    }
}

/// Makes a TUN device inside a namespace and opens it.
#[track_caller]
fn open(namespace: &Namespace, device: &str) -> File {
    namespace.narrate(&format!("tun {device}, to the link emulator"));
    let opened = namespace.enter(|| -> io::Result<File> {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(device).mtu(MTU).up();
        let tun = tun::create(&configuration).map_err(io::Error::other)?;
        tun.set_nonblock()?;
        Ok(File::from(own(tun)))
    });
    opened.unwrap_or_else(|cause| panic!("made the TUN device {device}: {cause}"))
}

#[expect(
    unsafe_code,
    reason = "the tun crate hands its descriptor out as a number only"
)]
fn own(tun: tun::Device) -> OwnedFd {
    // SAFETY: into_raw_fd gives up ownership of an open descriptor, to us alone.
    unsafe { OwnedFd::from_raw_fd(tun.into_raw_fd()) }
}
