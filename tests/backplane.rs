//! What every backplane must do: one contract, run for each.

use std::sync::Arc;
use std::time::Duration;

use tidings::backplane::redis::Redis;
use tidings::backplane::{
    Answer, Arrivals, Backplane, BackplaneConfig, BackplaneKind, BackplaneUrl, Budget, Envelope,
    Here, Later, Leases, Memory, NodeLease, Pace, Wanted,
};
use tidings::model::{Address, Body, Message, MessageId, Said, Target, UserId, unix_millis};
use tidings::telemetry::Metrics;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use crate::support::DEADLINE;
use crate::support::redis::RedisServer;

/// What arrives at a node.
pub struct Inbox {
    sender: mpsc::Sender<Envelope>,
    receiver: Mutex<mpsc::Receiver<Envelope>>,
    missed: std::sync::Mutex<Vec<Address>>,
}

impl Inbox {
    pub fn new() -> Arc<Self> {
        let (sender, receiver) = mpsc::channel(1000);
        let receiver = Mutex::new(receiver);
        let missed = std::sync::Mutex::default();
        Arc::new(Self {
            sender,
            receiver,
            missed,
        })
    }

    /// The addresses of which something may have been missed, since the last look.
    pub fn missed(&self) -> Vec<Address> {
        std::mem::take(&mut *self.missed.lock().expect("whole"))
    }

    pub async fn next(&self) -> Envelope {
        let mut receiver = self.receiver.lock().await;
        tokio::time::timeout(DEADLINE, receiver.recv())
            .await
            .expect("it arrives in time")
            .expect("the inbox is open")
    }

    pub async fn is_empty(&self) -> bool {
        self.receiver.lock().await.is_empty()
    }
}

impl Arrivals for Inbox {
    fn arrive(&self, envelope: Envelope) -> Later<'_, ()> {
        Box::pin(async move { self.sender.send(envelope).await.expect("there is room") })
    }

    fn missed(&self, addresses: Vec<Address>) -> Later<'_, ()> {
        self.missed.lock().expect("whole").extend(addresses);
        Box::pin(std::future::ready(()))
    }
}

/// A node's end of a backplane.
trait Both: Backplane + Leases + Budget {}
impl<T: Backplane + Leases + Budget> Both for T {}
type End = (Arc<dyn Both>, Arc<Inbox>);

fn memory() -> End {
    let inbox = Inbox::new();
    (Arc::new(Memory::new(inbox.clone())), inbox)
}

async fn redis(server: &RedisServer, incarnation: u64) -> End {
    let config = BackplaneConfig {
        kind: BackplaneKind::Redis,
        url: Some(BackplaneUrl::new(server.url())),
        ..BackplaneConfig::default()
    };
    let inbox = Inbox::new();
    let metrics = Metrics::new().backplane;
    let redis = Redis::new(&config, incarnation, true, metrics, inbox.clone()).expect("valid");
    redis.wait_until_whole().await.expect("fit");
    assert_eq!(redis.ailments(), Vec::<String>::new());
    (Arc::new(redis), inbox)
}

pub fn user(id: &str) -> Address {
    Address::User(UserId::parse(id).expect("a user"))
}

