//! What applications did not get of flows that expired, held for their users' next connections
//! (PROTOCOL.md §5.9).

mod offer;
#[cfg(test)]
mod tests;

use crate::registry::ClientKey;
use bytes::Bytes;
use offer::{Offer, WHOLE_BYTES};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{HandOff, Take};
use tund_session::{FlowId, Held, Instant, SessionId};

/// How long anything is held at most, whatever a client wishes. Chosen: it is in memory.
pub const HELD_FOR: Duration = Duration::from_secs(24 * 3600);
/// Offers at once; at more, the oldest of the key that has most of them goes. Chosen: with their
/// names, some megabytes.
pub const OFFERS: usize = 10_000;
/// The same of one key: chosen, so that a few clients that leave nothing but names do not get there.
pub const OFFERS_PER_KEY: usize = 1024;
/// What became of bytes that were held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// They are given to a later connection.
    pub handed_on: u64,
    /// They are of no use to anybody: too old, too many, or no whole message.
    pub lost: u64,
}

/// How many bytes may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Of one key.
    pub of_key: u64,
    /// Of all of them.
    pub of_all: u64,
}

/// All that is held, in memory only, and no more than the owner says. Each offer is given once.
#[derive(Debug, Default)]
pub struct Offers {
    /// Oldest first.
    offers: BTreeMap<u64, Offer>,
    names: BTreeMap<(SessionId, FlowId), u64>,
    of_key: BTreeSet<(ClientKey, u64)>,
    bytes_of: BTreeMap<ClientKey, u64>,
    expiries: BTreeSet<(Instant, u64)>,
    bytes: u64,
    next: u64,
    tally: Tally,
}

