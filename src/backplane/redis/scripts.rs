use std::borrow::Cow;

use aws_lc_rs::digest;
use redis::Cmd;

/// A script that runs in Redis as one step.
pub(super) struct Script {
    text: String,
    sha: String,
}

/// All of those that streams and the handshake budget need.
pub(super) struct Scripts {
    pub(super) append: Script,
    pub(super) once: Script,
    pub(super) open: Script,
    pub(super) top: Script,
    pub(super) read: Script,
    pub(super) advance: Script,
    pub(super) lease: Script,
    pub(super) era: Script,
}

impl Scripts {
    /// In a cluster with sharded Pub/Sub.
    pub(super) fn new(cluster: bool) -> Self {
        let script = |text: &str| {
            let text = match cluster {
                true => text
                    .replace("'PUBLISH'", "'SPUBLISH'")
                    .replace("'NUMSUB'", "'SHARDNUMSUB'"),
                false => text.to_owned(),
            };
            // By this Redis knows a script; it is no matter of security.
            let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
            let sha = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
            Script {
                sha: sha.collect(),
                text,
            }
        };
        let begin = include_str!("scripts/begin.lua");
        let with_begin = |text: &str| script(&format!("{begin}{text}"));
        Self {
            append: with_begin(include_str!("scripts/append.lua")),
            once: script(include_str!("scripts/once.lua")),
            open: with_begin(include_str!("scripts/open.lua")),
            top: with_begin(include_str!("scripts/top.lua")),
            read: with_begin(include_str!("scripts/read.lua")),
            advance: script(include_str!("scripts/advance.lua")),
            lease: script(include_str!("scripts/lease.lua")),
            era: script(include_str!("scripts/era.lua")),
        }
    }
}

/// One run of a script.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<Cow<'a, str>>,
    arguments: Vec<Cow<'a, [u8]>>,
}

impl Script {
    /// A run of it that has these keys, all of which are in one slot.
    pub(super) fn on<'a, K>(&'a self, keys: impl IntoIterator<Item = K>) -> Call<'a>
    where
        K: Into<Cow<'a, str>>,
    {
        Call {
            script: self,
            keys: keys.into_iter().map(Into::into).collect(),
            arguments: Vec::with_capacity(12),
        }
    }
}

impl<'a> Call<'a> {
    /// With one more argument.
    pub(super) fn bytes(mut self, argument: impl Into<Cow<'a, [u8]>>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With one more argument, in decimal.
    pub(super) fn number(self, argument: impl Into<u128>) -> Self {
        self.bytes(argument.into().to_string().into_bytes())
    }

    /// With an epoch for a stream that begins. It is drawn here, never in a script.
    pub(super) fn offer(self) -> Self {
        self.bytes(rand::random::<u64>().to_be_bytes().to_vec())
    }

    /// A key that says where it runs.
    pub(super) fn key(&self) -> &str {
        self.keys.first().map_or("", |key| &**key)
    }

    /// The command that runs it, if Redis has the script already.
    pub(super) fn known(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    /// The command that runs it, and lets Redis have the script.
    pub(super) fn whole(&self) -> Cmd {
        self.command("EVAL", &self.script.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let sizes = self.keys.iter().map(|key| key.len());
        let bytes: usize = sizes.chain(self.arguments.iter().map(|a| a.len())).sum();
        let count = 3 + self.keys.len() + self.arguments.len();
        let mut command = Cmd::with_capacity(count, name.len() + script.len() + bytes + 2);
        command.arg(name).arg(script).arg(self.keys.len());
        for key in &self.keys {
            command.arg(&**key);
        }
        for argument in &self.arguments {
            command.arg(&argument[..]);
        }
        command
    }
}