fn message(to: &Address, text: &str) -> Envelope {
    let time = unix_millis();
    Envelope::Message(Message::new(
        MessageId::new(time),
        Target::One(to.clone()),
        Body::Text(text.into()),
        time,
    ))
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn hears_what_it_publishes((end, inbox): &End) {
    let to = user("42");
    end.listen(to.clone()).await.expect("listened");
    for n in 0..100 {
        let sent = message(&to, &n.to_string());
        let published = end
            .publish(to.clone(), sent.clone(), soon())
            .await
            .expect("published");
        assert_eq!((published.listeners, published.here), (1, Here::Listens));
        assert_eq!(inbox.next().await, sent);
    }
    // Again is once.
    end.listen(to.clone()).await.expect("listened");
    let sent = message(&to, "again");
    end.publish(to, sent.clone(), soon())
        .await
        .expect("published");
    assert_eq!(inbox.next().await, sent);
    assert!(inbox.is_empty().await);
}

async fn everyone_is_listened_to_from_the_start((end, inbox): &End) {
    let sent = message(&Address::Everyone, "all");
    end.publish(Address::Everyone, sent.clone(), soon())
        .await
        .expect("published");
    assert_eq!(inbox.next().await, sent);
}

async fn an_answer_comes_to_the_node_that_asked((end, inbox): &End, incarnation: u64) {
    let sent = Envelope::Answer(Answer {
        to: 7,
        from: 8,
        said: Said::Applied(3),
    });
    end.publish(Address::Node(incarnation), sent.clone(), soon())
        .await
        .expect("published");
    assert_eq!(inbox.next().await, sent);
}

async fn listening_again_right_after_unlistening_misses_nothing((end, inbox): &End) {
    let to = user("coming-and-going");
    for n in 0..50 {
        end.listen(to.clone()).await.expect("listened");
        let sent = message(&to, &n.to_string());
        end.publish(to.clone(), sent.clone(), soon())
            .await
            .expect("published");
        assert_eq!(inbox.next().await, sent);
        end.unlisten(&to);
    }
}

async fn a_lease_is_there_until_it_is_released((end, _): &End) {
    let lease = NodeLease {
        node: "a".into(),
        incarnation: "0000000000a1".into(),
        version: "1".into(),
        connections: 3,
        load: 0.5,
        since: unix_millis(),
        draining: false,
    };
    end.renew(lease.clone()).await.expect("renewed");
    assert_eq!(end.nodes().await, Ok(vec![lease.clone()]));
    let draining = NodeLease {
        draining: true,
        ..lease
    };
    end.renew(draining.clone()).await.expect("renewed");
    assert_eq!(end.nodes().await, Ok(vec![draining.clone()]));
    end.release(draining.incarnation).await.expect("released");
    assert_eq!(end.nodes().await, Ok(Vec::new()));
}

/// What is asked of the handshake budget, as one node.
async fn lease(end: &dyn Both, per_second: u32, tokens: u32, slots: u32) -> (u32, Vec<u64>, u64) {
    let wanted = Wanted { tokens, slots };
    let leased = end.lease(Pace { per_second }, wanted, soon()).await;
    let leased = leased.expect("leased");
    (leased.tokens, leased.slots, leased.now)
}

async fn tokens_and_slots_are_of_one_schedule((end, _): &End) {
    let end = &**end;
    let (tokens, slots, now) = lease(end, 10, 100, 30).await;
    // The burst, and from then on one each 100 ms.
    assert_eq!((tokens, slots.len()), (2, 30));
    assert!(slots[0] >= now && slots[0] <= now + 101, "{slots:?} {now}");
    let apart = |slots: &[u64]| slots.windows(2).all(|two| two[1] - two[0] == 100);
    assert!(apart(&slots), "{slots:?}");
    let (tokens, more, _) = lease(end, 10, 100, 2).await;
    assert_eq!((tokens, apart(&more)), (0, true));
    assert_eq!(more[0], slots[29] + 100);
    // Nobody is sent further away than the horizon.
    let (_, rest, now) = lease(end, 10, 0, 10_000).await;
    let last = rest.last().expect("some");
    assert!(rest.len() < 3_000 && *last <= now + 300_001, "{last} {now}");
    assert_eq!(lease(end, 10, 0, 0).await.0, 0);
}

async fn keeps_the_contract(end: End, incarnation: u64) {
    hears_what_it_publishes(&end).await;
    everyone_is_listened_to_from_the_start(&end).await;
    an_answer_comes_to_the_node_that_asked(&end, incarnation).await;
    listening_again_right_after_unlistening_misses_nothing(&end).await;
    a_lease_is_there_until_it_is_released(&end).await;
    tokens_and_slots_are_of_one_schedule(&end).await;
    end.0.close().await;
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    keeps_the_contract(memory(), 1).await;
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    let server = RedisServer::start().await;
    keeps_the_contract(redis(&server, 1).await, 1).await;
}

#[tokio::test]
async fn a_node_gets_only_what_it_listens_to() {
    let server = RedisServer::start().await;
    let (a, b) = (redis(&server, 1).await, redis(&server, 2).await);
    let (ours, theirs) = (user("ours"), user("theirs"));
    a.0.listen(ours.clone()).await.expect("listened");
    b.0.listen(theirs.clone()).await.expect("listened");
    for n in 0..10 {
        let sent = message(&theirs, &n.to_string());
        let published =
            a.0.publish(theirs.clone(), sent.clone(), soon())
                .await
                .expect("published");
        assert_eq!((published.listeners, published.here), (1, Here::Silent));
        assert_eq!(b.1.next().await, sent);
    }
    let nobody = message(&user("nobody"), "x");
    let published = a.0.publish(user("nobody"), nobody, soon()).await;
    assert_eq!(published.expect("published").listeners, 0);
    assert!(a.1.is_empty().await && b.1.is_empty().await);
    a.0.close().await;
    b.0.close().await;
}

#[tokio::test]
async fn an_address_that_nobody_follows_is_given_up_after_a_while() {
    let server = RedisServer::start().await;
    let end = redis(&server, 1).await;
    let to = user("42");
    end.0.listen(to.clone()).await.expect("listened");
    end.0.unlisten(&to);
    let gone = async {
        loop {
            let published = end.0.publish(to.clone(), message(&to, "x"), soon()).await;
            if published.expect("published").listeners == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("it goes");
    // And comes back when it is wanted.
    while !end.1.is_empty().await {
        end.1.next().await;
    }
    end.0.listen(to.clone()).await.expect("listened");
    let sent = message(&to, "back");
    end.0
        .publish(to, sent.clone(), soon())
        .await
        .expect("published");
    assert_eq!(end.1.next().await, sent);
    end.0.close().await;
}
