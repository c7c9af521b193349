use redis::{Value, cmd};

use super::{AtRest, RedisTickets, away};
use crate::backplane::Later;
use crate::backplane::redis::Failure;
use crate::tickets::slots::{ends, millis};
use crate::tickets::{
    Presented, Redemption, Seen, SlotStore, StoreError, TTL_MAX, TicketHash, TicketSlot,
};

/// Writes a ticket's slot into it, if it is still as it was seen.
///
/// `KEYS[1]` the ticket; `ARGV` the value that was seen; the same with the slot; until when it has to live, in Unix
/// milliseconds; the longest life that it may have had before. Answers that it is done, what else is there now, or the
/// remaining life of a ticket that has none or too much of it.
const GIVE: &str = r"
local value = redis.call('GET', KEYS[1])
if value ~= ARGV[1] then return value end
local life = redis.call('PTTL', KEYS[1])
if life < 0 or life > tonumber(ARGV[4]) then return life end
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', string.format('%.0f', math.max(life, ARGV[3] - now, 1)))
return redis.status_reply('OK')
";

/// Marks a proof that is not stored with a slot, unless it has one, and answers which it has.
///
/// `KEYS[1]` the mark; `ARGV` the slot, and until when the mark has to live, in Unix milliseconds.
const MARK: &str = r"
local slot = redis.call('GET', KEYS[1])
if slot then return slot end
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', math.max(ARGV[2] - now, 1)))
return ARGV[1]
";

impl AtRest {
    /// With a slot, and life to the end of its room. A foreign ticket without an end of its own keeps to its TTL.
    fn with_slot(mut self, slot: u64) -> Self {
        self.slot = Some(slot);
        self.expires_at = self.expires_at.map(|at| at.max(ends(slot)));
        self
    }
}

impl RedisTickets {
    async fn look(&self, hash: TicketHash, shown: &Presented) -> Result<TicketSlot, StoreError> {
        let Some(found) = self.find(&hash).await? else {
            return Ok(TicketSlot::Unknown);
        };
        let read = match self.read(&found) {
            Ok(read) => read,
            Err(reason) => {
                self.bad(reason);
                return Ok(TicketSlot::Unknown);
            }
        };
        Ok(match shown.refused_by(&read.grant) {
            Some(Redemption::WrongOrigin) => TicketSlot::WrongOrigin,
            Some(_) => TicketSlot::WrongIp,
            None => TicketSlot::Waits(read.slot, Seen(found)),
        })
    }

    async fn give(
        &self,
        hash: TicketHash,
        seen: Seen,
        slot: u64,
    ) -> Result<Option<u64>, StoreError> {
        let key = self.redis.ticket_key(&hash);
        // It was read before, or there would be nothing that was seen.
        let Ok(at_rest) = serde_json::from_slice::<AtRest>(&seen.0) else {
            return Ok(None);
        };
        let json = serde_json::to_string(&at_rest.with_slot(slot))
            .map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let most = self.longest_life(&seen.0);
        let mut give = cmd("EVAL");
        give.arg(GIVE).arg(1).arg(&key);
        give.arg(&seen.0)
            .arg(json)
            .arg(ends(slot))
            .arg(millis(most));
        match self.redis.command(&key, give, false).await.map_err(away)? {
            Value::Okay => Ok(Some(slot)),
            Value::SimpleString(_) => Ok(Some(slot)),
            Value::BulkString(other) => Ok(self.read(&other).ok().and_then(|read| read.slot)),
            Value::Int(_) => {
                self.bad("ttl");
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// How long a ticket may have to live, by whether it has a slot.
    pub(super) fn longest_life(&self, found: &[u8]) -> std::time::Duration {
        let has_slot = AtRest::parse(found).is_ok_and(|read| read.slot.is_some());
        match has_slot {
            true => crate::tickets::slots::SLOT_LIFE_MAX,
            false => TTL_MAX,
        }
    }

    async fn marked(&self, proof: TicketHash) -> Result<Option<u64>, StoreError> {
        let key = self.redis.slot_key(&proof);
        let mut get = cmd("GET");
        get.arg(&key);
        match self.redis.command(&key, get, false).await {
            Ok(found) => Ok(number(&found)),
            Err(Failure::Refused(code, _)) if code == "WRONGTYPE" => Ok(None),
            Err(failure) => Err(away(failure)),
        }
    }

    async fn give_proof(&self, proof: TicketHash, slot: u64) -> Result<u64, StoreError> {
        let key = self.redis.slot_key(&proof);
        let mut mark = cmd("EVAL");
        mark.arg(MARK).arg(1).arg(&key).arg(slot).arg(ends(slot));
        let said = self.redis.command(&key, mark, false).await.map_err(away)?;
        number(&said)
            .ok_or_else(|| StoreError::Unavailable(format!("what Redis keeps at {key} is no slot")))
    }

    async fn take_proof(&self, proof: TicketHash) -> Result<bool, StoreError> {
        let key = self.redis.slot_key(&proof);
        let mut delete = cmd("DEL");
        delete.arg(&key);
        let done = self.redis.command(&key, delete, false).await;
        Ok(matches!(done.map_err(away)?, Value::Int(1)))
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

impl SlotStore for RedisTickets {
    fn ticket_slot<'a>(
        &'a self,
        hash: TicketHash,
        shown: &'a Presented,
    ) -> Later<'a, Result<TicketSlot, StoreError>> {
        Box::pin(self.look(hash, shown))
    }

    fn give_slot(
        &self,
        hash: TicketHash,
        seen: Seen,
        slot: u64,
    ) -> Later<'_, Result<Option<u64>, StoreError>> {
        Box::pin(self.give(hash, seen, slot))
    }

    fn mark(&self, proof: TicketHash) -> Later<'_, Result<Option<u64>, StoreError>> {
        Box::pin(self.marked(proof))
    }

    fn give_mark(&self, proof: TicketHash, slot: u64) -> Later<'_, Result<u64, StoreError>> {
        Box::pin(self.give_proof(proof, slot))
    }

    fn take_mark(&self, proof: TicketHash) -> Later<'_, Result<bool, StoreError>> {
        Box::pin(self.take_proof(proof))
    }
}
