use std::io::IsTerminal as _;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::{LogConfig, LogFormat, LogLevel};

/// Begins to log to stderr. Only the first call of a process counts.
pub fn init(config: &LogConfig) {
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
    // A second call is a test's, which shares its process.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter(config.level)))
        .try_init();
}

/// Our own at the level asked for, libraries at `warn` whatever is asked: below it they log headers, and headers hold
/// tickets and keys.
pub fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("tidings", level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_held_at_warn_whatever_is_asked() {
        let filter = filter(LogLevel::Trace);
        for library in ["h2::codec", "hyper::proto", "tonic", "rustls", "reqwest"] {
            assert!(!filter.would_enable(library, &Level::INFO), "{library}");
            assert!(filter.would_enable(library, &Level::WARN), "{library}");
        }
        assert!(filter.would_enable("tidings::hub", &Level::TRACE));
    }
}
