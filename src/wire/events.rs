//! Server-sent events (WHATWG HTML, section 9.2): how the frames of `tidings.v1` look to an `EventSource`, and the id by
//! which it comes back.

use std::fmt::{self, Write as _};

use bytes::Bytes;

use crate::model::{ChannelName, Secret, Since};

/// A heartbeat: a comment, which no page sees.
pub const HEARTBEAT: &[u8] = b":\n\n";
/// The most channels of a connection.
pub const CHANNELS_MAX: usize = 8;

/// An event with a frame's JSON as its data. JSON may have line breaks between its parts; each of its lines is a line of
/// data, which the client puts together again (a carriage return becomes a line feed).
pub fn event(json: &str) -> Bytes {
    let mut text = String::with_capacity(json.len() + 24);
    text.push_str("event: message\n");
    for line in lines(json) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    text.into()
}

/// The lines of a text, whichever of the three line ends they have.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let end = if text[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[at + end..]);
        Some(&text[..at])
    })
}

/// How long the client is to wait before it comes back, in milliseconds.
pub fn retry(millis: u64) -> String {
    format!("retry: {millis}\n")
}

/// Why the stream ends, for who looks at its bytes: a comment. No empty line follows, which would make the client believe
/// an id whose event was dropped.
pub fn farewell(code: u16, reason: &str) -> Bytes {
    // What a service gives as a reason may have any characters.
    let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
    format!(": closed {code} {reason}\n").into()
}

/// A line with an id, to be followed by the rest of its event; alone before an empty line, it changes only what the client
/// comes back with.
pub fn id_line(id: &impl fmt::Display) -> String {
    format!("id: {id}\n")
}

/// What an `EventSource` shows as `Last-Event-ID`: a resume ticket, and how far it has got:
/// `<ticket>~<position in the inbox>,<channel>=<position>,…`, each if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventId {
    /// What opens the connection.
    pub ticket: Secret,
    /// Where it was in its inbox.
    pub inbox: Option<Since>,
    /// Where it was in channels.
    pub channels: Vec<(ChannelName, Since)>,
}

impl EventId {
    /// Parses it strictly; `None` if no event had it as its id.
    pub fn parse(text: &str) -> Option<Self> {
        let (ticket, rest) = text.split_once('~')?;
        let mut id = Self {
            ticket: Secret::new(ticket),
            inbox: None,
            channels: Vec::new(),
        };
        if rest.is_empty() {
            return Some(id);
        }
        for (n, part) in rest.split(',').enumerate() {
            let Some((name, position)) = part.rsplit_once('=') else {
                if n > 0 {
                    return None;
                }
                id.inbox = Some(Since::parse(part).ok()?);
                continue;
            };
            let name = ChannelName::parse(name).ok()?;
            let twice = id.channels.iter().any(|(other, _)| *other == name);
            if twice || id.channels.len() == CHANNELS_MAX {
                return None;
            }
            id.channels.push((name, Since::parse(position).ok()?));
        }
        Some(id)
    }

    /// Its text: a secret, for its owner alone.
    pub fn text(&self) -> String {
        positions(self.ticket.expose(), self.inbox, &self.channels)
    }
}

/// The text of an [`EventId`], from its parts.
pub fn positions<P: fmt::Display>(
    ticket: &str,
    inbox: Option<P>,
    channels: &[(ChannelName, P)],
) -> String {
    let mut text = String::with_capacity(ticket.len() + 32 + channels.len() * 48);
    text.push_str(ticket);
    let mut between = '~';
    if let Some(inbox) = inbox {
        let _ = write!(text, "{between}{inbox}");
        between = ',';
    }
    for (channel, position) in channels {
        let _ = write!(text, "{between}{channel}={position}");
        between = ',';
    }
    if between == '~' {
        text.push('~');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Position, Tag};

    fn position(offset: u64) -> Since {
        Since::After(Position {
            epoch: 7,
            offset,
            tag: Tag(9),
        })
    }

    fn named(name: &str, offset: u64) -> (ChannelName, Since) {
        (ChannelName::parse(name).expect("a name"), position(offset))
    }

    #[test]
    fn each_line_of_json_is_a_line_of_data() {
        assert_eq!(event("{}"), "event: message\ndata: {}\n\n");
        let broken = event("{\r\n\"a\":\r1,\n\n\"b\":2}");
        let expected =
            "event: message\ndata: {\ndata: \"a\":\ndata: 1,\ndata: \ndata: \"b\":2}\n\n";
        assert_eq!(broken, expected);
    }

    #[test]
    fn an_id_survives_its_text() {
        for (inbox, channels) in [
            (None, vec![]),
            (Some(Since::Now), vec![]),
            (Some(position(3)), vec![named("a=b:1", 4), named("u", 5)]),
            (None, vec![named("x%2C", 0)]),
        ] {
            let id = EventId {
                ticket: Secret::new("r1.AB-_"),
                inbox,
                channels,
            };
            assert_eq!(EventId::parse(&id.text()), Some(id.clone()), "{id:?}");
        }
    }

    #[test]
    fn what_no_event_had_as_its_id_is_none() {
        let at = position(1);
        let many: Vec<_> = (0..=CHANNELS_MAX).map(|n| format!("c{n}={at}")).collect();
        for bad in [
            "",
            "r1.A",
            "r1.A~x",
            "r1.A~,",
            "r1.A~a=",
            "r1.A~=now",
            "r1.A~now,now",
            "r1.A~a=now,now",
            "r1.A~a=now,a=now",
            "r1.A~a b=now",
            "r1.A~~now",
            &format!("r1.A~{}", many.join(",")),
        ] {
            assert_eq!(EventId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_farewell_is_one_comment() {
        assert_eq!(farewell(4501, "a\nb\r"), ": closed 4501 ab\n");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            if let Some(id) = EventId::parse(&text) {
                prop_assert_eq!(EventId::parse(&id.text()), Some(id));
            }
        }

        #[test]
        fn the_lines_are_those_that_a_client_reads(text in "[a\r\n]{0,20}") {
            let expected = text.replace("\r\n", "\n").replace('\r', "\n");
            let joined: Vec<_> = lines(&text).collect();
            prop_assert_eq!(joined.join("\n"), expected);
        }
    }
}
