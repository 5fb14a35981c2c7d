//! Room for so many at once, of all sessions and of each.

use super::lock;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use tund_server_core::shares::Shares;
use tund_session::SessionId;

#[derive(Debug)]
pub(super) struct Bounded {
    shares: Arc<Mutex<Shares>>,
    freed: Arc<Notify>,
}

/// Room for one, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    session: SessionId,
    shares: Arc<Mutex<Shares>>,
    freed: Arc<Notify>,
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.shares).give_back(self.session);
        self.freed.notify_waiters();
    }
}

impl Bounded {
    pub(super) fn new(of_session: usize, all: usize) -> Self {
        Self {
            shares: Arc::new(Mutex::new(Shares::new(of_session, all))),
            freed: Arc::default(),
        }
    }

    /// Room for one more of that session, if there is some.
    pub(super) fn take(&self, session: SessionId) -> Option<Room> {
        lock(&self.shares).take(session).ok()?;
        Some(Room {
            session,
            shares: Arc::clone(&self.shares),
            freed: Arc::clone(&self.freed),
        })
    }

    /// The same as soon as there is some.
    pub(super) async fn wait(&self, session: SessionId) -> Room {
        loop {
            let freed = self.freed.notified();
            if let Some(room) = self.take(session) {
                return room;
            }
            freed.await;
        }
    }
}
