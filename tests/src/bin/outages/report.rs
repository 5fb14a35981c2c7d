//! What was measured as Markdown, beside its targets, in a page that keeps its other parts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tund_tests::outages::long_run::{self, Summary};
use tund_tests::outages::{self, Direct, Row, Sample, Target};

/// Writes a line to standard output.
pub(crate) fn say(line: &str) {
    #[expect(clippy::print_stdout, reason = "a table is what this program is for")]
    {
        println!("{line}");
    }
}

/// The machine, and how busy it was.
#[derive(Debug)]
pub(crate) struct Machine {
    labs: usize,
    load_before: String,
}

impl Machine {
    /// As it is before the first run; so many labs will run at once.
    pub(crate) fn look(labs: usize) -> Self {
        Self {
            labs,
            load_before: load(),
        }
    }

    fn text(&self) -> String {
        let (before, after) = (&self.load_before, load());
        format!(
            "{} Up to {} labs at once. Load average (1 min) before: {before}, after: {after}.\n",
            machine(),
            self.labs
        )
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// A sentence on date, machine and kernel.
fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names = cpu.lines().filter(|line| line.starts_with("model name"));
    let model = names
        .clone()
        .next()
        .and_then(|line| line.split(": ").nth(1));
    let date = Command::new("date").args(["-u", "+%F"]).output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!(
        "Measured on {}, {} × {}, Linux {}.",
        date.unwrap_or_else(|_| "an unknown day".to_owned()),
        names.count(),
        model.unwrap_or("unknown CPU"),
        kernel.trim()
    )
}

/// Figures, and which of them are not as they should be.
#[derive(Debug)]
pub(crate) struct Report {
    /// Names the part of the page.
    part: &'static str,
    text: String,
    missed: Vec<String>,
}

impl Report {
    /// Of all runs of the matrix.
    pub(crate) fn of_matrix(
        found: Vec<(Row, Sample)>,
        failed: Vec<String>,
        machine: &Machine,
    ) -> Self {
        let mut rows: BTreeMap<Row, Vec<Sample>> = BTreeMap::new();
        for (row, sample) in found {
            rows.entry(row).or_default().push(sample);
        }
        let mut text = format!(
            "## How soon the first byte comes\n\n{}\nThe access links have {} Mbit/s each way \
             (those of the thousand flows 50) and the round-trip time of the third column; the \
             network behind them adds none. A bulk transfer through tund and a direct one run when \
             the network goes; the time is from the moment the network is back to the first byte \
             at the application that reads. Where another link is there at once, it is the longest \
             silence that began within half a second; a lost carrier counts from when the client's \
             kernel tells of it, which may take a second that is not in the table. *Silent*: the old connections go on when the network \
             is back. *Forgotten*: they are dead, as behind a NAT that has lost its state. After \
             each run the transfer is ended in order and every byte compared.\n\n\
             | what happens | transfer | RTT | runs | tund, median | worst | target, median / worst \
             | direct, median | worst | |\n|---|---|---|---|---|---|---|---|---|---|\n",
            machine.text(),
            outages::MEGABITS
        );
        let mut missed: Vec<String> = failed
            .iter()
            .map(|what| format!("failed: {what}"))
            .collect();
        for (row, samples) in &rows {
            let verdict = judge(row, samples);
            text.push_str(&line(row, samples, verdict.is_none()));
            missed.extend(verdict);
        }
        for what in &missed {
            let _infallible = writeln!(text, "\n- missed: {what}");
        }
        Self {
            part: "matrix",
            text,
            missed,
        }
    }

    /// Of a long run.
    pub(crate) fn of_long_run(summary: &Summary, seed: u64) -> Self {
        let mut missed = summary.wrong.clone();
        let mut times: Vec<_> = summary.events.values().flatten().copied().collect();
        times.sort();
        let mut text = format!(
            "## A long run of random events\n\n{}\n{} events in {:.1} min, one every {:.1} s, \
             seed {seed}, the longest of {:.1} s; {} ms of RTT, {} Mbit/s. Four streams (two bulk, \
             two of 50 KiB/s), a connection of 256 KiB after the other, and small requests, all \
             through tund: {:.0} MiB arrived in streams, {} connections and {} requests were served, \
             the client daemon counted {} outages. A direct stream beside them lived for {:.1} s.\n\n\
             | event | times | first byte after it, median | 9 of 10 | worst |\n|---|---|---|---|---|\n",
            machine(),
            summary.count(),
            summary.lasted.as_secs_f64() / 60.0,
            summary.lasted.as_secs_f64()
                / f64::from(u32::try_from(summary.count()).unwrap_or(1).max(1)),
            summary.longest_event.as_secs_f64(),
            long_run::RTT.as_millis(),
            outages::MEGABITS,
            f64::from(u32::try_from(summary.bytes >> 10).unwrap_or(u32::MAX)) / 1024.0,
            summary.visits[0],
            summary.visits[1],
            summary.outages,
            summary.direct.as_secs_f64(),
        );
        for (event, times) in &summary.events {
            let mut times = times.clone();
            times.sort();
            let _infallible = writeln!(text, "| {event:?} | {} |", quantiles(&times));
        }
        let _infallible = writeln!(text, "| all | {} |", quantiles(&times));
        let lost = match missed.is_empty() {
            true => "Every byte of every flow arrived once and in order.".to_owned(),
            false => format!("**Wrong:** {}", missed.join("; ")),
        };
        let longest = seconds(summary.longest_silence);
        let _infallible = writeln!(
            text,
            "\n{lost} The longest silence of a slow stream, the event itself included, was {longest}."
        );
        if summary.count() == 0 {
            missed.push("nothing happened".to_owned());
        }
        Self {
            part: "long run",
            text,
            missed,
        }
    }

