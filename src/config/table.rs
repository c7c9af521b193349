use toml::{Table, Value};

use super::Config;

/// The configuration as a table. Secrets serialize as `***`; here they are what they are, since a table is read again, or
/// compared.
pub(super) fn to_table(config: &Config) -> Result<Table, String> {
    let mut table = Table::try_from(config).map_err(|e| e.to_string())?;
    let backplane = &config.backplane;
    let consul = config
        .consul
        .as_ref()
        .and_then(|consul| consul.token.as_ref());
    let jwt = config.jwt.as_ref().and_then(|jwt| jwt.key.as_ref());
    for (section, key, text) in [
        (
            "backplane",
            "url",
            backplane.url.as_ref().map(|url| url.expose()),
        ),
        (
            "backplane",
            "secret",
            backplane.secret.as_ref().map(|secret| secret.expose()),
        ),
        ("consul", "token", consul.map(|token| token.expose())),
        ("jwt", "key", jwt.map(|key| key.expose())),
    ] {
        if let (Some(Value::Table(shown)), Some(text)) = (table.get_mut(section), text) {
            shown.insert(key.into(), text.into());
        }
    }
    let hashes = config.api_keys.iter().map(|key| Some(key.sha256.expose()));
    show(&mut table, "api_keys", "sha256", hashes);
    let urls = config.sources.iter();
    let urls = urls.map(|source| source.url.as_ref().map(|url| url.expose()));
    show(&mut table, "sources", "url", urls);
    Ok(table)
}

/// Puts a secret into each of a list's sections.
fn show<'a>(
    table: &mut Table,
    list: &str,
    key: &str,
    texts: impl Iterator<Item = Option<&'a str>>,
) {
    let Some(Value::Array(sections)) = table.get_mut(list) else {
        return;
    };
    for (section, text) in sections.iter_mut().zip(texts) {
        if let (Value::Table(section), Some(text)) = (section, text) {
            section.insert(key.into(), text.into());
        }
    }
}
