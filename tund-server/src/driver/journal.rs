//! The journal of deliveries: how far each stored stream has reached its origin, on disk.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;
use tund_server_core::delivery::{Delivered, Progress, StoredFlow};
use tund_server_core::registry::ClientKey;
use tund_session::{FlowId, Instant, Offset, SessionId};

/// Its name in the directory of `[state]`.
const NAME: &str = "deliveries";
/// The first bytes of the file.
const MAGIC: &[u8; 16] = b"tund delivered 1";
/// Key, session, flow, offset, time, checksum.
const ENTRY: usize = 32 + 16 + 8 + 8 + 8 + 4;
/// The file is written afresh when it has so many entries more than streams are remembered.
const SPARE_ENTRIES: usize = 10_000;
/// How soon what could not be written is tried again: chosen; a full disk is not emptied sooner.
const AGAIN: Duration = Duration::from_secs(5);

/// Writes progress down, a batch at a time, beside the loop: it waits for the disk, and the loop
/// does not.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    /// The directory, locked while the daemon runs.
    _lock: File,
    /// Taken by the task that writes; none after a failure.
    file: Option<File>,
    /// Entries in the file.
    entries: usize,
    /// To be written with the next batch: the newest of each stream.
    waiting: BTreeMap<StoredFlow, Progress>,
    /// Being written.
    under_way: BTreeMap<StoredFlow, Progress>,
    task: Option<JoinHandle<io::Result<(File, usize)>>>,
    /// It could not be written; not before then again.
    again_at: Option<Instant>,
}

impl Journal {
    /// Opens the journal in `directory`, and makes both where they are missing; what is in it.
    ///
    /// # Errors
    ///
    /// What the system says, or that another daemon has it open.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Delivered)> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
        let lock = File::open(directory)?;
        lock.try_lock()?;
        let path = directory.join(NAME);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let (delivered, broken) = read(&bytes)?;
        if broken > 0 {
            tracing::warn!(
                broken,
                path = %path.display(),
                "entries of the journal were damaged and are left out; what they say may be \
                 delivered twice"
            );
        }
        let file = rewrite(directory, &delivered.all().collect::<Vec<_>>())?;
        let journal = Self {
            directory: directory.to_owned(),
            _lock: lock,
            file: Some(file),
            entries: delivered.len(),
            waiting: BTreeMap::new(),
            under_way: BTreeMap::new(),
            task: None,
            again_at: None,
        };
        Ok((journal, delivered))
    }

    /// Takes news of a stream, to be written with the next batch.
    pub(super) fn note(&mut self, progress: Progress) {
        self.waiting.insert(progress.of, progress);
    }

    /// Everything that was noted is written.
    pub(super) fn is_idle(&self) -> bool {
        self.task.is_none() && self.waiting.is_empty()
    }

    /// The last batch could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.again_at.is_some()
    }

    /// When it is worth polling again although nobody wakes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.again_at
    }

    /// What a batch has made safe; begins the next one. `all` is everything remembered.
    pub(super) fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        all: &Delivered,
        now: Instant,
    ) -> Poll<Vec<Progress>> {
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
        }
        loop {
            if let Some(task) = &mut self.task {
                let Poll::Ready(ended) = Pin::new(task).poll(cx) else {
                    return Poll::Pending;
                };
                self.task = None;
                let ended = ended.map_err(io::Error::other).flatten();
                if let Some(written) = self.take_result(ended, now) {
                    return Poll::Ready(written);
                }
            }
            if self.waiting.is_empty() || self.again_at.is_some() {
                return Poll::Pending;
            }
            self.begin(all);
        }
    }

    fn take_result(
        &mut self,
        ended: io::Result<(File, usize)>,
        now: Instant,
    ) -> Option<Vec<Progress>> {
        let batch = std::mem::take(&mut self.under_way);
        match ended {
            Ok((file, entries)) => {
                self.file = Some(file);
                self.entries = entries;
                Some(batch.into_values().collect())
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    directory = %self.directory.display(),
                    "how far stored streams were delivered cannot be written down; deliveries wait. \
                     Make room, or make [state] directory writable"
                );
                self.again_at = Some(now + AGAIN);
                for (of, progress) in batch {
                    self.waiting.entry(of).or_insert(progress);
                }
                None
            }
        }
    }

    fn begin(&mut self, all: &Delivered) {
        self.under_way = std::mem::take(&mut self.waiting);
        let batch: Vec<_> = self.under_way.values().copied().collect();
        let entries = self.entries.saturating_add(batch.len());
        let is_worn = entries > all.len().saturating_add(SPARE_ENTRIES);
        let directory = self.directory.clone();
        self.task = Some(match self.file.take().filter(|_| !is_worn) {
            Some(mut file) => tokio::task::spawn_blocking(move || {
                append(&mut file, &batch)?;
                Ok((file, entries))
            }),
            // It has grown, or nobody knows what a failure has left of it.
            None => {
                let everything: Vec<_> = all.all().collect();
                tokio::task::spawn_blocking(move || {
                    let file = rewrite(&directory, &everything)?;
                    Ok((file, everything.len()))
                })
            }
        });
    }
}

