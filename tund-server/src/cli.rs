//! The command line of `tund-server`: what can be asked of it, and who does it.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tund_daemon::cli::{Keygen, Pubkey, WithConfig, ask, report_check, show};
use tund_daemon::control::{Page, ServerCommand, ServerStatus, SessionRow};
use tund_daemon::telemetry::{self, LogFormat};

use crate::config::{self, CONTROL_SOCKET};
use crate::{driver, status};

const EXAMPLES: &str = "\
Examples:
  tund-server keygen --out /etc/tund/server.key   make a key; give the line it prints to clients
  tund-server check --config /etc/tund/server.toml
  sudo tund-server run --config /etc/tund/server.toml
  tund-server sessions
  tund-server disconnect --client phone

Exit codes: 0 ok, 1 failed, 2 wrong usage, 77 a privilege is missing, 78 the configuration is wrong.";

/// Keeps the far ends of TCP connections alive while their clients change networks.
#[derive(Debug, Parser)]
#[command(name = "tund-server", version, after_help = EXAMPLES, max_term_width = 100)]
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
    /// List the sessions, one per line
    Sessions(Reading),
    /// End sessions from the server's side (root or the group tund-admin)
    #[command(long_about = DISCONNECT)]
    Disconnect(Disconnect),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: Shell,
    },
}

const RUN: &str = "\
Run the daemon in the foreground.

A port below 1024 needs CAP_NET_BIND_SERVICE (root has it). SIGTERM and SIGINT end it in order; \
SIGHUP reads [[client]], [origin] and [log] again: a client that is no longer listed loses its \
link and its sessions, the others keep theirs. Under systemd it tells when it serves (Type=notify).";

const DISCONNECT: &str = "\
End sessions from the server's side: their flows are reset on both ends.

A client that is listed may begin a new session at once; to keep it out, remove its [[client]] \
from the configuration and send SIGHUP.";

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
struct Disconnect {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    daemon: Talking,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The session, as `tund-server sessions` names it
    #[arg(value_parser = session_id)]
    session_id: Option<String>,
    /// All sessions of the client of this name
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
}

fn session_id(text: &str) -> Result<String, String> {
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a session id is 32 hexadecimal digits; see `tund-server sessions`".to_owned())
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
            let status: ServerStatus = ask(&daemon.control, &ServerCommand::Status)?;
            show(&status, status::text(&status), json)
        }
        Command::Sessions(Reading { daemon, json }) => {
            let rows = sessions(&daemon.control)?;
            show(&rows, status::session_table(&rows), json)
        }
        Command::Disconnect(Disconnect { which, daemon }) => {
            let command = match (which.session_id, which.client) {
                (Some(session_id), _) => ServerCommand::DisconnectSession { session_id },
                (None, name) => ServerCommand::DisconnectClient {
                    name: name.unwrap_or_default(),
                },
            };
            // That there was no session to end is what was wanted, too.
            let _ended: u64 = ask(&daemon.control, &command)?;
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tund-server", &mut script);
            tund_daemon::cli::print(&String::from_utf8_lossy(&script))
        }
    }
}

fn run(file: &Path, format: LogFormat) -> anyhow::Result<()> {
    let loaded = config::load(file)?;
    telemetry::start(loaded.config.log_level, format)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    driver::run(loaded.config, file.to_path_buf())
}

/// All sessions, page by page.
fn sessions(socket: &Path) -> anyhow::Result<Vec<SessionRow>> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let command = ServerCommand::Sessions {
            after: after.clone(),
        };
        let page: Page<SessionRow, String> = ask(socket, &command)?;
        rows.extend(page.rows);
        match page.next {
            // A page that does not advance would be asked for ever.
            Some(next) if Some(&next) > after.as_ref() => after = Some(next),
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
    fn disconnect_takes_a_session_or_a_client_and_not_both() {
        let id = "0123456789ABCDEF0123456789abcdef";
        let parse = |rest: &[&str]| {
            Cli::try_parse_from(["tund-server", "disconnect"].iter().chain(rest)).is_ok()
        };

        assert!(parse(&[id]));
        assert!(parse(&["--client", "phone"]));
        assert!(!parse(&[]));
        assert!(!parse(&[id, "--client", "phone"]));
        assert!(!parse(&["phone"]));
    }

    /// How the program would end; what it prints goes to the test's output.
    fn exit(arguments: &[&str]) -> Exit {
        let line = ["tund-server"].iter().chain(arguments);
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
        let manual = include_str!("../../docs/man/tund-server.8").replace('\\', "");
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

        let expected = [
            "keygen",
            "pubkey",
            "run",
            "check",
            "status",
            "sessions",
            "disconnect",
            "completions",
        ];
        assert_eq!(names, expected);
    }
}
