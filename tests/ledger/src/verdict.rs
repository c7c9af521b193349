//! The table at the end of a run: figures, and promises that were kept or broken.

use std::fmt;

use crate::checker::Report;

/// Rows in the order in which they are to be read.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    rows: Vec<(String, String, Option<bool>)>,
    examples: Vec<String>,
}

/// Examples that are told of what was broken.
const EXAMPLES: usize = 8;

impl Verdict {
    /// What is only told.
    pub(crate) fn figure(&mut self, name: &str, value: impl fmt::Display) {
        self.rows.push((name.into(), value.to_string(), None));
    }

    /// What was promised.
    pub(crate) fn promise(&mut self, name: &str, value: impl fmt::Display, kept: bool) {
        self.rows.push((name.into(), value.to_string(), Some(kept)));
    }

    /// A count that has to be nothing.
    pub(crate) fn nothing(&mut self, name: &str, count: u64) {
        self.promise(name, count, count == 0);
    }

    /// Tells some of what a count counts, below the table.
    pub(crate) fn examples(&mut self, of: &str, examples: impl Iterator<Item = String>) {
        for (at, example) in examples.take(EXAMPLES).enumerate() {
            if at == 0 {
                self.examples.push(format!("\n{of}:"));
            }
            self.examples.push(format!("  {example}"));
        }
    }

    /// The promises that were not kept.
    pub(crate) fn broken(&self) -> Vec<String> {
        let rows = self.rows.iter();
        let broken = rows.filter(|(.., kept)| *kept == Some(false));
        broken.map(|(name, ..)| name.clone()).collect()
    }

    /// Prints it, with examples of what the checker found; whether every promise was kept.
    pub(crate) fn tell(&self, report: &Report, seed: u64) -> bool {
        let good = self.broken().is_empty();
        println!("\n{self}{}", report.found());
        let word = if good {
            "as promised"
        } else {
            "NOT AS PROMISED"
        };
        println!("seed {seed}: {word}");
        good
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value, kept) in &self.rows {
            let kept = match kept {
                None => "",
                Some(true) => "  kept",
                Some(false) => "  BROKEN",
            };
            writeln!(f, "{name:<52} {value:>22}{kept}")?;
        }
        for line in &self.examples {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}
