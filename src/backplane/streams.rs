use std::time::Duration;

use tokio::time::Instant;

use super::{Later, Published};
use crate::model::{Address, DeviceName, Message, MessageId, Position, Since, UserId, sha256};

/// What is kept of an address's messages: whatever goes beyond one of these goes, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Messages.
    pub messages: u32,
    /// How long each.
    pub age: Duration,
    /// Bytes of them, as they are stored; the newest is kept whatever its size.
    pub bytes: u64,
}

/// What makes a message one however often it is pushed, for [`Once::LIFE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once {
    /// The caller's key, hashed together with who calls. Its scope is the message's address.
    pub key: [u8; 32],
    /// What was asked, hashed: the same key with something else is a conflict.
    pub asked: [u8; 32],
}

impl Once {
    /// How long a key is known.
    pub const LIFE: Duration = Duration::from_secs(5 * 60);

    /// The same, asked for these users: other users are something else.
    pub fn with_users(self, users: &[UserId]) -> Self {
        let mut asked = self.asked.to_vec();
        for user in users {
            asked.push(0);
            asked.extend_from_slice(user.as_str().as_bytes());
        }
        Self {
            asked: sha256(&asked),
            ..self
        }
    }
}

/// One message for the stream of its address.
#[derive(Debug, Clone)]
pub struct Append {
    /// Without a place in a stream. Where something is kept, it is for one address.
    pub message: Message,
    /// What is kept of the address; none = nothing: it is published alone, which makes sense with `once`.
    pub keep: Option<Keep>,
    /// The caller's idempotency key.
    pub once: Option<Once>,
    /// It was tried before, and may have got through.
    pub again: bool,
}

/// Where an accepted message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In this process.
    Memory,
    /// On the primary.
    Stored,
    /// On the primary and as many replicas as the configuration asks for.
    Replicated,
}

/// What became of a message that was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Who listens; of a duplicate, who listened to the first.
    pub published: Published,
    /// The message's id; of a duplicate, the first one's.
    pub id: MessageId,
    /// Just behind it; none where it was not kept.
    pub position: Option<Position>,
    /// It was there already, by its idempotency key: nothing was appended or published.
    pub duplicate: bool,
    /// Where it is.
    pub durability: Durability,
}

/// Why a message was not appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendError {
    /// It is certain that this attempt did nothing.
    Unavailable(String),
    /// This node is too busy: nothing left it.
    Busy,
    /// It may or may not have been appended.
    Unknown(String),
    /// The idempotency key was used for something else.
    Conflict,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top {
    /// Its newest message.
    pub position: Position,
    /// Where its epoch began: what comes behind that is of this epoch for certain.
    pub began: Position,
}

/// Where a session wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// Here.
    Since(Since),
    /// At the cursor of this device, else at the user's shared cursor, else with the oldest message that is kept.
    Cursor(Option<DeviceName>),
    /// With the oldest message that is kept.
    Oldest,
}

/// Where a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Where the stream stands.
    pub top: Top,
    /// The position just before the first message that it gets.
    pub start: Position,
    /// Whether nothing is missing; there only if a position was asked for, or the device has a cursor.
    pub recovered: Option<bool>,
}

/// Messages of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Where the stream stands.
    pub top: Top,
    /// Oldest first, each with its place. Fewer than were asked for = there are no more.
    pub messages: Vec<Message>,
}

/// A cursor that moves forward; one that is ahead already, in the same epoch, stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorMove {
    /// Whose.
    pub user: UserId,
    /// Which of the user's; none = the shared one.
    pub device: Option<DeviceName>,
    /// To here.
    pub to: Position,
}

/// What a backplane keeps: the ordered messages of addresses, and how far devices have got in inboxes.
///
/// A stream begins with the first call that needs it. Its offsets are consecutive, and each message names the one before
/// it. A stream that is found to be behind what a node knows of it was rolled back: it gets a new epoch.
pub trait Streams: Send + Sync + 'static {
    /// Appends a message to the stream of its address and publishes it to who listens: once, however often it is tried
    /// with the same id.
    ///
    /// # Errors
    /// See [`AppendError`].
    fn append(&self, append: Append, deadline: Instant)
    -> Later<'_, Result<Appended, AppendError>>;

    /// Where a session begins in a stream. Forgets what is older than `age` first.
    ///
    /// # Errors
    /// A sentence for the operator.
    fn open(
        &self,
        address: Address,
        age: Duration,
        from: From,
    ) -> Later<'_, Result<Opened, String>>;

    /// Where streams stand, in the order asked. A stream that is behind the position that is known of it, or has another
    /// message there, or an epoch that never replaced the one that is known, gets a new epoch.
    ///
    /// # Errors
    /// As above.
    fn tops(&self, known: Vec<(Address, Position)>) -> Later<'_, Result<Vec<Top>, String>>;

    /// At most so many messages behind an offset, oldest first.
    ///
    /// # Errors
    /// As above.
    fn read(&self, address: Address, after: u64, most: usize) -> Later<'_, Result<Page, String>>;

    /// Moves cursors forward.
    ///
    /// # Errors
    /// As above; then it is not known which moved.
    fn advance(&self, moves: Vec<CursorMove>) -> Later<'_, Result<(), String>>;
}

/// What a backplane found in a stream, from which follows where a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) top: Top,
    /// Just before the oldest message that is kept; the top, if none is.
    pub(super) before_oldest: Position,
    /// Just before the first message that is kept behind the offset asked for; the top, if none is.
    pub(super) before_next: Position,
}

/// A user's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) at: Position,
    /// It is that of the device that asks, and not the shared one.
    pub(super) own: bool,
}

impl Found {
    /// Where a session begins that wants to begin there; what was found is behind `asked`, that is the position that was
    /// asked for or the cursor.
    pub(super) fn open(&self, from: &From, cursor: Option<Cursor>) -> Opened {
        let ((start, recovered), told) = match (from, cursor) {
            (From::Since(Since::Now), _) => ((self.top.position, true), false),
            (From::Since(Since::After(asked)), _) => (self.after(*asked), true),
            (From::Cursor(_), Some(cursor)) => (self.after(cursor.at), cursor.own),
            (From::Cursor(_), None) | (From::Oldest, _) => ((self.before_oldest, true), false),
        };
        Opened {
            top: self.top,
            start,
            recovered: told.then_some(recovered),
        }
    }

    /// Begins behind a position that a client, or a cursor, gave; whether nothing is missing.
    fn after(&self, asked: Position) -> (Position, bool) {
        // In the same epoch the same message stands there, and the next one is still kept.
        match asked == self.before_next {
            true => (asked, true),
            false => (self.before_oldest, false),
        }
    }
}
