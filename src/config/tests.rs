use super::*;

/// What loading a file says, with environment variables and flags.
fn load_all(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tidings.toml");
    std::fs::write(&path, text).expect("written");
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        sets: sets.iter().map(|set| (*set).into()).collect(),
    };
    load(&Config::default(), &sources)
        .map_err(|e| e.replace(&path.display().to_string(), "tidings.toml"))
}

fn error(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> String {
    load_all(text, environment, sets).expect_err("wrong")
}

#[test]
fn a_wrong_file_is_told_with_line_key_and_fix() {
    let cases = [
        (
            "\n[heartbeat]\nintervall = \"5s\"\n",
            "tidings.toml:3: unknown key `heartbeat.intervall`; did you mean `heartbeat.interval`?",
        ),
        (
            "heartbeat.intervall = \"5s\"\n",
            "tidings.toml:1: unknown key `heartbeat.intervall`; did you mean `heartbeat.interval`?",
        ),
        (
            "[hearbeat]\n",
            "tidings.toml:1: unknown key `hearbeat`; did you mean `heartbeat`?",
        ),
        (
            "\n\"a.b\" = 1\n",
            "tidings.toml:2: unknown key `a.b`; docs/configuration.md lists the keys",
        ),
        (
            "\n[probe]\nlisten = \"127.0.0.1:1\"\nlistn = \"127.0.0.1:1\"\n",
            "tidings.toml:4: unknown key `probe.listn`; did you mean `probe.listen`?",
        ),
        (
            "[backplane]\nkind = \"nats\"\n",
            "tidings.toml:2: `backplane.kind`: `nats` is not there: this version has `memory` or `redis` alone",
        ),
        (
            "[log]\nlevel = \"loud\"\n",
            "tidings.toml:2: `log.level`: `loud` is not one of `error`, `warn`, `info`, `debug`, `trace`",
        ),
        (
            "[heartbeat]\n\ninterval = 5\n",
            "tidings.toml:3: `heartbeat.interval`: 5 has no unit; write a duration as a text with a unit, as in \"30s\"",
        ),
        (
            "[heartbeat]\ninterval = \"5 parsecs\"\n",
            "tidings.toml:2: `heartbeat.interval`: \"5 parsecs\" is not a duration; write a number and a unit, as in \"30s\", \"250ms\" or \"1m 30s\"",
        ),
        (
            "[limits]\nmessage_bytes = \"64\"\n",
            "tidings.toml:2: `limits.message_bytes`: \"64\" is not a size; write a number and a unit, as in \"64KiB\", \"1MiB\" or \"512B\"",
        ),
        (
            "[limits]\nfragments = -1\n",
            "tidings.toml:2: `limits.fragments`: invalid value: integer `-1`; write a whole number from 0 on",
        ),
        (
            "[public]\nlisten = \"nowhere\"\n",
            "tidings.toml:2: `public.listen`: is not an address and port; write it as in \"127.0.0.1:8080\"",
        ),
        (
            "[public]\nallowed_origins = [\n  \"https://a.b\",\n  \"a.b\",\n]\n",
            "tidings.toml:4: `public.allowed_origins`: \"a.b\" is not an origin; write scheme, host and port alone, as in \"https://app.example.com\"",
        ),
        (
            "heartbeat = 5\n",
            "tidings.toml:1: `heartbeat`: invalid type: integer `5`; write a section",
        ),
        (
            "[[api_keys]]\nname = \"a\"\nsha256 = \"b\"\nscopes = [\"push\"]\n\n[[api_keys]]\nname = \"b\"\nsha256 = \"b\"\nscopes = [\"push\"]\nadress = []\n",
            "tidings.toml:10: unknown key `api_keys.adress`; did you mean `api_keys.addresses`?",
        ),
        (
            "[[api_keys]]\nname = \"a\"\nsha256 = \"b\"\nscopes = [\"push\"]\n\n[[api_keys]]\nname = \"b\"\n",
            "tidings.toml:6: `api_keys`: lacks the key `sha256`",
        ),
        (
            "[[api_keys]]\nname = \"a\"\nsha256 = \"b\"\nscopes = [\n  \"push\",\n  \"pull\",\n]\n",
            "tidings.toml:6: `api_keys.scopes`: `pull` is not one of `push`, `publish`, `ticket`, `read`, `admin`",
        ),
        (
            "[[namespaces]]\nname = \"a\"\n[[namespaces]]\nname = \"a b\"\n",
            "tidings.toml:4: `namespaces.name`: must not contain spaces",
        ),
        (
            "[[sources]]\nkind = \"kafka\"\ntopic = \"a\"\n",
            "tidings.toml:2: `sources.kind`: `kafka` is not there: this version has `redis-pubsub` or `redis-stream` alone",
        ),
        (
            "[[sources]]\nkind = \"redis-pubsub\"\ntopic = \"a\"\ngroup = \"g\"\n",
            "tidings.toml:1: `sources`: has field or group, which are for kind = \"redis-stream\"; take them out",
        ),
        (
            "[[sources]]\nkind = \"redis-stream\"\ntopic = \"a\"\nclaim_after = \"10ms\"\n",
            "tidings.toml:1: `sources`: has a claim_after below 1s; a node needs that long to deliver an event",
        ),
        (
            "[[sources]]\nkind = \"redis-stream\"\ntopic = \"a\"\nclaim_after = 10\n",
            "tidings.toml:4: `sources.claim_after`: 10 has no unit; write a duration as a text with a unit, as in \"30s\"",
        ),
        (
            "[[sources]]\nkind = \"redis-pubsub\"\n",
            "tidings.toml:1: `sources`: lacks the key `topic`",
        ),
        (
            "[[sources]]\nkind = \"redis-pubsub\"\ntopic = \"a\"\n\n[[sources]]\nkind = \"redis-pubsub\"\ntopic = \"\"\n",
            "tidings.toml:5: `sources`: has an empty topic; name the Pub/Sub channel or the stream of the events",
        ),
        (
            "[[sources]]\nkind = \"redis-pubsub\"\ntopic = \"a\"\nuser = \"/u\"\nchannel = \"/c\"\n",
            "tidings.toml:1: `sources`: has both user and channel; an event is for one of them, so take one out",
        ),
        (
            "[[sources]]\nkind = \"redis-pubsub\"\ntopic = \"a\"\nmessage = \"\"\nuser = \"id\"\n",
            "tidings.toml:5: `sources.user`: \"id\" is not a JSON pointer; begin it with /, as in \"/customer/id\", or leave it \"\" for the whole event",
        ),
        (
            "[[sources]]\nkind = \"redis-pubsub\"\ntopic = \"a\"\nchanel = \"/c\"\n",
            "tidings.toml:4: unknown key `sources.chanel`; did you mean `sources.channel`?",
        ),
    ];
    for (text, sentence) in cases {
        assert_eq!(error(text, &[], &[]), sentence, "{text:?}");
    }
    let broken = error("\n[public\n", &[], &[]);
    assert!(
        broken.starts_with("tidings.toml:2: this is not TOML: "),
        "{broken}"
    );
}

#[test]
fn every_unknown_key_and_every_wrong_value_is_told_by_line() {
    let text = "[tickets]\ntll = \"5s\"\n[heartbeat]\nintervall = \"5s\"\n[public]\nlisten = 1\n[probe]\nlisten = 2\n";
    let told = error(text, &[("TIDINGS_HUB__SHARD", "1")], &["hub=1", "nothing"]);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "tidings.toml:2: unknown key `tickets.tll`; did you mean `tickets.ttl`?",
            "tidings.toml:4: unknown key `heartbeat.intervall`; did you mean `heartbeat.interval`?",
            "tidings.toml:6: `public.listen`: invalid type: integer `1`; write an address and port, as in \"127.0.0.1:8080\"",
            "tidings.toml:8: `probe.listen`: invalid type: integer `2`; write an address and port, as in \"127.0.0.1:8080\"",
            "TIDINGS_HUB__SHARD: unknown key `hub.shard`; did you mean TIDINGS_HUB__SHARDS?",
            "--set hub: [hub] is a section; set one of its keys: coalesce, queue, shards",
            "--set nothing: write it as section.key=value",
        ]
    );
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    type Case = (
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
        &'static str,
    );
    let cases: [Case; 7] = [
        (
            &[("TIDINGS_HEARTBEAT__INTERVAL", "8")],
            &[],
            "TIDINGS_HEARTBEAT__INTERVAL: 8 has no unit; write a duration as a text with a unit, as in \"30s\"",
        ),
        (
            &[],
            &["heartbeat.interval=8"],
            "--set heartbeat.interval: 8 has no unit; write a duration as a text with a unit, as in \"30s\"",
        ),
        (
            &[("TIDINGS_HEARTBEAT__INTERVALL", "8s")],
            &[],
            "TIDINGS_HEARTBEAT__INTERVALL: unknown key `heartbeat.intervall`; did you mean TIDINGS_HEARTBEAT__INTERVAL?",
        ),
        (
            &[("TIDINGS_API_KEYS__NAME", "x")],
            &[],
            "TIDINGS_API_KEYS__NAME: [[api_keys]] is a list; set it in the file",
        ),
        (
            &[("TIDINGS_PUBLIC__ALLOWED_ORIGINS", "https://a.b")],
            &[],
            "TIDINGS_PUBLIC__ALLOWED_ORIGINS: invalid type: string \"https://a.b\"; write a list, as in [\"…\"]",
        ),
        (
            &[],
            &["hub.shards=abc"],
            "--set hub.shards: invalid type: string \"abc\"; write a whole number from 0 on",
        ),
        (
            &[],
            &["hub.shards=1\nqueue = 2"],
            "--set hub.shards: invalid type: string \"1\\nqueue = 2\"; write a whole number from 0 on",
        ),
    ];
    for (environment, sets, sentence) in cases {
        assert_eq!(error("", environment, sets), sentence);
    }
}

