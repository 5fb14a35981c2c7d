//! What the core wants done with stored files: sealed, written, read and named, off the loop.

mod disk;
mod rows;

use super::Daemon;
use crate::config::Config;
use crate::sys::user::owner;
use anyhow::Context as _;
use disk::{Disk, Listing, reason};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::{Context, Poll};
use tokio::task::JoinSet;
use tund_client_core::netstack::ConnectionId;
use tund_client_core::spool::file::{encode_record, flags};
use tund_client_core::spool::{Found, Head, Record, RecordRead};
use tund_client_core::{FileId, SpoolOrder};
use tund_daemon::clock;
use tund_daemon::identity::PublicKey;
use tund_daemon::journal::StateDirectory;
use tund_daemon::seal::{Bound, Sealer};
use tund_session::Instant;

/// What became of an order.
#[derive(Debug)]
pub(super) enum Done {
    /// A file was written, or why it was not.
    Stored(FileId, Result<(), String>),
    /// A record was read, or not.
    Record(FileId, u32, RecordRead),
    /// A name was changed or removed.
    Named,
}

/// The directory and the orders for it, carried out one after the other.
pub(super) struct Files {
    directory: PathBuf,
    own_key: PublicKey,
    /// The key that the server proved last; before that, the first of the configuration.
    server_key: PublicKey,
    /// At home while nothing is done.
    disk: Option<Disk>,
    /// As many as the core has files and deliveries.
    orders: VecDeque<SpoolOrder>,
    working: JoinSet<(Disk, Done)>,
    /// The file that is being written.
    storing: Option<FileId>,
    /// No other daemon has the directory.
    _lock: Option<StateDirectory>,
}

impl Files {
    /// Takes the directory over, and tells what it holds. Without a policy that stores, it need not
    /// be there, nor be ours: another daemon may have it.
    pub(super) fn open(config: &Config) -> anyhow::Result<(Self, Vec<Found>)> {
        let directory = config.spool.directory.clone();
        let stores = config.policies.iter().any(|policy| policy.store.is_some());
        let is_there = stores || directory.exists();
        let opened = match is_there.then(|| Disk::open(&directory)).transpose() {
            Err(error) if !stores => {
                tracing::warn!(
                    directory = %directory.display(),
                    %error,
                    "what may be stored there is not delivered by this daemon"
                );
                None
            }
            opened => opened.with_context(|| {
                format!(
                    "cannot use {} for what a [[policy]] stores; make it a directory of this \
                     user, or name another one as [spool] directory",
                    directory.display()
                )
            })?,
        };
        let (disk, listing, lock) = opened.map_or((None, None, None), |(disk, listing, lock)| {
            (Some(disk), Some(listing), Some(lock))
        });
        let server_key = config.server_keys.first().copied();
        let files = Self {
            directory,
            own_key: config.private_key.public(),
            server_key: server_key.context("no server key")?,
            disk,
            orders: VecDeque::new(),
            working: JoinSet::new(),
            storing: None,
            _lock: lock,
        };
        let found = listing.map(|listing| files.judge(listing));
        Ok((files, found.unwrap_or_default()))
    }

    fn judge(&self, listing: Listing) -> Vec<Found> {
        for (path, error) in listing.unreadable {
            tracing::error!(
                path = %path.display(),
                "a stored file cannot be read: {error}; what is in it is lost; remove it"
            );
        }
        if listing.unfinished > 0 {
            let count = listing.unfinished;
            tracing::warn!(count, "removed files that were not written to their end");
        }
        let now = clock::time_of_day().as_secs();
        let found = listing.files.into_iter().map(|(file, head, dead)| Found {
            file,
            head,
            dead,
            age: head.age(now),
            keep_for: head.keep_for(now),
        });
        let found: Vec<_> = found.collect();
        if !found.is_empty() {
            let directory = self.directory.display();
            tracing::info!(count = found.len(), %directory, "stored files wait for delivery");
        }
        found
    }

