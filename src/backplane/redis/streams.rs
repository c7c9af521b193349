use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use redis::Value;
use tokio::time::Instant;

use super::fabric::Fabric;
use super::scripts::Call;
use super::{Failure, Redis, Shared, delivering, reply};
use crate::backplane::{
    Append, AppendError, Appended, CursorMove, Durability, Envelope, From, Later, Once, Opened,
    Page, Streams, Top,
};
use crate::model::{Address, Message, Place, Position, Since};

/// How long it is known where a stream stands, and a cursor, without a word of it.
const META_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a first attempt may come behind its retry, and how far back a retry looks for it.
const RETRY_LIFE: Duration = Duration::from_secs(60);
/// Cursors of one user's devices.
const DEVICES_MAX: usize = 16;
/// Calls under way for one wish; a pipeline holds as many.
pub(super) const CHUNK: usize = 512;
/// Longer than any call.
const PATIENCE: Duration = Duration::from_secs(10);

// Whether a message was tried before, for scripts.
const FIRST: u8 = 0;
const AGAIN: u8 = 1;
/// By another run of Redis, which may have lost what came of it: what it does not know is unknown.
const AGAIN_ELSEWHERE: u8 = 2;

impl Shared {
    /// Runs a script on the primary that has its keys.
    pub(super) async fn eval(
        &self,
        fabric: &Fabric,
        call: &Call<'_>,
        replicated: bool,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let commands = fabric.commands(call.key(), replicated);
        match commands.run_by(call.known(), deadline).await {
            Err(Failure::Refused(code, _)) if code == "NOSCRIPT" => {
                commands.run_by(call.whole(), deadline).await
            }
            done => done,
        }
    }

    /// The same, for what may be done again, and its answer.
    pub(super) async fn ask<T>(
        &self,
        call: Call<'_>,
        parse: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, String> {
        let fabric = self.fabric().map_err(Failure::into_problem)?;
        let deadline = Instant::now() + PATIENCE;
        let done = self.eval(&fabric, &call, false, deadline).await;
        let value = done.map_err(Failure::into_problem)?;
        parse(value).ok_or_else(|| "a script in Redis answered what it never does".into())
    }

    async fn append(&self, append: Append, deadline: Instant) -> Result<Appended, AppendError> {
        let to = &append.message.target.address();
        let fabric = self.fabric().map_err(refused)?;
        // It would be kept, and nobody told.
        if let Some(why) = fabric.refuses() {
            return Err(AppendError::Unavailable(why));
        }
        let channel = self.keys.channel(to);
        let echo = self.echo(&fabric, to, &channel);
        let result = self
            .append_to(&fabric, to, &channel, &append, deadline)
            .await;
        self.metrics.published(match &result {
            Ok(_) => "accepted",
            Err(AppendError::Unknown(_)) => "unknown",
            Err(_) => "refused",
        });
        let answer = result?;
        let position = answer.position;
        if let Some(position) = position {
            self.remembered.note(to, position);
        }
        Ok(Appended {
            published: echo.published(to, answer.listeners),
            id: answer.id,
            position,
            // The node's own retry is no other push.
            duplicate: answer.id != append.message.id,
            durability: match self.min_replicas {
                0 => Durability::Stored,
                _ => Durability::Replicated,
            },
        })
    }

    async fn append_to(
        &self,
        fabric: &Fabric,
        to: &Address,
        channel: &str,
        append: &Append,
        deadline: Instant,
    ) -> Result<reply::Answer, AppendError> {
        let Append {
            message,
            keep,
            once,
            again,
        } = append;
        let sealed = self.sealer.seal(to, &Envelope::Message(message.clone()));
        let (stream, meta) = (self.keys.stream(to), self.keys.meta(to));
        let marker = self.keys.marker(to, message.id);
        let key = once.map(|once| self.keys.once(to, &once.key));
        let asked = once.map_or([0; 32], |once| once.asked);
        let replicated = self.min_replicas > 0;
        let line = (fabric.endpoint(channel).clone(), replicated);
        let attempt = match *again {
            false => FIRST,
            true if self.runs.lasted(&line, message.time) => AGAIN,
            true => AGAIN_ELSEWHERE,
        };
        let scripts = &self.scripts;
        let call = match keep {
            Some(keep) => {
                let keys = [&*stream, &*meta, channel, &*marker];
                let call = scripts.append.on(keys.into_iter().chain(key.as_deref()));
                call.offer()
                    .bytes(message.id.as_bytes().as_slice())
                    .number(message.time)
                    .bytes(sealed)
                    .number(keep.messages.max(1))
                    .number(keep.age.as_millis())
                    .number(keep.bytes)
                    .number(META_LIFE.as_millis())
                    .number(attempt)
                    .number(RETRY_LIFE.as_millis())
            }
            // Without a caller's key, under one of this message alone.
            None => {
                let own = || self.keys.once(to, message.id.as_bytes());
                let keys = [key.unwrap_or_else(own), channel.to_owned()];
                let call = scripts.once.on(keys);
                call.bytes(message.id.as_bytes().as_slice())
                    .bytes(sealed)
                    .number(attempt)
            }
        };
        let call = call.bytes(asked.as_slice()).number(Once::LIFE.as_millis());
        let call = call.number(self.era.now());
        let value = self.eval(fabric, &call, replicated, deadline).await;
        match value.map_err(refused)? {
            Value::Int(0) => Err(AppendError::Conflict),
            Value::Int(_) => Err(AppendError::Unknown(
                "it cannot be told any more whether a first attempt got through".into(),
            )),
            value => reply::answer(value)
                .ok_or_else(|| AppendError::Unknown("Redis gave no position".into())),
        }
    }

    async fn open_stream(
        &self,
        address: Address,
        age: Duration,
        from: From,
    ) -> Result<Opened, String> {
        let offset = match &from {
            From::Since(Since::Now) | From::Oldest => String::new(),
            From::Since(Since::After(position)) => position.offset.to_string(),
            From::Cursor(_) => "cursor".into(),
        };
        let keys = [
            self.keys.stream(&address),
            self.keys.meta(&address),
            self.keys.cursors(&address),
            self.keys.channel(&address),
        ];
        let call = self.scripts.open.on(keys).offer();
        let call = call.number(META_LIFE.as_millis()).number(age.as_millis());
        let mut call = call.bytes(offset.into_bytes()).number(self.era.now());
        if let From::Cursor(Some(device)) = &from {
            call = call.bytes(device.as_str().as_bytes());
        }
        let found = self.ask(call, reply::start).await?;
        Ok(found.found.open(&from, found.cursor))
    }

    /// Compares a stream with what is known of it.
    pub(super) fn top_call(&self, address: &Address, known: Position) -> Call<'_> {
        let keys = [
            self.keys.stream(address),
            self.keys.meta(address),
            self.keys.channel(address),
        ];
        let call = self.scripts.top.on(keys).offer();
        call.number(META_LIFE.as_millis())
            .bytes(known.epoch.to_be_bytes().to_vec())
            .number(known.offset)
            .bytes(known.tag.0.to_be_bytes().to_vec())
            .number(self.era.now())
    }

