use std::sync::atomic::{AtomicU64, Ordering};

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::Shared;
use super::scripts::Call;
use crate::model::unix_millis;

/// The era that streams are of, 0 for the first. A Redis that comes back with older data may have lost more than this node
/// remembers: then no stream can be believed that began before, and each gets a new epoch when it is asked for next.
#[derive(Default)]
pub(super) struct Era(AtomicU64);

impl Era {
    /// The latest that this node knows of.
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Another one begins.
    pub(super) fn begin(&self) {
        // Later than every one before it, whatever the clock says.
        let next = unix_millis().max(self.now() + 1);
        self.learn(next);
    }

    fn learn(&self, era: u64) {
        if self.0.fetch_max(era, Ordering::AcqRel) < era {
            tracing::warn!(
                era,
                "Redis lost more than the nodes remember: every stream begins anew when it is asked for next"
            );
        }
    }
}

impl Shared {
    fn era_call<'a>(&'a self, key: &'a str) -> Call<'a> {
        self.scripts.era.on([key]).number(self.era.now())
    }

    /// Tells Redis of the era, and learns of a later one.
    pub(super) async fn exchange_era(&self) -> Result<(), String> {
        let key = self.keys.era();
        let call = self.era_call(&key);
        let era = self.ask(call, |value| number(&value)).await?;
        self.era.learn(era);
        Ok(())
    }

    /// The same, over a connection to the primary that has it, before anything else is asked of it.
    pub(super) async fn exchange_era_over(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), String> {
        let key = self.keys.era();
        let call = self.era_call(&key).whole();
        let answer = connection.send_packed_command(&call).await;
        let answer = answer.map_err(|e| e.to_string())?;
        let era = number(&answer).ok_or("a script in Redis answered what it never does")?;
        self.era.learn(era);
        Ok(())
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
