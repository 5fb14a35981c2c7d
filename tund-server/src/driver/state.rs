//! What outlives a restart of the server: how sessions ended, in a journal that another thread writes.
//! Beside it lies that of deliveries.

use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use super::recorder::{self, DELIVERIES};
use tokio::task::JoinSet;
use tund_daemon::clock;
use tund_daemon::journal::{Found, Journal, RECORD_MAX, StateDirectory};
use tund_server_core::delivery::Delivered;
use tund_server_core::registry::{Registry, Tombstone};
use tund_session::Instant;

/// The journal's file in `[state] directory`.
const TOMBSTONES: &str = "tombstones";
/// How soon what could not be written is tried again, though no further session ends: chosen.
const AGAIN: Duration = Duration::from_secs(60);
const _: () = assert!(Tombstone::MAX_BYTES <= RECORD_MAX, "each can be written");

/// The journal, and the write that is under way: one at most, each of all that has come meanwhile,
/// and safe from a crash of the machine before the next.
#[derive(Debug, Default)]
pub(super) struct State {
    path: PathBuf,
    /// Locked as long as this lives.
    _directory: Option<StateDirectory>,
    /// Here unless a write has it, or nothing can be kept.
    journal: Option<Journal>,
    writes: JoinSet<(Journal, io::Result<()>)>,
    /// The last write failed, and was told; not before then again, unless another session ends.
    again_at: Option<Instant>,
    /// The next write replaces the file: a failure or much that is forgotten lies in it.
    rewrite_due: bool,
}

/// What earlier starts have left.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) tombstones: Found,
    /// None where it cannot be written to.
    pub(super) deliveries: Option<Journal>,
    pub(super) delivered: Delivered,
}

impl State {
    /// What earlier starts have left, and the directory to leave more in. Without one that can be
    /// used the daemon runs all the same, and says so.
    pub(super) fn open(path: &Path) -> (Self, Files) {
        let opened = StateDirectory::open(path).and_then(|directory| {
            let tombstones = directory.journal(TOMBSTONES)?;
            let deliveries = directory.journal(DELIVERIES)?;
            Ok((directory, tombstones, deliveries))
        });
        match opened {
            Ok((directory, (journal, tombstones), (deliveries, found))) => {
                let state = Self {
                    path: path.to_owned(),
                    _directory: Some(directory),
                    journal: Some(journal),
                    ..Self::default()
                };
                let files = Files {
                    tombstones,
                    deliveries: Some(deliveries),
                    delivered: recorder::restore(path, &found, clock::time_of_day()),
                };
                (state, files)
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot keep state in {}; sessions that end are forgotten at the next restart, \
                     and clients store nothing for this server. Make it a directory that this user \
                     may write to, or name another in [state] directory",
                    path.display()
                );
                (Self::default(), Files::default())
            }
        }
    }

    /// Gives the registry the ends that earlier starts remembered.
    pub(super) fn restore(&mut self, found: &Found, registry: &mut Registry, now: Instant) {
        tell(&self.path, found);
        restore(found, registry, now);
        self.rewrite_due = registry.tombstone_count() < found.records.len();
    }

    /// Writes down the ends that have come, and takes note of those that are written.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, registry: &mut Registry, now: Instant) {
        loop {
            while let Poll::Ready(Some(written)) = self.writes.poll_join_next(cx) {
                match written {
                    Ok((journal, result)) => {
                        self.note(&result, now);
                        self.journal = Some(journal);
                    }
                    Err(error) => {
                        tracing::error!(%error, "no more ends of sessions are written down");
                    }
                }
            }
            if !self.begin_write(registry, now) {
                return;
            }
        }
    }

    /// Whether a write has begun: there is something to be written, and no other under way.
    fn begin_write(&mut self, registry: &mut Registry, now: Instant) -> bool {
        let Some(mut journal) = self.journal.take() else {
            return false;
        };
        let today = clock::time_of_day();
        let encode =
            |(tombstone, age): (&Tombstone, Duration)| tombstone.encode(today.saturating_sub(age));
        let mut records = Vec::new();
        while let Some(fresh) = registry.poll_tombstone(now) {
            records.push(encode(fresh));
        }
        if records.is_empty() && self.again_at.is_none_or(|at| at > now) {
            self.journal = Some(journal);
            return false;
        }
        let is_rewrite = self.rewrite_due || journal.is_bloated(registry.tombstone_count());
        if is_rewrite {
            records = registry.tombstones(now).map(encode).collect();
        }
        self.writes.spawn_blocking(move || {
            let result = journal.write(&records, is_rewrite);
            (journal, result)
        });
        true
    }

    fn note(&mut self, result: &io::Result<()>, now: Instant) {
        let has_failed = self.again_at.is_some();
        match result {
            Ok(()) if has_failed => tracing::info!("ends of sessions are written down again"),
            Ok(()) => {}
            Err(error) if has_failed => tracing::debug!(%error, "the write failed again"),
            Err(error) => tracing::warn!(
                %error,
                "how a session ended could not be written down, and a restart would forget it; \
                 make room on the disk of [state] directory"
            ),
        }
        self.again_at = result.is_err().then(|| now + AGAIN);
        self.rewrite_due = result.is_err();
    }

    /// When it is worth polling again although nobody wakes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.again_at.filter(|_| self.journal.is_some())
    }

    /// Nothing is being written.
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }
}

