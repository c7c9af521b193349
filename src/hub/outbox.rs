use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::Hub;
use crate::telemetry::Metrics;

/// The most frames of one write: Linux takes 1,024, and beyond 64 a longer list gains nothing (measured).
const FRAMES_PER_WRITE: usize = 64;
/// Queues kept for reuse, per shard.
const POOL_MAX: usize = 1024;
/// A queue that grew beyond this is not kept.
const POOL_CAPACITY_MAX: usize = 64;

/// A session's bounded queue of encoded frames. Empty, it owns no memory.
#[derive(Default)]
pub(super) struct Outbox {
    frames: VecDeque<Bytes>,
    /// Bytes of the first frame that are written already.
    written: usize,
    bytes: usize,
}

/// Emptied queues, so that a message to many sessions allocates nothing for each.
#[derive(Default)]
pub(super) struct OutboxPool(Vec<VecDeque<Bytes>>);

impl Outbox {
    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn push(&mut self, frame: Bytes, pool: &mut OutboxPool) {
        if self.frames.capacity() == 0
            && let Some(queue) = pool.0.pop()
        {
            self.frames = queue;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// What to write next: how many slices were filled.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; FRAMES_PER_WRITE]) -> usize {
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            let from = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&frame[from..]);
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
            let left = first.len() - self.written;
            if written < left {
                self.written += written;
                return completed;
            }
            written -= left;
            self.written = 0;
            self.frames.pop_front();
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

    /// Drops everything but a frame that is partly written, which the stream needs to its end.
    pub(super) fn clear_unwritten(&mut self) {
        let keep = usize::from(self.written > 0);
        self.frames.truncate(keep);
        self.bytes = self
            .frames
            .front()
            .map_or(0, |first| first.len() - self.written);
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