#[test]
fn later_sources_win() {
    let text = "[heartbeat]\ninterval = \"6s\"\npong_timeout = \"3s\"\n";
    let variable = [("TIDINGS_HEARTBEAT__INTERVAL", "7s")];
    let seconds = |environment: &[(&str, &str)], sets: &[&str]| {
        let config = load_all(text, environment, sets).expect("valid");
        assert_eq!(config.heartbeat.pong_timeout.as_secs(), 3);
        config.heartbeat.interval.as_secs()
    };
    assert_eq!(seconds(&[], &[]), 6);
    assert_eq!(seconds(&variable, &[]), 7);
    assert_eq!(seconds(&variable, &["heartbeat.interval=8s"]), 8);
    assert_eq!(seconds(&[], &["heartbeat.interval = \"9s\""]), 9);
}

#[test]
fn a_text_may_look_like_a_number_and_a_list_is_toml() {
    let environment = [
        ("TIDINGS_NODE__ID", "42"),
        ("TIDINGS_PUBLIC__URL", "true"),
        ("TIDINGS_PUBLIC__ALLOWED_ORIGINS", "[\"https://a.b\"]"),
        ("TIDINGS_PROBE__LISTEN", "127.0.0.1:1"),
        ("TIDINGS_JWT__KEY", "1234"),
        ("TIDINGS_SERVICE_PORT", "tcp://10.0.0.1:80"),
        ("OTHER__KEY", "1"),
    ];
    let config =
        load_all("", &environment, &["service.insecure=true", "hub.shards=3"]).expect("valid");
    assert_eq!(config.node.id.as_deref(), Some("42"));
    assert_eq!(config.public.url.as_deref(), Some("true"));
    assert_eq!(config.public.allowed_origins.len(), 1);
    assert_eq!(config.probe.map(|probe| probe.listen.port()), Some(1));
    let key = config.jwt.and_then(|jwt| jwt.key).expect("a key");
    assert_eq!(key.expose(), "1234");
    assert_eq!((config.service.insecure, config.hub.shards), (true, 3));
}

