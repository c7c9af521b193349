use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value, from_redis_value};

use super::place::{Endpoint, Topology};
use super::remembered::Known;
use super::streams::CHUNK;
use super::{Shared, reply};
use crate::backplane::Top;
use crate::model::{Position, unix_millis};

/// Which run of a primary each line served last, by its endpoint and whether it waits for replicas. Another run, or
/// another server, may have come back with older data.
#[derive(Default)]
pub(super) struct Runs(Mutex<HashMap<(Endpoint, bool), Served>>);

/// A run that is served, if it says which it is, and since when (Unix milliseconds).
struct Served {
    run: Option<Run>,
    since: u64,
}

/// One life of a Redis as a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run(String);

impl Runs {
    fn is(&self, line: &(Endpoint, bool), run: &Run) -> bool {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let served = runs.get(line).and_then(|served| served.run.as_ref());
        served == Some(run)
    }

    fn set(&self, line: (Endpoint, bool), run: Option<Run>) {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = unix_millis();
        runs.insert(line, Served { run, since });
    }

    /// Whether a line has served the same run since before a moment: what was done then is there still.
    pub(super) fn lasted(&self, line: &(Endpoint, bool), since: u64) -> bool {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.get(line).is_some_and(|served| served.since < since)
    }

    /// Forgets primaries that are none any more: one that becomes one again has taken over what others kept.
    pub(super) fn retain(&self, endpoints: &[Endpoint]) {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.retain(|(endpoint, _), _| endpoints.contains(endpoint));
    }
}

/// What a line makes sure of before it serves over a new connection: that this Redis keeps what it is given, and that it
/// still has what this node was told it has.
pub(super) struct Inspection {
    shared: Arc<Shared>,
    topology: Topology,
    /// Which primary.
    index: usize,
    replicated: bool,
}

impl Inspection {
    pub(super) fn new(
        shared: Arc<Shared>,
        topology: Topology,
        index: usize,
        replicated: bool,
    ) -> Self {
        Self {
            shared,
            topology,
            index,
            replicated,
        }
    }

    /// Which run of Redis this is; none = it does not say.
    ///
    /// # Errors
    /// What it is given could vanish; a sentence for the operator.
    pub(super) async fn fitness(
        &self,
        mut connection: MultiplexedConnection,
    ) -> Result<Option<Run>, String> {
        let mut pipeline = Pipeline::with_capacity(3);
        for section in ["server", "replication", "memory"] {
            pipeline.cmd("INFO").arg(section);
        }
        let answers = connection.send_packed_commands(&pipeline, 0, 3).await;
        // What breaks the connection is found out by whoever uses it next.
        let mut answers = answers.unwrap_or_default().into_iter();
        let mut next = || from_redis_value::<String>(answers.next()?).ok();
        let (server, replication, memory) = (next(), next(), next());
        if self.shared.keeps {
            match memory.as_deref().and_then(evicts) {
                Some(problem) => return Err(problem),
                None if memory.is_none() => tracing::warn!(
                    "Redis does not say its maxmemory-policy (INFO is not allowed): if it evicts, kept messages vanish"
                ),
                None => {}
            }
        }
        let (server, replication) = (server.unwrap_or_default(), replication.unwrap_or_default());
        let (run, history) = (
            field(&server, "run_id"),
            field(&replication, "master_replid"),
        );
        Ok(run.map(|run| Run(format!("{run} {}", history.unwrap_or_default()))))
    }

