//! Speed of one bulk flow through tund beside a direct connection, pair by pair in one run; fails
//! below the ratio that is promised.
#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tund_tests::lab::{Family, Lab, Namespace, Settings, Tund, wait};

/// Port of the source and sink at the origin.
const PORT: u16 = 7100;
/// Bytes of one write or read of the applications.
const BLOCK_BYTES: usize = 256 * 1024;
/// Transfers warm up for so long before they are measured: windows grow.
const WARM_UP: Duration = Duration::from_millis(700);

/// What one bulk flow reaches at least of a direct connection's rate, both ways, encrypted.
const PROMISED_RATIO: f64 = 0.3;

/// Measures one bulk flow, tund beside direct; ends with 1 if a median is below what is promised.
#[derive(Parser)]
struct Arguments {
    /// Pairs of runs, at least 5: the median of fewer says little.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(5..))]
    pairs: u16,
    /// Seconds of each run.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// What the median ratio to the direct connection must be, each way.
    #[arg(long, default_value_t = PROMISED_RATIO)]
    require: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// Sends or takes bytes as the first one asks, until the other side ends.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut order = [0];
    stream.read_exact(&mut order)?;
    if order == *b"u" {
        while stream.read(&mut block)? > 0 {}
        return Ok(());
    }
    loop {
        stream.write_all(&block)?;
    }
}

/// Bits per second of one transfer, after its warm-up.
fn measure(client: &Namespace, to: SocketAddr, way: Way, length: Duration) -> io::Result<f64> {
    let mut stream = client.connect(to, Duration::from_secs(5))?;
    let mut block = vec![0; BLOCK_BYTES];
    stream.write_all(if way == Way::Up { b"u" } else { b"d" })?;
    let begin = wait::now();
    let mut counted = 0_u64;
    let mut from = begin;
    let mut is_warm = false;
    while from.elapsed() < length || !is_warm {
        let count = match way {
            Way::Up => stream.write(&block)?,
            Way::Down => stream.read(&mut block)?,
        };
        if is_warm {
            counted += u64::try_from(count).unwrap_or(0);
        } else if begin.elapsed() >= WARM_UP {
            is_warm = true;
            from = wait::now();
        }
    }
    let bits = counted.saturating_mul(8);
    #[expect(clippy::cast_precision_loss, reason = "a rate, to three digits")]
    Ok(bits as f64 / from.elapsed().as_secs_f64())
}

/// Binds the calling thread to one of the processors that this program may use: the application to
/// the first, the origin to the second, in direct runs and in those through tund alike.
fn pin(allowed: &[usize], place: usize) -> anyhow::Result<()> {
    let own = allowed.get(place).or_else(|| allowed.first());
    let mut set = CpuSet::new();
    set.set(*own.context("no processor is allowed")?)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot bind a thread to a processor")
}

/// The processors that this program may use.
fn allowed_processors() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let all = 0..CpuSet::count();
    Ok(all
        .filter(|place| set.is_set(*place).unwrap_or(false))
        .collect())
}

/// CPU seconds that a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields = after.split_ascii_whitespace().skip(11).take(2);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Row {
    direct: Vec<f64>,
    tund: Vec<f64>,
    ratio: Vec<f64>,
    cpu_per_gb: Vec<f64>,
}

/// What to say of a way whose median ratio is not what is required; none if it is.
fn shortfall(name: &str, ratios: &[f64], required: f64) -> Option<String> {
    let ratio = median(ratios.to_vec());
    // Whatever is not a number is no success either.
    let is_short = ratio
        .partial_cmp(&required)
        .is_none_or(std::cmp::Ordering::is_lt);
    is_short.then(|| {
        format!(
            "bench: {name}, tund reaches {ratio:.3} of the direct connection's rate (median of {}), \
             less than the {required} required",
            ratios.len()
        )
    })
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let length = Duration::from_secs_f64(arguments.seconds);
    let lab = Lab::new("bench");
    let tund = Tund::start(&lab, &Settings::new());
    let listener = lab.origin.listen(PORT);
    let allowed = allowed_processors()?;
    // The daemons were started before, and run where they like.
    pin(&allowed, 0)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let allowed = allowed.clone();
            thread::spawn(move || {
                pin(&allowed, 1)?;
                serve(stream).context("a transfer has ended")
            });
        }
    });
    let direct = lab.plain_origin_address(Family::V4, PORT);
    let through = lab.origin_address(Family::V4, PORT);
    let pids = [tund.client.process.pid(), tund.server.process.pid()];
    println!(
        "| one flow | direct Gbit/s | tund Gbit/s | ratio | pair by pair | daemons, CPU s/GB |"
    );
    println!("|---|---|---|---|---|---|");
    let mut shortfalls = Vec::new();
    for (name, way) in [("up", Way::Up), ("down", Way::Down)] {
        let mut row = Row {
            direct: vec![],
            tund: vec![],
            ratio: vec![],
            cpu_per_gb: vec![],
        };
        for _ in 0..arguments.pairs {
            let plain = measure(&lab.client, direct, way, length)?;
            let before: f64 = pids.iter().map(|pid| cpu_seconds(*pid)).sum();
            let began = wait::now();
            let ours = measure(&lab.client, through, way, length)?;
            let spent = pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>() - before;
            let gigabytes = ours / 8e9 * began.elapsed().as_secs_f64();
            row.direct.push(plain / 1e9);
            row.tund.push(ours / 1e9);
            row.ratio.push(ours / plain);
            row.cpu_per_gb.push(spent / gigabytes);
        }
        let pairs: Vec<_> = row
            .ratio
            .iter()
            .map(|ratio| format!("{ratio:.2}"))
            .collect();
        shortfalls.extend(shortfall(name, &row.ratio, arguments.require));
        println!(
            "| {name} | {:.1} | {:.1} | {:.2} | {} | {:.2} |",
            median(row.direct),
            median(row.tund),
            median(row.ratio),
            pairs.join(" "),
            median(row.cpu_per_gb)
        );
    }
    for sentence in &shortfalls {
        println!("{sentence}");
    }
    Ok(ExitCode::from(u8::from(!shortfalls.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_judged_at_the_limit_and_just_below() {
        let at = [0.9, 0.1, 0.3, 0.2, 0.4];
        assert_eq!(shortfall("up", &at, 0.3), None);

        let below = [0.9, 0.1, 0.299, 0.2, 0.4];
        let sentence = shortfall("up", &below, 0.3).expect("too slow");
        assert!(sentence.contains("up, tund reaches 0.299"), "{sentence}");
        assert!(shortfall("up", &[f64::NAN; 5], 0.3).is_some());
        assert!(shortfall("up", &[], 0.3).is_some());
    }
}
