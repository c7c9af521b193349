mod slots;

use std::sync::Arc;
use std::time::Duration;

use redis::{Value, cmd};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::slots::millis;
use super::{GrantFields, Presented, Redemption, StoreError, TTL_MAX, TicketHash, TicketStore};
use crate::backplane::redis::{Failure, Redis};
use crate::backplane::{Later, Pace};
use crate::model::{Grant, unix_millis};
use crate::telemetry::{Metrics, Reason};

/// A ticket that somebody writes while it is redeemed is read again as often.
const LOOKS: usize = 3;
/// Clocks of nodes and of Redis differ by less.
const SKEW: Duration = Duration::from_secs(60);

/// The one take of a ticket, in one step: whoever gets the value is the only one.
///
/// `KEYS[1]` the ticket; `ARGV` the longest life in milliseconds, and the value as it was read. Answers the value, or the
/// remaining life of a ticket that has none or too much of it, or that it is another one now, or nothing.
const TAKE: &str = r"
local value = redis.call('GET', KEYS[1])
if not value then return false end
if value ~= ARGV[2] then return redis.status_reply('AGAIN') end
local life = redis.call('PTTL', KEYS[1])
if life < 0 or life > tonumber(ARGV[1]) then return life end
redis.call('DEL', KEYS[1])
return value
";

/// Tickets of a whole cluster, in Redis: ours, and those that other services write in the public format (docs/tickets.md).
pub struct RedisTickets {
    redis: Arc<Redis>,
    metrics: Metrics,
}

/// A ticket at rest: the public format. A field that is not here is refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AtRest {
    user_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    channels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claims: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    origins: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ips: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_seconds: Option<u64>,
    /// Unix milliseconds. A ticket that a failed-over Redis brings back dies by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    /// When it has room although more handshakes come than the fleet takes, Unix milliseconds. Nodes alone write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<u64>,
}

/// A ticket that was read.
#[derive(Debug, PartialEq)]
struct Read {
    grant: Grant,
    expires_at: Option<u64>,
    slot: Option<u64>,
}

impl AtRest {
    fn of(grant: &Grant, expires_at: u64) -> Self {
        Self {
            user_id: grant.user.to_string(),
            device: grant.device.as_ref().map(ToString::to_string),
            channels: grant.channels.iter().map(ToString::to_string).collect(),
            since: grant.since.map(|since| since.to_string()),
            claims: grant
                .claims
                .as_deref()
                .and_then(|text| RawValue::from_string(text.to_owned()).ok()),
            origins: grant.origins.iter().map(ToString::to_string).collect(),
            ips: grant.ips.iter().map(ToString::to_string).collect(),
            session_seconds: grant.session_seconds,
            expires_at: Some(expires_at),
            slot: None,
        }
    }

    /// What the bytes say.
    fn parse(bytes: &[u8]) -> Result<Read, String> {
        let at_rest: Self = serde_json::from_slice(bytes).map_err(|e| {
            let text = e.to_string();
            // The names of fields are told, what is in them is not.
            match text.starts_with("unknown field") || text.starts_with("missing field") {
                true => text,
                false => format!("it is not right at line {} column {}", e.line(), e.column()),
            }
        })?;
        let (expires_at, slot) = (at_rest.expires_at, at_rest.slot);
        let fields = GrantFields {
            user_id: at_rest.user_id,
            device: at_rest.device,
            channels: at_rest.channels,
            claims: at_rest.claims.map(|raw| raw.get().to_owned()),
            origins: at_rest.origins,
            ips: at_rest.ips,
            session_seconds: at_rest.session_seconds,
            since: at_rest.since,
        };
        let grant = fields.into_grant();
        let grant = grant.map_err(|error| format!("{} breaks its rule", error.field))?;
        Ok(Read {
            grant,
            expires_at,
            slot,
        })
    }
}

impl RedisTickets {
    /// Tickets behind this backplane.
    pub fn new(redis: Arc<Redis>, metrics: Metrics) -> Self {
        Self { redis, metrics }
    }

    async fn put(&self, hash: TicketHash, grant: Grant, life: Duration) -> Result<(), StoreError> {
        let key = self.redis.ticket_key(&hash);
        let life = millis(life.min(TTL_MAX));
        let at_rest = AtRest::of(&grant, unix_millis().saturating_add(life));
        let json =
            serde_json::to_string(&at_rest).map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let mut set = cmd("SET");
        set.arg(&key).arg(json).arg("PX").arg(life);
        self.redis
            .command(&key, set, false)
            .await
            .map(|_| ())
            .map_err(away)
    }

