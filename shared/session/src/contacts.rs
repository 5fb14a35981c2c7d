//! Whom a mapping has sent to: who may answer.

use crate::limits;
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
}
