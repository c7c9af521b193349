use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, PushInfo, PushKind, cmd};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::backoff::Backoff;
use super::keys;
use super::place::Place;
use crate::telemetry::SourceMetrics;

/// Events that may wait to be read, and their bytes. One that finds no room is lost, and counted.
const QUEUE: usize = 16_384;
const QUEUE_BYTES: usize = 64 << 20;
/// How often a connection is asked whether it is still one.
const PING: Duration = Duration::from_secs(2);

/// What another service published on a topic.
pub struct Event {
    /// The topic.
    pub topic: Bytes,
    /// What it published.
    pub bytes: Bytes,
    /// Its bytes' place in the queue.
    _room: OwnedSemaphorePermit,
}

/// Pub/Sub channels of other services, heard on one connection of their own. What is published while it is down, nobody
/// here gets: Redis keeps nothing of it.
pub struct Topics {
    place: Place,
    names: Vec<String>,
    events: mpsc::Sender<Event>,
    room: Arc<Semaphore>,
    metrics: SourceMetrics,
}

impl Topics {
    /// Topics by their full names, and where their events come out, in the order in which Redis sent them.
    pub fn new(
        place: Place,
        names: Vec<String>,
        metrics: SourceMetrics,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (events, received) = mpsc::channel(QUEUE);
        let topics = Self {
            place,
            names,
            events,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            metrics,
        };
        (topics, received)
    }

    /// Listens, and begins anew whenever the connection is lost; never ends.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let mut attempt = 0;
        loop {
            let lost = Arc::new(Notify::new());
            let problem = match self.connect(attempt, lost.clone()).await {
                Ok(mut connection) => {
                    let began = Instant::now();
                    tracing::info!(topics = ?self.names, "listening to topics");
                    self.metrics.links.inc();
                    let problem = watch(&mut connection, &lost).await;
                    self.metrics.links.dec();
                    // One that is ended as soon as it is made is no success.
                    if began.elapsed() > PING {
                        backoff.reset();
                    }
                    problem
                }
                Err(problem) => problem,
            };
            attempt += 1;
            let delay = backoff.next();
            tracing::warn!(
                topics = ?self.names,
                %problem,
                "topics are not heard; trying again in {delay:.1?}"
            );
            tokio::time::sleep(delay).await;
        }
    }

    /// A connection on which every topic is subscribed to.
    async fn connect(
        &self,
        attempt: usize,
        lost: Arc<Notify>,
    ) -> Result<MultiplexedConnection, String> {
        let endpoint = self.place.hearing(attempt);
        let pushed = self.on_push(lost);
        let mut connection = self.place.connect(&endpoint, Some(pushed)).await?;
        let mut pipeline = Pipeline::with_capacity(self.names.len());
        for name in &self.names {
            pipeline.cmd("SUBSCRIBE").arg(name);
        }
        let subscribed: redis::RedisResult<()> = pipeline.query_async(&mut connection).await;
        subscribed.map_err(|e| e.to_string())?;
        Ok(connection)
    }

    /// What the connection's driver calls with each push. It must not wait.
    fn on_push(&self, lost: Arc<Notify>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        let (events, room) = (self.events.clone(), self.room.clone());
        let metrics = self.metrics.clone();
        Box::new(move |push| match push.kind {
            PushKind::Message => {
                let Some((topic, bytes)) = keys::message(push.data) else {
                    return;
                };
                let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let Ok(room) = room.clone().try_acquire_many_owned(size) else {
                    return metrics.lost("receive_queue");
                };
                let event = Event {
                    topic: topic.into(),
                    bytes,
                    _room: room,
                };
                if events.try_send(event).is_err() {
                    metrics.lost("receive_queue");
                }
            }
            PushKind::Disconnection => lost.notify_one(),
            _ => {}
        })
    }
}

/// Until the connection ends or is dead; why.
async fn watch(connection: &mut MultiplexedConnection, lost: &Notify) -> String {
    loop {
        tokio::select! {
            () = lost.notified() => return "the connection ended".into(),
            () = tokio::time::sleep(PING) => {}
        }
        // A server that is gone without a word, or frozen, ends no connection.
        let pong: redis::RedisResult<()> = cmd("PING").query_async(connection).await;
        match pong {
            Ok(()) => {}
            Err(error) if error.is_timeout() => return "Redis does not answer".into(),
            Err(error) => return error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::BackplaneUrl;
    use crate::telemetry::{Metrics, Reason};
    use redis::Value;

    #[test]
    fn an_event_that_finds_no_room_is_lost_and_counted() {
        let place = Place::parse("url", &BackplaneUrl::new("redis://a"), None).expect("a place");
        let metrics = Metrics::new().sources;
        let (topics, mut events) = Topics::new(place, vec!["t".into()], metrics.clone());
        let push = topics.on_push(Arc::new(Notify::new()));
        let publish = |bytes: usize| {
            let event = Value::BulkString(vec![b'x'; bytes]);
            push(PushInfo {
                kind: PushKind::Message,
                data: vec![Value::BulkString(b"t".to_vec()), event],
            });
        };
        let reason = "receive_queue";
        let lost = || metrics.losses.get_or_create(&Reason { reason }).get();
        for _ in 0..QUEUE_BYTES >> 20 {
            publish(1 << 20);
        }
        assert_eq!(lost(), 0);
        publish(1);
        assert_eq!(lost(), 1);
        // Once it is read its room is free.
        let first = events.try_recv().expect("an event");
        assert_eq!((&first.topic[..], first.bytes.len()), (&b"t"[..], 1 << 20));
        drop(first);
        publish(1 << 20);
        assert_eq!(lost(), 1);
        while events.try_recv().is_ok() {}
        for _ in 0..=QUEUE {
            publish(1);
        }
        assert_eq!(lost(), 2);
    }
}
