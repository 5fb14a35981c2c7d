//! Logging: to stderr, as text or JSON, with a level that a reload changes.

mod journal;
mod redacted;
mod tally;

use std::env;
use std::io;
use std::sync::OnceLock;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

pub use redacted::Redacted;
pub use tally::{Summary, Tally};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text each; without time where the journal adds it.
    #[default]
    Text,
    /// One JSON object each.
    Json,
}

/// The `[log] level` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What is broken.
    Error,
    /// What is odd and works.
    Warn,
    /// What a user notices.
    Info,
    /// Every decision; addresses of applications are shown from here on.
    Debug,
    /// Every packet.
    Trace,
}

impl LogLevel {
    /// The names in a configuration file.
    pub const CHOICES: [(&'static str, Self); 6] = [
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// The filter of this level: ours as asked, other people's libraries at most at `warn`.
    const fn directives(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "warn,tund=info",
            Self::Debug => "warn,tund=debug",
            Self::Trace => "warn,tund=trace",
        }
    }
}

/// What changes the level of the running log; empty while `RUST_LOG` decides.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the whole process; `RUST_LOG` wins over `level`.
///
/// # Errors
///
/// `RUST_LOG` is not a filter, or the process logs already.
pub fn start(level: LogLevel, format: LogFormat) -> anyhow::Result<()> {
    let from_env = env::var("RUST_LOG")
        .ok()
        .filter(|directives| !directives.is_empty());
    let filter = match &from_env {
        Some(directives) => EnvFilter::try_new(directives).with_context(|| {
            format!(
                "RUST_LOG={directives:?} is not a filter; write a level like \"debug\" or \
                 \"warn,tund_session=trace\", or unset it"
            )
        })?,
        None => EnvFilter::new(level.directives()),
    };
    let (filter, handle) = reload::Layer::new(filter);
    tracing_subscriber::registry()
        .with(filter)
        .with(output(format))
        .try_init()
        .context("logging was started twice")?;
    if from_env.is_none() {
        // Cannot be set already: `try_init` succeeds once in a process.
        drop(LEVEL.set(handle));
    }
    Ok(())
}

/// Changes the level of the running log, unless `RUST_LOG` decides.
pub fn set_level(level: LogLevel) {
    let Some(handle) = LEVEL.get() else {
        return;
    };
    if let Err(error) = handle.reload(EnvFilter::new(level.directives())) {
        tracing::error!(%error, "the log level cannot be changed");
    }
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;

fn output(format: LogFormat) -> Box<dyn Layer<Filtered> + Send + Sync> {
    let layer = fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Json => layer.json().boxed(),
        LogFormat::Text if journal::is_stderr() => layer
            .with_ansi(false)
            .without_time()
            .map_event_format(journal::WithPriority::new)
            .boxed(),
        LogFormat::Text => {
            let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
            layer
                .with_ansi(is_terminal && env::var_os("NO_COLOR").is_none())
                .boxed()
        }
    }
}