/// Adds a batch at the end, and waits until it is on disk.
fn append(file: &mut File, batch: &[Progress]) -> io::Result<()> {
    let bytes: Vec<u8> = batch.iter().flat_map(entry).collect();
    file.write_all(&bytes)?;
    file.sync_data()
}

/// Writes everything to a new file that takes the place of the old one, whole or not at all.
fn rewrite(directory: &Path, all: &[Progress]) -> io::Result<File> {
    let draft = directory.join(format!("{NAME}.new"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let mut file = options.mode(0o600).open(&draft)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(all.iter().flat_map(entry));
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&draft, directory.join(NAME))?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

fn entry(progress: &Progress) -> [u8; ENTRY] {
    let fields = [
        &progress.of.client.0[..],
        &progress.of.session.0,
        &progress.of.flow.0.to_be_bytes(),
        &progress.offset.0.to_be_bytes(),
        &progress.at.to_be_bytes(),
    ];
    let mut bytes = [0; ENTRY];
    let body = fields.concat();
    let sum = crc32fast::hash(&body).to_be_bytes();
    let both = body.iter().chain(&sum);
    bytes
        .iter_mut()
        .zip(both)
        .for_each(|(to, from)| *to = *from);
    bytes
}

/// What a file says, and how many entries of it say nothing: the last may have been cut off.
fn read(bytes: &[u8]) -> io::Result<(Delivered, usize)> {
    let mut delivered = Delivered::default();
    let Some(entries) = bytes.strip_prefix(MAGIC) else {
        if MAGIC.starts_with(bytes) {
            return Ok((delivered, 0));
        }
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no journal of this version",
        ));
    };
    let mut broken = 0;
    for bytes in entries.chunks(ENTRY) {
        match parse(bytes) {
            Some(progress) => {
                delivered.note(&progress);
            }
            None => broken += 1,
        }
    }
    Ok((delivered, broken))
}

