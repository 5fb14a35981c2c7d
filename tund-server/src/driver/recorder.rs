//! Writes down how far stored streams have reached their origins, in a journal that another thread writes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;
use tund_daemon::journal::{Found, Journal};
use tund_server_core::delivery::{Delivered, Progress, StoredFlow};
use tund_session::Instant;

/// The journal's file in `[state] directory`.
pub(super) const DELIVERIES: &str = "deliveries";
/// How soon what could not be written is tried again: chosen; a full disk is not emptied sooner.
const AGAIN: Duration = Duration::from_secs(5);

type Write = JoinHandle<(Journal, io::Result<()>)>;

/// A batch at a time, beside the loop: it waits for the disk, and the loop does not.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Here unless a write has it.
    journal: Option<Journal>,
    /// To be written with the next batch: the newest of each stream.
    waiting: BTreeMap<StoredFlow, Progress>,
    /// Being written.
    under_way: BTreeMap<StoredFlow, Progress>,
    write: Option<Write>,
    /// It could not be written; not before then again.
    again_at: Option<Instant>,
    /// The next write replaces the file: nobody knows what a failure has left of it.
    rewrite_due: bool,
}

impl Recorder {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal: Some(journal),
            waiting: BTreeMap::new(),
            under_way: BTreeMap::new(),
            write: None,
            again_at: None,
            rewrite_due: false,
        }
    }

    /// Takes news of a stream, to be written with the next batch.
    pub(super) fn note(&mut self, progress: Progress) {
        self.waiting.insert(progress.of, progress);
    }

    /// Everything that was noted is written.
    pub(super) fn is_idle(&self) -> bool {
        self.write.is_none() && self.waiting.is_empty()
    }

    /// Everything that was noted of a stream is written, whatever of others waits.
    pub(super) fn has_written(&self, of: &StoredFlow) -> bool {
        !self.waiting.contains_key(of) && !self.under_way.contains_key(of)
    }

    /// The last batch could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.rewrite_due
    }

    /// When it is worth polling again although nobody wakes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.again_at
    }

    /// What a batch has made safe, stream by stream in their order; begins the next one. `all` is everything remembered.
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
            if let Some(write) = &mut self.write {
                let Poll::Ready(ended) = Pin::new(write).poll(cx) else {
                    return Poll::Pending;
                };
                self.write = None;
                let result = ended.map_err(io::Error::other);
                let result = result.and_then(|(journal, result)| {
                    self.journal = Some(journal);
                    result
                });
                let batch = std::mem::take(&mut self.under_way);
                match result {
                    Ok(()) => {
                        self.rewrite_due = false;
                        return Poll::Ready(batch.into_values().collect());
                    }
                    Err(error) => self.put_back(batch, &error, now),
                }
            }
            if self.waiting.is_empty() || self.again_at.is_some() || !self.begin(all) {
                return Poll::Pending;
            }
        }
    }

    fn put_back(&mut self, batch: BTreeMap<StoredFlow, Progress>, error: &io::Error, now: Instant) {
        tracing::error!(
            %error,
            "how far stored streams were delivered cannot be written down; deliveries are given up, \
             and clients try again later. Make room on the disk of [state] directory, or make it writable"
        );
        self.again_at = Some(now + AGAIN);
        self.rewrite_due = true;
        for (of, progress) in batch {
            self.waiting.entry(of).or_insert(progress);
        }
    }

    /// False where the journal is gone with a thread that failed.
    fn begin(&mut self, all: &Delivered) -> bool {
        let Some(mut journal) = self.journal.take() else {
            return false;
        };
        self.under_way = std::mem::take(&mut self.waiting);
        let is_rewrite = self.rewrite_due || journal.is_bloated(all.len());
        let records: Vec<_> = if is_rewrite {
            all.all().map(|progress| progress.encode()).collect()
        } else {
            self.under_way.values().map(Progress::encode).collect()
        };
        self.write = Some(tokio::task::spawn_blocking(move || {
            let result = journal.write(&records, is_rewrite);
            (journal, result)
        }));
        true
    }
}

