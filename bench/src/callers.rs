//! Many callers of gRPC, each a stream of `PushNotifications` with some pushes under way.

use std::error::Error;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use crate::crowd::{Crowd, PATIENCE};
use crate::process::Node;
use crate::pushes::{Class, Pushes, item};
use crate::runs::Outcome;

/// Pushes under way per stream: as many as a node works on at once.
pub const UNDER_WAY: usize = 16;
/// Streams that fill inboxes.
const FILLING: usize = 32;

/// Puts so many messages of 128 bytes into the inbox of each user.
pub fn fill(node: &Node, users: &[String], each: usize) -> Outcome {
    let mut crowd = Crowd::new()?;
    let mut callers = Callers::open(&crowd, &[node], FILLING, users, Class::Kept)?;
    callers.push_count(&mut crowd, each * users.len())
}

/// All streams, and what they push next.
pub struct Callers {
    streams: Vec<Pushes>,
    items: Vec<Vec<u8>>,
    next: usize,
    /// Where `next` stops.
    end: usize,
}

impl Callers {
    pub fn open(
        crowd: &Crowd,
        nodes: &[&Node],
        streams: usize,
        users: &[String],
        class: Class,
    ) -> Result<Self, Box<dyn Error>> {
        let mut all = Vec::new();
        for node in nodes {
            for _ in 0..streams {
                let pushes = Pushes::open(node.service, &node.key)?;
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                crowd.watch(&pushes, all.len() as u64, flags)?;
                all.push(pushes);
            }
        }
        let text = "x".repeat(128);
        Ok(Self {
            streams: all,
            items: users.iter().map(|user| item(user, &text, class)).collect(),
            next: 0,
            end: usize::MAX,
        })
    }

    pub fn accepted(&self) -> u64 {
        self.streams.iter().map(|stream| stream.accepted).sum()
    }

    pub fn push_for(&mut self, crowd: &mut Crowd, time: Duration) -> Outcome {
        let began = Instant::now();
        for index in 0..self.streams.len() {
            self.turn(index, true)?;
        }
        while began.elapsed() < time {
            self.poll(crowd, true)?;
        }
        Ok(())
    }

    /// So many, each user in turn, and their answers.
    pub fn push_count(&mut self, crowd: &mut Crowd, count: usize) -> Outcome {
        self.end = self.next + count;
        let all = self.accepted() + count as u64;
        let (mut accepted, mut since) = (0, Instant::now());
        for index in 0..self.streams.len() {
            self.turn(index, true)?;
        }
        while self.accepted() < all {
            if accepted < self.accepted() {
                (accepted, since) = (self.accepted(), Instant::now());
            }
            if since.elapsed() > PATIENCE {
                return Err("pushes have no answer".into());
            }
            self.poll(crowd, true)?;
        }
        self.end = usize::MAX;
        Ok(())
    }

    /// Waits for the answers and frames of what is under way.
    pub fn finish(&mut self, crowd: &mut Crowd) -> Outcome {
        let began = Instant::now();
        while self.streams.iter().any(|stream| stream.under_way > 0) {
            if began.elapsed() > PATIENCE {
                return Err("pushes have no answer".into());
            }
            self.poll(crowd, false)?;
        }
        let (mut before, mut now) = (0, crowd.frames);
        while before < now {
            before = now;
            crowd.poll(Some(Duration::from_millis(200)), |_| ())?;
            now = crowd.frames;
        }
        Ok(())
    }

    fn poll(&mut self, crowd: &mut Crowd, more: bool) -> Outcome {
        crowd.poll(Some(Duration::from_millis(50)), |_| ())?;
        for index in std::mem::take(&mut crowd.ready) {
            self.turn(index as usize, more)?;
        }
        Ok(())
    }

    fn turn(&mut self, index: usize, more: bool) -> Outcome {
        let stream = &mut self.streams[index];
        stream.read()?;
        if let Some(refused) = &stream.refused {
            return Err(format!("a push was refused: {refused}").into());
        }
        while more && self.next < self.end && stream.under_way < UNDER_WAY {
            if !stream.push(&self.items[self.next % self.items.len()]) {
                break;
            }
            self.next += 1;
        }
        Ok(stream.flush()?)
    }
}