fn parse(bytes: &[u8]) -> Option<Progress> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    let (key, rest) = body.split_first_chunk::<32>()?;
    let (session, rest) = rest.split_first_chunk::<16>()?;
    let (flow, rest) = rest.split_first_chunk::<8>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (at, &[]) = rest.split_first_chunk::<8>()? else {
        return None;
    };
    Some(Progress {
        of: StoredFlow {
            client: ClientKey(*key),
            session: SessionId(*session),
            flow: FlowId(u64::from_be_bytes(*flow)),
        },
        offset: Offset(u64::from_be_bytes(*offset)),
        at: u64::from_be_bytes(*at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn progress(flow: u64, offset: u64) -> Progress {
        Progress {
            of: StoredFlow {
                client: ClientKey([1; 32]),
                session: SessionId([2; 16]),
                flow: FlowId(flow),
            },
            offset: Offset(offset),
            at: 1_700_000_000,
        }
    }

    fn now() -> Instant {
        Instant::from_nanos(0)
    }

    /// Notes progress as the driver does, and waits until it is written.
    async fn write(journal: &mut Journal, delivered: &mut Delivered, news: &[Progress]) {
        for progress in news {
            delivered.note(progress);
            journal.note(*progress);
        }
        while !journal.is_idle() {
            poll_fn(|cx| journal.poll_written(cx, delivered, now())).await;
        }
    }

    #[tokio::test]
    async fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (mut journal, mut delivered) = Journal::open(&path).unwrap();
        assert!(delivered.is_empty());

        write(
            &mut journal,
            &mut delivered,
            &[progress(1, 5), progress(2, 7)],
        )
        .await;
        write(&mut journal, &mut delivered, &[progress(1, 9)]).await;
        drop(journal);

        let (_, again) = Journal::open(&path).unwrap();
        let all: Vec<_> = again.all().collect();
        assert_eq!(all, [progress(1, 9), progress(2, 7)]);
    }

    #[tokio::test]
    async fn a_cut_or_damaged_entry_costs_itself_only() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, mut delivered) = Journal::open(directory.path()).unwrap();
        for flow in 1..=3 {
            write(&mut journal, &mut delivered, &[progress(flow, 5)]).await;
        }
        drop(journal);
        let file = directory.path().join(NAME);
        let whole = fs::read(&file).unwrap();

        for cut in 0..=whole.len() {
            let known = cut.saturating_sub(MAGIC.len()) / ENTRY;
            let (delivered, broken) = read(&whole[..cut]).unwrap();
            assert_eq!(delivered.len(), known, "cut at {cut}");
            assert!(broken <= 1);
        }
        for place in MAGIC.len()..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            let (delivered, broken) = read(&damaged).unwrap();
            assert_eq!((delivered.len(), broken), (2, 1), "damaged at {place}");
        }
        fs::write(&file, b"something else altogether").unwrap();
        assert!(Journal::open(directory.path()).is_err());
    }

    #[tokio::test]
    async fn two_daemons_do_not_share_a_journal() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, mut delivered) = Journal::open(directory.path()).unwrap();
        assert!(Journal::open(directory.path()).is_err());

        write(&mut journal, &mut delivered, &[progress(1, 5)]).await;
        assert!(Journal::open(directory.path()).is_err());
    }

    #[tokio::test]
    async fn a_file_that_has_grown_is_written_afresh() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, mut delivered) = Journal::open(directory.path()).unwrap();
        write(&mut journal, &mut delivered, &[progress(1, 1)]).await;
        journal.entries = SPARE_ENTRIES + 1;

        write(&mut journal, &mut delivered, &[progress(1, 2)]).await;
        write(&mut journal, &mut delivered, &[progress(2, 3)]).await;

        let length = fs::metadata(directory.path().join(NAME)).unwrap().len();
        let entries = u64::try_from(MAGIC.len() + 2 * ENTRY).unwrap();
        assert_eq!((length, journal.entries), (entries, 2));
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_and_is_written_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (mut journal, mut delivered) = Journal::open(&path).unwrap();
        // A file that takes no bytes stands in for a disk that is full.
        journal.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        delivered.note(&progress(1, 5));
        journal.note(progress(1, 5));

        let poll = poll_fn(|cx| {
            let written = journal.poll_written(cx, &delivered, now());
            assert!(written.is_pending());
            if journal.has_failed() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        poll.await;
        assert!(!journal.is_idle());
        let later = now() + AGAIN;
        let written = poll_fn(|cx| journal.poll_written(cx, &delivered, later)).await;

        assert_eq!(written, [progress(1, 5)]);
        assert!(!journal.has_failed() && journal.is_idle());
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1.len(), 1);
    }
}