    /// As Markdown.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What is not as it should be.
    pub(crate) fn missed(&self) -> &[String] {
        &self.missed
    }

    /// Puts it into a page, in the place of what stood there in this part.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub(crate) fn write_into(&self, page: &Path) -> io::Result<()> {
        let (begin, end) = (
            format!("<!-- {} -->\n", self.part),
            format!("<!-- end of {} -->\n", self.part),
        );
        let old = match fs::read_to_string(page) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => INTRODUCTION.to_owned(),
            other => other?,
        };
        let (before, after) = match old.split_once(&begin) {
            Some((before, rest)) => (before, rest.split_once(&end).map_or("", |(_, rest)| rest)),
            None => (old.as_str(), ""),
        };
        let gap = if before.ends_with("\n\n") { "" } else { "\n" };
        fs::write(
            page,
            format!("{before}{gap}{begin}{}{end}{after}", self.text),
        )
    }
}

const INTRODUCTION: &str = "# Outages, measured\n\nWritten by the step `outages` of `scripts/test` \
    (a part each for the matrix and for the long run), with the real daemons in network \
    namespaces, links through an emulator where they have a round-trip time.\n\n";

/// What is wrong with a row.
fn judge(row: &Row, samples: &[Sample]) -> Option<String> {
    let name = format!("{}, {}, {} ms", row.what, row.way, row.rtt.as_millis());
    let errors: Vec<_> = samples
        .iter()
        .filter_map(|s| s.tund.as_ref().err())
        .collect();
    if let Some(first) = errors.first() {
        return Some(format!(
            "{name}: {} of {} runs: {first}",
            errors.len(),
            samples.len()
        ));
    }
    let (middle, last) = middle_and_last(samples.iter().filter_map(|s| s.tund.clone().ok()))?;
    match row.target {
        Target::Unharmed => None,
        Target::Within { median, worst } => (middle > median || last > worst).then(|| {
            format!(
                "{name}: {} median, {} worst, allowed {} and {}",
                seconds(middle),
                seconds(last),
                seconds(median),
                seconds(worst)
            )
        }),
    }
}

fn line(row: &Row, samples: &[Sample], is_met: bool) -> String {
    let good = samples.iter().filter_map(|s| s.tund.clone().ok());
    let [middle, last] = cells(middle_and_last(good));
    let target = match row.target {
        Target::Unharmed => "no harm".to_owned(),
        Target::Within { median, worst } => {
            format!("{} / {}", seconds(median), seconds(worst))
        }
    };
    let direct = samples.iter().filter_map(|sample| match sample.direct {
        Direct::Took(took) => Some(took),
        Direct::Silent(_) | Direct::Untried => None,
    });
    let mut direct_cells = cells(middle_and_last(direct));
    let silent = samples.iter().filter_map(|sample| match sample.direct {
        Direct::Silent(after) => Some(after),
        Direct::Took(_) | Direct::Untried => None,
    });
    if let Some(after) = silent.clone().max() {
        let dead = format!("none in {} s", after.as_secs());
        direct_cells[1].clone_from(&dead);
        if silent.count() * 2 > samples.len() {
            direct_cells[0] = dead;
        }
    }
    let [direct_middle, direct_last] = direct_cells;
    let verdict = if is_met { "met" } else { "**missed**" };
    format!(
        "| {} | {} | {} ms | {} | {middle} | {last} | {target} | {direct_middle} | {direct_last} \
         | {verdict} |\n",
        row.what,
        row.way,
        row.rtt.as_millis(),
        samples.len()
    )
}

fn cells(found: Option<(Duration, Duration)>) -> [String; 2] {
    let cell = |pick: fn((Duration, Duration)) -> Duration| {
        found.map_or_else(|| "–".to_owned(), |both| seconds(pick(both)))
    };
    [cell(|(middle, _)| middle), cell(|(_, last)| last)]
}

fn middle_and_last(times: impl Iterator<Item = Duration>) -> Option<(Duration, Duration)> {
    let mut times: Vec<_> = times.collect();
    times.sort();
    Some((*times.get(times.len() / 2)?, *times.last()?))
}

fn quantiles(sorted: &[Duration]) -> String {
    let at = |tenths: usize| {
        let place = sorted.len().saturating_sub(1) * tenths / 10;
        sorted
            .get(place)
            .map_or_else(|| "–".to_owned(), |time| seconds(*time))
    };
    format!("{} | {} | {} | {}", sorted.len(), at(5), at(9), at(10))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