#[test]
fn a_secret_of_a_wrong_type_is_not_shown() {
    assert_eq!(
        error("[jwt]\nkey = 987654\n", &[], &[]),
        "tidings.toml:2: `jwt.key`: is not a text; write it in quotes"
    );
}

#[test]
fn the_development_key_survives_an_override() {
    let sources = Sources {
        sets: vec!["hub.shards=1".into()],
        ..Sources::default()
    };
    let config = load(&Config::dev(), &sources).expect("valid");
    assert_eq!(config.check(Mode::Dev), Ok(()));
    assert_eq!(
        config.api_keys[0].sha256.expose(),
        Config::dev().api_keys[0].sha256.expose()
    );
}

#[test]
fn a_missing_file_is_told() {
    let sources = Sources {
        file: Some("/nonexistent/tidings.toml".into()),
        ..Sources::default()
    };
    assert_eq!(
        load(&Config::default(), &sources).expect_err("not there"),
        "/nonexistent/tidings.toml: there is no such file; `tidings config default` prints one to begin with"
    );
}

const SAMPLE: &str = include_str!("../../tidings.toml");
const PAGE: &str = include_str!("../../docs/configuration.md");

#[test]
fn the_sample_is_the_default() {
    let sample: Config = toml::from_str(SAMPLE).expect("the sample parses");
    let shown = |config: &Config| toml::to_string(config).expect("it serializes");
    assert_eq!(shown(&sample), shown(&Config::default()));
}

