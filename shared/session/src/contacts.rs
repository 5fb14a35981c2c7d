//! Whom a mapping has sent to: who may answer; and how often strangers may speak.

use crate::limits;
use crate::time::Instant;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Addresses that a mapping has sent to, whatever their ports (RFC 4787 §5, address-dependent
/// filtering). At most [`limits::CONTACTS`]; the one that was sent to longest ago is forgotten.
#[derive(Clone, Debug, Default)]
pub struct Contacts {
    /// The latest is the last.
    addresses: VecDeque<IpAddr>,
}

impl Contacts {
    /// A datagram goes there.
    pub fn note(&mut self, address: IpAddr) {
        if self.addresses.back() == Some(&address) {
            return;
        }
        if let Some(place) = self.addresses.iter().position(|known| *known == address) {
            self.addresses.remove(place);
        } else if self.addresses.len() >= limits::CONTACTS {
            self.addresses.pop_front();
        }
        self.addresses.push_back(address);
    }

    /// All of them, the latest last.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// Something was sent there.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.back() == Some(&address) || self.addresses.contains(&address)
    }
}

/// Datagrams of strangers that are heard, where any are: within a rate, and short ones only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strangers {
    /// When the next one would be due, were they to come evenly.
    next: Instant,
}

impl Strangers {
    /// Whether one more is heard; `at_once` is how many may come at once.
    pub fn admit(&mut self, bytes: usize, at_once: u32, now: Instant) -> bool {
        let most = limits::STRANGERS_EVERY * at_once.saturating_sub(1);
        if bytes > limits::STRANGER_BYTES || self.next > now + most {
            return false;
        }
        self.next = self.next.max(now) + limits::STRANGERS_EVERY;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> IpAddr {
        IpAddr::V4(u32::try_from(number).unwrap().into())
    }

    #[test]
    fn of_too_many_the_one_that_was_sent_to_longest_ago_is_forgotten() {
        let mut contacts = Contacts::default();
        for number in 0..limits::CONTACTS {
            contacts.note(address(number));
        }
        assert!(contacts.has(address(0)));

        contacts.note(address(0));
        contacts.note(address(limits::CONTACTS));

        assert!(contacts.has(address(0)) && contacts.has(address(limits::CONTACTS)));
        assert!(!contacts.has(address(1)));
        assert!(contacts.has(address(2)));
    }

    #[test]
    fn strangers_have_a_rate_and_a_size() {
        let mut strangers = Strangers::default();
        let mut now = Instant::from_nanos(1 << 40);
        assert!(!strangers.admit(limits::STRANGER_BYTES + 1, 3, now));
        for _ in 0..3 {
            assert!(strangers.admit(limits::STRANGER_BYTES, 3, now));
        }
        assert!(!strangers.admit(1, 3, now));
        now = now + (limits::STRANGERS_EVERY - std::time::Duration::from_nanos(1));
        assert!(!strangers.admit(1, 3, now));
        now = now + std::time::Duration::from_nanos(1);
        assert!(strangers.admit(1, 3, now));
        assert!(!strangers.admit(1, 3, now));
    }
}
