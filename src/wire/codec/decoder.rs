use super::header::{HEADER_MAX, Header};
use super::utf8::Utf8;
use super::{Close, Opcode, ProtocolError, Role, mask};

/// What a decoder takes at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one message, all fragments together.
    pub message_bytes: usize,
    /// Frames of one message.
    pub fragments: u32,
}

/// A whole message or control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping, or a one-sided heartbeat.
    Pong(&'a [u8]),
    /// The last frame of the other side.
    Close(Option<Close<'a>>),
}

/// Takes bytes, gives events. Small while nothing is incomplete.
pub struct Decoder {
    role: Role,
    limits: Limits,
    partial: Option<Box<Partial>>,
}

/// What is incomplete, or was completed from pieces at the last call.
#[derive(Default)]
struct Partial {
    /// The beginning of a header.
    header: [u8; HEADER_MAX],
    header_length: usize,
    frame: Option<Frame>,
    /// The payload of a control frame that is incomplete.
    control: Vec<u8>,
    message: Option<Message>,
}

/// A frame whose payload is not all there.
#[derive(Clone, Copy)]
struct Frame {
    header: Header,
    taken: u64,
}

/// A message that is not all there.
struct Message {
    text: bool,
    bytes: Vec<u8>,
    fragments: u32,
    utf8: Utf8,
}

/// Where the payload of a finished event lies.
enum Found<'a> {
    /// In the caller's buffer.
    Here(Opcode, &'a mut [u8]),
    /// In `Partial::control`.
    Control(Opcode),
    /// In `Partial::message`.
    Message,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            partial: None,
        }
    }

    /// Takes bytes off the front of `input`, which it unmasks in place, up to the end of one message or control frame.
    /// `None`: everything was taken and more is needed.
    ///
    /// # Errors
    /// The rule that was broken; the decoder is of no use then.
    pub fn next<'e, 'i: 'e>(
        &'e mut self,
        input: &mut &'i mut [u8],
    ) -> Result<Option<Event<'e>>, ProtocolError> {
        self.forget_finished();
        match self.find(input)? {
            None => Ok(None),
            Some(Found::Here(opcode, payload)) => event(opcode, payload).map(Some),
            Some(Found::Control(opcode)) => {
                let control = self.partial.as_deref().map_or(&[][..], |p| &p.control);
                event(opcode, control).map(Some)
            }
            Some(Found::Message) => {
                let message = self.partial.as_deref().and_then(|p| p.message.as_ref());
                let message = message.expect("find() has just finished it");
                let opcode = if message.text {
                    Opcode::Text
                } else {
                    Opcode::Binary
                };
                event(opcode, &message.bytes).map(Some)
            }
        }
    }

    /// Gives back the memory of what the last call returned.
    fn forget_finished(&mut self) {
        let Some(partial) = &mut self.partial else {
            return;
        };
        let between = partial.frame.is_none() && partial.header_length == 0;
        if between {
            partial.control = Vec::new();
            // A finished message is left with `fragments` 0, see `end_of_frame`.
            partial.message = partial.message.take().filter(|m| m.fragments > 0);
            if partial.message.is_none() {
                self.partial = None;
            }
        }
    }

    fn find<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Found<'a>>, ProtocolError> {
        loop {
            if self.partial.as_ref().is_none_or(|p| p.frame.is_none()) {
                let Some(header) = self.header(input)? else {
                    return Ok(None);
                };
                self.check(&header)?;
                let whole =
                    usize::try_from(header.length).is_ok_and(|length| length <= input.len());
                let alone = header.opcode.is_control()
                    || (header.fin && header.opcode != Opcode::Continuation);
                if whole && alone {
                    let payload = split_off(input, header.length as usize);
                    if let Some(mask) = header.mask {
                        mask::apply(payload, mask, 0);
                    }
                    return Ok(Some(Found::Here(header.opcode, payload)));
                }
                self.begin(header);
            }
            if let Some(found) = self.payload(input)? {
                return Ok(Some(found));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The next header, from what was kept of it and the input.
    fn header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, ProtocolError> {
        let kept = self.partial.as_ref().map_or(0, |p| p.header_length);
        if kept == 0 {
            if let Some((header, length)) = Header::parse(input, self.role)? {
                split_off(input, length);
                return Ok(Some(header));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
        let partial = self.partial.get_or_insert_default();
        let count = input.len().min(HEADER_MAX - kept);
        partial.header[kept..kept + count].copy_from_slice(&input[..count]);
        let known = kept + count;
        if let Some((header, length)) = Header::parse(&partial.header[..known], self.role)? {
            partial.header_length = 0;
            split_off(input, length - kept);
            return Ok(Some(header));
        }
        partial.header_length = known;
        split_off(input, count);
        Ok(None)
    }

    /// The rules that need more than the header itself.
    fn check(&self, header: &Header) -> Result<(), ProtocolError> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let open = self.partial.as_ref().and_then(|p| p.message.as_ref());
        match (header.opcode, open) {
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::ExpectedContinuation);
            }
            _ => {}
        }
        let before = open.map_or(0, |m| m.bytes.len()) as u64;
        if before.saturating_add(header.length) > self.limits.message_bytes as u64 {
            return Err(ProtocolError::MessageTooBig);
        }
        if open.map_or(0, |m| m.fragments) >= self.limits.fragments {
            return Err(ProtocolError::TooManyFragments);
        }
        Ok(())
    }

    fn begin(&mut self, header: Header) {
        let partial = self.partial.get_or_insert_default();
        if !header.opcode.is_control() {
            let message = partial.message.get_or_insert_with(|| Message {
                text: header.opcode == Opcode::Text,
                bytes: Vec::new(),
                fragments: 0,
                utf8: Utf8::default(),
            });
            message.fragments += 1;
        }
        partial.frame = Some(Frame { header, taken: 0 });
    }

    /// Takes payload of the frame that is open; something, once it ends a message or is a control frame's end.
    fn payload<'a>(
        &mut self,
        input: &mut &'a mut [u8],
    ) -> Result<Option<Found<'a>>, ProtocolError> {
        let Some(partial) = self.partial.as_deref_mut() else {
            return Ok(None);
        };
        let Some(frame) = &mut partial.frame else {
            return Ok(None);
        };
        let left = frame.header.length - frame.taken;
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let piece = split_off(input, count);
        if let Some(mask) = frame.header.mask {
            mask::apply(piece, mask, frame.taken);
        }
        frame.taken += count as u64;
        let Frame { header, taken } = *frame;
        let done = taken == header.length;
        if done {
            partial.frame = None;
        }
        if header.opcode.is_control() {
            partial.control.extend_from_slice(piece);
            return Ok(done.then_some(Found::Control(header.opcode)));
        }
        let message = partial.message.as_mut().expect("begin() has opened it");
        if message.text && !message.utf8.take(piece) {
            return Err(ProtocolError::InvalidUtf8);
        }
        message.bytes.extend_from_slice(piece);
        if !(done && header.fin) {
            return Ok(None);
        }
        if !message.utf8.is_complete() {
            return Err(ProtocolError::InvalidUtf8);
        }
        message.fragments = 0;
        Ok(Some(Found::Message))
    }
}

fn split_off<'a>(input: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let (taken, rest) = std::mem::take(input).split_at_mut(count);
    *input = rest;
    taken
}

fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, ProtocolError> {
    Ok(match opcode {
        Opcode::Text => {
            Event::Text(std::str::from_utf8(payload).map_err(|_| ProtocolError::InvalidUtf8)?)
        }
        Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => Event::Close(Close::parse(payload)?),
    })
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.partial {
            None => "Decoder(idle)",
            Some(_) => "Decoder(incomplete)",
        })
    }
}
