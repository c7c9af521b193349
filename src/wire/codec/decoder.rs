use std::borrow::Cow;
use std::mem;

use super::header::{Context, Header, Opcode, Role};
use super::mask::Mask;
use super::message::Message;
use super::{Event, ProtocolError};

/// What the other side may ask us to put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest message, in bytes of payload.
    pub message_bytes: usize,
    /// The most frames of one message, empty ones included; at least 1.
    pub fragments: u32,
}

/// Reads the frames of one connection.
///
/// It is all that an idle connection costs: 24 bytes. What is incomplete is on the heap, and only for as long: at most twice
/// [`Limits::message_bytes`] (a growing buffer doubles) and 400 bytes.
#[derive(Debug)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    message_bytes: usize,
    fragments: u32,
    role: Role,
    state: State,
}

/// An idle connection keeps this, times a million.
const _: () = assert!(size_of::<Decoder>() <= 24);

#[derive(Debug, Clone, Copy)]
enum State {
    Open,
    /// A close frame came: what follows it means nothing (RFC 6455 section 5.5.1).
    Closed,
    Failed(ProtocolError),
}

/// What came and is not whole.
#[derive(Debug, Default)]
struct Partial {
    header: HeaderStart,
    frame: Option<Frame>,
    message: Option<Message>,
}

/// The beginning of a header.
#[derive(Debug, Default, Clone, Copy)]
struct HeaderStart {
    bytes: [u8; Header::MAX_BYTES],
    len: u8,
}

/// A frame whose header is read.
#[derive(Debug)]
struct Frame {
    fin: bool,
    opcode: Opcode,
    mask: Mask,
    /// Bytes of payload still to come.
    left: usize,
    /// The beginning of a control frame's payload.
    control: Vec<u8>,
}

impl Decoder {
    /// A decoder for a new connection, on which we are `role`.
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            partial: None,
            message_bytes: limits.message_bytes,
            fragments: limits.fragments,
            role,
            state: State::Open,
        }
    }

    /// Takes bytes off the front of `input`, up to the end of one message or control frame, and gives what it says.
    ///
    /// Unmasks what it takes where it lies. `Ok(None)`: everything was taken and more is needed. Call it until then:
    /// one read may hold many messages. After a [`Event::Close`] all that comes is thrown away.
    ///
    /// # Errors
    /// The rule that was broken, as soon as the bytes that came show it. The connection cannot go on; the same error is
    /// given from then on.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a mut [u8],
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        match self.state {
            State::Open => {}
            State::Closed => {
                *input = &mut [];
                return Ok(None);
            }
            State::Failed(error) => return Err(error),
        }
        let result = self.advance(input);
        match &result {
            Ok(Some(Event::Close(_))) => self.state = State::Closed,
            Err(error) => self.state = State::Failed(*error),
            Ok(_) => return result,
        }
        self.partial = None;
        result
    }

    /// Bytes on the heap for what is incomplete: 0 between messages.
    pub fn held_bytes(&self) -> usize {
        let Some(partial) = &self.partial else {
            return 0;
        };
        let control = partial.frame.as_ref().map_or(0, |f| f.control.capacity());
        let message = partial.message.as_ref().map_or(0, Message::capacity);
        size_of::<Partial>() + control + message
    }

    fn advance<'a>(
        &mut self,
        input: &mut &'a mut [u8],
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        loop {
            let begun = self.partial.as_mut().and_then(|p| p.frame.take());
            let Some(mut frame) = begun.map_or_else(|| self.begin_frame(input), |f| Ok(Some(f)))?
            else {
                return Ok(None);
            };
            let available = frame.left.min(input.len());
            let payload = take(input, available);
            frame.mask.apply(payload);
            frame.left -= available;

            let event = if frame.opcode.is_control() {
                frame.control(payload)?
            } else {
                self.data(&frame, payload)?
            };
            if frame.left > 0 {
                self.partial.get_or_insert_default().frame = Some(frame);
                return Ok(None);
            }
            if event.is_some() {
                self.partial.take_if(|partial| partial.message.is_none());
                return Ok(event);
            }
        }
    }

    /// Reads a header, whose beginning may have come earlier. What there is of it is kept if it is not whole.
    fn begin_frame(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, ProtocolError> {
        let message = self.partial.as_ref().and_then(|p| p.message.as_ref());
        let context = Context {
            role: self.role,
            message_open: message.is_some(),
            room: self.message_bytes - message.map_or(0, Message::len),
        };
        let earlier = self.partial.as_mut().map(|p| mem::take(&mut p.header));
        let mut start = earlier.unwrap_or_default();
        let had = usize::from(start.len);
        let parsed = if had == 0 {
            Header::parse(input, &context)?
        } else {
            start.append(input);
            Header::parse(start.as_slice(), &context)?
        };
        let Some((header, len)) = parsed else {
            let rest = mem::take(input);
            if had == 0 {
                start.append(rest);
            }
            if start.len > 0 {
                self.partial.get_or_insert_default().header = start;
            }
            return Ok(None);
        };
        take(input, len - had);
        if header.opcode == Opcode::Continuation {
            self.count_fragment()?;
        }
        Ok(Some(Frame {
            fin: header.fin,
            opcode: header.opcode,
            mask: header.mask,
            left: header.payload_len,
            control: Vec::new(),
        }))
    }

    /// Counts one more frame of the open message.
    fn count_fragment(&mut self) -> Result<(), ProtocolError> {
        let open = self.partial.as_mut().and_then(|p| p.message.as_mut());
        let message = open.expect("a continuation has passed the check of its header");
        if message.frames >= self.fragments {
            return Err(ProtocolError::TooManyFragments);
        }
        message.frames += 1;
        Ok(())
    }

    /// Takes what came of a data frame's payload; gives the message if it ends here.
    fn data<'a>(
        &mut self,
        frame: &Frame,
        payload: &'a [u8],
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        let ends = frame.fin && frame.left == 0;
        let open = self.partial.as_mut().and_then(|p| p.message.take());
        if ends && open.is_none() {
            return Event::message(frame.opcode, payload).map(Some);
        }
        let mut message = open.unwrap_or_else(|| Message::new(frame.opcode));
        message.push(payload)?;
        if ends {
            return message.finish().map(Some);
        }
        self.partial.get_or_insert_default().message = Some(message);
        Ok(None)
    }
}

impl Frame {
    /// Takes what came of a control frame's payload; gives the event if it ends here.
    fn control<'a>(&mut self, payload: &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        let whole = if self.control.is_empty() && self.left == 0 {
            Cow::Borrowed(payload)
        } else {
            self.control.extend_from_slice(payload);
            if self.left > 0 {
                return Ok(None);
            }
            Cow::Owned(mem::take(&mut self.control))
        };
        Event::control(self.opcode, whole).map(Some)
    }
}

impl HeaderStart {
    /// Adds as much as a header can have.
    fn append(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[usize::from(self.len)..];
        let added = room.len().min(bytes.len());
        room[..added].copy_from_slice(&bytes[..added]);
        self.len += added as u8;
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The first `len` bytes of `input`, which has them.
fn take<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    input
        .split_off_mut(..len)
        .expect("no more is taken than there is")
}
