mod found;

use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value, cmd};

use self::found::{Found, entries, gone};
use super::place::Place;
use super::reply;

/// Entries that are taken at once.
const BATCH: usize = 64;
/// How long Redis waits for an entry before it answers that there is none: less than a connection waits for an answer, and
/// as long as a node that leaves waits for its readers.
const BLOCK: Duration = Duration::from_millis(500);
/// About how many dead letters a stream keeps.
const DEAD_MAX: usize = 10_000;
/// An event that another service added to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its id in the stream.
    pub id: String,
    /// Its fields, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What was taken from a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Oldest first.
    pub entries: Vec<LogEntry>,
    /// They were another consumer's, which did not confirm them in time.
    pub claimed: bool,
    /// So many were trimmed from the stream before they were confirmed: nobody gets them any more.
    pub trimmed: usize,
}

/// Who takes what from which stream.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The stream's key.
    pub topic: String,
    /// The consumer group: each entry goes to one of its consumers.
    pub group: String,
    /// This node, in the group.
    pub consumer: String,
    /// When what another consumer took and did not confirm is taken from it.
    pub claim_after: Duration,
}

/// A stream of another service, of which this node takes its share as one consumer of a group, on a connection of its own.
/// An entry that was taken is taken again, here or elsewhere, until it is confirmed.
pub struct Log {
    place: Place,
    config: LogConfig,
    links: Gauge,
    link: Option<Link>,
    /// Behind which entry this node's own unconfirmed ones are still to be looked at; none = they all were.
    own: Option<String>,
    /// Where the search for others' unconfirmed entries goes on.
    cursor: String,
    search_at: Instant,
}

/// A connection, counted while it is there.
struct Link {
    connection: MultiplexedConnection,
    /// To where dead letters go: in a cluster this may be another server.
    dead: MultiplexedConnection,
    links: Gauge,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.links.dec();
    }
}

/// The beginning of a stream, and of a search.
const BEGINNING: &str = "0-0";

impl Log {
    /// Connects when it is first asked. `links` counts its connection.
    pub fn new(place: Place, config: LogConfig, links: Gauge) -> Self {
        Self {
            place,
            config,
            links,
            link: None,
            own: Some(BEGINNING.into()),
            cursor: BEGINNING.into(),
            search_at: Instant::now(),
        }
    }

    /// The next entries: first those that this node took before it lost its connection and did not confirm, then those of
    /// others that did not confirm theirs, then new ones, for which it waits half a second. All that was taken before has to be
    /// confirmed, or given up by an error of this or another call: then it comes again.
    ///
    /// # Errors
    /// A sentence for the operator. The connection is given up.
    pub async fn next(&mut self) -> Result<Taken, String> {
        let taken = self.take().await;
        self.noted(taken)
    }

    /// Confirms entries: nobody gets them again.
    ///
    /// # Errors
    /// As above; it may have been done.
    pub async fn confirm(&mut self, ids: &[String]) -> Result<(), String> {
        if ids.is_empty() {
            return Ok(());
        }
        let confirmed = self.acknowledge(ids).await;
        self.noted(confirmed)
    }

    /// Puts an entry among the dead letters, `<topic>.dead`, with the reason; it is still to be confirmed.
    ///
    /// # Errors
    /// As above.
    pub async fn bury(&mut self, entry: &LogEntry, reason: &str) -> Result<(), String> {
        let mut add = cmd("XADD");
        add.arg(dead_letters(&self.config.topic))
            .arg("MAXLEN")
            .arg("~")
            .arg(DEAD_MAX)
            .arg("*")
            .arg("tidings.reason")
            .arg(reason)
            .arg("tidings.id")
            .arg(&entry.id);
        for (name, value) in &entry.fields {
            add.arg(name).arg(value);
        }
        let buried = async {
            let link = self.link().await?;
            let done: Result<Value, RedisError> = add.query_async(&mut link.dead).await;
            done.map(|_| ()).map_err(problem)
        };
        let buried = buried.await;
        self.noted(buried)
    }

    /// After an error nobody knows what came through: begin anew.
    fn noted<T>(&mut self, result: Result<T, String>) -> Result<T, String> {
        if result.is_err() {
            self.link = None;
            self.own = Some(BEGINNING.into());
        }
        result
    }

    async fn take(&mut self) -> Result<Taken, String> {
        if let Some(after) = self.own.clone() {
            let found = self.read(&after, None).await?;
            self.own = found.last().map(|found| found.id.clone());
            if self.own.is_some() {
                return self.present(found, false).await;
            }
        }
        if Instant::now() >= self.search_at {
            let found = self.claim().await?;
            if !found.is_empty() {
                return self.present(found, true).await;
            }
        }
        let found = self.read(">", Some(BLOCK)).await?;
        self.present(found, false).await
    }

    /// Of what was found, what is still in the stream; the rest is confirmed, since it cannot be delivered.
    async fn present(&mut self, found: Vec<Found>, claimed: bool) -> Result<Taken, String> {
        let mut taken = Taken {
            claimed,
            ..Taken::default()
        };
        let mut trimmed = Vec::new();
        for Found { id, fields } in found {
            match fields {
                Some(fields) => taken.entries.push(LogEntry { id, fields }),
                None => trimmed.push(id),
            }
        }
        taken.trimmed = trimmed.len();
        if !trimmed.is_empty() {
            self.acknowledge(&trimmed).await?;
        }
        Ok(taken)
    }