    /// Unless this run is the one that was served before: compares where the streams stand that this node appended to with
    /// what it was answered. Those that are behind get a new epoch.
    ///
    /// # Errors
    /// A sentence for the operator; then it is to be done again, over another connection.
    pub(super) async fn compare(
        &self,
        mut connection: MultiplexedConnection,
        run: Option<Run>,
    ) -> Result<(), String> {
        let shared = &self.shared;
        let line = (self.topology.endpoints[self.index].clone(), self.replicated);
        if run.as_ref().is_some_and(|run| shared.runs.is(&line, run)) {
            return Ok(());
        }
        let has_era = self.topology.endpoint_of(&shared.keys.era()) == self.index;
        let known = shared.remembered.of(|address| {
            let channel = shared.keys.channel(address);
            self.topology.endpoint_of(&channel) == self.index
        });
        let (mut behind, mut beyond) = (0, false);
        for some in known.chunks(CHUNK) {
            behind += self
                .compare_some(&mut connection, some, &mut beyond)
                .await?;
        }
        if has_era {
            shared.exchange_era_over(&mut connection).await?;
        }
        if !known.is_empty() {
            tracing::warn!(
                compared = known.len(),
                behind,
                "Redis was started anew, or another one is the primary: streams that are behind what was answered begin anew"
            );
        }
        shared.runs.set(line, run);
        Ok(())
    }

    /// How many of them are behind. The first that was to be forgotten next, and has lost something, begins an era: what was
    /// appended to before it may be lost, too. `beyond` = one did already.
    async fn compare_some(
        &self,
        connection: &mut MultiplexedConnection,
        known: &[Known],
        beyond: &mut bool,
    ) -> Result<usize, String> {
        let mut pipeline = Pipeline::with_capacity(known.len());
        for (n, known) in known.iter().enumerate() {
            let call = self.shared.top_call(&known.address, known.position);
            // The first one lets Redis have the script.
            pipeline.add_command(match n {
                0 => call.whole(),
                _ => call.known(),
            });
        }
        let answers = connection
            .send_packed_commands(&pipeline, 0, known.len())
            .await
            .map_err(|e| e.to_string())?;
        let remembered = &self.shared.remembered;
        let mut behind = 0;
        for (known, answer) in known.iter().zip(answers) {
            let top = match answer {
                Value::ServerError(error) => {
                    let details = error.details().unwrap_or_default();
                    return Err(format!("Redis said {} {details}", error.code()));
                }
                answer => reply::top(&mut reply::array(answer).unwrap_or_default()),
            };
            let top = top.ok_or("a script in Redis answered what it never does")?;
            let position = known.position;
            if top.position.epoch != position.epoch {
                behind += 1;
                // Before it is corrected: should this look be cut off, the next one would not find it.
                if !*beyond && known.old && remembered.has_forgotten() && has_lost(position, top) {
                    *beyond = true;
                    self.shared.era.begin();
                }
                remembered.correct(&known.address, position, top.position);
            }
        }
        Ok(behind)
    }
}

/// Whether a stream that stands there, in another epoch, has lost what was at a position: an epoch may begin for other
/// reasons, with all that was there.
fn has_lost(known: Position, top: Top) -> bool {
    let began = top.began;
    began.offset < known.offset || (began.offset == known.offset && began.tag != known.tag)
}

/// Why a Redis whose `INFO memory` this is must not keep anything.
fn evicts(memory: &str) -> Option<String> {
    let policy = field(memory, "maxmemory_policy")?;
    let limit = field(memory, "maxmemory_human").unwrap_or("0B");
    (policy != "noeviction").then(|| {
        format!(
            "its maxmemory-policy is {policy} (maxmemory {limit}): it would drop kept messages, and the positions of \
             streams, without a word when its memory is full; `CONFIG SET maxmemory-policy noeviction`, and in redis.conf, \
             or keep nothing ([inbox] max_messages = 0, and no namespace with max_messages)"
        )
    })
}

/// A field of an `INFO` section.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key == name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_noeviction_is_fit_to_keep() {
        let memory = |policy: &str| {
            format!("# Memory\r\nmaxmemory_human:1.00G\r\nmaxmemory_policy:{policy}\r\n")
        };
        assert_eq!(evicts(&memory("noeviction")), None);
        for policy in ["allkeys-lru", "volatile-ttl"] {
            let problem = evicts(&memory(policy)).expect("it is not fit");
            assert!(
                problem.contains(policy) && problem.contains("1.00G"),
                "{problem}"
            );
        }
    }
}
