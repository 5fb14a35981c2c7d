//! A lab with both daemons and the servers that some checks need, and the running of those checks.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tund_tests::lab::{Family, Lab, Process, Settings, TUN, Tund, address, wait};

use super::check::{Check, Way};
use super::program::{self, Program, Variables};
use super::table;
use crate::support::{LATER, SOON};

/// The access links' rate: what moves 12 MB lasts for more than a second, and so has a middle.
const MEGABITS: u32 = 80;
/// Nobody has this address in the origin's network; it is steered through tund.
const NOBODY: u8 = 9;
/// Nobody has this one either; it is not steered.
const PLAIN_NOBODY: u8 = 8;

/// A server as Debian has it, in the origin's namespace.
#[derive(Debug)]
pub(super) struct Server {
    /// Of its process.
    pub(super) title: &'static str,
    /// Writes what it needs into the directory of servers, `$DIR`.
    pub(super) prepare: &'static str,
    /// Becomes it, in the foreground.
    pub(super) run: &'static str,
    /// Where it listens.
    pub(super) port: Port,
    /// What is to be done once it listens.
    pub(super) then: &'static str,
}

/// A port of the origin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Port {
    Tcp(u16),
    Udp(u16),
}

/// Runs checks one after the other in one lab; panics at the end if a program ended otherwise than
/// directly, any way.
#[track_caller]
pub(super) fn run(title: &str, servers: &[&Server], checks: &[Check]) {
    run_beside(title, servers, checks, |_| ());
}

/// As [`run`], with what `more` starts in the lab.
#[track_caller]
pub(super) fn run_beside(
    title: &str,
    servers: &[&Server],
    checks: &[Check],
    more: impl FnOnce(&Lab),
) {
    let mut stage = Stage::build(title, servers);
    more(&stage.lab);
    let mut wrong = Vec::new();
    for (number, check) in checks.iter().enumerate() {
        let ways = check.four_ways(&mut stage);
        table::add(title, number, check, &ways);
        let failed = ways
            .into_iter()
            .filter_map(|(way, ended)| Some((way, ended.err()?)));
        wrong.extend(failed.map(|(way, why)| format!("{}: {way}: {why}", check.title)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where checks are run.
#[derive(Debug)]
pub(super) struct Stage {
    tund: Tund,
    runs: u32,
    servers: Vec<Process>,
    /// Below all that runs in it: fields are dropped in order.
    pub(super) lab: Lab,
}

impl Stage {
    /// Builds the lab, and starts servers and daemons.
    #[track_caller]
    fn build(title: &str, servers: &[&Server]) -> Self {
        let lab = Lab::new(title);
        lab.limit_rate(MEGABITS);
        // Who is told "unreachable" too often must be told again, or checks depend on their order.
        lab.origin.sysctl("ipv4.icmp_ratelimit", "0");
        lab.server.sysctl("ipv4.icmp_ratelimit", "0");
        let tund = Tund::start(&lab, &Settings::new());
        let nobody = address(Family::V4, 4, NOBODY);
        lab.client
            .run(&format!("ip route replace {nobody} dev {TUN}"));
        let mut stage = Self {
            tund,
            runs: 0,
            servers: Vec::new(),
            lab,
        };
        fs::create_dir_all(stage.directory()).expect("a directory of the lab");
        for server in servers {
            stage.serve(server);
        }
        stage
    }

    /// Starts a server and waits until it listens.
    #[track_caller]
    fn serve(&mut self, server: &Server) {
        let directory = self.directory();
        let variables = self.variables(Way::Direct);
        let prepare = |text| {
            program::look(&self.lab.origin, text, &directory, &variables)
                .unwrap_or_else(|failure| panic!("{}: {failure}", server.title))
        };
        prepare(server.prepare);
        let mut command = program::script(server.run, &directory, &variables);
        let mut process = Process::start(
            &self.lab.origin,
            self.lab.directory(),
            server.title,
            &mut command,
        );
        wait::until_true(&format!("{} listens", server.title), LATER, || {
            assert!(process.is_running(), "{}: {}", server.title, process.log());
            let (command, port) = match server.port {
                Port::Tcp(port) => ("ss -Htln", port),
                Port::Udp(port) => ("ss -Huln", port),
            };
            let listing = self.lab.origin.run(command);
            listing.contains(&format!(":{port} "))
        });
        prepare(server.then);
        self.servers.push(process);
    }

    /// Where servers have their files.
    fn directory(&self) -> PathBuf {
        self.lab.directory().join("servers")
    }

    /// What scripts know: `TO`, `TO6` the origin, `NOBODY` an address of nobody, all of them this
    /// way; `PLAIN` the origin past tund, `STEERED` through it; `DIR` the servers' files; `WAY`; and
    /// `LASTS`, for how many seconds a program is to go on that is told so.
    fn variables(&self, way: Way) -> Variables {
        let steered = self.lab.origin_address(Family::V4, 0).ip();
        let plain = self.lab.plain_origin_address(Family::V4, 0).ip();
        let (to, to6, nobody) = match way {
            Way::Direct => (
                plain,
                self.lab.plain_origin_address(Family::V6, 0).ip(),
                address(Family::V4, 4, PLAIN_NOBODY),
            ),
            Way::Tund | Way::Cut | Way::Switched => (
                steered,
                self.lab.origin_address(Family::V6, 0).ip(),
                address(Family::V4, 4, NOBODY),
            ),
        };
        vec![
            ("TO", to.to_string()),
            ("TO6", to6.to_string()),
            ("NOBODY", nobody.to_string()),
            ("PLAIN", plain.to_string()),
            ("STEERED", steered.to_string()),
            ("DIR", self.directory().display().to_string()),
            ("WAY", way.to_string()),
            ("LASTS", way.seconds().to_string()),
        ]
    }

    /// Starts a program in a directory of its own.
    #[track_caller]
    pub(super) fn start(&mut self, text: &str, way: Way) -> Program {
        self.runs += 1;
        let directory = self.lab.directory().join(format!("run-{}", self.runs));
        Program::start(&self.lab.client, text, &directory, self.variables(way))
    }

    /// Bytes that have passed the TUN device, both ways.
    pub(super) fn carried(&self) -> u64 {
        let path = "/proc/thread-self/net/dev";
        let text = self.lab.client.enter(|| fs::read_to_string(path));
        let text = text.expect("the kernel tells of devices");
        let is_tun = |line: &&str| line.trim_start().starts_with(&format!("{TUN}:"));
        let line = text.lines().find(is_tun).expect("the client's TUN device");
        let numbers: Vec<u64> = line
            .split_ascii_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // Of what is received, then of what is sent: bytes, and seven numbers more.
        numbers[0] + numbers[8]
    }

    /// How many outages the client daemon has survived.
    pub(super) fn outages(&self) -> u64 {
        self.tund.client.status().outages.count
    }

    /// Waits until the session is attached again, after a cut with an outage counted; gives how
    /// many there were since `before`.
    pub(super) fn settle(&self, before: u64, way: Way) -> Result<u64, String> {
        if way == Way::Direct {
            return Ok(0);
        }
        let start = wait::now();
        loop {
            let status = self.tund.client.status();
            let counted = status.outages.count - before;
            if status.state == "attached" && (way != Way::Cut || counted > 0) {
                return Ok(counted);
            }
            if wait::now() - start > SOON {
                return Err(format!("{}, {counted} outages counted", status.state));
            }
            wait::let_pass(Duration::from_millis(5));
        }
    }

    /// Writes a line of the transcript.
    pub(super) fn narrate(&self, line: &str) {
        tund_tests::lab::narrate("battery", line);
    }
}
