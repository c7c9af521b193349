use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::Config;

/// The prefix of environment variables that are read: `TIDINGS_<SECTION>__<KEY>`. Without the double underscore a
/// variable is somebody else's.
const PREFIX: &str = "TIDINGS_";

/// Where a configuration comes from; later ones win.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// `section.key=value` flags.
    pub sets: Vec<String>,
}

impl Sources {
    /// A file, this process's environment, and flags.
    pub fn of_process(file: Option<PathBuf>, sets: Vec<String>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(PREFIX) && name.contains("__"))
            .collect();
        Self {
            file,
            environment,
            sets,
        }
    }
}

/// Lays the sources over a base.
///
/// # Errors
/// Every unknown key, or the first wrong value: each a line that names where it is and the fix.
pub fn load(base: &Config, sources: &Sources) -> Result<Config, String> {
    let mut table = Table::new();
    if let Some(path) = &sources.file {
        table = read_file(path)?;
    }
    for (name, value) in &sources.environment {
        let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        overlay(&mut table, name, &path, value)?;
    }
    for set in &sources.sets {
        let (path, value) = set
            .split_once('=')
            .ok_or_else(|| format!("--set {set}: write it as section.key=value"))?;
        overlay(
            &mut table,
            &format!("--set {path}"),
            path.trim(),
            value.trim(),
        )?;
    }
    let mut whole = to_table(base)?;
    merge(&mut whole, table);
    parse(whole).map_err(|problem| format!("the configuration: {problem}"))
}

/// Reads a file alone first, so that what is wrong in it is told with its line.
fn read_file(path: &Path) -> Result<Table, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            format!(
                "{shown}: there is no such file; `tidings config default` prints one to begin with"
            )
        }
        _ => format!("{shown}: cannot be read: {e}"),
    })?;
    let at = |span: Option<std::ops::Range<usize>>| {
        let line = span.map_or(1, |span| {
            text[..span.start.min(text.len())].matches('\n').count() + 1
        });
        format!("{shown}:{line}")
    };
    let mut unknown = Vec::new();
    let deserializer = toml::Deserializer::parse(&text)
        .map_err(|e| format!("{}: {}", at(e.span()), e.message()))?;
    let parsed: Result<Config, _> =
        serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()));
    if !unknown.is_empty() {
        let document: Option<toml_edit::Document<String>> = text.parse().ok();
        let lines: Vec<String> = unknown
            .iter()
            .map(|path| {
                let span = document
                    .as_ref()
                    .and_then(|document| span_of(document.as_item(), path));
                format!("{}: {}", at(span), unknown_key(path))
            })
            .collect();
        return Err(lines.join("\n"));
    }
    parsed.map_err(|e| format!("{}: {}", at(e.span()), e.message()))?;
    toml::from_str(&text).map_err(|e| format!("{}: {}", at(e.span()), e.message()))
}

/// Where the last key of a path stands in a document.
fn span_of(root: &toml_edit::Item, path: &str) -> Option<std::ops::Range<usize>> {
    let mut item = root;
    let mut span = None;
    for part in path.split('.') {
        if let Ok(index) = part.parse::<usize>() {
            item = item.get(index)?;
        } else {
            let (key, value) = item.as_table_like()?.get_key_value(part)?;
            span = key.span();
            item = value;
        }
    }
    span
}

fn unknown_key(path: &str) -> String {
    let plain: Vec<&str> = path
        .split('.')
        .filter(|part| part.parse::<usize>().is_err())
        .collect();
    let plain = plain.join(".");
    let nearest = known_keys()
        .into_iter()
        .map(|key| (strsim::jaro_winkler(&plain, &key), key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.8);
    match nearest {
        Some((_, key)) => format!("unknown key `{plain}`; did you mean `{key}`?"),
        None => format!("unknown key `{plain}`; docs/configuration.md lists the keys"),
    }
}

/// Every key there is, from the types themselves: a configuration with each optional part filled.
pub fn known_keys() -> BTreeSet<String> {
    fn walk(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    keys.insert(path.clone());
                    walk(value, &path, keys);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, path, keys)),
            _ => {}
        }
    }
    let mut config = Config::dev();
    config.node.id = Some(String::new());
    config.public.url = Some(String::new());
    let full = toml::toml! {
        [probe]
        listen = "127.0.0.1:0"
        [jwt]
        audience = "a"
        issuer = "i"
        algorithm = "HS256"
        key = "k"
        public_key = "p"
        key_file = "f"
        jwks_file = "f"
        jwks_url = "u"
        [[namespaces]]
        name = "n"
        subscribe = "any"
        publish = "any"
        max_messages = 0
    };
    let mut keys = BTreeSet::new();
    walk(
        &Value::Table(to_table(&config).unwrap_or_default()),
        "",
        &mut keys,
    );
    walk(&Value::Table(full), "", &mut keys);
    keys
}

