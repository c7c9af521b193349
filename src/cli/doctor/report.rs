use std::io::IsTerminal as _;
use std::time::Duration;

use serde::Serialize;

use crate::cli::exit::{Failure, say};

/// How good what was found is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// It could not be looked at.
    Skipped,
    /// It works, and may not for long.
    Warn,
    Fail,
}

/// What one check found.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) level: Level,
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) advice: Vec<String>,
    /// With which code the command ends because of it.
    #[serde(skip)]
    exit: u8,
}

impl Finding {
    fn new(check: &'static str, level: Level, found: impl Into<String>) -> Self {
        Self {
            check,
            level,
            found: found.into(),
            advice: Vec::new(),
            exit: u8::from(level == Level::Fail),
        }
    }

    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, found)
    }

    pub(super) fn skipped(check: &'static str, found: &str, advice: &str) -> Self {
        Self::new(check, Level::Skipped, found).advise([advice])
    }

    pub(super) fn warn(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, found)
    }

    pub(super) fn fail(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, found)
    }

    pub(super) fn advise<A: Into<String>>(mut self, advice: impl IntoIterator<Item = A>) -> Self {
        self.advice.extend(advice.into_iter().map(Into::into));
        self
    }

    /// A failure that ends the command with another code: 3 = refused, 4 = not reached.
    pub(super) fn exits(mut self, code: u8) -> Self {
        self.exit = code;
        self
    }

    fn text(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Skipped => "-",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let mut text = format!("{level:<5}{:<12}{}", self.check, self.found);
        for advice in &self.advice {
            text.push_str(&format!("\n{:17}> {advice}", ""));
        }
        text
    }
}

/// What was found so far. For people each finding is printed at once, for programs all at the end.
pub(super) struct Report {
    url: String,
    json: bool,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(url: String, json: bool) -> Self {
        Self {
            url,
            json,
            findings: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, finding: Finding) -> Result<(), Failure> {
        if !self.json {
            say(&finding.text())?;
        }
        self.findings.push(finding);
        Ok(())
    }

    /// Whether none of them is a failure.
    pub(super) fn add_all(&mut self, findings: Vec<Finding>) -> Result<bool, Failure> {
        let good = findings.iter().all(|f| f.level != Level::Fail);
        findings.into_iter().try_for_each(|f| self.add(f))?;
        Ok(good)
    }

    /// Tells a person that nothing will be said for a while.
    pub(super) fn watching(&self, time: Duration) {
        if !self.json && std::io::stderr().is_terminal() {
            eprintln!("watching for {} s", time.as_secs());
        }
    }

    /// Ends the command: an error if something failed.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let worst = self.findings.iter().map(|f| f.level).max();
        if self.json {
            let json = serde_json::json!({
                "url": self.url, "verdict": worst, "checks": self.findings,
            });
            say(&json.to_string())?;
        }
        let failed = self.findings.iter().filter(|f| f.level == Level::Fail);
        match failed.map(|f| f.exit).max() {
            None => Ok(()),
            Some(code) => {
                let message = "what failed is said above, with what to do about it";
                Err(Failure {
                    code,
                    message: if self.json { "" } else { message }.into(),
                })
            }
        }
    }
}