impl Offers {
    /// Bytes held.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many flows something is held of.
    pub fn len(&self) -> usize {
        self.offers.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// What became of all that was held so far.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// A flow of `key` has left this.
    pub fn hold(
        &mut self,
        name: (SessionId, FlowId),
        key: ClientKey,
        held: Held,
        bound: Bound,
        now: Instant,
    ) {
        self.erase_name(name);
        self.next += 1;
        let number = self.next;
        let until = now + held.hand_off.retain.min(HELD_FOR);
        let offer = Offer::new(name, key, &held, until);
        self.make_a_place(key);
        self.offers.insert(number, offer);
        self.names.insert(name, number);
        self.of_key.insert((key, number));
        self.expiries.insert((until, number));
        let length = wide(held.remainder.len());
        // It counts as handed on when it is given again.
        let is_back = held.given.since(held.remainder.start).min(length);
        self.tally.handed_on = self.tally.handed_on.saturating_sub(is_back);
        self.make_room(number, length, bound);
        for piece in &held.remainder.bytes {
            if let Some((offer, fits)) = self.admit(number, piece.len(), bound) {
                let was_ours = offer.end().plus(wide(piece.len())) <= held.given;
                if was_ours && fits >= WHOLE_BYTES {
                    offer.keep(piece.slice(..fits));
                } else {
                    offer.push(piece.get(..fits).unwrap_or_default());
                }
            }
        }
        if let Some(offer) = self.offers.get_mut(&number) {
            offer.look_again_if_cut();
        }
    }

    /// Whose what is held of a flow is.
    pub fn key_of(&self, name: (SessionId, FlowId)) -> Option<ClientKey> {
        let offer = self.offers.get(self.names.get(&name)?)?;
        Some(offer.key)
    }

    /// How many bytes may be appended to what is held of a flow, so that nothing that came before has
    /// to go; none if nothing is to be.
    pub fn room(&self, name: (SessionId, FlowId), bound: Bound) -> Option<u64> {
        let offer = self.offers.get(self.names.get(&name)?)?;
        let is_open = !offer.fin && !offer.is_cut;
        is_open.then(|| self.free(offer.key, bound))
    }

    /// The socket of a flow that has left something had this still to be read.
    pub fn append(&mut self, name: (SessionId, FlowId), bytes: &[u8], bound: Bound) {
        if let Some(number) = self.names.get(&name).copied()
            && let Some((offer, fits)) = self.admit(number, bytes.len(), bound)
        {
            offer.push(bytes.get(..fits).unwrap_or_default());
        }
    }

    fn free(&self, key: ClientKey, bound: Bound) -> u64 {
        let of_key = bound.of_key.saturating_sub(self.bytes_of(key));
        of_key.min(bound.of_all.saturating_sub(self.bytes))
    }

    /// So many bytes come to its end; how many there is room for. The others are lost.
    fn admit(&mut self, number: u64, bytes: usize, bound: Bound) -> Option<(&mut Offer, usize)> {
        let key = self.offers.get(&number).map(|offer| offer.key)?;
        let (wanted, room) = (wide(bytes), self.free(key, bound));
        let offer = self.offers.get_mut(&number)?;
        let fits = if offer.is_cut { 0 } else { wanted.min(room) };
        offer.is_cut |= fits < wanted;
        if fits > 0 {
            *self.bytes_of.entry(key).or_default() += fits;
        }
        self.bytes += fits;
        self.tally.lost += wanted - fits;
        Some((offer, usize::try_from(fits).unwrap_or(0)))
    }

    /// So much that was to be appended was never read: there was no room.
    pub const fn lose_unread(&mut self, bytes: u64) {
        self.tally.lost += bytes;
    }

    /// The socket had FIN behind all that was appended, or the origin's reset.
    pub fn finish(&mut self, name: (SessionId, FlowId)) {
        if let Some(number) = self.names.get(&name)
            && let Some(offer) = self.offers.get_mut(number)
        {
            offer.fin = true;
        }
    }

    /// Of the flows that a connection of `key` to `destination` names, those of which something is
    /// held for it, in their order.
    pub fn wanted(
        &self,
        key: ClientKey,
        hand_off: &HandOff,
        destination: SocketAddr,
    ) -> Vec<(SessionId, FlowId)> {
        let is_held = |take: &&Take| self.find(take, (key, hand_off.user, destination)).is_some();
        let held = hand_off.takes.iter().filter(is_held);
        held.map(|take| (take.session, take.flow)).collect()
    }

    /// What a take names, if it is for a connection of that key and user to that destination.
    fn find(&self, take: &Take, wanted: (ClientKey, u32, SocketAddr)) -> Option<u64> {
        let number = *self.names.get(&(take.session, take.flow))?;
        let offer = self.offers.get(&number)?;
        let is_for = (offer.key, offer.user, offer.destination);
        (is_for == wanted).then_some(number)
    }

    /// A connection of `key` to `destination` begins with this: what is held of the flows that it
    /// names, in their order. It is held no more.
    pub fn take(
        &mut self,
        key: ClientKey,
        hand_off: &HandOff,
        destination: SocketAddr,
    ) -> Vec<Bytes> {
        let mut prologue = Vec::new();
        for take in &hand_off.takes {
            let number = self.find(take, (key, hand_off.user, destination));
            let Some(offer) = number.and_then(|number| self.remove(number)) else {
                continue;
            };
            let (from, to) = offer.messages(take.delivered);
            self.tally.handed_on += to.since(from);
            // What lies before is with the application already, and so is all that it has.
            self.tally.lost += offer.end().since(to.max(take.delivered));
            prologue.extend(offer.between(from, to));
        }
        prologue
    }

    /// Nothing is held for this key any more but what flows of one session have left.
    pub fn erase_others(&mut self, key: ClientKey, session: SessionId) {
        self.erase(key, |of| of != session);
    }

    /// Nothing is held for this key any more.
    pub fn erase_key(&mut self, key: ClientKey) {
        self.erase(key, |_| true);
    }

    fn erase(&mut self, key: ClientKey, is_erased: impl Fn(SessionId) -> bool) {
        let range = (key, 0)..=(key, u64::MAX);
        let numbers = self.of_key.range(range).map(|(_, number)| *number);
        for number in numbers.collect::<Vec<_>>() {
            let session = self.offers.get(&number).map(|offer| offer.name.0);
            if session.is_some_and(&is_erased) {
                self.lose(number);
            }
        }
    }

    /// Nothing is held for any key that is not listed.
    pub fn retain_keys(&mut self, listed: impl Fn(&ClientKey) -> bool) {
        let keys: BTreeSet<_> = self.of_key.iter().map(|(key, _)| *key).collect();
        for key in keys.into_iter().filter(|key| !listed(key)) {
            self.erase_key(key);
        }
    }

    /// No more than `most` bytes may be held any more: of the key that holds the most, the oldest go.
    pub fn give_up(&mut self, most: u64) {
        while self.bytes > most {
            let keys = self.bytes_of.iter();
            let greatest = keys.max_by_key(|(key, bytes)| (**bytes, **key));
            let Some(key) = greatest.map(|(key, _)| *key) else {
                return;
            };
            if !self.evict(key, u64::MAX) {
                return;
            }
        }
    }

    /// When the next is too old.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Forgets what is.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, number)) = self.expiries.first().copied()
            && at <= now
        {
            self.lose(number);
        }
    }

