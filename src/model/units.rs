//! Durations as `"30s"` and sizes as `"64KiB"` in the configuration and in JSON.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, Serializer};

/// Parses `"1m 30s"`, `"250ms"`, `"0s"`. A bare number has no unit and is refused.
///
/// # Errors
/// A sentence with the fix.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|_| {
        format!("{text:?} is not a duration; write a number and a unit, as in \"30s\", \"250ms\" or \"1m 30s\"")
    })
}

/// Parses `"64KiB"`, `"1MiB"`, `"512B"`. A bare number has no unit and is refused.
///
/// # Errors
/// A sentence with the fix.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let fix = || {
        format!(
            "{text:?} is not a size; write a number and a unit, as in \"64KiB\", \"1MiB\" or \"512B\""
        )
    };
    if !text.trim().ends_with(['B', 'b']) {
        return Err(fix());
    }
    text.trim()
        .parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| fix())
}

/// A number where a text with a unit belongs is told so.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(f64),
}

impl Written {
    fn read<T>(
        self,
        kind: &str,
        example: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        match self {
            Self::Text(text) => parse(&text),
            Self::Number(n) => Err(format!(
                "{n} has no unit; write a {kind} as a text with a unit, as in \"{example}\""
            )),
        }
    }
}

/// For `#[serde(with = "units::duration")]`.
pub mod duration {
    use super::*;

    /// Reads `"30s"`.
    ///
    /// # Errors
    /// A sentence with the fix.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Written::deserialize(from)?
            .read("duration", "30s", parse_duration)
            .map_err(serde::de::Error::custom)
    }

    /// Writes `"30s"`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*duration))
    }
}

/// For `#[serde(with = "units::size")]` on a `usize` of bytes.
pub mod size {
    use super::*;

    /// Reads `"64KiB"`.
    ///
    /// # Errors
    /// A sentence with the fix.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        let bytes = Written::deserialize(from)?
            .read("size", "64KiB", parse_size)
            .map_err(serde::de::Error::custom)?;
        usize::try_from(bytes).map_err(serde::de::Error::custom)
    }

    /// Writes `"64KiB"`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &usize, to: S) -> Result<S::Ok, S::Error> {
        const UNITS: [(usize, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS
            .iter()
            .find(|(unit, _)| *bytes > 0 && bytes.is_multiple_of(*unit))
        {
            Some((unit, name)) => to.collect_str(&format_args!("{}{name}", bytes / unit)),
            None => to.collect_str(&format_args!("{bytes}B")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_required_and_the_error_shows_one() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert!(parse_duration("30").is_err_and(|e| e.contains("\"30s\"")));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert!(parse_size("64").is_err_and(|e| e.contains("\"64KiB\"")));
        assert!(parse_size("64 furlongs").is_err());
    }
}
