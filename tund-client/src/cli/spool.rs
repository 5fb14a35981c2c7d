//! `tund-client spool`: what waits for delivery, shown, tried again, dropped.

use std::path::Path;

use anyhow::bail;
use clap::{Args, Subcommand};
use tund_daemon::cli::{ask, columns, elapsed, print, show};
use tund_daemon::config::format_size;
use tund_daemon::control::{ClientCommand, Page, SpoolFiles, SpoolRow};

use super::{Reading, Talking};

#[derive(Debug, Subcommand)]
pub(super) enum Spool {
    /// List what waits, one file per line
    Ls(Reading),
    /// Show all about one file; what is in it only the server can read
    Show {
        /// Its id, from `spool ls`
        id: u64,
        #[command(flatten)]
        reading: Reading,
    },
    /// Try a file again now, or all
    Retry(Which),
    /// Drop a file, or all: its bytes are lost
    Drop(Which),
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Its id, from `spool ls`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<u64>,
    /// Every file
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    daemon: Talking,
}

pub(super) fn execute(command: Spool) -> anyhow::Result<()> {
    match command {
        Spool::Ls(Reading { daemon, json }) => {
            let rows = rows(&daemon.control)?;
            show(&rows, table(&rows), json)
        }
        Spool::Show {
            id,
            reading: Reading { daemon, json },
        } => {
            let after = id.checked_sub(1);
            let page: Page<SpoolRow, u64> = ask(&daemon.control, &ClientCommand::Spool { after })?;
            let Some(row) = page.rows.iter().find(|row| row.id == id) else {
                bail!("there is no stored file {id}; `tund-client spool ls` lists them");
            };
            show(row, facts(row), json)
        }
        Spool::Retry(Which { id, daemon, .. }) => {
            let tried = ask(
                &daemon.control,
                &ClientCommand::SpoolRetry { files: files(id) },
            )?;
            tell(id, tried, "tried again")
        }
        Spool::Drop(Which { id, daemon, .. }) => {
            let dropped = ask(
                &daemon.control,
                &ClientCommand::SpoolDrop { files: files(id) },
            )?;
            tell(id, dropped, "dropped")
        }
    }
}

/// Without an id, `--all` was given.
fn files(id: Option<u64>) -> SpoolFiles {
    id.map_or(SpoolFiles::All, SpoolFiles::One)
}

fn tell(id: Option<u64>, count: u64, what: &str) -> anyhow::Result<()> {
    if let Some(id) = id.filter(|_| count == 0) {
        bail!("there is no stored file {id} that can be {what}; `tund-client spool ls` lists them");
    }
    print(&format!("{count} {what}\n"))
}

/// All stored files, page by page.
fn rows(socket: &Path) -> anyhow::Result<Vec<SpoolRow>> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page: Page<SpoolRow, u64> = ask(socket, &ClientCommand::Spool { after })?;
        rows.extend(page.rows);
        match page.next {
            // A page that does not advance would be asked for ever.
            Some(next) if Some(next) > after => after = Some(next),
            Some(_) | None => return Ok(rows),
        }
    }
}

fn state(row: &SpoolRow) -> String {
    match (&row.reason, row.retry_ms) {
        (Some(reason), _) => format!("{}: {reason}", row.state),
        (None, Some(wait)) => format!("{}, again in {}", row.state, elapsed(wait)),
        (None, None) => row.state.clone(),
    }
}

fn table(rows: &[SpoolRow]) -> String {
    if rows.is_empty() {
        return "nothing is stored\n".to_owned();
    }
    let heading = ["ID", "DESTINATION", "USER", "BYTES", "AGE", "STATE"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.id.to_string(),
            row.destination.to_string(),
            row.user.to_string(),
            format_size(row.bytes),
            elapsed(row.age_s.saturating_mul(1000)),
            state(row),
        ]
    }));
    columns(&lines)
}

fn facts(row: &SpoolRow) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut fact = |name: &str, value: String| rows.push(vec![format!("{name}:"), value]);
    fact("id", row.id.to_string());
    fact("destination", row.destination.to_string());
    fact("user", row.user.to_string());
    fact("state", state(row));
    fact("framing", row.framing.clone());
    fact("bytes", format_size(row.bytes));
    let sealed = format!(
        "{} on the disk, in {} records that only the server can open",
        format_size(row.file_bytes),
        row.records
    );
    fact("sealed", sealed);
    fact("session", row.session_id.clone());
    fact("age", elapsed(row.age_s.saturating_mul(1000)));
    fact("kept for", elapsed(row.keep_s.saturating_mul(1000)));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> SpoolRow {
        SpoolRow {
            id: 7,
            destination: "10.0.0.9:514".parse().expect("an address"),
            user: 1000,
            state: "waiting".to_owned(),
            reason: None,
            framing: "line".to_owned(),
            bytes: 2048,
            file_bytes: 2300,
            records: 2,
            session_id: "0123456789abcdef0123456789abcdef".to_owned(),
            age_s: 60,
            keep_s: 3600,
            retry_ms: Some(300_000),
        }
    }

    #[test]
    fn stored_files_are_a_table() {
        let dead = SpoolRow {
            id: 8,
            state: "dead".to_owned(),
            reason: Some("denied".to_owned()),
            retry_ms: None,
            ..row()
        };

        assert_eq!(
            table(&[row(), dead]),
            "ID  DESTINATION   USER  BYTES  AGE  STATE\n\
             7   10.0.0.9:514  1000  2KiB   1m   waiting, again in 5m\n\
             8   10.0.0.9:514  1000  2KiB   1m   dead: denied\n"
        );
        assert_eq!(table(&[]), "nothing is stored\n");
    }

    #[test]
    fn one_file_is_shown_without_what_is_in_it() {
        let text = facts(&row());

        for fact in ["10.0.0.9:514", "only the server can open", "1h", "line"] {
            assert!(text.contains(fact), "{text}");
        }
    }

    #[test]
    fn the_json_of_a_stored_file_has_these_names() {
        let json = serde_json::to_value(row()).expect("written");
        let names: Vec<_> = json.as_object().expect("an object").keys().collect();

        assert_eq!(
            names,
            [
                "age_s",
                "bytes",
                "destination",
                "file_bytes",
                "framing",
                "id",
                "keep_s",
                "reason",
                "records",
                "retry_ms",
                "session_id",
                "state",
                "user"
            ]
        );
    }
}
