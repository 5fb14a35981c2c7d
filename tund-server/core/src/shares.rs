//! Shares of something that all sessions have in common, and of which there is only so much.

use std::collections::BTreeMap;
use tund_session::SessionId;

/// How much of it each session has taken.
#[derive(Debug)]
pub struct Shares {
    of_session: BTreeMap<SessionId, usize>,
    all: usize,
    most: (usize, usize),
}

/// Why a session gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It has as much as a session may have.
    OfSession,
    /// What is left is for others.
    OfAll,
}

impl Shares {
    /// So much for each session, and so much in all.
    pub const fn new(of_session: usize, all: usize) -> Self {
        Self {
            of_session: BTreeMap::new(),
            all: 0,
            most: (of_session, all),
        }
    }

    /// Takes one more. Of what nobody has, a session leaves as much as it has itself: a greedy one
    /// leaves room for the next, and many share alike.
    ///
    /// # Errors
    ///
    /// At either bound.
    pub fn take(&mut self, session: SessionId) -> Result<(), Full> {
        let taken = self.of(session);
        if taken >= self.most.0 {
            return Err(Full::OfSession);
        }
        let left = self.most.1 - self.all;
        if left == 0 || taken >= left.max(1) {
            return Err(Full::OfAll);
        }
        self.all += 1;
        *self.of_session.entry(session).or_default() += 1;
        Ok(())
    }

    /// One that a session had taken is free again.
    pub fn give_back(&mut self, session: SessionId) {
        if let Some(taken) = self.of_session.get_mut(&session) {
            self.all -= 1;
            *taken -= 1;
            if *taken == 0 {
                self.of_session.remove(&session);
            }
        }
    }

    /// How many a session has.
    pub fn of(&self, session: SessionId) -> usize {
        self.of_session.get(&session).copied().unwrap_or(0)
    }

    /// Nobody has any.
    pub fn is_empty(&self) -> bool {
        self.all == 0 && self.of_session.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_session_takes_all_and_newcomers_find_some() {
        let mut shares = Shares::new(4, 8);
        let of: Vec<SessionId> = (1..=5).map(|n| SessionId([n; 16])).collect();
        let mut had = Vec::new();
        let mut refused = Vec::new();
        for session in &of {
            let mut count = 0;
            refused.push(loop {
                match shares.take(*session) {
                    Ok(()) => count += 1,
                    Err(why) => break why,
                }
            });
            assert_eq!(shares.of(*session), count);
            had.push(count);
        }
        assert_eq!(had, [4, 2, 1, 1, 0]);
        let (full, none) = (Full::OfSession, Full::OfAll);
        assert_eq!(refused, [full, none, none, none, none]);

        shares.give_back(of[0]);
        assert_eq!(shares.take(of[4]), Ok(()));
        for (session, had) in of.iter().zip([3, 2, 1, 1, 1]) {
            (0..had).for_each(|_| shares.give_back(*session));
        }
        assert!(shares.is_empty());
        shares.give_back(of[0]);
        assert!(shares.is_empty(), "nobody gives back what he has not");
    }
}
