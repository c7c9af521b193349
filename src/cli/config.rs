use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;

use super::exit::{Failure, say};
use crate::config::{Config, Mode, Sources, load};
use crate::model::sha256;

/// The commented sample.
const SAMPLE: &str = include_str!("../../tidings.toml");

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Checks a file, as `serve` would.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Overrides one key.
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Prints a commented file to begin with.
    Default,
    /// Prints the configuration as it takes effect, secrets as ***.
    Show {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Overrides one key.
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Makes an API key and the block for the file. The key is shown once.
    Key {
        /// Its name.
        #[arg(long, default_value = "orders")]
        name: String,
    },
}

pub(super) fn run(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { config, sets } => {
            let shown = config.display().to_string();
            let sources = Sources::of_process(Some(config), sets).map_err(Failure::usage)?;
            let loaded = load(&Config::default(), &sources).map_err(Failure::usage)?;
            loaded.check(Mode::Production).map_err(|problems| {
                let lines = problems.lines().map(|line| format!("{shown}: {line}"));
                Failure::usage(lines.collect::<Vec<_>>().join("\n"))
            })?;
            say(&format!("{shown} is fine"))
        }
        ConfigCommand::Default => say(SAMPLE.trim_end()),
        ConfigCommand::Show { config, sets } => {
            let sources = Sources::of_process(config, sets).map_err(Failure::usage)?;
            let loaded = load(&Config::default(), &sources).map_err(Failure::usage)?;
            let text = toml::to_string(&loaded).map_err(|e| Failure::failed(e.to_string()))?;
            say(text.trim_end())
        }
        ConfigCommand::Key { name } => {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes)
                .map_err(|e| Failure::failed(format!("no random bytes: {e}")))?;
            let key = format!("tk_{}", URL_SAFE_NO_PAD.encode(bytes));
            let hash: String = sha256(key.as_bytes())
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let name = toml::Value::from(name);
            say(&format!(
                "# The key, for the service: it is not shown again.\n# {key}\n\n\
                 [[api_keys]]\nname = {name}\nsha256 = \"{hash}\"\nscopes = [\"push\", \"ticket\"]"
            ))
        }
    }
}