fn restore(found: &Found, registry: &mut Registry, now: Instant) {
    let today = clock::time_of_day();
    let mut unknown = 0_usize;
    for record in &found.records {
        match Tombstone::decode(record) {
            Some((tombstone, ended)) => {
                registry.restore(tombstone, today.saturating_sub(ended), now);
            }
            None => unknown += 1,
        }
    }
    if unknown > 0 {
        tracing::warn!(unknown, "ends of sessions of another version were left out");
    }
    tracing::debug!(
        count = registry.tombstone_count(),
        "ends of sessions are known"
    );
}

/// What was wrong with the file, if anything.
fn tell(path: &Path, found: &Found) {
    if let Some(aside) = &found.set_aside {
        tracing::warn!(
            "{} is not a journal of this version; it was moved to {}, and a new one was begun",
            path.join(TOMBSTONES).display(),
            aside.display()
        );
    }
    if found.torn_bytes > 0 || found.damaged > 0 {
        tracing::warn!(
            torn_bytes = found.torn_bytes,
            damaged = found.damaged,
            kept = found.records.len(),
            "the journal of ended sessions was cut short by a crash, or damaged; the rest is used"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::future::poll_fn;
    use tund_server_core::registry::{ClientKey, RegistryConfig};
    use tund_session::wire::codec;
    use tund_session::wire::frame::{CloseCode, Frame, Hello, Limits};
    use tund_session::{Config, Instance, LinkId, Secret, SessionId};

    fn registry() -> Registry {
        Registry::new(RegistryConfig {
            session: Config {
                instance: Instance([1; 16]),
                buffer_bytes: 1 << 20,
                max_flows: 8,
                max_grace: Duration::from_secs(60),
                capabilities: 0,
                datagram_age: tund_session::limits::DATAGRAM_AGE,
            },
            max_sessions: 8,
            memory_bytes: 1 << 20,
        })
    }

    /// A session that is made and ended at once.
    fn end_session(registry: &mut Registry, n: u8, now: Instant) {
        let (link, id) = (LinkId(u64::from(n)), SessionId([n; 16]));
        let secret = Secret::new([n; 32]);
        registry.handle_link_up(link, ClientKey([n; 32]), secret, id, now);
        let hello = Frame::Hello(Hello {
            versions: (1, 1),
            capabilities: 0,
            instance: Instance([n; 16]),
            limits: Limits {
                max_flows: 8,
                buffer_bytes: 1 << 20,
                floor_bytes: 1,
            },
        });
        let mut bytes = Vec::new();
        codec::encode(&hello, &mut bytes);
        registry.handle_bytes(link, bytes.into(), now);
        registry.close(id, CloseCode::Asked, now);
    }

    /// Polls until no write is under way.
    async fn settle(state: &mut State, registry: &mut Registry, now: Instant) {
        poll_fn(|cx| {
            state.poll(cx, registry, now);
            if state.is_idle() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_tried_again_though_nothing_more_ends() {
        let parent = tempfile::tempdir().unwrap();
        let (path, away) = (parent.path().join("state"), parent.path().join("away"));
        let (mut registry, now) = (registry(), Instant::from_nanos(1 << 40));
        let (mut state, _) = State::open(&path);
        // A directory that is not there stands in for a disk that takes nothing.
        fs::rename(&path, &away).unwrap();
        state.rewrite_due = true;
        end_session(&mut registry, 7, now);
        settle(&mut state, &mut registry, now).await;
        assert_eq!(state.poll_timeout(), Some(now + AGAIN));
        fs::rename(&away, &path).unwrap();

        let just_before = now + (AGAIN - Duration::from_nanos(1));
        settle(&mut state, &mut registry, just_before).await;
        assert!(state.rewrite_due, "not yet");
        settle(&mut state, &mut registry, now + AGAIN).await;

        assert_eq!(state.poll_timeout(), None);
        drop(state);
        let mut next = self::registry();
        let (mut state, files) = State::open(&path);
        state.restore(&files.tombstones, &mut next, now);
        assert_eq!(next.tombstone_count(), 1);
    }
}
