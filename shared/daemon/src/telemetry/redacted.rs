//! What may be logged about an application only when somebody asked for details.

use std::fmt;

use tracing::level_filters::LevelFilter;

/// An address, port or name of an application: shown only while DEBUG is logged at all.
///
/// Wrap it where the value enters a log line. It guards against a line above DEBUG that names
/// whom somebody talks to; whoever turns DEBUG on sees all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Redacted<T>(pub T);

/// What stands in place of a value that is not shown.
const HIDDEN: &str = "[…]";

impl<T: fmt::Display> fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_shown(LevelFilter::current()) {
            self.0.fmt(f)
        } else {
            f.write_str(HIDDEN)
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_shown(LevelFilter::current()) {
            self.0.fmt(f)
        } else {
            f.write_str(HIDDEN)
        }
    }
}

fn is_shown(most_verbose: LevelFilter) -> bool {
    most_verbose >= LevelFilter::DEBUG
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{EnvFilter, reload};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut lines = self.0.lock().map_err(|_| io::Error::other("poisoned"))?;
            lines.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn an_address_shows_only_after_a_reload_to_debug() {
        let lines = Lines::default();
        let (filter, handle) = reload::Layer::new(EnvFilter::new("info"));
        let output = tracing_subscriber::fmt::layer()
            .with_writer(lines.clone())
            .with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(filter).with(output);

        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(origin = %Redacted("192.0.2.1"), debug = ?Redacted("x.example"), "one");
            handle.reload(EnvFilter::new("debug")).expect("reloaded");
            tracing::info!(origin = %Redacted("192.0.2.2"), "two");
        });

        let bytes = lines.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.contains("origin=[…] debug=[…]"), "{text}");
        assert!(
            !text.contains("192.0.2.1") && !text.contains("x.example"),
            "{text}"
        );
        assert!(text.contains("origin=192.0.2.2"), "{text}");
    }
}
