use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Hub;
use super::encoded::Encoded;
use crate::model::Message;
use crate::telemetry::Metrics;

/// The most frames of one write: Linux takes 1,024, and beyond 64 a longer list gains nothing (measured).
const FRAMES_PER_WRITE: usize = 64;
/// A frame of this size is handed on as it is, and not copied to others.
const SHARED_MIN: usize = 8 << 10;
/// Queues kept for reuse, per shard.
const POOL_MAX: usize = 1024;
/// A queue that grew beyond this is not kept.
const POOL_CAPACITY_MAX: usize = 64;

/// A session's bounded queue of encoded frames. Empty, it owns no memory.
#[derive(Default)]
pub(super) struct Outbox {
    frames: VecDeque<Queued>,
    /// How many of them may go before they are written.
    passing: u32,
    /// Bytes of the first frame that are written already.
    written: usize,
    bytes: usize,
}

/// A frame that waits.
struct Queued {
    bytes: Bytes,
    /// Of a message that expires, or that another one may supersede.
    passing: Option<Arc<Encoded>>,
}

/// Emptied queues, so that a message to many sessions allocates nothing for each.
#[derive(Default)]
pub(super) struct OutboxPool(Vec<VecDeque<Queued>>);

impl Outbox {
    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a frame that must be written.
    pub(super) fn push(&mut self, frame: Bytes, pool: &mut OutboxPool) {
        self.push_queued(frame, None, pool);
    }

    /// Adds the frame of a message, which goes before it is written if it expires or is superseded.
    pub(super) fn push_message(
        &mut self,
        frame: Bytes,
        encoded: &Arc<Encoded>,
        pool: &mut OutboxPool,
    ) {
        let message = encoded.message();
        let passes = message.expires.is_some() || message.collapse_key.is_some();
        self.passing += u32::from(passes);
        self.push_queued(frame, passes.then(|| encoded.clone()), pool);
    }

    fn push_queued(&mut self, frame: Bytes, passing: Option<Arc<Encoded>>, pool: &mut OutboxPool) {
        if self.frames.capacity() == 0
            && let Some(queue) = pool.0.pop()
        {
            self.frames = queue;
        }
        self.bytes += frame.len();
        self.frames.push_back(Queued {
            bytes: frame,
            passing,
        });
    }

    /// Drops what this message supersedes: an unwritten one of its address with its key. Answers its bytes.
    pub(super) fn supersede(&mut self, by: &Encoded) -> usize {
        let Some(key) = &by.message().collapse_key else {
            return 0;
        };
        let (key, target) = (Some(key), &by.message().target);
        self.drop_passing(|old| old.collapse_key.as_ref() == key && old.target == *target)
    }

    /// Drops what has expired. Answers its bytes.
    pub(super) fn drop_expired(&mut self, unix_millis: impl FnOnce() -> u64) -> usize {
        if self.passing == 0 {
            return 0;
        }
        let now = unix_millis();
        self.drop_passing(|message| message.is_expired(now))
    }

    fn drop_passing(&mut self, goes: impl Fn(&Message) -> bool) -> usize {
        if self.passing == 0 {
            return 0;
        }
        let before = self.bytes;
        // A frame that is partly written stays: the stream needs it to its end.
        let (mut first, began) = (true, self.written > 0);
        let (bytes, passing) = (&mut self.bytes, &mut self.passing);
        self.frames.retain(|queued| {
            let stays = std::mem::take(&mut first) && began;
            let encoded = queued.passing.as_ref().filter(|_| !stays);
            let gone = encoded.is_some_and(|encoded| goes(encoded.message()));
            if gone {
                *bytes -= queued.bytes.len();
                *passing -= 1;
            }
            !gone
        });
        before - self.bytes
    }

