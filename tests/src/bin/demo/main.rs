//! The main job, shown: real downloads, uploads and a clone, through tund and directly, while the
//! network is cut and switched underneath. `scripts/demo` builds and runs it.

mod origin;
mod plot;
mod table;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tund_tests::lab::{Lab, Settings, Tund, require_root, wait};

use origin::{Material, WebServer};
use transfer::{Kind, Outcome, Path, Transfer};

/// The rate of both access links, each way; slow enough that every transfer meets every event.
const MEGABITS: u32 = 200;

/// How long transfers run before the first event, and between the two.
const UNDISTURBED: Duration = Duration::from_secs(3);

/// The length of the silent cut.
const CUT: Duration = Duration::from_secs(10);

/// How long a direct transfer may be silent, with the network back, until it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is transferred each way.
const KINDS: [Kind; 3] = [Kind::Download, Kind::Upload, Kind::Clone];

/// Events that no link outlives: the cut with what is forgotten, and the switch.
const EVENTS: u64 = 2;

/// How long everything may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Transfers real files through tund and directly while the network fails, and compares.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Arguments {
    /// Where the plot is written.
    #[arg(long, default_value = "target/demo/transfers.svg")]
    plot: PathBuf,

    /// Transfer directly only, to see what the network does to plain TCP.
    #[arg(long)]
    direct_only: bool,
}

/// The moments that table and plot refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) start: Instant,
    pub(crate) cut: Instant,
    pub(crate) healed: Instant,
    pub(crate) switched: Instant,
    pub(crate) end: Instant,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    require_root();
    let (outcomes, moments, outages) = perform(arguments.direct_only);
    table::print(&outcomes, moments);
    let svg = plot::draw(&outcomes, moments);
    match write_plot(&arguments.plot, &svg) {
        Ok(()) => table::say(&format!("plot: {}", arguments.plot.display())),
        Err(cause) => table::say(&format!("no plot: {}: {cause}", arguments.plot.display())),
    }
    if arguments.direct_only {
        return ExitCode::SUCCESS;
    }
    if let Some(failure) = failure(&outcomes, outages) {
        table::say(failure);
        return ExitCode::FAILURE;
    }
    table::say("every transfer through tund finished and is intact");
    ExitCode::SUCCESS
}

/// What is wrong with what was to be shown.
fn failure(outcomes: &[Outcome], outages: u64) -> Option<&'static str> {
    let through_tund = || outcomes.iter().filter(|of| of.path == Path::Tund);
    let made = |kind| through_tund().any(|outcome| outcome.kind == kind);
    if !KINDS.into_iter().all(made) {
        return Some("not every transfer through tund was made");
    }
    if !through_tund().all(Outcome::is_intact) {
        return Some("a transfer through tund did not arrive: see the table");
    }
    (outages < EVENTS).then_some(
        "the session met fewer outages than the network had: this run shows nothing of them",
    )
}

fn write_plot(path: &std::path::Path, svg: &str) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, svg)
}

/// Builds the scene, lets everything happen, and gives what came of each transfer, and how many
/// outages the session survived.
fn perform(direct_only: bool) -> (Vec<Outcome>, Moments, u64) {
    table::say("building the lab: client - two access links - router - server - origin");
    let mut lab = Lab::new("the demo");
    table::say("making files and a repository");
    let material = Material::new(lab.directory());
    let web = WebServer::start(&lab, &material);
    let tund = (!direct_only).then(|| Tund::start(&lab, &Settings::new()));
    lab.limit_rate(MEGABITS);

    let start = wait::now();
    table::say(&format!(
        "download, upload and clone begin, each through tund and directly, at {MEGABITS} Mbit/s"
    ));
    let through = |path| !direct_only || path == Path::Direct;
    let mut transfers = Vec::new();
    for path in [Path::Tund, Path::Direct]
        .into_iter()
        .filter(|&path| through(path))
    {
        for kind in KINDS {
            transfers.push(Transfer::start(&lab, &web, &material, kind, path));
        }
    }
    let mut moments = disturb(&mut lab, start);
    wait_for_the_end(&mut transfers, moments.switched);
    moments.end = wait::now();
    let outages = tund.map_or(0, |tund| tund.client.status().outages.count);
    table::say(&format!(
        "{:4.1} s: over; the session survived {outages} outages",
        since(start)
    ));
    let outcomes = transfers
        .into_iter()
        .map(|transfer| transfer.judge(&material))
        .collect();
    (outcomes, moments, outages)
}

/// The two events.
fn disturb(lab: &mut Lab, start: Instant) -> Moments {
    wait::let_pass(UNDISTURBED);
    let cut = wait::now();
    table::say(&format!(
        "{:4.1} s: silent cut of {} s",
        since(start),
        CUT.as_secs()
    ));
    lab.cut();
    let forgotten = lab.forget();
    wait::let_pass(CUT);
    lab.heal();
    let healed = wait::now();
    table::say(&format!(
        "{:4.1} s: the network is back, but has forgotten {forgotten} connections",
        since(start)
    ));
    wait::let_pass(UNDISTURBED);
    lab.switch();
    let switched = wait::now();
    table::say(&format!(
        "{:4.1} s: the client moves to its other access link",
        since(start)
    ));
    Moments {
        start,
        cut,
        healed,
        switched,
        end: switched,
    }
}

/// Waits until those through tund have ended, and the direct ones too or have long been silent.
fn wait_for_the_end(transfers: &mut [Transfer], back: Instant) {
    let start = wait::now();
    while wait::now() - start < LIMIT {
        let waiting = transfers.iter_mut().any(|transfer| {
            let hopeless = transfer.path == Path::Direct && transfer.is_silent(back, PATIENCE);
            !transfer.has_ended() && !hopeless
        });
        if !waiting {
            return;
        }
        wait::let_pass(Duration::from_millis(50));
    }
}

fn since(start: Instant) -> f64 {
    (wait::now() - start).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use tund_tests::lab::Timeline;

    use super::*;

    fn outcomes(same: bool) -> Vec<Outcome> {
        let outcome = |kind| Outcome {
            kind,
            path: Path::Tund,
            timeline: Timeline::new(),
            status: Some(ExitStatus::from_raw(0)),
            same,
        };
        KINDS.map(outcome).into()
    }

    #[test]
    fn only_whole_transfers_through_real_outages_are_a_success() {
        assert_eq!(failure(&outcomes(true), EVENTS), None);

        assert!(failure(&[], EVENTS).is_some());
        assert!(failure(&outcomes(true)[1..], EVENTS).is_some());
        assert!(failure(&outcomes(false), EVENTS).is_some());
        assert!(failure(&outcomes(true), EVENTS - 1).is_some());
    }

    #[test]
    fn direct_transfers_do_not_stand_for_those_through_tund() {
        let mut direct = outcomes(true);
        direct[0].path = Path::Direct;

        assert!(failure(&direct, EVENTS).is_some());
    }
}