    /// Forgets the oldest until `wanted` bytes more of `number` fit, or no other is left that may go.
    fn make_room(&mut self, number: u64, wanted: u64, bound: Bound) {
        let of_offer = |offer: &Offer| (offer.key, offer.bytes);
        let Some((key, bytes)) = self.offers.get(&number).map(of_offer) else {
            return;
        };
        // Beyond a bound it cannot grow, whoever gives way.
        let most = bound.of_key.min(bound.of_all);
        let wanted = wanted.min(most.saturating_sub(bytes));
        if wanted == 0 {
            return;
        }
        while self.bytes_of(key).saturating_add(wanted) > bound.of_key && self.evict(key, number) {}
        while self.bytes.saturating_add(wanted) > bound.of_all
            && self.evict_any((key, number), wanted)
        {}
    }

    fn bytes_of(&self, key: ClientKey) -> u64 {
        self.bytes_of.get(&key).copied().unwrap_or(0)
    }

    /// Forgets the oldest of a key, but none that came with `number` or after it.
    fn evict(&mut self, key: ClientKey, number: u64) -> bool {
        let oldest = self.of_key.range((key, 0)..(key, number)).next();
        let Some((_, oldest)) = oldest.copied() else {
            return false;
        };
        self.lose(oldest);
        true
    }

    /// The same of the key that holds the most, if that is more than `key` would hold with `wanted`
    /// bytes more, else of `key`: no client makes others' be forgotten that hold less.
    fn evict_any(&mut self, (key, number): (ClientKey, u64), wanted: u64) -> bool {
        let own = self.bytes_of(key).saturating_add(wanted);
        let others = self.bytes_of.iter().filter(|(other, _)| **other != key);
        let most = others.max_by_key(|(other, bytes)| (**bytes, **other));
        match most.map(|(other, bytes)| (*other, *bytes)) {
            Some((other, bytes)) if bytes > own => self.evict(other, u64::MAX),
            _ => self.evict(key, number),
        }
    }

    /// Another offer of `key` is to come.
    fn make_a_place(&mut self, key: ClientKey) {
        if self.of_key.range((key, 0)..=(key, u64::MAX)).count() >= OFFERS_PER_KEY {
            self.evict(key, u64::MAX);
        }
        if self.offers.len() >= OFFERS {
            let mut counts = BTreeMap::<_, usize>::new();
            self.of_key
                .iter()
                .for_each(|(key, _)| *counts.entry(*key).or_default() += 1);
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            if let Some((key, _)) = most {
                self.evict(key, u64::MAX);
            }
        }
    }

    fn erase_name(&mut self, name: (SessionId, FlowId)) {
        if let Some(number) = self.names.get(&name).copied() {
            self.lose(number);
        }
    }

    fn lose(&mut self, number: u64) {
        if let Some(offer) = self.remove(number) {
            self.tally.lost += offer.bytes;
        }
    }

    fn remove(&mut self, number: u64) -> Option<Offer> {
        let offer = self.offers.remove(&number)?;
        self.names.remove(&offer.name);
        self.of_key.remove(&(offer.key, number));
        self.expiries.remove(&(offer.until, number));
        self.bytes -= offer.bytes;
        if let Some(bytes) = self.bytes_of.get_mut(&offer.key) {
            *bytes -= offer.bytes;
            if *bytes == 0 {
                self.bytes_of.remove(&offer.key);
            }
        }
        Some(offer)
    }

    /// Everything kept; nothing of it outlives an offer.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> [usize; 5] {
        [
            self.offers.len(),
            self.names.len(),
            self.of_key.len(),
            self.bytes_of.len(),
            self.expiries.len(),
        ]
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