    /// What to write next: how many slices were filled.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; FRAMES_PER_WRITE]) -> usize {
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            let from = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&frame.bytes[from..]);
            count += 1;
        }
        count
    }

    /// Takes off what was written; answers how many frames that completed.
    pub(super) fn advance(&mut self, mut written: usize, pool: &mut OutboxPool) -> u64 {
        let mut completed = 0;
        self.bytes -= written;
        while written > 0 {
            let Some(first) = self.frames.front() else {
                break;
            };
            let left = first.bytes.len() - self.written;
            if written < left {
                self.written += written;
                return completed;
            }
            written -= left;
            self.written = 0;
            let gone = self.frames.pop_front();
            self.passing -= u32::from(gone.is_some_and(|gone| gone.passing.is_some()));
            completed += 1;
        }
        if self.frames.is_empty() {
            let queue = std::mem::take(&mut self.frames);
            if pool.0.len() < POOL_MAX && queue.capacity() <= POOL_CAPACITY_MAX {
                pool.0.push(queue);
            }
        }
        completed
    }

    /// Takes out what is next, at most so many bytes but at least one frame: small ones are put together, a large one is
    /// shared as it is. Answers how many frames that were.
    pub(super) fn take(&mut self, most: usize, pool: &mut OutboxPool) -> (Bytes, u64) {
        let mut sizes = self.frames.iter().map(|queued| queued.bytes.len());
        let first = sizes.next().unwrap_or(0);
        let mut taken = first;
        if first < SHARED_MIN {
            for size in sizes {
                if taken + size > most || size >= SHARED_MIN {
                    break;
                }
                taken += size;
            }
        }
        let bytes = match self.frames.front() {
            Some(queued) if queued.bytes.len() == taken => queued.bytes.clone(),
            _ => {
                let mut bytes = BytesMut::with_capacity(taken);
                for queued in &self.frames {
                    if bytes.len() == taken {
                        break;
                    }
                    bytes.extend_from_slice(&queued.bytes);
                }
                bytes.freeze()
            }
        };
        let frames = self.advance(taken, pool);
        (bytes, frames)
    }

    /// Drops everything but a frame that is partly written, which the stream needs to its end.
    pub(super) fn clear_unwritten(&mut self) {
        let keep = usize::from(self.written > 0);
        self.frames.truncate(keep);
        let first = self.frames.front();
        self.bytes = first.map_or(0, |first| first.bytes.len() - self.written);
        self.passing = first.map_or(0, |first| u32::from(first.passing.is_some()));
    }
}

/// What a shard wrote and queued and has not added to the node's counters yet. All shards share those, so they are not
/// touched for each frame.
#[derive(Default)]
pub(super) struct Unsettled {
    pub(super) outbox_bytes: i64,
    pub(super) writes: u64,
    pub(super) bytes_out: u64,
    pub(super) frames_out: u64,
}

impl Unsettled {
    /// Bytes that wait in all outboxes: as far as the shards have settled them, and this one's.
    pub(super) fn node_outbox_bytes(&self, hub: &Hub) -> usize {
        let ours = isize::try_from(self.outbox_bytes).unwrap_or(0);
        hub.outbox_bytes().saturating_add_signed(ours)
    }

    /// Adds all of it to the node's counters.
    pub(super) fn settle(&mut self, metrics: &Metrics) {
        let Self {
            outbox_bytes,
            writes,
            bytes_out,
            frames_out,
        } = std::mem::take(self);
        if outbox_bytes != 0 {
            metrics.outbox_bytes.inc_by(outbox_bytes);
        }
        if writes > 0 {
            metrics.writes.inc_by(writes);
            metrics.bytes_out.inc_by(bytes_out);
            metrics.frames_out.inc_by(frames_out);
        }
    }
}