    async fn top(&self, address: &Address, known: Position) -> Result<Top, String> {
        let call = self.top_call(address, known);
        self.ask(call, |value| reply::top(&mut reply::array(value)?))
            .await
    }

    /// Reads on where envelopes could not be opened, so that a page that is not full is the last one.
    async fn read_page(&self, address: Address, after: u64, most: usize) -> Result<Page, String> {
        let (stream, meta) = (self.keys.stream(&address), self.keys.meta(&address));
        let keys = [&*stream, &*meta];
        let (mut after, mut messages) = (after, Vec::new());
        loop {
            let wanted = most - messages.len();
            let call = self.scripts.read.on(keys).offer();
            let call = call.number(META_LIFE.as_millis());
            let call = call.number(after).number(wanted as u64);
            let call = call.number(self.era.now());
            let (top, entries) = self.ask(call, reply::page).await?;
            let count = entries.len();
            for (place, sealed) in entries {
                after = place.offset;
                messages.extend(self.unseal(&address, place, sealed));
            }
            if count < wanted || messages.len() >= most {
                return Ok(Page { top, messages });
            }
        }
    }

    /// The message in a stream's entry. What is none is counted, and skipped.
    fn unseal(&self, address: &Address, place: Place, sealed: Bytes) -> Option<Message> {
        match delivering::open(&self.sealer, address, Some(place), sealed) {
            Ok(Envelope::Message(message)) => Some(message),
            Ok(_) => {
                self.metrics.dropped("malformed");
                None
            }
            Err(error) => {
                self.metrics.dropped(error.name());
                tracing::warn!(%address, offset = place.offset, reason = error.name(), "a kept message cannot be read");
                None
            }
        }
    }

    async fn advance_one(&self, to: &CursorMove) -> Result<(), String> {
        let address = Address::User(to.user.clone());
        let keys = [self.keys.cursors(&address), self.keys.meta(&address)];
        let Position { epoch, offset, tag } = to.to;
        let device = to.device.as_ref().map_or("*", |device| device.as_str());
        let call = self.scripts.advance.on(keys);
        let call = call
            .bytes(device.as_bytes())
            .bytes(format!("{epoch:016x}").into_bytes())
            .number(offset)
            .bytes(format!("{:08x}", tag.0).into_bytes())
            .bytes(epoch.to_be_bytes().to_vec())
            .number(DEVICES_MAX as u64)
            .number(META_LIFE.as_millis());
        self.ask(call, |_| Some(())).await
    }
}

/// Whether it is certain that nothing was done.
fn refused(failure: Failure) -> AppendError {
    match failure {
        // What a script is denied in its midst leaves the first half of it done.
        Failure::Refused(code, why) if code == "NOPERM" || code == "ERR" => {
            AppendError::Unknown(why)
        }
        Failure::NotSent(why) | Failure::Refused(_, why) => AppendError::Unavailable(why),
        Failure::Busy => AppendError::Busy,
        Failure::Unknown(why) => AppendError::Unknown(why),
    }
}

impl Streams for Redis {
    fn append(
        &self,
        append: Append,
        deadline: Instant,
    ) -> Later<'_, Result<Appended, AppendError>> {
        Box::pin(self.shared.append(append, deadline))
    }

    fn open(
        &self,
        address: Address,
        age: Duration,
        from: From,
    ) -> Later<'_, Result<Opened, String>> {
        Box::pin(self.shared.open_stream(address, age, from))
    }

    fn tops(&self, known: Vec<(Address, Position)>) -> Later<'_, Result<Vec<Top>, String>> {
        Box::pin(async move {
            let mut tops = Vec::with_capacity(known.len());
            for some in known.chunks(CHUNK) {
                let asked = some.iter().map(|(address, p)| self.shared.top(address, *p));
                for top in join_all(asked).await {
                    tops.push(top?);
                }
            }
            Ok(tops)
        })
    }

    fn read(&self, address: Address, after: u64, most: usize) -> Later<'_, Result<Page, String>> {
        Box::pin(self.shared.read_page(address, after, most))
    }

    fn advance(&self, moves: Vec<CursorMove>) -> Later<'_, Result<(), String>> {
        Box::pin(async move {
            for some in moves.chunks(CHUNK) {
                let moved = some.iter().map(|to| self.shared.advance_one(to));
                for moved in join_all(moved).await {
                    moved?;
                }
            }
            Ok(())
        })
    }
}
