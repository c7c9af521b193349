use std::path::PathBuf;

use serde::Deserialize as _;
use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::Config;
use super::file::{File, Step};
use super::problem::{self, Problems};
use super::table::to_table;

/// The prefix of environment variables that are read: `TIDINGS_<SECTION>__<KEY>`. Without the double underscore a
/// variable is somebody else's.
const PREFIX: &str = "TIDINGS_";

/// Where a configuration comes from; later ones win.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables; others than `TIDINGS_<SECTION>__<KEY>` are passed over.
    pub environment: Vec<(String, String)>,
    /// `section.key=value` flags.
    pub sets: Vec<String>,
}

impl Sources {
    /// A file, this process's environment, and flags.
    ///
    /// # Errors
    /// A variable of ours is not UTF-8.
    pub fn of_process(file: Option<PathBuf>, sets: Vec<String>) -> Result<Self, String> {
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.into_string().ok().filter(|name| is_ours(name)) else {
                continue;
            };
            let value = value
                .into_string()
                .map_err(|_| format!("{name}: its value is not UTF-8"))?;
            environment.push((name, value));
        }
        // The order of an environment is nobody's intention.
        environment.sort();
        Ok(Self {
            file,
            environment,
            sets,
        })
    }
}

fn is_ours(variable: &str) -> bool {
    variable
        .strip_prefix(PREFIX)
        .is_some_and(|rest| rest.contains("__"))
}

/// Lays the sources over a base.
///
/// # Errors
/// Every unknown key and every value of a wrong type (within a list of sections, the first): each a line that names
/// where it is and the fix.
pub fn load(base: &Config, sources: &Sources) -> Result<Config, String> {
    let file = sources.file.as_deref().map(File::read).transpose()?;
    let (mut overrides, refused) = overrides(sources);
    let mut problems = Problems::new(file.as_ref(), refused);
    // What was wrong is taken out, so that the next reading gets further.
    let mut taken_out: Vec<Vec<Step>> = Vec::new();
    loop {
        let mut table = to_table(base)?;
        if let Some(file) = &file {
            merge(&mut table, file.table.clone());
        }
        for over in &overrides {
            over.lay_over(&mut table);
        }
        for path in &taken_out {
            take_out(&mut table, path);
        }
        let (config, unknown) = read(table);
        problems.unknown(&unknown);
        let wrong = match config {
            Ok(config) => return problems.none().map(|()| config),
            Err(wrong) => wrong,
        };
        let culprit = overrides
            .iter_mut()
            .rfind(|over| wrong.path.starts_with(&over.path));
        match culprit {
            // What looks like a number may be meant as a text: it is read once more, as one.
            Some(over) if over.refused.is_none() => {
                over.refused = Some(problem::wrong_value(&wrong));
                continue;
            }
            Some(over) => problems.of_override(&over.source, over.why(&wrong)),
            // A section that lacks what was taken out of it is no news.
            None if taken_out.iter().any(|path| path.starts_with(&wrong.path)) => {}
            None => problems.wrong(&wrong),
        }
        let keys = wrong.path.into_iter();
        let path: Vec<Step> = keys
            .take_while(|step| matches!(step, Step::Key(_)))
            .collect();
        if path.is_empty() || taken_out.contains(&path) {
            problems.none()?;
            return Err("the configuration cannot be read".into());
        }
        taken_out.push(path);
    }
}

/// A value of a wrong type.
pub(super) struct Wrong {
    pub(super) path: Vec<Step>,
    pub(super) message: String,
}

/// Reads the types out of a table, and the paths of what they do not know.
fn read(table: Table) -> (Result<Config, Wrong>, Vec<Vec<Step>>) {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(Value::Table(table), &mut track);
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(steps(&path));
    let config = Config::deserialize(serde_ignored::Deserializer::new(deserializer, &mut note));
    let config = config.map_err(|error| Wrong {
        path: track
            .path()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Map { key } => Some(Step::Key(key.clone())),
                Segment::Seq { index } => Some(Step::Index(*index)),
                Segment::Enum { .. } | Segment::Unknown => None,
            })
            .collect(),
        message: error.message().to_owned(),
    });
    (config, unknown)
}

fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
        Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => (parent, None),
    };
    let mut above = steps(parent);
    above.extend(step);
    above
}

/// One key that a variable or a flag sets.
struct Override {
    /// The variable or the flag, for errors.
    source: String,
    path: Vec<Step>,
    text: String,
    /// Why the text was refused as TOML; from then on it is taken as it is.
    refused: Option<String>,
}

impl Override {
    fn lay_over(&self, table: &mut Table) {
        let value = match self.refused {
            None => as_toml(&self.text),
            Some(_) => None,
        };
        let value = value.unwrap_or_else(|| Value::String(self.text.clone()));
        let mut at = table;
        for (index, step) in self.path.iter().enumerate() {
            let Step::Key(key) = step else { return };
            if index + 1 == self.path.len() {
                at.insert(key.clone(), value);
                return;
            }
            let section = at
                .entry(key.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            // Where the file has something else in place of a section, that is the error to tell.
            let Some(section) = section.as_table_mut() else {
                return;
            };
            at = section;
        }
    }

    /// What to tell: where the text was TOML, what was wrong with that.
    fn why(&self, wrong: &Wrong) -> String {
        match &self.refused {
            Some(refused) if as_toml(&self.text).is_some() => refused.clone(),
            _ => problem::wrong_value(wrong),
        }
    }
}

fn take_out(table: &mut Table, path: &[Step]) {
    match path {
        [Step::Key(key)] => {
            table.remove(key);
        }
        [Step::Key(section), rest @ ..] => {
            if let Some(Value::Table(section)) = table.get_mut(section) {
                take_out(section, rest);
            }
        }
        _ => {}
    }
}

fn as_toml(text: &str) -> Option<Value> {
    let mut parsed = toml::from_str::<Table>(&format!("value = {text}")).ok()?;
    let value = parsed.remove("value")?;
    parsed.is_empty().then_some(value)
}

/// The keys that variables and flags set, and what is wrong with the others.
fn overrides(sources: &Sources) -> (Vec<Override>, Vec<String>) {
    let (mut overrides, mut problems) = (Vec::new(), Vec::new());
    let mut add =
        |source: String, path: &str, text: &str, variable: Option<&str>| match problem::unsettable(
            path, variable,
        ) {
            Some(problem) => problems.push(format!("{source}: {problem}")),
            None => overrides.push(Override {
                source,
                path: path.split('.').map(|key| Step::Key(key.into())).collect(),
                text: text.to_owned(),
                refused: None,
            }),
        };
    for (name, value) in &sources.environment {
        if is_ours(name) {
            let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            add(name.clone(), &path, value, Some(PREFIX));
        }
    }
    let mut malformed = Vec::new();
    for set in &sources.sets {
        match set.split_once('=') {
            Some((path, value)) => {
                let path = path.trim();
                add(format!("--set {path}"), path, value.trim(), None);
            }
            None => malformed.push(format!("--set {set}: write it as section.key=value")),
        }
    }
    problems.extend(malformed);
    (overrides, problems)
}

/// Lays one table over another; lists are replaced whole.
fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