    /// The server has proved this key: what is stored from now on is for it.
    pub(super) fn set_server_key(&mut self, key: PublicKey) {
        self.server_key = key;
    }

    /// Takes an order; it is carried out behind those before.
    pub(super) fn order(&mut self, order: SpoolOrder) {
        if let SpoolOrder::Bury { file, why } = &order {
            let reason = reason(*why);
            tracing::warn!(
                %file,
                reason,
                "a stored file is not tried any more; see `tund-client spool show {file}`, then \
                 retry or drop it"
            );
        }
        self.orders.push_back(order);
        self.work();
    }

    /// Nothing is being written or read, nor waits to be.
    pub(super) fn is_idle(&self) -> bool {
        self.working.is_empty()
    }

    fn work(&mut self) {
        if !self.working.is_empty() {
            return;
        }
        let Some(order) = self.orders.pop_front() else {
            return;
        };
        self.storing = match order {
            SpoolOrder::Store { file, .. } => Some(file),
            SpoolOrder::Bury { .. }
            | SpoolOrder::Read { .. }
            | SpoolOrder::Remove { .. }
            | SpoolOrder::Revive { .. } => None,
        };
        let disk = self.disk.take();
        let (directory, keys) = (self.directory.clone(), (self.own_key, self.server_key));
        self.working.spawn_blocking(move || {
            let mut disk = disk.unwrap_or_else(|| Disk::at(&directory));
            let done = carry_out(&mut disk, keys, order);
            (disk, done)
        });
    }

