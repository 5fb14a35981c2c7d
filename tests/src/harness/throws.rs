//! Datagrams of the world: each is caught once at most, whole, and where it belongs.

use super::coverage::Situation;
use super::rng::{Rng, mix};
use super::world::{SERVER, Who, World};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;
use tund_session::wire::codec::{MAX_DATAGRAM, MAX_PAYLOAD};
use tund_session::{FlowId, Instant, MappingError, Session, limits};

/// What a datagram begins with: its number.
const NUMBER: usize = 8;
/// EMSGSIZE, whose `info` comes along whatever it is.
const TOO_LONG: u32 = 90;

/// A datagram that nobody has caught.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thrown {
    mapping: usize,
    by: usize,
    remote: SocketAddr,
    len: usize,
    at: Instant,
}

/// What datagrams are cut from, each at a place of its own: pieces in the wrong order show.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let places = 0..u64::try_from(MAX_DATAGRAM + PLACES).unwrap_or(0);
    places.map(|place| mix(place).to_le_bytes()[0]).collect()
});

/// Places at which datagrams begin in it.
const PLACES: usize = 4099;

fn payload(number: u64, len: usize) -> Bytes {
    let mut bytes = number.to_be_bytes().to_vec();
    let from = usize::try_from(number).unwrap_or(0) % PLACES;
    bytes.extend_from_slice(&PATTERN[from..from + len - NUMBER]);
    bytes.into()
}

impl World {
    /// Something happens to a mapping.
    pub(super) fn some_datagrams(&mut self, rng: &mut Rng) {
        let who = rng.pick(&self.ends_or_client());
        match rng.below(100) {
            0..12 => self.open_mapping(Duration::from_secs(rng.pick(&[60, 300]))),
            12..15 => self.let_some_go(rng),
            15..20 => self.say_some_error(rng),
            20..85 => {
                let Some(flow) = self.some_mapping(who, rng) else {
                    return;
                };
                let lengths = match rng.below(10) {
                    0 => [MAX_PAYLOAD, MAX_PAYLOAD + 1, 40_000, 65_507],
                    _ => [8, 100, 1400, 1400],
                };
                let len = rng.pick(&lengths);
                let count = rng.pick(&[1, 1, 1, 1, 1, 1, 4, 40]);
                for _ in 0..count.min(1 + 60_000 / len) {
                    self.throw(who, flow, len, rng.below(3));
                }
            }
            _ => {
                self.catch_due();
            }
        }
    }

    fn ends_or_client(&self) -> Vec<Who> {
        let mut ends = self.ends();
        ends.push(Who::Client);
        ends
    }

    fn say_some_error(&mut self, rng: &mut Rng) {
        let servers = self.ends().into_iter().filter(|who| *who != Who::Client);
        let servers: Vec<Who> = servers.collect();
        if servers.is_empty() {
            return;
        }
        let who = rng.pick(&servers);
        let Some(flow) = self.some_mapping(who, rng) else {
            return;
        };
        let index = self.mapping_of(who, flow).unwrap_or(0);
        let error = MappingError {
            remote: ([192, 0, 2, 1], 53).into(),
            errno: TOO_LONG,
            info: u32::try_from(index).unwrap_or(0),
        };
        self.with(who, |s| s.send_datagram_error(flow, error));
        self.drain();
    }

    /// A datagram goes into a mapping at one end; its number.
    fn throw(&mut self, who: Who, flow: FlowId, len: usize, remote: usize) -> u64 {
        let Some(mapping) = self.mapping_of(who, flow) else {
            return 0;
        };
        let now = self.now;
        let number = self.mappings.numbers + 1;
        self.mappings.numbers = number;
        let last = u8::try_from(remote).unwrap_or(0);
        let thrown = Thrown {
            mapping,
            by: who.side(),
            remote: ([192, 0, 2, last], 53).into(),
            len: len.max(NUMBER),
            at: now,
        };
        self.tell(|| format!("{who:?} throws {number} into mapping {mapping}, {len} bytes"));
        self.mappings.thrown.insert(number, thrown);
        let payload = payload(number, thrown.len);
        self.with(who, |s| s.send_datagram(flow, thrown.remote, payload, now));
        self.drain();
        number
    }

    /// Every socket takes what its end was told of; true if there was anything.
    pub(super) fn catch_due(&mut self) -> bool {
        let mut is_any = false;
        for (who, flow) in std::mem::take(&mut self.mappings.due) {
            is_any |= self.catch(who, flow);
        }
        is_any
    }

