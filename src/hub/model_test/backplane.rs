//! One run's side of the world: what its hub asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::world::{Inner, Past, Run, World};
use crate::backplane::{
    Append, AppendError, Appended, Backplane, CursorMove, Durability, Envelope, From, Here, Later,
    Opened, Page, PublishError, Published, Streams, Top,
};
use crate::model::{Address, Body, Message, Position, Target};

pub(super) struct Side {
    pub(super) world: Arc<World>,
    pub(super) run: Run,
}

/// The number in a message's body.
pub(super) fn number(message: &Message) -> u64 {
    match &message.body {
        Body::Json(text) => text.parse().expect("a number"),
        _ => panic!("the model pushes numbers"),
    }
}

impl Side {
    /// Asks the store; the answer is lost if the link is cut meanwhile, or the store goes back.
    async fn ask<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> Result<T, String> {
        self.world.delay().await;
        let (answer, rolled) = {
            let mut inner = self.world.lock();
            if inner.links[self.run].mute {
                return Err("the link is cut".into());
            }
            (act(&mut inner), inner.rolled)
        };
        self.world.delay().await;
        let inner = self.world.lock();
        match inner.links[self.run].mute || inner.rolled != rolled {
            true => Err("the answer is lost".into()),
            false => Ok(answer),
        }
    }

    async fn append_one(&self, append: Append, deadline: Instant) -> Result<Appended, AppendError> {
        let unavailable = AppendError::Unavailable("the link is cut".into());
        self.world.delay().await;
        while self.world.lock().links[self.run].held {
            if Instant::now() >= deadline {
                return Err(unavailable);
            }
            sleep(Duration::from_millis(5)).await;
        }
        let (appended, rolled) = {
            let mut inner = self.world.lock();
            if inner.links[self.run].mute {
                return Err(unavailable);
            }
            (self.append_now(&mut inner, append)?, inner.rolled)
        };
        self.world.delay().await;
        let mut inner = self.world.lock();
        let link = &mut inner.links[self.run];
        let loses = link.lose > 0;
        link.lose = link.lose.saturating_sub(1);
        if link.mute || loses || inner.rolled != rolled {
            return Err(AppendError::Unknown("the answer is lost".into()));
        }
        if let (Some(position), (address, appended)) = (appended.1.position, &appended) {
            inner.remember(self.run, address, position);
            inner.answered.insert(appended.id, self.run);
        }
        Ok(appended.1)
    }

    fn append_now(
        &self,
        inner: &mut Inner,
        append: Append,
    ) -> Result<(Address, Appended), AppendError> {
        let Target::One(address) = append.message.target.clone() else {
            return Err(AppendError::Unavailable("only one address keeps".into()));
        };
        let keep = append.keep.expect("the model uses no idempotency keys");
        let id = append.message.id;
        let rolled = inner.rolled;
        let tried = *inner.tried.entry(id).or_insert(rolled);
        let known = inner.store.find(&address, id);
        let (position, published) = match known {
            Some(position) => (position, nobody()),
            None if tried != rolled => {
                let problem = "it may have been there before the store went back";
                return Err(AppendError::Unknown(problem.into()));
            }
            None => {
                let (store, epochs) = (&mut inner.store, &mut inner.epochs);
                let message = store.append(&address, append.message, keep, epochs);
                let place = message.place.expect("it was given one");
                inner.past.entry(number(&message)).or_default().push(Past {
                    address: address.clone(),
                    id,
                    offset: place.offset,
                    previous: place.previous,
                });
                let envelope = Envelope::Message(message);
                let published = inner.publish(self.run, &address, &envelope);
                (place.behind(id), published)
            }
        };
        let appended = Appended {
            published,
            id,
            position: Some(position),
            duplicate: false,
            durability: Durability::Stored,
        };
        Ok((address, appended))
    }
}

fn nobody() -> Published {
    Published {
        listeners: 0,
        here: Here::Changing,
        heard: 0,
    }
}

impl Backplane for Side {
    fn publish(
        &self,
        to: Address,
        envelope: Envelope,
        _: Instant,
    ) -> Later<'_, Result<Published, PublishError>> {
        Box::pin(async move {
            self.world.delay().await;
            let mut inner = self.world.lock();
            match inner.links[self.run].mute {
                true => Err(PublishError::Unavailable("the link is cut".into())),
                false => Ok(inner.publish(self.run, &to, &envelope)),
            }
        })
    }

    fn listen(&self, address: Address) -> Later<'_, Result<(), String>> {
        let began = self.world.lock().unlistens(self.run, &address);
        Box::pin(async move {
            self.world.delay().await;
            let mut inner = self.world.lock();
            if inner.links[self.run].deaf {
                return Err("the link is cut".into());
            }
            // Who has ceased to meanwhile does not wait any more.
            if inner.unlistens(self.run, &address) == began {
                inner.listened(self.run, &address);
            }
            Ok(())
        })
    }

    fn unlisten(&self, address: &Address) {
        self.world.lock().unlisten(self.run, address);
    }

    fn listeners(&self, _: Address) -> Later<'_, Result<u32, String>> {
        Box::pin(std::future::ready(Ok(1)))
    }

    fn is_deaf(&self, _: &Address, _: u64) -> bool {
        self.world.lock().links[self.run].deaf
    }

    fn ailments(&self) -> Vec<String> {
        Vec::new()
    }

    fn close(&self) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Streams for Side {
    fn append(
        &self,
        append: Append,
        deadline: Instant,
    ) -> Later<'_, Result<Appended, AppendError>> {
        Box::pin(self.append_one(append, deadline))
    }

    fn open(&self, address: Address, _: Duration, from: From) -> Later<'_, Result<Opened, String>> {
        Box::pin(self.ask(move |inner| inner.store.open(&address, &from, &mut inner.epochs)))
    }

    fn tops(&self, known: Vec<(Address, Position)>) -> Later<'_, Result<Vec<Top>, String>> {
        Box::pin(self.ask(move |inner| {
            let known = known.iter();
            known.map(|(a, known)| inner.compare(a, *known)).collect()
        }))
    }

    fn read(&self, address: Address, after: u64, most: usize) -> Later<'_, Result<Page, String>> {
        Box::pin(self.ask(move |inner| {
            let (store, epochs) = (&mut inner.store, &mut inner.epochs);
            store.read(&address, after, most, epochs)
        }))
    }

    fn advance(&self, moves: Vec<CursorMove>) -> Later<'_, Result<(), String>> {
        Box::pin(self.ask(move |inner| {
            for to in moves {
                inner.store.advance(to);
            }
        }))
    }
}