/// The slices for one write.
pub(super) fn no_slices<'a>() -> [IoSlice<'a>; FRAMES_PER_WRITE] {
    [IoSlice::new(&[]); FRAMES_PER_WRITE]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Body, MessageId, Target};

    proptest::proptest! {
        #[test]
        fn what_is_pushed_is_written_once_in_order(
            frames in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 1..20), 0..200),
            takes in proptest::collection::vec(1usize..64, 1..50),
        ) {
            let mut pool = OutboxPool::default();
            let mut outbox = Outbox::default();
            for frame in &frames {
                outbox.push(Bytes::copy_from_slice(frame), &mut pool);
            }
            let mut out = Vec::new();
            let mut completed = 0;
            let mut takes = takes.iter().cycle();
            while !outbox.is_empty() {
                let mut slices = no_slices();
                let count = outbox.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
                let take = (*takes.next().expect("cycle")).min(all.len());
                out.extend_from_slice(&all[..take]);
                completed += outbox.advance(take, &mut pool);
            }
            proptest::prop_assert_eq!(completed, frames.len() as u64);
            proptest::prop_assert_eq!(outbox.bytes(), 0);
            proptest::prop_assert_eq!(out, frames.concat());
        }
    }

    fn encoded(key: Option<&str>, expires: Option<u64>) -> Arc<Encoded> {
        Arc::new(Encoded::new(Message {
            collapse_key: key.map(Into::into),
            expires,
            ..Message::new(
                MessageId::new(0),
                Target::One(Address::Everyone),
                Body::Text("x".into()),
                0,
            )
        }))
    }

    #[test]
    fn what_is_superseded_or_expired_goes_unless_it_began() {
        let (mut pool, mut outbox) = (OutboxPool::default(), Outbox::default());
        let (a, b, late) = (
            encoded(Some("a"), None),
            encoded(Some("b"), None),
            encoded(None, Some(10)),
        );
        for (frame, message) in [("a1", &a), ("b1", &b), ("late", &late)] {
            outbox.push_message(Bytes::from_static(frame.as_bytes()), message, &mut pool);
        }
        outbox.push(Bytes::from_static(b"own"), &mut pool);
        assert_eq!(outbox.supersede(&encoded(None, None)), 0);
        outbox.advance(1, &mut pool);
        // The first has begun.
        assert_eq!((outbox.supersede(&a), outbox.supersede(&b)), (0, 2));
        assert_eq!(
            (outbox.drop_expired(|| 9), outbox.drop_expired(|| 10)),
            (0, 4)
        );
        let mut slices = no_slices();
        assert_eq!((outbox.slices(&mut slices), outbox.bytes()), (2, 4));
        assert_eq!((&*slices[0], &*slices[1]), (&b"1"[..], &b"own"[..]));
        outbox.advance(4, &mut pool);
        assert_eq!((outbox.passing, outbox.is_empty()), (0, true));
    }

    #[test]
    fn what_is_taken_is_small_frames_together_and_large_ones_alone() {
        let (mut pool, mut outbox) = (OutboxPool::default(), Outbox::default());
        let large = Bytes::from(vec![b'x'; SHARED_MIN]);
        for frame in ["a", "b", "c"] {
            outbox.push(Bytes::from_static(frame.as_bytes()), &mut pool);
        }
        outbox.push(large.clone(), &mut pool);
        outbox.push(Bytes::from_static(b"d"), &mut pool);
        let mut next = |most| outbox.take(most, &mut pool);
        assert_eq!(next(2), (Bytes::from_static(b"ab"), 2));
        assert_eq!(next(1 << 20), (Bytes::from_static(b"c"), 1));
        let shared = next(1);
        assert_eq!(shared, (large.clone(), 1));
        assert_eq!(shared.0.as_ptr(), large.as_ptr());
        assert_eq!(next(1), (Bytes::from_static(b"d"), 1));
        assert_eq!((outbox.bytes(), outbox.is_empty()), (0, true));
    }

    #[test]
    fn a_frame_that_began_is_kept_to_its_end() {
        let mut pool = OutboxPool::default();
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"abc"), &mut pool);
        outbox.push(Bytes::from_static(b"def"), &mut pool);
        outbox.advance(1, &mut pool);
        outbox.clear_unwritten();
        assert_eq!(outbox.bytes(), 2);
        let mut slices = no_slices();
        assert_eq!(outbox.slices(&mut slices), 1);
        assert_eq!(&*slices[0], b"bc");
    }
}