    async fn read(&mut self, after: &str, block: Option<Duration>) -> Result<Vec<Found>, String> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP")
            .arg(&self.config.group)
            .arg(&self.config.consumer)
            .arg("COUNT")
            .arg(BATCH);
        if let Some(block) = block {
            read.arg("BLOCK").arg(block.as_millis() as u64);
        }
        read.arg("STREAMS").arg(&self.config.topic).arg(after);
        let value = self.in_group(read).await?;
        let found = match value {
            Value::Nil => Some(Vec::new()),
            value => {
                let streams = reply::pairs(value).map(Vec::into_iter);
                streams.and_then(|mut streams| entries(streams.next()?.1))
            }
        };
        found.ok_or_else(|| "XREADGROUP answered what it never does".into())
    }

    /// Takes what others took and did not confirm. When all of it was looked at, there is a pause.
    async fn claim(&mut self) -> Result<Vec<Found>, String> {
        let mut claim = cmd("XAUTOCLAIM");
        claim
            .arg(&self.config.topic)
            .arg(&self.config.group)
            .arg(&self.config.consumer)
            .arg(self.config.claim_after.as_millis() as u64)
            .arg(&self.cursor)
            .arg("COUNT")
            .arg(BATCH);
        let value = self.in_group(claim).await?;
        let claimed = reply::array(value).and_then(|mut values| {
            let cursor = String::from_utf8(reply::bytes(values.next()?)?).ok()?;
            let mut found = entries(values.next()?)?;
            // Redis 7 tells of those that are gone apart from the rest, and has confirmed them itself.
            let gone = values.next().and_then(reply::array).into_iter().flatten();
            found.extend(gone.filter_map(|id| {
                Some(Found {
                    id: String::from_utf8(reply::bytes(id)?).ok()?,
                    fields: None,
                })
            }));
            Some((cursor, found))
        });
        let (cursor, found) = claimed.ok_or("XAUTOCLAIM answered what it never does")?;
        self.cursor = cursor;
        if self.cursor == BEGINNING {
            // Not all nodes at once.
            let pause = self.config.claim_after / 3;
            self.search_at = Instant::now() + pause.mul_f64(rand::random_range(0.5..=1.0));
        }
        Ok(found)
    }

    async fn acknowledge(&mut self, ids: &[String]) -> Result<(), String> {
        let mut acknowledge = cmd("XACK");
        acknowledge
            .arg(&self.config.topic)
            .arg(&self.config.group)
            .arg(ids);
        let link = self.link().await?;
        let done: Result<Value, RedisError> = acknowledge.query_async(&mut link.connection).await;
        done.map(|_| ()).map_err(problem)
    }

    /// Runs a command of the group, which is made if it is missing: with all that is in the stream, so that nothing is lost
    /// that was added before.
    async fn in_group(&mut self, command: Cmd) -> Result<Value, String> {
        let mut create = cmd("XGROUP");
        create
            .arg("CREATE")
            .arg(&self.config.topic)
            .arg(&self.config.group)
            .arg("0")
            .arg("MKSTREAM");
        let connection = &mut self.link().await?.connection;
        let done: Result<Value, RedisError> = command.query_async(connection).await;
        match done {
            Err(error) if error.code() == Some("NOGROUP") => {
                let made: Result<Value, RedisError> = create.query_async(connection).await;
                match made {
                    Err(error) if error.code() != Some("BUSYGROUP") => return Err(problem(error)),
                    _ => {}
                }
                command.query_async(connection).await.map_err(problem)
            }
            done => done.map_err(problem),
        }
    }

    async fn link(&mut self) -> Result<&mut Link, String> {
        if self.link.is_none() {
            let link = self.connect().await?;
            let LogConfig { topic, group, .. } = &self.config;
            tracing::info!(topic, group, "taking events from a stream");
            self.link = Some(link);
        }
        self.link
            .as_mut()
            .ok_or_else(|| "there is no connection".into())
    }

    async fn connect(&self) -> Result<Link, String> {
        let topology = self.place.topology().await?;
        let LogConfig { topic, group, .. } = &self.config;
        let (here, dead) = (
            topology.endpoint_of(topic),
            topology.endpoint_of(&dead_letters(topic)),
        );
        let mut connection = self.place.connect(&topology.endpoints[here], None).await?;
        let dead = match here == dead {
            true => connection.clone(),
            false => self.place.connect(&topology.endpoints[dead], None).await?,
        };
        forget_gone(&mut connection, topic, group).await;
        self.links.inc();
        Ok(Link {
            connection,
            dead,
            links: self.links.clone(),
        })
    }
}

/// Each run of a node without a configured name is another consumer: those that are long gone are taken out of the group.
/// What goes wrong here harms nothing.
async fn forget_gone(connection: &mut MultiplexedConnection, topic: &str, group: &str) {
    let mut ask = cmd("XINFO");
    ask.arg("CONSUMERS").arg(topic).arg(group);
    let told: Result<Value, RedisError> = ask.query_async(connection).await;
    let consumers = told.ok().and_then(reply::array);
    for consumer in consumers.into_iter().flatten() {
        if let Some(name) = gone(consumer) {
            let mut forget = cmd("XGROUP");
            forget.arg("DELCONSUMER").arg(topic).arg(group).arg(name);
            let _: Result<Value, RedisError> = forget.query_async(connection).await;
        }
    }
}

fn dead_letters(topic: &str) -> String {
    format!("{topic}.dead")
}

fn problem(error: RedisError) -> String {
    match error.is_timeout() {
        true => "Redis does not answer".into(),
        false => error.to_string(),
    }
}