    fn catch(&mut self, who: Who, flow: FlowId) -> bool {
        let now = self.now;
        let (mut caught, mut errors) = (Vec::new(), Vec::new());
        self.with(who, |session| {
            while let Some((remote, payload)) = session.datagram(flow, now) {
                caught.push((remote, payload.clone()));
                session.datagram_taken(flow);
            }
            errors.extend(std::iter::from_fn(|| session.take_datagram_error(flow)));
        });
        let Some(index) = self.mapping_of(who, flow) else {
            if !caught.is_empty() || !errors.is_empty() {
                self.fault(format!("{who:?} has something for {flow}, which is over"));
            }
            return false;
        };
        for error in &errors {
            self.met(Situation::ErrorOfDatagram);
            if who != Who::Client || usize::try_from(error.info) != Ok(index) {
                self.fault(format!("{who:?}: mapping {index} hears {error:?}"));
            }
        }
        let is_any = !caught.is_empty() || !errors.is_empty();
        for (remote, payload) in caught {
            if let Err(what) = self.judge_datagram((who, index), remote, &payload) {
                self.fault(format!("{who:?}, mapping {index}: {what}"));
            }
        }
        self.drain();
        is_any
    }

    fn judge_datagram(
        &mut self,
        (who, index): (Who, usize),
        remote: SocketAddr,
        payload: &Bytes,
    ) -> Result<(), String> {
        let number = payload.first_chunk::<NUMBER>();
        let number = u64::from_be_bytes(*number.ok_or("a datagram without its number")?);
        let thrown = self.mappings.thrown.remove(&number);
        let thrown = thrown.ok_or_else(|| format!("datagram {number} twice, or from nowhere"))?;
        self.tell(|| format!("{who:?} catches {number}"));
        if thrown.mapping != index || thrown.by == who.side() || thrown.remote != remote {
            return Err(format!("datagram {number} was not for it: {thrown:?}"));
        }
        if *payload != self::payload(number, thrown.len) {
            return Err(format!(
                "datagram {number} is not as it was thrown: {thrown:?}"
            ));
        }
        if payload.len() > MAX_PAYLOAD {
            self.met(Situation::DatagramInPieces);
        }
        let parted_at = self.mappings.all[index].parted_at;
        if parted_at.is_some_and(|at| at < thrown.at) {
            self.met(Situation::MappingOutlived);
        }
        Ok(())
    }

    /// What datagrams may take beside a buffer.
    pub(super) fn datagram_bytes(&self, buffer: u64) -> u64 {
        let [least, most] = [limits::DATAGRAM_BYTES_LEAST, limits::DATAGRAM_BYTES];
        let bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        (buffer / limits::DATAGRAM_SHARE).clamp(bytes(least), bytes(most))
    }

    /// What was lost, and why.
    pub(super) fn note_dropped(&mut self, who: Who) {
        let Some(counts) = self.session(who).map(Session::datagram_counts) else {
            return;
        };
        for (count, situation) in [
            (counts.stale, Situation::DatagramStale),
            (counts.crowded_out, Situation::DatagramCrowdedOut),
            (counts.abandoned, Situation::DatagramAbandoned),
        ] {
            if count > 0 {
                self.met(situation);
            }
        }
    }

    /// When all is well, every mapping that is not over carries whatever goes into it, both ways, by
    /// the socket that it has had from the beginning. Then all of them end.
    pub(super) fn prove_mappings(&mut self) {
        if self.fault.is_some() {
            return;
        }
        let live = self.mappings_of(Who::Client).into_iter();
        let live: Vec<_> = live
            .filter(|(_, index)| self.mappings.all[*index].is_live())
            .collect();
        let id = self.client.as_ref().and_then(|client| client.session.id());
        for (flow, index) in &live {
            let (sockets, closed) = {
                let mapping = &self.mappings.all[*index];
                (mapping.sockets, mapping.is_closed)
            };
            if sockets != 1 || closed {
                self.fault(format!(
                    "mapping {index} lives, with {sockets} sockets, the last closed: {closed}"
                ));
                return;
            }
            let mut numbers = Vec::new();
            for who in [Some(Who::Client), id.map(Who::Server)]
                .into_iter()
                .flatten()
            {
                for len in [100, 60_000] {
                    numbers.push(self.throw(who, *flow, len, 1));
                }
            }
            while self.run_links() | self.catch_due() {}
            for number in numbers {
                if number == 0 || self.mappings.thrown.contains_key(&number) {
                    self.fault(format!("mapping {index} does not carry {number} any more"));
                }
            }
        }
        for (flow, _) in live {
            self.let_go_of(flow);
        }
    }

    /// A datagram, or a piece of one, will never arrive.
    pub(super) fn saw_datagram_lost(&mut self, is_piece: bool, side: usize) {
        self.met(match (is_piece, side) {
            (true, _) => Situation::LostPiece,
            (false, SERVER) => Situation::LostAnswer,
            (false, _) => Situation::LostDatagram,
        });
    }
}
