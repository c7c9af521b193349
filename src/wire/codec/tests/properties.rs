use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::codec::fuzz;

/// One thing to say, and the sizes of the fragments to say it in.
#[derive(Debug, Clone)]
struct Said {
    event: Event<'static>,
    fragments: Vec<usize>,
    /// Pings that go out between its fragments.
    between: Vec<Vec<u8>>,
}

fn said() -> impl Strategy<Value = Said> {
    let event = prop_oneof![
        4 => any::<String>().prop_map(|s| text(&s)),
        2 => vec(any::<u8>(), 0..400).prop_map(|b| binary(&b)),
        1 => vec(any::<u8>(), 65_530..65_600).prop_map(|b| binary(&b)),
        1 => vec(any::<u8>(), 0..126).prop_map(|b| ping(&b)),
        1 => vec(any::<u8>(), 0..126).prop_map(|b| pong(&b)),
    ];
    let between = vec(vec(any::<u8>(), 0..126), 0..3);
    (event, vec(0_usize..200, 0..7), between).prop_map(|(event, fragments, between)| Said {
        event,
        fragments,
        between,
    })
}

impl Said {
    /// The frames (first byte and payload), and what is to arrive.
    fn frames(&self) -> (Vec<(u8, Vec<u8>)>, Vec<Event<'static>>) {
        let (mut opcode, mut rest) = match &self.event {
            Event::Text(text) => (TEXT, text.as_bytes()),
            Event::Binary(bytes) => (BINARY, &bytes[..]),
            Event::Ping(bytes) => return (vec![(FIN | PING, bytes.to_vec())], self.events(0)),
            Event::Pong(bytes) => return (vec![(FIN | PONG, bytes.to_vec())], self.events(0)),
            Event::Close(_) => unreachable!("not among what is said"),
        };
        let mut frames = Vec::new();
        let mut pings = self.between.iter();
        let mut pinged = 0;
        for size in &self.fragments {
            let (fragment, after) = rest.split_at(rest.len().min(*size));
            frames.push((opcode, fragment.to_vec()));
            (opcode, rest) = (CONTINUATION, after);
            if let Some(ping) = pings.next() {
                frames.push((FIN | PING, ping.clone()));
                pinged += 1;
            }
        }
        frames.push((FIN | opcode, rest.to_vec()));
        (frames, self.events(pinged))
    }

    fn events(&self, pinged: usize) -> Vec<Event<'static>> {
        let mut events: Vec<_> = self.between[..pinged].iter().map(|b| ping(b)).collect();
        events.push(self.event.clone());
        events
    }
}

proptest! {
    #[test]
    fn whatever_is_said_arrives_however_it_is_fragmented_masked_and_cut(
        said in vec(said(), 0..6),
        keys in vec(any::<[u8; 4]>(), 1..5),
        reads in vec(1_usize..3000, 1..6),
        from_server: bool,
    ) {
        let mut keys = keys.iter().cycle();
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for said in &said {
            let (frames, events) = said.frames();
            for (first, payload) in frames {
                stream.extend(match from_server {
                    true => unmasked(first, &payload),
                    false => sent_masked(first, &payload, *keys.next().unwrap()),
                });
            }
            expected.extend(events);
        }
        let role = if from_server { Role::Client } else { Role::Server };
        let outcome = decode(role, LIMITS, &stream, &reads);
        prop_assert_eq!(outcome, good(expected));
    }

    #[test]
    fn any_bytes_keep_the_promises_of_the_decoder(bytes in vec(any::<u8>(), 0..400)) {
        fuzz::decoder(&bytes);
    }

    /// Random bytes rarely pass a header: these do, and break what is behind it.
    #[test]
    fn nearly_right_frames_keep_the_promises_of_the_decoder(
        choice in vec(any::<u8>(), 4),
        frames in vec((nearly_first_byte(), nearly_payload(), any::<[u8; 4]>()), 0..8),
        spoilt in proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = choice;
        let to_client = bytes[0] & 1 == 1;
        for (first, payload, key) in frames {
            bytes.extend(match to_client {
                true => unmasked(first, &payload),
                false => sent_masked(first, &payload, key),
            });
        }
        if let Some((at, byte)) = spoilt {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz::decoder(&bytes);
    }
}

fn nearly_first_byte() -> impl Strategy<Value = u8> {
    let opcode = prop::sample::select(vec![0, 0, TEXT, TEXT, BINARY, CLOSE, PING, PONG, 3, 0x4a]);
    (any::<bool>(), opcode).prop_map(|(fin, opcode)| u8::from(fin) << 7 | opcode)
}

fn nearly_payload() -> impl Strategy<Value = Vec<u8>> {
    let code = prop::sample::select(vec![1000_u16, 1005, 1011, 2999, 3000, 4999, 5000]);
    prop_oneof![
        4 => any::<String>().prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..140),
        1 => (code, any::<String>())
            .prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
    ]
}
