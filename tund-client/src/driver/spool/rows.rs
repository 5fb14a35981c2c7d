//! Stored files for people: rows, tried again, dropped.

use super::disk::reason;
use crate::driver::Daemon;
use tund_client_core::FileId;
use tund_client_core::spool::{FileRow, FileState};
use tund_daemon::control::{Page, SPOOL_ROWS_MAX, SpoolCounts, SpoolFiles, SpoolRow};
use tund_session::Instant;
use tund_session::wire::frame::Framing;

impl Daemon {
    pub(in crate::driver) fn spool_page(
        &self,
        after: Option<u64>,
        now: Instant,
    ) -> Page<SpoolRow, u64> {
        let mut rows = self
            .client
            .spool_rows(after.map(FileId), SPOOL_ROWS_MAX + 1, now);
        let more = rows.len() > SPOOL_ROWS_MAX;
        rows.truncate(SPOOL_ROWS_MAX);
        let next = rows.last().filter(|_| more).map(|row| row.file.0);
        Page {
            rows: rows.iter().map(|row| report(row, now)).collect(),
            next,
        }
    }

    pub(in crate::driver) fn spool_counts(&self) -> SpoolCounts {
        let (waiting, dead, bytes) = self.client.spool_totals();
        let wide = |count| u64::try_from(count).unwrap_or(u64::MAX);
        SpoolCounts {
            waiting: wide(waiting),
            dead: wide(dead),
            bytes,
        }
    }

    /// Has a file tried again, or all; returns how many.
    pub(in crate::driver) fn retry_files(&mut self, files: SpoolFiles, now: Instant) -> u64 {
        let files = self.named_files(files);
        let tried = files
            .into_iter()
            .filter(|file| self.client.retry_file(*file, now));
        count(tried)
    }

    /// Drops a file, or all; returns how many.
    pub(in crate::driver) fn drop_files(&mut self, files: SpoolFiles, now: Instant) -> u64 {
        let files = self.named_files(files);
        let dropped = files
            .into_iter()
            .filter(|file| self.client.drop_file(*file, now));
        count(dropped)
    }

    fn named_files(&self, files: SpoolFiles) -> Vec<FileId> {
        match files {
            SpoolFiles::All => self.client.spool_files(),
            SpoolFiles::One(file) => vec![FileId(file)],
        }
    }
}

fn count(files: impl Iterator<Item = FileId>) -> u64 {
    u64::try_from(files.count()).unwrap_or(u64::MAX)
}

fn report(row: &FileRow, now: Instant) -> SpoolRow {
    let head = &row.head;
    let (state, reason) = match row.state {
        FileState::Storing => ("storing", None),
        FileState::Waiting => ("waiting", None),
        FileState::Delivering => ("delivering", None),
        FileState::Dead(why) => ("dead", Some(reason(why).to_owned())),
    };
    let retry_at = row.retry_at.filter(|_| row.state == FileState::Waiting);
    SpoolRow {
        id: row.file.0,
        destination: head.destination,
        user: head.user,
        state: state.to_owned(),
        reason,
        framing: match head.framing {
            Framing::Line => "line",
            Framing::OctetCount => "octet-count",
            Framing::Whole => "whole",
        }
        .to_owned(),
        bytes: head.end.since(head.start),
        file_bytes: head.file_bytes,
        records: head.records,
        session_id: head.session.to_string(),
        age_s: row.age.as_secs(),
        keep_s: row.keep_for.as_secs(),
        retry_ms: retry_at.map(|at| {
            let wait = at.saturating_duration_since(now);
            u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
        }),
    }
}
