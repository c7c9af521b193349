use std::time::Instant;

use redis::{Value, cmd};

use super::Redis;
use crate::backplane::{Later, Leases, NodeLease};

/// Writes one node's lease and removes those that have lapsed, by Redis's own clock, which it answers.
///
/// `KEYS[1]` the leases; `ARGV` the node's incarnation, its lease as JSON, milliseconds.
const RENEW: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ends = tonumber(string.match(all[i + 1], '^%d+'))
  if not ends or ends <= now then redis.call('HDEL', KEYS[1], all[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s', now + ARGV[3], ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3] * 2)
return now
";

/// The leases that have not lapsed.
const LIST: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local all, live = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local ends, lease = string.match(all[i + 1], '^(%d+) (.*)$')
  if ends and tonumber(ends) > now then live[#live + 1] = lease end
end
return live
";

impl Leases for Redis {
    fn renew(&self, lease: NodeLease) -> Later<'_, Result<(), String>> {
        Box::pin(async move {
            let key = self.nodes_key();
            let json = serde_json::to_string(&lease).map_err(|e| e.to_string())?;
            let life = u64::try_from(NodeLease::LIFE.as_millis()).unwrap_or(u64::MAX);
            let mut eval = cmd("EVAL");
            eval.arg(RENEW).arg(1).arg(&key);
            eval.arg(lease.incarnation).arg(json).arg(life);
            let asked = Instant::now();
            let done = self.command(&key, eval, false).await;
            if let Value::Int(now) = done.map_err(super::Failure::into_problem)? {
                self.clock().learn(u64::try_from(now).unwrap_or(0), asked);
            }
            // In a cluster another primary may have it than the one that was looked at.
            self.shared.exchange_era().await
        })
    }

    fn release(&self, incarnation: String) -> Later<'_, Result<(), String>> {
        Box::pin(async move {
            let key = self.nodes_key();
            let mut delete = cmd("HDEL");
            delete.arg(&key).arg(incarnation);
            let done = self.command(&key, delete, false).await;
            done.map(|_| ()).map_err(super::Failure::into_problem)
        })
    }

    fn nodes(&self) -> Later<'_, Result<Vec<NodeLease>, String>> {
        Box::pin(async move {
            let key = self.nodes_key();
            let mut eval = cmd("EVAL");
            eval.arg(LIST).arg(1).arg(&key);
            let found = self.command(&key, eval, false).await;
            let Value::Array(found) = found.map_err(super::Failure::into_problem)? else {
                return Err("Redis gave no list of nodes".into());
            };
            // A newer version may write what this one cannot read.
            let parse = |value| match value {
                Value::BulkString(json) => serde_json::from_slice(&json).ok(),
                _ => None,
            };
            Ok(found.into_iter().filter_map(parse).collect())
        })
    }
}