    /// The bytes of a ticket that waits.
    async fn find(&self, hash: &TicketHash) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.redis.ticket_key(hash);
        let mut get = cmd("GET");
        get.arg(&key);
        match self.redis.command(&key, get, false).await {
            Ok(Value::BulkString(found)) => Ok(Some(found)),
            Ok(_) => Ok(None),
            // Somebody keeps something else there.
            Err(Failure::Refused(code, _)) if code == "WRONGTYPE" => {
                self.bad("format");
                Ok(None)
            }
            Err(failure) => Err(away(failure)),
        }
    }

    /// Reads first, since a look at `origins` and `ips` must not spend the ticket, and then takes.
    async fn take(&self, hash: TicketHash, shown: &Presented) -> Result<Redemption, StoreError> {
        let key = self.redis.ticket_key(&hash);
        for _ in 0..LOOKS {
            let Some(found) = self.find(&hash).await? else {
                return Ok(Redemption::Unknown);
            };
            let grant = match self.read(&found) {
                Ok(read) => read.grant,
                Err(reason) => return Ok(self.bad(reason)),
            };
            if let Some(refused) = shown.refused_by(&grant) {
                return Ok(refused);
            }
            let mut take = cmd("EVAL");
            take.arg(TAKE).arg(1).arg(&key);
            take.arg(millis(self.longest_life(&found))).arg(&found);
            match self.redis.command(&key, take, true).await.map_err(away)? {
                Value::BulkString(_) => return Ok(Redemption::Granted(grant)),
                Value::Int(_) => return Ok(self.bad("ttl")),
                // It was given a slot meanwhile, or somebody wrote another one.
                Value::SimpleString(_) => {}
                // Another one took it, or it expired.
                _ => return Ok(Redemption::Unknown),
            }
        }
        Ok(Redemption::Unknown)
    }

    fn read(&self, found: &[u8]) -> Result<Read, &'static str> {
        let read = AtRest::parse(found).map_err(|problem| {
            // The value is somebody's secret in part: only what is wrong with it is told.
            tracing::warn!(%problem, "a ticket in Redis is not in the public format (docs/tickets.md)");
            "format"
        })?;
        let now = unix_millis();
        if read.expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Err("expired");
        }
        let latest = now.saturating_add(millis(Pace::HORIZON + SKEW));
        match read.slot {
            // No node wrote that.
            Some(slot) if slot > latest => Err("slot"),
            _ => Ok(read),
        }
    }

    fn bad(&self, reason: &'static str) -> Redemption {
        let bad = &self.metrics.bad_tickets;
        bad.get_or_create(&Reason { reason }).inc();
        Redemption::Unknown
    }
}

fn away(failure: Failure) -> StoreError {
    StoreError::Unavailable(failure.into_problem())
}

impl TicketStore for RedisTickets {
    fn issue(
        &self,
        hash: TicketHash,
        grant: Grant,
        life: Duration,
    ) -> Later<'_, Result<(), StoreError>> {
        Box::pin(self.put(hash, grant, life))
    }

    fn redeem<'a>(
        &'a self,
        hash: TicketHash,
        shown: &'a Presented,
    ) -> Later<'a, Result<Redemption, StoreError>> {
        Box::pin(self.take(hash, shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChannelName, DeviceName, IpPrefix, Origin, Since, UserId};

    #[test]
    fn a_grant_survives_its_rest() {
        let grant = Grant {
            user: UserId::parse("42").expect("a user"),
            device: Some(DeviceName::parse("phone").expect("a device")),
            channels: [ChannelName::parse("orders:eu").expect("a channel")].into(),
            claims: Some(r#"{"plan":"pro"}"#.into()),
            origins: [Origin::parse("https://a.b").expect("an origin")].into(),
            ips: [IpPrefix::parse("10.0.0.0/8").expect("a prefix")].into(),
            session_seconds: Some(60),
            since: Some(Since::Now),
            resumes: None,
        };
        for grant in [grant, Grant::of(UserId::parse("1").expect("a user"))] {
            let json = serde_json::to_vec(&AtRest::of(&grant, 7)).expect("JSON");
            let read = Read {
                grant,
                expires_at: Some(7),
                slot: None,
            };
            assert_eq!(AtRest::parse(&json), Ok(read));
        }
    }

    #[test]
    fn a_foreign_ticket_says_what_is_wrong_with_it() {
        let parse = |json: &str| AtRest::parse(json.as_bytes());
        assert!(parse(r#"{"user_id":"42"}"#).is_ok());
        for (bad, says) in [
            ("42", "column 2"),
            ("{}", "user_id"),
            (r#"{"user_id":"4 2"}"#, "user_id breaks"),
            (r#"{"user_id":"42","user":"43"}"#, "unknown field `user`"),
            (r#"{"user_id":"42","claims":[]}"#, "claims"),
            (r#"{"user_id":"42","expires_at":"soon"}"#, "column 35"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
