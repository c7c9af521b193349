use std::error::Error;
use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use super::{LogConfig, LogFormat, LogLevel};

/// What changes the level while a process logs.
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// Logs at another level from now on.
    pub fn set(&self, level: LogLevel) {
        // An error means that nobody logs any more.
        let _ = self.0.reload(filter(level));
    }
}

/// Begins to log to stderr. Only the first call of a process counts.
pub fn init(config: &LogConfig) -> Level {
    let text = match config.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match text {
        true => layer.boxed(),
        false => layer.json().flatten_event(true).boxed(),
    };
    let (filter, level) = reload::Layer::new(filter(config.level));
    // A second call is a test's, which shares its process.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    Level(level)
}

/// Our own at the level asked for, libraries at `warn` whatever is asked: below it they log headers, and headers hold
/// tickets and keys.
pub fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("tidings", level)
}

/// An error and its causes on one line: the first alone often says no more than "error sending request".
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_held_at_warn_whatever_is_asked() {
        let filter = filter(LogLevel::Trace);
        for library in ["h2::codec", "hyper::proto", "tonic", "rustls", "reqwest"] {
            assert!(
                !filter.would_enable(library, &tracing::Level::INFO),
                "{library}"
            );
            assert!(
                filter.would_enable(library, &tracing::Level::WARN),
                "{library}"
            );
        }
        assert!(filter.would_enable("tidings::hub", &tracing::Level::TRACE));
    }

    #[test]
    fn a_header_that_a_library_traces_is_never_written() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .with_writer(move || writer.clone())
            .with_filter(filter(LogLevel::Trace));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "h2::codec::framed_read", "authorization: a-secret");
            tracing::debug!(target: "hyper::proto", "ticket=a-secret");
            tracing::info!(target: "tonic::transport", "a-secret");
            tracing::warn!(target: "h2", "a warning");
            tracing::trace!("our own");
        });
        let bytes = written.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("text");
        assert!(!text.contains("a-secret"), "{text}");
        assert!(
            text.contains("a warning") && text.contains("our own"),
            "{text}"
        );
    }

    #[derive(Clone, Default)]
    struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
