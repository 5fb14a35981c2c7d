//! What the applications saw, as a table.

use std::time::{Duration, Instant};

use crate::Moments;
use crate::transfer::Outcome;

/// Writes a line to standard output.
pub(crate) fn say(line: &str) {
    #[expect(clippy::print_stdout, reason = "it is what the demo is for")]
    {
        println!("{line}");
    }
}

/// Prints a row for each transfer.
pub(crate) fn print(outcomes: &[Outcome], moments: Moments) {
    let heads = [
        "transfer",
        "path",
        "finished?",
        "intact by SHA-256?",
        "arrived",
        "longest silence",
        "first byte after the cut",
        "after the switch",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(outcomes.iter().map(|outcome| row(outcome, moments)));
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    say("");
    for (number, row) in rows.iter().enumerate() {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        say(&format!("| {} |", cells.collect::<Vec<_>>().join(" | ")));
        if number == 0 {
            let rules = widths.iter().map(|&width| "-".repeat(width));
            say(&format!("|-{}-|", rules.collect::<Vec<_>>().join("-|-")));
        }
    }
    say("");
}

fn row(outcome: &Outcome, moments: Moments) -> [String; 8] {
    let finished = match outcome.status {
        None => "no: silent, killed".to_owned(),
        Some(status) if status.success() => "yes".to_owned(),
        Some(status) => format!("no: {status}"),
    };
    let ended = outcome.status.is_some();
    let (silence, total) = (outcome.timeline.longest_silence(), outcome.timeline.total());
    [
        outcome.kind.label().to_owned(),
        outcome.path.label().to_owned(),
        finished,
        if outcome.same { "yes" } else { "no" }.to_owned(),
        format!("{} MB", total / 1_000_000),
        if ended {
            seconds(silence)
        } else {
            "for ever".to_owned()
        },
        recovery(outcome, moments.cut, moments.healed),
        recovery(outcome, moments.switched, moments.switched),
    ]
}

/// How long after the network was back bytes came again.
fn recovery(outcome: &Outcome, away: Instant, back: Instant) -> String {
    match outcome.timeline.recovery(away, back) {
        Some(length) => seconds(length),
        None if outcome.is_intact() => "had finished".to_owned(),
        None => "never".to_owned(),
    }
}

fn seconds(length: Duration) -> String {
    format!("{:.2} s", length.as_secs_f64())
}
