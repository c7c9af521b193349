//! How the sessions of a shard leave in a drain: each at a moment of its own, drawn at random, so that neither the tickets
//! that are sealed nor the clients that come elsewhere are a burst.

use std::time::{Duration, Instant};

use super::close::CloseReason;
use super::encoded::Format;
use super::session::SessionKey;
use super::state::State;
use super::wheel::{Tick, ticks};
use crate::wire::events;
use crate::wire::frames::ServerFrame;

/// How long a session that was told to leave stays open once another goes on in its place. Its client closes it; two
/// connections keep no order, and where the close came before the new one's welcome the client would think itself cut off.
const GIVES_WAY: Duration = Duration::from_secs(1);

/// How sessions are made to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Nobody is there to take them: at its moment each is closed with 1012.
    Close,
    /// At its moment each is told, with a resume ticket that lives for `life` after the time it is given; `grace` after
    /// that time it is closed with 1012.
    GoAway {
        /// How long who was told may stay.
        grace: Duration,
        /// How long the resume ticket is good after that.
        life: Duration,
    },
}

/// A drain under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    how: Leave,
    /// The last of the moments.
    until: Tick,
    /// Since when nobody's moment comes, because nobody could take those who leave.
    held: Option<Tick>,
}

impl Leave {
    /// The longest time between a `goaway` and the moment it names: more than a tick of the wheel, so that those who are told
    /// in one tick do not come elsewhere in one moment.
    pub const AFTER_MAX: Duration = Duration::from_secs(1);
}

impl State {
    /// Draws a moment for every session, also for those that were told already.
    pub(super) fn begin_leaving(&mut self, how: Leave, spread: Duration) {
        let now = self.wheel.tick(Instant::now());
        self.leaving = Some(Leaving {
            how,
            until: now + ticks(spread),
            held: None,
        });
        for key in self.keys() {
            self.draw_moment(key);
        }
    }

    /// Draws a session's moment, if the shard's sessions leave.
    pub(super) fn draw_moment(&mut self, key: SessionKey) {
        let now = self.wheel.tick(Instant::now());
        let Some(leaving) = self.leaving else { return };
        let from = leaving.held.unwrap_or(now);
        let moment = rand::random_range(from..=leaving.until.max(from));
        if let Some(session) = self.get(key).filter(|session| !session.resumed) {
            session.slot = moment.max(1);
        }
        self.rearm(key);
    }

    /// No moment comes until [`Self::release_leaving`].
    pub(super) fn hold_leaving(&mut self) {
        let now = self.wheel.tick(Instant::now());
        if let Some(leaving) = &mut self.leaving {
            leaving.held.get_or_insert(now);
        }
    }

    /// All moments come later by the time that they were held, so that they are as spread as they were.
    pub(super) fn release_leaving(&mut self) {
        let now = self.wheel.tick(Instant::now());
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        let Some(since) = leaving.held.take() else {
            return;
        };
        let held = now.saturating_sub(since);
        leaving.until += held;
        for key in self.keys() {
            if let Some(session) = self.get(key)
                && session.slot > 0
                && !session.resumed
            {
                session.slot += held;
            }
            self.rearm(key);
        }
    }

    /// Whether no moment comes for now.
    pub(super) fn is_held(&self) -> bool {
        self.leaving.is_some_and(|leaving| leaving.held.is_some())
    }

    /// Another connection goes on in this one's place: this one gets nothing any more, and ends.
    pub(super) fn give_way(&mut self, key: SessionKey) {
        let now = self.wheel.tick(Instant::now());
        let Some(session) = self.get(key) else { return };
        if !session.told_to_leave {
            return self.close(key, CloseReason::Resumed, None);
        }
        session.resumed = true;
        // The one that goes on has it.
        session.places.1 = None;
        session.slot = now + ticks(GIVES_WAY);
        self.detach_all(key);
        self.flush(key);
        self.rearm(key);
    }

    /// A session's moment has come: it is told to leave, or closed.
    pub(super) fn make_leave(&mut self, key: SessionKey) {
        let how = self.leaving.map_or(Leave::Close, |leaving| leaving.how);
        let Some(session) = self.get(key) else { return };
        if session.resumed {
            return self.close(key, CloseReason::Resumed, None);
        }
        let Leave::GoAway { grace, life } = how else {
            return self.close(key, CloseReason::Restart, None);
        };
        match session.format {
            Format::Json if !session.told_to_leave && !session.is_echo() => {
                self.tell_to_leave(key, grace, life);
            }
            Format::Events => {
                // It comes back by itself, with its Last-Event-ID; another node is there for it, so it need not wait.
                let after = rand::random_range(1..=millis(Leave::AFTER_MAX));
                self.push_frame(key, events::retry(after).into());
                self.close(key, CloseReason::Restart, None);
            }
            Format::Json | Format::Raw => self.close(key, CloseReason::Restart, None),
        }
    }

    fn tell_to_leave(&mut self, key: SessionKey, grace: Duration, life: Duration) {
        let now = self.wheel.tick(Instant::now());
        let after = Duration::from_millis(rand::random_range(1..=millis(Leave::AFTER_MAX)));
        let hub = self.hub.clone();
        let Some(session) = self.get(key) else { return };
        session.told_to_leave = true;
        session.slot = now + ticks(after + grace).max(1);
        // Without one the client fetches a new ticket, as after a close.
        let ticket = hub.resume.seal(&session.pass(), after + life);
        let ticket = ticket
            .inspect_err(|problem| tracing::debug!(%problem, "a goaway goes without a ticket"))
            .ok();
        self.reply(
            key,
            &ServerFrame::Goaway {
                after_ms: millis(after),
                ticket: ticket.as_ref().map(|ticket| ticket.expose()),
            },
        );
        hub.metrics.goaways.inc();
        self.rearm(key);
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
