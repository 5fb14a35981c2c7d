//! Rows for `docs/battery.md`, in files that `scripts/test` puts together.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use super::check::{Check, Ended, Way};

/// The directory that rows go into; without it nobody wants them.
const ROWS: &str = "TUND_BATTERY_ROWS";

/// Writes the row of a check.
#[track_caller]
pub(super) fn add(
    group: &str,
    number: usize,
    check: &Check,
    ways: &[(Way, Result<Ended, String>); 4],
) {
    let Some(directory) = std::env::var_os(ROWS).map(PathBuf::from) else {
        return;
    };
    let mut row = format!("| {group} | {} |", check.title);
    for (_, ended) in ways {
        let _infallible = match ended {
            Err(_) => write!(row, " **otherwise** |"),
            Ok(ended) if ended.outages == 0 => write!(row, " {:.1} s |", ended.took.as_secs_f64()),
            Ok(ended) => write!(
                row,
                " {:.1} s, outages: {} |",
                ended.took.as_secs_f64(),
                ended.outages
            ),
        };
    }
    row.push('\n');
    let file = directory.join(format!("{group} {number:02}"));
    fs::write(&file, row).unwrap_or_else(|cause| panic!("wrote {}: {cause}", file.display()));
}
