//! How links are closed, and what a key that was taken off the list loses.

use super::{Answer, ClientKey, LinkState, Registry, TurnedAway};
use std::time::Duration;
use tund_session::wire::frame::CloseCode;
use tund_session::{EndReason, Instant, LinkDeath, LinkId};

/// How long a closing link may take to send its last words. Chosen: more than a round trip of a
/// bad path, as what the peer has not read when we close may be lost.
pub const LAST_WORDS: Duration = Duration::from_secs(2);
/// The same where the peer has lost every right to be listened to. Chosen: half of the second
/// within which a removed key loses everything.
pub const LAST_WORDS_REVOKED: Duration = Duration::from_millis(500);

/// How a link that the registry has done with is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// At once: nothing is left to be said, or nobody there to hear it.
    None,
    /// Once what is left has been sent and the peer has closed, or after so long.
    LastWords(Duration),
    /// The same, and what the kernel still holds then is thrown away by a reset.
    Revoked(Duration),
}

impl Registry {
    /// How to close a link whose death is told by an event of its session.
    pub fn farewell(&self, link: LinkId, death: LinkDeath) -> Farewell {
        match death {
            LinkDeath::SessionEnded if self.is_revoked(link) => {
                Farewell::Revoked(LAST_WORDS_REVOKED)
            }
            LinkDeath::SessionEnded | LinkDeath::Retired => Farewell::LastWords(LAST_WORDS),
            LinkDeath::Transport
            | LinkDeath::Silent
            | LinkDeath::PeerClosed
            | LinkDeath::AttachFailed => Farewell::None,
        }
    }

    /// The same of a link that was turned away.
    pub const fn farewell_of(reason: TurnedAway) -> Farewell {
        match reason {
            TurnedAway::Rejected(_)
            | TurnedAway::KeyInUse
            | TurnedAway::NotUnderstood
            | TurnedAway::Silent => Farewell::LastWords(LAST_WORDS),
            TurnedAway::Crowded | TurnedAway::KeyRemoved => Farewell::None,
        }
    }

    fn is_revoked(&self, link: LinkId) -> bool {
        let Some(LinkState::Member(id)) = self.links.get(&link) else {
            return false;
        };
        let reason = self.session(*id).and_then(|session| session.end_reason());
        reason == Some(EndReason::Local(CloseCode::KeyRemoved))
    }

    /// Ends every session, and turns away every link, whose key is no longer listed; links that
    /// were being closed already get no more time.
    pub fn retain_keys(&mut self, listed: impl Fn(&ClientKey) -> bool, now: Instant) {
        let parting = self.links.iter().filter(|(link, state)| match state {
            LinkState::Greeting(greeting) => !listed(&greeting.key),
            LinkState::TurnedAway { key, .. } => !listed(key),
            LinkState::Member(id) => self.entries.get(id).is_some_and(|entry| {
                let has_left = entry.session.is_ended() || !entry.session.has_link(**link);
                has_left && !listed(&entry.key)
            }),
        });
        let parting: Vec<_> = parting.map(|(link, _)| *link).collect();
        for link in parting {
            self.turn_away(link, Answer::Nothing, TurnedAway::KeyRemoved);
        }
        let gone = self.keys.keys().filter(|key| !listed(key));
        for key in gone.copied().collect::<Vec<_>>() {
            for id in self.sessions_of(&key) {
                self.close(id, CloseCode::KeyRemoved, now);
            }
        }
        self.offers.retain_keys(listed);
    }
}
