//! What the kernel tells of the network, carried to the core; and links whose keys have had their
//! time.

use super::Daemon;
use crate::sys::error::SystemError;
use crate::sys::watch::facts;
use std::task::{Context, Poll};
use std::time::Duration;
use tund_client_core::Network;
use tund_session::{Instant, LinkId};

/// While bytes move, the wear of keys is looked at so often: at 10 Gbit/s 64 GiB take 50 s.
const WEAR_EVERY: Duration = Duration::from_secs(2);
/// And so often when a link that should be replaced is not.
const WEAR_AGAIN: Duration = Duration::from_secs(60);

impl Daemon {
    /// Takes what the kernel has told since the last turn.
    pub(super) fn hear_of_network(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Poll::Ready(news) = self.watch.poll_news(cx) else {
            return;
        };
        // There may be more: this task is to be woken again.
        cx.waker().wake_by_ref();
        if let Some(steered) = &mut self.steered {
            steered.news(now);
        }
        let has_new_routes = news.map_or(true, |news| news.routes);
        if let Err(error) = self.look_at_network(has_new_routes, now) {
            tracing::warn!(%error, "what has changed in the network is not known");
        }
    }

    /// Tells the core what the network is like.
    pub(super) fn look_at_network(
        &mut self,
        has_new_routes: bool,
        now: Instant,
    ) -> Result<(), SystemError> {
        let facts = facts()?;
        let network = Network {
            running: facts.running,
            addresses: facts.addresses,
            networks: facts.networks,
        };
        self.client.handle_network(network, has_new_routes, now);
        Ok(())
    }

    /// No link keeps its keys for longer than they are good for.
    pub(super) fn look_for_wear(&mut self, now: Instant) {
        if self.wear_seen + WEAR_EVERY > now && self.wear_at.is_none_or(|at| at > now) {
            return;
        }
        self.wear_seen = now;
        self.wear_at = None;
        let links: Vec<LinkId> = self.client.links().collect();
        for (place, id) in links.into_iter().enumerate() {
            let Some(slot) = self.links.get(&id) else {
                continue;
            };
            let wear = slot.link.wear(now);
            if place == 0 && wear.is_due() {
                self.client.handle_worn(id);
            }
            let at = if wear.is_due() {
                now + WEAR_AGAIN
            } else {
                now + wear.lasts()
            };
            self.wear_at = Some(self.wear_at.map_or(at, |earliest| earliest.min(at)));
        }
    }
}
