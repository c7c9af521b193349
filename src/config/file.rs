use std::ops::Range;
use std::path::Path;

use toml::Table;
use toml_edit::{Document, Item};

/// A step from the root of a configuration to a value in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a section.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The path as a person writes it; the line says which of a list's items it is.
pub(super) fn dotted(path: &[Step]) -> String {
    let keys: Vec<&str> = path
        .iter()
        .filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
        .collect();
    keys.join(".")
}

/// A configuration file: its values, and where each of them stands.
pub(super) struct File {
    shown: String,
    text: String,
    document: Document<String>,
    pub(super) table: Table,
}

impl File {
    /// Reads TOML.
    ///
    /// # Errors
    /// A sentence for the operator: it is not there, or where it is not TOML.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => format!(
                "{shown}: there is no such file; `tidings config default` prints one to begin with"
            ),
            _ => format!("{shown}: cannot be read: {e}"),
        })?;
        let wrong = |span: Option<Range<usize>>, message: &str| {
            let line = span.map_or(1, |span| line(&text, span.start));
            let message = message.trim().replace('\n', ", ");
            format!("{shown}:{line}: this is not TOML: {message}")
        };
        let document = Document::parse(text.clone()).map_err(|e| wrong(e.span(), e.message()))?;
        let table = toml::from_str(&text).map_err(|e| wrong(e.span(), e.message()))?;
        Ok(Self {
            shown,
            text,
            document,
            table,
        })
    }

    /// The line on which a path stands, or as much of it as there is; 0 = none of it.
    pub(super) fn line(&self, path: &[Step]) -> usize {
        self.span(path).map_or(0, |at| line(&self.text, at))
    }

    /// `tidings.toml:12`.
    pub(super) fn at(&self, path: &[Step]) -> String {
        format!("{}:{}", self.shown, self.line(path).max(1))
    }

    fn span(&self, path: &[Step]) -> Option<usize> {
        let mut item = self.document.as_item();
        let mut span = None;
        for step in path {
            let below = match step {
                Step::Key(key) => item
                    .as_table_like()
                    .and_then(|table| table.get_key_value(key))
                    .map(|(key, item)| (key.span(), item)),
                Step::Index(index) => item.get(*index).map(|item| (Item::span(item), item)),
            };
            let Some((at, next)) = below else { break };
            span = at.map(|at| at.start).or(span);
            item = next;
        }
        span
    }
}

fn line(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