    /// Ready when an order was carried out.
    pub(super) fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        if self.working.is_empty() {
            return Poll::Pending;
        }
        match self.working.poll_join_next(cx) {
            Poll::Ready(Some(Ok((disk, done)))) => {
                self.disk = Some(disk);
                self.work();
                Poll::Ready(done)
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::error!(%error, "a job of the spool has failed");
                let storing = self.storing.take();
                self.work();
                let failed = |file| Done::Stored(file, Err(error.to_string()));
                Poll::Ready(storing.map_or(Done::Named, failed))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Daemon {
    /// Whose connection it is: who stores has a share of the spool, and who asks for what is held gets
    /// what is his.
    pub(super) fn find_user(
        &mut self,
        connection: ConnectionId,
        (source, destination): (SocketAddr, SocketAddr),
        now: Instant,
    ) {
        let found = owner(source, destination);
        if let Err(error) = &found {
            tracing::debug!(%error, "nobody knows whose connection this is");
        }
        self.client.handle_user(connection, found.ok(), now);
    }

    pub(super) fn on_done(&mut self, done: Done, now: Instant) {
        match done {
            Done::Stored(file, result) => {
                if let Err(error) = &result {
                    tracing::error!(
                        "cannot store what is left of a connection: {error}; it is lost; is there \
                         room on the disk of [spool] directory, and may this user write there?"
                    );
                }
                self.client.handle_stored(file, result.is_ok(), now);
            }
            Done::Record(file, record, read) => {
                self.client.handle_record(file, record, read, now);
            }
            Done::Named => {}
        }
    }
}

fn carry_out(disk: &mut Disk, keys: (PublicKey, PublicKey), order: SpoolOrder) -> Done {
    match order {
        SpoolOrder::Store {
            file,
            head,
            records,
            retain,
        } => {
            let now = clock::time_of_day().as_secs();
            let head = Head {
                stored_at: now,
                keep_until: now.saturating_add(retain.as_secs()),
                ..head
            };
            let written = store(disk, keys, (file, &head), &records);
            Done::Stored(file, written.map_err(|error| error.to_string()))
        }
        SpoolOrder::Read { file, record } => {
            let read = match disk.record(file, record) {
                Ok(Some(bytes)) => RecordRead::Whole(bytes),
                Ok(None) => RecordRead::Damaged,
                Err(error) => {
                    tracing::error!(%file, %error, "a stored file cannot be read; tried again later");
                    RecordRead::Failed
                }
            };
            Done::Record(file, record, read)
        }
        SpoolOrder::Remove { file } => named(file, disk.remove(file)),
        SpoolOrder::Bury { file, why } => named(file, disk.bury(file, why)),
        SpoolOrder::Revive { file, was } => named(file, disk.revive(file, was)),
    }
}

fn named(file: FileId, result: io::Result<()>) -> Done {
    if let Err(error) = result {
        tracing::error!(
            %file,
            %error,
            "a stored file cannot be renamed or removed; at the next start it waits again"
        );
    }
    Done::Named
}

/// Seals each record to the server, as what it is, and writes the file.
fn store(
    disk: &Disk,
    (client, server): (PublicKey, PublicKey),
    (file, head): (FileId, &Head),
    records: &[Record],
) -> io::Result<()> {
    let sealer = Sealer::new(&server).map_err(io::Error::other)?;
    disk.store(file, |out| {
        out.write_all(&head.encode())?;
        for record in records {
            let bound = Bound {
                client,
                session: head.session,
                flow: head.flow,
                user: head.user,
                destination: head.destination,
                framing: head.framing.number(),
                start: record.start.0,
                end: record.end.0,
                flags: flags(record.fin),
            };
            let sealed = sealer
                .seal(&bound, &record.bytes)
                .map_err(io::Error::other)?;
            out.write_all(&encode_record(record, &sealed))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;
    use tund_client_core::spool::file::SEAL_BYTES;
    use tund_daemon::identity::PrivateKey;
    use tund_daemon::seal::{OVERHEAD_BYTES, Opener};
    use tund_session::wire::frame::Framing;
    use tund_session::{FlowId, Offset, SessionId};

    #[test]
    fn what_is_stored_opens_at_the_server_as_what_it_is() {
        assert_eq!(SEAL_BYTES, OVERHEAD_BYTES);
        let place = tempfile::tempdir().unwrap();
        let (mut disk, _, lock) = Disk::open(place.path()).unwrap();
        let (client, server) = (
            PrivateKey::generate().unwrap().public(),
            PrivateKey::generate().unwrap(),
        );
        let record = Record {
            start: Offset(100),
            end: Offset(108),
            fin: true,
            bytes: Bytes::from_static(b"one\ntwo\n"),
        };
        let head = Head {
            session: SessionId([5; 16]),
            flow: FlowId(6),
            user: 1000,
            framing: Framing::Line,
            destination: "10.0.0.9:514".parse().unwrap(),
            stored_at: 0,
            keep_until: 0,
            start: record.start,
            end: record.end,
            records: 1,
            file_bytes: 0,
        };

        let order = SpoolOrder::Store {
            file: FileId(3),
            head,
            records: vec![record],
            retain: Duration::from_secs(3600),
        };
        let done = carry_out(&mut disk, (client, server.public()), order);
        assert!(matches!(done, Done::Stored(FileId(3), Ok(()))), "{done:?}");

        let read = SpoolOrder::Read {
            file: FileId(3),
            record: 0,
        };
        let Done::Record(FileId(3), 0, RecordRead::Whole(wire)) =
            carry_out(&mut disk, (client, server.public()), read)
        else {
            panic!("no record");
        };
        let bound = Bound {
            client,
            session: head.session,
            flow: head.flow,
            user: 1000,
            destination: head.destination,
            framing: 2,
            start: 100,
            end: 108,
            flags: 1,
        };
        let opened = Opener::new(&server).open(&bound, &wire[21..]).unwrap();
        assert_eq!(opened, b"one\ntwo\n");
        drop(lock);
        let (_, listing, _lock) = Disk::open(place.path()).unwrap();
        let found = listing.files[0].1;
        assert_eq!(found.keep_until - found.stored_at, 3600);
        assert!(found.stored_at > 1_600_000_000);
    }
}
