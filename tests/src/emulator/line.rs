//! One direction of an emulated link as arithmetic: when a packet arrives, or why it does not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What one direction does to packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// From one end to the other, for each packet.
    pub delay: Duration,
    /// By how much the delay of a packet may differ, either way; packets stay in order.
    pub jitter: Duration,
    /// The share of packets that is lost, from 0 to 1.
    pub loss: f64,
    /// The share of packets that arrive later than those behind them, from 0 to 1.
    pub reordering: f64,
    /// How much later such a packet arrives.
    pub reordered_by: Duration,
    /// Bits a second; none: no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate; what finds more waiting is dropped.
    pub queue_bytes: u64,
}

impl Profile {
    /// A link that only delays.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// With a share of packets lost.
    #[must_use]
    pub fn loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// With a limit of `megabits` a second.
    #[must_use]
    pub fn megabits(self, megabits: u64) -> Self {
        Self {
            rate: Some(megabits * 1_000_000),
            ..self
        }
    }
}

impl Default for Profile {
    /// A link that does nothing to packets, with a queue of 1 MiB should it get a rate.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reordering: 0.0,
            reordered_by: Duration::from_millis(5),
            rate: None,
            queue_bytes: 1 << 20,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reaches the other end at that time.
    Arrives(Instant),
    /// The queue was full.
    Dropped,
    /// It was lost on the way.
    Lost,
}

/// The state of one direction.
#[derive(Debug)]
pub struct Line {
    /// When the last packet that was sent has left the queue.
    busy_until: Option<Instant>,
    /// When the last packet in order arrives.
    last_arrival: Option<Instant>,
    /// Packets that wait for the rate: when they have left, and their size.
    waiting: VecDeque<(Instant, u64)>,
    waiting_bytes: u64,
    dice: u64,
}

impl Line {
    /// A line without packets, whose chances follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            busy_until: None,
            last_arrival: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            dice: seed,
        }
    }

    /// Sends a packet of `bytes` at `now`.
    pub fn send(&mut self, profile: &Profile, bytes: u64, now: Instant) -> Fate {
        while let Some(&(left, size)) = self.waiting.front() {
            if left > now {
                break;
            }
            self.waiting_bytes -= size;
            self.waiting.pop_front();
        }
        let mut departure = now;
        if let Some(rate) = profile.rate {
            if self.waiting_bytes + bytes > profile.queue_bytes {
                return Fate::Dropped;
            }
            let lasts = Duration::from_nanos(bytes * 8_000_000_000 / rate.max(1));
            departure = self.busy_until.map_or(now, |busy| busy.max(now)) + lasts;
            self.busy_until = Some(departure);
            self.waiting.push_back((departure, bytes));
            self.waiting_bytes += bytes;
        }
        if self.chance() < profile.loss {
            return Fate::Lost;
        }
        let wobble = profile.jitter.mul_f64(2.0 * self.chance());
        let arrival = departure + (profile.delay + wobble).saturating_sub(profile.jitter);
        if self.chance() < profile.reordering {
            return Fate::Arrives(arrival + profile.reordered_by);
        }
        let arrival = self.last_arrival.map_or(arrival, |last| last.max(arrival));
        self.last_arrival = Some(arrival);
        Fate::Arrives(arrival)
    }

    /// A number from 0 to below 1 (splitmix64).
    fn chance(&mut self) -> f64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let top = u32::try_from((z ^ (z >> 31)) >> 32).expect("32 bits are left");
        f64::from(top) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wait;

    const MS: Duration = Duration::from_millis(1);

    fn fates(profile: Profile, seed: u64, packets: u32) -> Vec<Fate> {
        let start = wait::now();
        let mut line = Line::new(seed);
        (0..packets)
            .map(|number| line.send(&profile, 1000, start + MS * number))
            .collect()
    }

    #[test]
    fn a_delay_is_kept_to_the_nanosecond() {
        let now = wait::now();

        let fate = Line::new(1).send(&Profile::delay(50 * MS), 1500, now);

        assert_eq!(fate, Fate::Arrives(now + 50 * MS));
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops_exactly_the_first_beyond_it() {
        let now = wait::now();
        // 1000 bytes last 1 ms.
        let profile = Profile {
            queue_bytes: 3000,
            ..Profile::default().megabits(8)
        };
        let mut line = Line::new(1);
        let mut send = |at| line.send(&profile, 1000, at);

        for number in 1..=3 {
            assert_eq!(send(now), Fate::Arrives(now + MS * number));
        }
        assert_eq!(send(now), Fate::Dropped);
        assert_eq!(send(now + MS - Duration::from_nanos(1)), Fate::Dropped);
        assert_eq!(send(now + MS), Fate::Arrives(now + 4 * MS));
    }

    #[test]
    fn loss_is_the_share_asked_for_and_the_same_for_the_same_seed() {
        let profile = Profile::default().loss(0.1);

        let lost = fates(profile, 7, 10_000)
            .iter()
            .filter(|fate| **fate == Fate::Lost)
            .count();

        assert!((900..1100).contains(&lost), "{lost} of 10,000");
        let kinds = |seed| -> Vec<bool> {
            fates(profile, seed, 1000)
                .iter()
                .map(|fate| *fate == Fate::Lost)
                .collect()
        };
        assert_eq!(kinds(7), kinds(7));
        assert_ne!(kinds(7), kinds(8));
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let arrivals = |profile| -> Vec<Instant> {
            let arrival = |fate| match fate {
                Fate::Arrives(at) => Some(at),
                Fate::Dropped | Fate::Lost => None,
            };
            fates(profile, 3, 1000)
                .into_iter()
                .filter_map(arrival)
                .collect()
        };
        let jitter = Profile {
            jitter: 5 * MS,
            ..Profile::delay(20 * MS)
        };
        let reordering = Profile {
            reordering: 0.05,
            ..Profile::delay(20 * MS)
        };

        assert!(arrivals(jitter).is_sorted());
        let late = arrivals(reordering)
            .windows(2)
            .filter(|pair| pair[1] < pair[0])
            .count();
        assert!((20..100).contains(&late), "{late} inversions of 1,000");
    }
}