/// Secrets are written as `***`; here they have to survive, so the table of the base leaves them as they are.
fn to_table(config: &Config) -> Result<Table, String> {
    let mut table = Table::try_from(config).map_err(|e| e.to_string())?;
    if let Some(Value::Array(keys)) = table.get_mut("api_keys") {
        for (shown, real) in keys.iter_mut().zip(&config.api_keys) {
            if let Value::Table(shown) = shown {
                shown.insert("sha256".into(), real.sha256.expose().into());
            }
        }
    }
    Ok(table)
}

/// Sets one dotted path to a value that is written as TOML, or taken as a text.
fn overlay(table: &mut Table, source: &str, path: &str, text: &str) -> Result<(), String> {
    if !known_keys().contains(path) {
        return Err(format!("{source}: {}", unknown_key(path)));
    }
    let value = toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| Value::String(text.into()));
    let mut at = table;
    let (sections, key) = path
        .rsplit_once('.')
        .map_or((None, path), |(s, k)| (Some(s), k));
    for section in sections.into_iter().flat_map(|s| s.split('.')) {
        let next = at
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        at = next
            .as_table_mut()
            .ok_or_else(|| format!("{source}: {section} is a list; set it in the file"))?;
    }
    at.insert(key.into(), value);
    let whole = to_table(&Config::default())?;
    let mut only = whole;
    let mut single = Table::new();
    if let Some(section) = sections.and_then(|s| s.split('.').next()) {
        single.insert(section.into(), Value::Table(at.clone()));
        merge(&mut only, single);
        parse(only).map_err(|problem| format!("{source}: {problem}"))?;
    }
    Ok(())
}

fn parse(table: Table) -> Result<Config, String> {
    Config::deserialize(Value::Table(table)).map_err(|e| e.to_string().trim().replace('\n', " "))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tidings.toml");
        std::fs::write(&path, text).expect("written");
        let sources = Sources {
            file: Some(path.clone()),
            ..Sources::default()
        };
        load(&Config::default(), &sources)
            .map_err(|e| e.replace(&path.display().to_string(), "tidings.toml"))
    }

    #[test]
    fn a_wrong_file_is_told_with_line_and_fix() {
        let cases = [
            (
                "\n[heartbeat]\nintervall = \"5s\"\n",
                "tidings.toml:3: unknown key `heartbeat.intervall`; did you mean `heartbeat.interval`?",
            ),
            (
                "[hearbeat]\n",
                "tidings.toml:1: unknown key `hearbeat`; did you mean `heartbeat`?",
            ),
            (
                "[heartbeat]\ninterval = 5\n",
                "tidings.toml:2: 5 has no unit",
            ),
            (
                "[heartbeat]\ninterval = \"5 parsecs\"\n",
                "tidings.toml:2: \"5 parsecs\" is not a duration",
            ),
            (
                "[limits]\nmessage_bytes = \"64\"\n",
                "tidings.toml:2: \"64\" is not a size",
            ),
            (
                "[public]\nlisten = \"nowhere\"\n",
                "tidings.toml:2: invalid socket address",
            ),
            (
                "[[api_keys]]\nname = \"a\"\nsha256 = \"b\"\nscopes = [\"push\"]\nadress = []\n",
                "tidings.toml:5: unknown key `api_keys.adress`; did you mean `api_keys.addresses`?",
            ),
            ("[public\n", "tidings.toml:1:"),
            (
                "[backplane]\nkind = \"redis\"\n",
                "tidings.toml:2: unknown variant `redis`",
            ),
        ];
        for (text, sentence) in cases {
            let error = load_text(text).expect_err(text);
            assert!(
                error.starts_with(sentence),
                "{text:?}\n  {error}\n  {sentence}"
            );
        }
    }

    #[test]
    fn later_sources_win() {
        let mut sources = Sources {
            environment: vec![("TIDINGS_HEARTBEAT__INTERVAL".into(), "7s".into())],
            ..Sources::default()
        };
        let config = load(&Config::default(), &sources).expect("valid");
        assert_eq!(config.heartbeat.interval.as_secs(), 7);
        sources.sets = vec!["heartbeat.interval=8s".into(), "hub.shards=3".into()];
        let config = load(&Config::default(), &sources).expect("valid");
        assert_eq!(
            (config.heartbeat.interval.as_secs(), config.hub.shards),
            (8, 3)
        );
        sources.sets = vec!["heartbeat.interval=8".into()];
        let error = load(&Config::default(), &sources).expect_err("no unit");
        assert!(
            error.starts_with("--set heartbeat.interval: 8 has no unit"),
            "{error}"
        );
        sources.sets = Vec::new();
        sources.environment = vec![("TIDINGS_HEARTBEAT__INTERVAL2".into(), "7s".into())];
        let error = load(&Config::default(), &sources).expect_err("unknown");
        assert!(
            error.contains("did you mean `heartbeat.interval`?"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_told() {
        let sources = Sources {
            file: Some("/nonexistent/tidings.toml".into()),
            ..Sources::default()
        };
        assert!(load(&Config::default(), &sources).is_err_and(|e| e.contains("no such file")));
    }
}
