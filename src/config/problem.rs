//! What is wrong with a configuration, as sentences with the fix.

use super::file::{File, Step, dotted};
use super::keys::{self, Kind};
use super::load::Wrong;

/// What is wrong, as it is found: in the file by line, and then the rest.
pub(super) struct Problems<'a> {
    file: Option<&'a File>,
    in_file: Vec<(usize, String)>,
    others: Vec<String>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(file: Option<&'a File>, others: Vec<String>) -> Self {
        Self {
            file,
            in_file: Vec::new(),
            others,
        }
    }

    /// Keys that nobody reads; one may be told again and counts once.
    pub(super) fn unknown(&mut self, paths: &[Vec<Step>]) {
        for path in paths {
            self.at(path, &unknown_key(&dotted(path), None));
        }
    }

    pub(super) fn wrong(&mut self, wrong: &Wrong) {
        let problem = format!("`{}`: {}", dotted(&wrong.path), wrong_value(wrong));
        self.at(&wrong.path, &problem);
    }

    pub(super) fn of_override(&mut self, source: &str, problem: String) {
        self.others.push(format!("{source}: {problem}"));
    }

    fn at(&mut self, path: &[Step], problem: &str) {
        let told = match self.file {
            Some(file) => (file.line(path), format!("{}: {problem}", file.at(path))),
            None => (0, problem.to_owned()),
        };
        if !self.in_file.contains(&told) {
            self.in_file.push(told);
        }
    }

    /// # Errors
    /// All of them, a line each.
    pub(super) fn none(mut self) -> Result<(), String> {
        self.in_file.sort();
        let in_file = self.in_file.into_iter().map(|(_, problem)| problem);
        let all: Vec<String> = in_file.chain(self.others).collect();
        match all.is_empty() {
            true => Ok(()),
            false => Err(all.join("\n")),
        }
    }
}

/// A key that nobody reads. With the prefix of variables the hint is one.
pub(super) fn unknown_key(path: &str, variable: Option<&str>) -> String {
    let written = |key: &str| match variable {
        Some(prefix) => format!("{prefix}{}", key.to_ascii_uppercase().replace('.', "__")),
        None => format!("`{key}`"),
    };
    if let Some(key) = keys::nearest(path) {
        return format!("unknown key `{path}`; did you mean {}?", written(key));
    }
    let section = path.split('.').next().unwrap_or_default();
    match keys::of_section(section).as_slice() {
        [] => format!("unknown key `{path}`; docs/configuration.md lists the keys"),
        keys => format!("unknown key `{path}`; [{section}] has {}", keys.join(", ")),
    }
}

/// Why a variable or a flag cannot set a key, if it cannot.
pub(super) fn unsettable(path: &str, variable: Option<&str>) -> Option<String> {
    match keys::known().get(path) {
        // A list is set whole, as TOML.
        Some(Kind::Value(_) | Kind::List) => None,
        Some(Kind::InList(_)) => {
            let (list, _) = path.rsplit_once('.').unwrap_or((path, ""));
            Some(format!("[[{list}]] is a list; set it in the file"))
        }
        Some(Kind::Section) => {
            let keys = keys::of_section(path).join(", ");
            Some(format!(
                "[{path}] is a section; set one of its keys: {keys}"
            ))
        }
        None => Some(unknown_key(path, variable)),
    }
}

/// A value of a wrong type, in an operator's words rather than the deserializer's. A secret's value is not shown.
pub(super) fn wrong_value(wrong: &Wrong) -> String {
    let message = wrong.message.trim().replace('\n', ", ");
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("lacks the key {field}");
    }
    if keys::is_secret(&dotted(&wrong.path)) {
        return "is not a text; write it in quotes".into();
    }
    if let Some((variant, expected)) = message
        .strip_prefix("unknown variant ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        return match expected.strip_prefix("one of ") {
            Some(several) => format!("{variant} is not one of {several}"),
            None => format!("{variant} is not there: this version has {expected} alone"),
        };
    }
    if message.starts_with("invalid socket address") {
        return "is not an address and port; write it as in \"127.0.0.1:8080\"".into();
    }
    match message.rsplit_once(", expected ") {
        Some((found, expected)) => {
            let expected = match expected {
                "usize" | "u16" | "u32" | "u64" => "a whole number from 0 on",
                "a boolean" => "true or false",
                "a string" | "path string" => "a text in quotes",
                "socket address" => "an address and port, as in \"127.0.0.1:8080\"",
                "a sequence" => "a list, as in [\"…\"]",
                other if other.starts_with("struct ") => "a section",
                other => other,
            };
            let found = found.replace("type: map", "type: section");
            format!("{found}; write {expected}")
        }
        None => message,
    }
}
