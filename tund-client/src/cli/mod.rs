//! The command line of `tund-client`: what can be asked of it, and who does it.

mod spool;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tund_daemon::cli::{Keygen, Pubkey, WithConfig, ask, report_check, show};
use tund_daemon::control::{ClientCommand, ClientStatus, EndedFlowRow, FlowRow, Page};
use tund_daemon::lifecycle::Capability;
use tund_daemon::telemetry::{self, LogFormat};

use crate::config::{self, CONTROL_SOCKET};
use crate::{driver, status};

const EXAMPLES: &str = "\
Examples:
  tund-client keygen --out /etc/tund/client.key   make a key; give the line it prints to the server
  tund-client check --config /etc/tund/client.toml
  sudo tund-client run --config /etc/tund/client.toml
  ip route add 192.0.2.0/24 dev tund0             steer a network through tund
  tund-client status
  tund-client status --json | jq .state

Exit codes: 0 ok, 1 failed, 2 wrong usage, 77 a privilege is missing, 78 the configuration is wrong.";

/// Keeps TCP connections alive while the network changes underneath.
#[derive(Debug, Parser)]
#[command(name = "tund-client", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The same as after `run`
    #[arg(long, value_enum, value_name = "FORMAT", hide = true)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a private key, and print its public key
    Keygen(Keygen),
    /// Print the public key of a private key file
    Pubkey(Pubkey),
    /// Run the daemon in the foreground
    #[command(long_about = RUN)]
    Run(Run),
    /// Validate a configuration: 0, or 78 with file, line, key and reason
    Check(WithConfig),
    /// Show what the daemon is doing
    Status(Reading),
    /// List the flows, one per line (root or the group tund-admin)
    Flows(Flows),
    /// End the session and all its flows; a new session begins with the next flow
    Disconnect(Talking),
    /// Drop the links and dial again now; flows survive
    Reconnect(Talking),
    /// What waits for delivery after an outage that outlasted its grace (root or tund-admin)
    #[command(subcommand)]
    Spool(spool::Spool),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: Shell,
    },
}

const RUN: &str = "\
Run the daemon in the foreground.

It needs CAP_NET_ADMIN (root has it). SIGTERM and SIGINT end it in order; SIGHUP reads the \
configuration again and takes over what can change without touching flows. Under systemd it tells \
when it serves (Type=notify).";

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    file: WithConfig,
    /// How log lines look; their level is that of the configuration, or RUST_LOG
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
struct Talking {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    control: PathBuf,
}

#[derive(Debug, Args)]
struct Reading {
    #[command(flatten)]
    daemon: Talking,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Flows {
    #[command(flatten)]
    reading: Reading,
    /// List the last flows that are over: how, by whom, what they carried, lost and left stored
    #[arg(long)]
    ended: bool,
}

/// Does what the command line says.
pub(crate) fn execute() -> anyhow::Result<()> {
    dispatch(Cli::parse())
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Keygen(arguments) => arguments.execute(),
        Command::Pubkey(arguments) => arguments.execute(),
        Command::Run(Run {
            file: WithConfig { config },
            log_format,
        }) => run(&config, log_format.or(cli.log_format).unwrap_or_default()),
        Command::Check(WithConfig { config: file }) => {
            let loaded = config::load(&file)?;
            report_check(&file, &loaded.warnings)
        }
        Command::Status(Reading { daemon, json }) => {
            let status: ClientStatus = ask(&daemon.control, &ClientCommand::Status)?;
            show(&status, status::text(&status), json)
        }
        Command::Flows(Flows { reading, ended }) => {
            let socket = &reading.daemon.control;
            if ended {
                let rows: Vec<EndedFlowRow> = ask(socket, &ClientCommand::EndedFlows)?;
                show(&rows, status::ended_table(&rows), reading.json)
            } else {
                let rows = flows(socket)?;
                show(&rows, status::flow_table(&rows), reading.json)
            }
        }
        Command::Disconnect(daemon) => ask(&daemon.control, &ClientCommand::Disconnect),
        Command::Reconnect(daemon) => ask(&daemon.control, &ClientCommand::Reconnect),
        Command::Spool(command) => spool::execute(command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tund-client", &mut script);
            tund_daemon::cli::print(&String::from_utf8_lossy(&script))
        }
    }
}

fn run(file: &Path, format: LogFormat) -> anyhow::Result<()> {
    // Before the configuration: without it the key is closed to us too, and that is not the mistake.
    Capability::NetAdmin.require("to open the TUN device and to bind link sockets")?;
    let loaded = config::load(file)?;
    telemetry::start(loaded.config.log_level, format)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    driver::run(loaded.config, file.to_path_buf())
}

/// All flows, page by page.
fn flows(socket: &Path) -> anyhow::Result<Vec<FlowRow>> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page: Page<FlowRow, u64> = ask(socket, &ClientCommand::Flows { after })?;
        rows.extend(page.rows);
        match page.next {
            // A page that does not advance would be asked for ever.
            Some(next) if Some(next) > after => after = Some(next),
            Some(_) | None => return Ok(rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use tund_daemon::lifecycle::{Exit, exit_of};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_log_format_may_stand_before_and_after_the_command() {
        for line in [
            [
                "tund-client",
                "--log-format",
                "json",
                "run",
                "--config",
                "x",
            ],
            [
                "tund-client",
                "run",
                "--config",
                "x",
                "--log-format",
                "json",
            ],
        ] {
            let cli = Cli::try_parse_from(line).expect("understood");
            let Command::Run(run) = cli.command else {
                panic!("another command");
            };
            assert_eq!(run.log_format.or(cli.log_format), Some(LogFormat::Json));
        }
    }

    /// How the program would end; what it prints goes to the test's output.
    fn exit(arguments: &[&str]) -> Exit {
        let line = ["tund-client"].iter().chain(arguments);
        let result = dispatch(Cli::try_parse_from(line).expect("understood"));
        result.err().map_or(Exit::Ok, |error| exit_of(&error))
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (key, config) = (path("key"), path("config.toml"));

        assert_eq!(exit(&["keygen", "--out", &key]), Exit::Ok);
        assert_eq!(exit(&["keygen", "--out", &key]), Exit::Failed);
        assert_eq!(exit(&["keygen", "--out", &key, "--force"]), Exit::Ok);
        assert_eq!(exit(&["pubkey", &key]), Exit::Ok);
        assert_eq!(exit(&["pubkey", &config]), Exit::Failed);
        assert_eq!(exit(&["check", "--config", &config]), Exit::Configuration);
        assert_eq!(exit(&["run", "--config", &config]), Exit::Configuration);
        assert_eq!(
            exit(&["status", "--control", &path("socket")]),
            Exit::Failed
        );
    }

    #[test]
    fn the_manual_names_every_command_and_option() {
        let manual = include_str!("../../../docs/man/tund-client.8").replace('\\', "");
        for command in Cli::command().get_subcommands() {
            assert!(
                manual.contains(&format!(".B {}", command.get_name())),
                "{command}"
            );
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(manual.contains(&format!("--{long}")), "{command} --{long}");
            }
        }
    }

    #[test]
    fn only_what_works_is_listed() {
        let names: Vec<String> = Cli::command()
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect();

        assert_eq!(
            names,
            [
                "keygen",
                "pubkey",
                "run",
                "check",
                "status",
                "flows",
                "disconnect",
                "reconnect",
                "spool",
                "completions"
            ]
        );
    }
}
