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
    let (outcomes, moments) = perform(arguments.direct_only);
    table::print(&outcomes, moments);
    let svg = plot::draw(&outcomes, moments);
    match write_plot(&arguments.plot, &svg) {
        Ok(()) => table::say(&format!("plot: {}", arguments.plot.display())),
        Err(cause) => table::say(&format!("no plot: {}: {cause}", arguments.plot.display())),
    }
    if arguments.direct_only {
        return ExitCode::SUCCESS;
    }
    let intact = outcomes
        .iter()
        .filter(|outcome| outcome.path == Path::Tund)
        .all(Outcome::is_intact);
    if intact {
        table::say("every transfer through tund finished and is intact");
        ExitCode::SUCCESS
    } else {
        table::say("a transfer through tund did not arrive: see the table");
        ExitCode::FAILURE
    }
}

fn write_plot(path: &std::path::Path, svg: &str) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, svg)
}

/// Builds the scene, lets everything happen, and gives what came of each transfer.
fn perform(direct_only: bool) -> (Vec<Outcome>, Moments) {
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
        for kind in [Kind::Download, Kind::Upload, Kind::Clone] {
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
    (outcomes, moments)
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