/// The sample with its commented keys and sections in force; comments in prose stay comments.
fn sample_in_full() -> String {
    let lines = SAMPLE.lines().map(|line| {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let is_key = bare.split_once(" = ").is_some_and(|(key, _)| {
            key.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        });
        match is_key || bare.starts_with('[') {
            true => bare,
            false => line,
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_has_every_key() {
    let full: toml::Table = toml::from_str(&sample_in_full()).expect("it parses");
    load_all(&sample_in_full(), &[], &[]).expect("its commented parts are right too");
    // Where keys exclude each other the sample shows one of them and mentions the others.
    let others = [
        "jwt.key",
        "jwt.public_key",
        "jwt.key_file",
        "jwt.jwks_file",
        "jwt.algorithm",
        "consul.token",
        "sources.channel",
    ];
    for key in known().keys() {
        if others.contains(&key.as_str()) {
            let mentioned = key
                .rsplit('.')
                .next()
                .is_some_and(|name| SAMPLE.contains(name));
            assert!(mentioned, "tidings.toml does not mention {key}");
            continue;
        }
        let mut at = Some(&toml::Value::Table(full.clone())).cloned();
        for part in key.split('.') {
            let item = at.take().map(|value| match value {
                toml::Value::Array(items) => items[0].clone(),
                value => value,
            });
            at = item.and_then(|value| value.get(part).cloned());
        }
        assert!(at.is_some(), "tidings.toml lacks {key}");
    }
}

/// The rows of the page's section about a section of the configuration.
fn rows(section: &str) -> Vec<&'static str> {
    let titles = [format!("[{section}]"), format!("[[{section}]]")];
    PAGE.split("\n## ")
        .filter(|part| {
            let title = part.lines().next().unwrap_or_default();
            title
                .split([' ', ':'])
                .any(|word| titles.iter().any(|title| title == word))
        })
        .flat_map(|part| part.lines().filter(|line| line.starts_with("| `")))
        .collect()
}

#[test]
fn every_key_is_on_the_page_with_its_default() {
    let defaults = toml::Table::try_from(Config::default()).expect("it serializes");
    for key in known().keys() {
        let Some((section, name)) = key.split_once('.') else {
            assert!(!rows(key).is_empty(), "docs/configuration.md lacks [{key}]");
            continue;
        };
        // A page's section may be about two: then each row says whose key it is.
        let shared = rows(section).iter().any(|row| row.contains("` of `["));
        let cell = match shared {
            true => format!("| `{name}` of `[{section}]` |"),
            false => format!("| `{name}` |"),
        };
        let row = rows(section).into_iter().find(|row| row.starts_with(&cell));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md lacks {key}"));
        let default = defaults.get(section).and_then(|section| section.get(name));
        if let Some(default) = default {
            let written = format!("{cell} `{default}`");
            assert!(row.starts_with(&written), "{key} is {default}: {row}");
        }
    }
}

#[test]
fn the_page_has_no_key_that_is_not_there() {
    let sections: Vec<&str> = known()
        .iter()
        .filter(|(_, kind)| matches!(kind, Kind::Section | Kind::List))
        .map(|(key, _)| key.as_str())
        .collect();
    for section in sections {
        for row in rows(section) {
            let name = row[3..].split('`').next().unwrap_or_default();
            let known = known().contains_key(&format!("{section}.{name}"));
            assert!(known, "[{section}] has no {name}: {row}");
        }
    }
}
