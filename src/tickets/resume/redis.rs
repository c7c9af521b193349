use std::sync::Arc;

use redis::{Value, cmd};

use super::super::StoreError;
use super::store::{ResumeRefusal, ResumeStore, Revoked, Shown, Taken};
use super::{MARGIN, RESUME_LIFE_MAX, millis};
use crate::backplane::Later;
use crate::backplane::redis::{Failure, Redis};
use crate::model::{ConnectionId, Secret, UserId};

/// The cluster's own secret: the first one that was offered.
const SECRET: &str = r"
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
";

/// The one take of a resume ticket, by Redis's clock.
///
/// `KEYS`: who used it, what is revoked of the user's, whether its line is revoked. `ARGV`: when it expires and when its
/// line began, in milliseconds; the connection that it opens; `1` if it may be used again; by how much the mark outlives
/// it. Answers why not, or the connection that used it before, if any.
const TAKE: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local left = tonumber(ARGV[1]) - now
if left <= 0 then return {'expired'} end
local revoked = redis.call('GET', KEYS[2])
if revoked and tonumber(revoked) >= tonumber(ARGV[2]) then return {'user'} end
if redis.call('GET', KEYS[3]) then return {'line'} end
local before = redis.call('GET', KEYS[1])
if before and ARGV[4] ~= '1' then return {'used'} end
redis.call('SET', KEYS[1], ARGV[3], 'PX', string.format('%.0f', left + ARGV[5]))
return {'taken', before or ''}
";

/// Writes until when what a user was given is revoked, and never turns that back.
const REVOKE: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local before = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
redis.call('SET', KEYS[1], string.format('%.0f', math.max(now, before)), 'PX', ARGV[1])
return 1
";

/// Resume tickets of a whole cluster: what is kept of them is in Redis, under the user's hash tag.
pub struct RedisResume(Arc<Redis>);

impl RedisResume {
    /// Behind this backplane.
    pub fn new(redis: Arc<Redis>) -> Self {
        Self(redis)
    }

    async fn take_one(&self, shown: Shown) -> Result<Taken, StoreError> {
        let Shown {
            id,
            user,
            lineage,
            expires,
            opening,
        } = shown;
        let used = self.0.resumed_key(&user, &id);
        let mut eval = cmd("EVAL");
        eval.arg(TAKE).arg(3).arg(&used);
        eval.arg(self.0.revoked_key(&user, None));
        eval.arg(self.0.revoked_key(&user, Some(lineage.first)));
        eval.arg(expires).arg(lineage.since);
        eval.arg(opening.connection.to_string());
        eval.arg(u8::from(opening.again)).arg(millis(MARGIN));
        let said = self.0.command(&used, eval, true).await.map_err(away)?;
        let words = match said {
            Value::Array(words) => words,
            _ => Vec::new(),
        };
        let words: Vec<&[u8]> = words.iter().filter_map(text).collect();
        Ok(match words[..] {
            [b"taken", b""] => Taken::First,
            [b"taken", before] => {
                let before = std::str::from_utf8(before).ok();
                match before.and_then(ConnectionId::parse) {
                    Some(before) => Taken::Again(before),
                    // Somebody else writes there. It is ours now.
                    None => Taken::First,
                }
            }
            [b"expired"] => Taken::Refused(ResumeRefusal::Expired),
            [b"user"] => Taken::Refused(ResumeRefusal::UserRevoked),
            [b"line"] => Taken::Refused(ResumeRefusal::ConnectionRevoked),
            [b"used"] => Taken::Refused(ResumeRefusal::Used),
            _ => {
                let why = "Redis did not say what became of a resume ticket";
                return Err(StoreError::Unavailable(why.into()));
            }
        })
    }

    async fn revoke_it(&self, user: UserId, what: Revoked) -> Result<(), StoreError> {
        let first = match what {
            Revoked::All => None,
            Revoked::Line(first) => Some(first),
        };
        let key = self.0.revoked_key(&user, first);
        let mut eval = cmd("EVAL");
        eval.arg(REVOKE).arg(1).arg(&key);
        eval.arg(millis(RESUME_LIFE_MAX + MARGIN));
        let done = self.0.command(&key, eval, true).await;
        done.map(|_| ()).map_err(away)
    }
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

fn away(failure: Failure) -> StoreError {
    StoreError::Unavailable(failure.into_problem())
}

impl ResumeStore for RedisResume {
    fn now(&self) -> u64 {
        self.0.clock().now()
    }

    fn secret(&self, offered: Secret) -> Later<'_, Result<Secret, StoreError>> {
        Box::pin(async move {
            let key = self.0.secret_key();
            let mut eval = cmd("EVAL");
            eval.arg(SECRET).arg(1).arg(&key).arg(offered.expose());
            let kept = self.0.command(&key, eval, false).await.map_err(away)?;
            let kept = text(&kept).and_then(|bytes| std::str::from_utf8(bytes).ok());
            kept.map(Secret::new).ok_or_else(|| {
                StoreError::Unavailable(format!("what Redis keeps at {key} is no text"))
            })
        })
    }

    fn take(&self, shown: Shown) -> Later<'_, Result<Taken, StoreError>> {
        Box::pin(self.take_one(shown))
    }

    fn revoke(&self, user: UserId, what: Revoked) -> Later<'_, Result<(), StoreError>> {
        Box::pin(self.revoke_it(user, what))
    }
}
