//! The outage matrix with the real daemons: every case several times, side by side in labs of
//! their own, as a table beside direct connections. `scripts/test outages` builds and runs it.

mod report;
mod side_by_side;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tund_tests::lab::require_root;
use tund_tests::outages::{self, Row, Sample, long_run};

use report::Report;

/// Measures how soon applications have their first byte after outages of every kind.
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs of each case.
    #[arg(long, default_value_t = 5)]
    runs: u32,

    /// Labs at once; they mostly wait.
    #[arg(long, default_value_t = 12)]
    side_by_side: usize,

    /// Only the jobs whose title contains this.
    #[arg(long, default_value = "")]
    only: String,

    /// End with 1 unless every target is met.
    #[arg(long)]
    assert: bool,

    /// In place of the matrix, so many minutes of random events.
    #[arg(long)]
    long_run: Option<u64>,

    /// Of the long run's events.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// A Markdown page, whose part with these figures is written anew.
    #[arg(long)]
    page: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    require_root();
    let report = match arguments.long_run {
        Some(minutes) => {
            let length = Duration::from_secs(minutes * 60);
            Report::of_long_run(&long_run::run(length, arguments.seed), arguments.seed)
        }
        None => matrix(&arguments),
    };
    report::say(report.text());
    if let Some(page) = &arguments.page
        && let Err(cause) = report.write_into(page)
    {
        report::say(&format!("wrote {}: {cause}", page.display()));
        return ExitCode::FAILURE;
    }
    for missed in report.missed() {
        report::say(&format!("missed: {missed}"));
    }
    if arguments.assert && !report.missed().is_empty() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn matrix(arguments: &Arguments) -> Report {
    let mut jobs = outages::jobs(arguments.runs);
    jobs.retain(|job| job.title.contains(&arguments.only));
    let load = report::Machine::look(arguments.side_by_side);
    let (found, failed) = side_by_side::run(jobs, arguments.side_by_side);
    let found: Vec<(Row, Sample)> = found.into_iter().flatten().collect();
    Report::of_matrix(found, failed, &load)
}