/// What the journal says, read `today`, in time of the calendar.
pub(super) fn restore(path: &Path, found: &Found, today: Duration) -> Delivered {
    let mut delivered = Delivered::default();
    let mut unknown = found.damaged;
    for record in &found.records {
        match Progress::decode(record) {
            Some(progress) => {
                delivered.restore(&progress, today.as_secs());
            }
            None => unknown += 1,
        }
    }
    if let Some(aside) = &found.set_aside {
        tracing::warn!(
            "{} is not a journal of this version; it was moved to {}, and a new one was begun: \
             what clients have stored until now may be delivered twice",
            path.join(DELIVERIES).display(),
            aside.display()
        );
    }
    if unknown > 0 {
        tracing::warn!(
            unknown,
            "entries of the journal of deliveries are damaged, or of another version, and are \
             left out; what they stand for may be delivered twice"
        );
    }
    delivered
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::future::poll_fn;
    use tund_daemon::clock;
    use tund_daemon::journal::StateDirectory;
    use tund_server_core::registry::ClientKey;
    use tund_session::{FlowId, Offset, SessionId};

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

    fn open(path: &Path) -> (Recorder, Delivered, StateDirectory) {
        let directory = StateDirectory::open(path).unwrap();
        let (journal, found) = directory.journal(DELIVERIES).unwrap();
        let delivered = restore(path, &found, clock::time_of_day());
        (Recorder::new(journal), delivered, directory)
    }

    /// Notes progress as the driver does, and waits until it is written.
    async fn write(recorder: &mut Recorder, delivered: &mut Delivered, news: &[Progress]) {
        for progress in news {
            delivered.note(progress);
            recorder.note(*progress);
        }
        while !recorder.is_idle() {
            poll_fn(|cx| recorder.poll_written(cx, delivered, now())).await;
        }
    }

    #[tokio::test]
    async fn what_was_written_is_read_again() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let (mut recorder, mut delivered, directory) = open(&path);
        assert!(delivered.is_empty());
        let first = [progress(1, 5), progress(2, 7)];
        write(&mut recorder, &mut delivered, &first).await;
        write(&mut recorder, &mut delivered, &[progress(1, 9)]).await;
        drop((recorder, directory));

        let (_, again, _directory) = open(&path);

        let all: Vec<_> = again.all().collect();
        assert_eq!(all, [progress(1, 9), progress(2, 7)]);
    }

    #[tokio::test]
    async fn a_file_cut_at_any_byte_says_what_was_written_before() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let file = path.join(DELIVERIES);
        let (mut recorder, mut delivered, directory) = open(&path);
        let mut ends = vec![fs::metadata(&file).unwrap().len()];
        for offset in 1..=5 {
            let news = [progress(1, offset), progress(2, offset * 10)];
            write(&mut recorder, &mut delivered, &news).await;
            ends.push(fs::metadata(&file).unwrap().len());
        }
        drop((recorder, directory));
        let whole = fs::read(&file).unwrap();
        let record = (ends[1] - ends[0]) / 2;

        for cut in ends[0]..=ends[5] {
            fs::write(&file, &whole[..usize::try_from(cut).unwrap()]).unwrap();
            let (mut recorder, mut delivered, directory) = open(&path);

            // Each batch has a record of either stream.
            let records = (cut - ends[0]) / record;
            let offset = |of: u64| delivered.offset(&progress(of, 0).of).0;
            assert_eq!(
                (offset(1), offset(2)),
                (records.div_ceil(2), records / 2 * 10)
            );

            let more = [progress(1, 100)];
            write(&mut recorder, &mut delivered, &more).await;
            drop((recorder, directory));
            assert_eq!(open(&path).1.offset(&more[0].of), Offset(100));
        }
    }

    #[tokio::test]
    async fn a_write_under_way_takes_no_more_and_what_comes_meanwhile_is_next() {
        let parent = tempfile::tempdir().unwrap();
        let (mut recorder, mut delivered, _directory) = open(&parent.path().join("state"));
        delivered.note(&progress(1, 5));
        recorder.note(progress(1, 5));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(
            recorder
                .poll_written(&mut cx, &delivered, now())
                .is_pending()
        );
        delivered.note(&progress(1, 6));
        recorder.note(progress(1, 6));
        assert!(!recorder.is_idle());
        assert!(!recorder.has_written(&progress(1, 6).of));
        assert!(recorder.has_written(&progress(2, 0).of), "of no concern");

        let first = poll_fn(|cx| recorder.poll_written(cx, &delivered, now())).await;
        assert!(!recorder.has_written(&progress(1, 6).of));
        let second = poll_fn(|cx| recorder.poll_written(cx, &delivered, now())).await;

        assert_eq!(
            (first, second),
            (vec![progress(1, 5)], vec![progress(1, 6)])
        );
        assert!(recorder.is_idle() && recorder.has_written(&progress(1, 6).of));
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_and_is_written_later() {
        let parent = tempfile::tempdir().unwrap();
        let (path, away) = (parent.path().join("state"), parent.path().join("away"));
        let (mut recorder, mut delivered, directory) = open(&path);
        // A directory that is not there stands in for a disk that takes nothing.
        fs::rename(&path, &away).unwrap();
        recorder.rewrite_due = true;
        delivered.note(&progress(1, 5));
        recorder.note(progress(1, 5));
        let failed = poll_fn(|cx| {
            let written = recorder.poll_written(cx, &delivered, now());
            assert!(written.is_pending());
            match recorder.poll_timeout() {
                Some(at) => Poll::Ready(at),
                None => Poll::Pending,
            }
        });
        let again_at = failed.await;
        assert!(recorder.has_failed() && !recorder.is_idle());
        fs::rename(&away, &path).unwrap();

        let written = poll_fn(|cx| recorder.poll_written(cx, &delivered, again_at)).await;

        assert_eq!(written, [progress(1, 5)]);
        assert!(!recorder.has_failed() && recorder.is_idle());
        drop((recorder, directory));
        assert_eq!(open(&path).1.len(), 1);
    }

    #[tokio::test]
    async fn a_file_that_has_grown_is_written_afresh() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let (mut recorder, mut delivered, _directory) = open(&path);
        for offset in 1..=40 {
            let news: Vec<_> = (1..=26).map(|flow| progress(flow, offset)).collect();
            write(&mut recorder, &mut delivered, &news).await;
        }
        let grown = fs::metadata(path.join(DELIVERIES)).unwrap().len();
        let mut lengths = Vec::new();
        for offset in 41..=45 {
            let news: Vec<_> = (1..=26).map(|flow| progress(flow, offset)).collect();
            write(&mut recorder, &mut delivered, &news).await;
            lengths.push(fs::metadata(path.join(DELIVERIES)).unwrap().len());
        }

        assert!(
            lengths.iter().any(|length| length * 10 < grown),
            "{grown}: {lengths:?}"
        );
    }
}
