use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    message_bytes: 1000,
    fragments: 4,
};
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Decodes a client's bytes; what came before an error is lost.
fn decode(bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut events = Vec::new();
    while let Some(event) = decoder.next(&mut input)? {
        events.push(format!("{event:?}"));
    }
    Ok(events)
}

/// A client's frame with a first byte of its own.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = masked_frame(Opcode::Binary, payload, KEY);
    bytes[0] = first;
    bytes
}

#[test]
fn an_idle_decoder_is_small() {
    assert!(size_of::<Decoder>() <= 40, "{}", size_of::<Decoder>());
}

#[test]
fn every_broken_rule_has_its_error() {
    use ProtocolError as E;
    let cases: Vec<(&str, Vec<u8>, E)> = vec![
        ("RSV1", raw(0xc1, b"a"), E::ReservedBits),
        ("RSV3", raw(0x91, b"a"), E::ReservedBits),
        ("opcode 3", raw(0x83, b"a"), E::ReservedOpcode),
        ("opcode 15", raw(0x8f, b"a"), E::ReservedOpcode),
        ("fragmented ping", raw(0x09, b"a"), E::FragmentedControl),
        ("long ping", raw(0x89, &[0; 126]), E::OversizedControl),
        (
            "continuation first",
            raw(0x80, b"a"),
            E::UnexpectedContinuation,
        ),
        (
            "text in text",
            [raw(0x01, b"a"), raw(0x81, b"b")].concat(),
            E::ExpectedContinuation,
        ),
        ("no mask", vec![0x81, 0x01, b'a'], E::Unmasked),
        (
            "16-bit for 5",
            vec![0x82, 0xfe, 0, 5, 0, 0, 0, 0],
            E::LengthNotMinimal,
        ),
        (
            "64-bit for 5",
            vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0],
            E::LengthNotMinimal,
        ),
        (
            "highest bit",
            vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            E::LengthOutOfRange,
        ),
        ("too big", raw(0x82, &[0; 1001]), E::MessageTooBig),
        (
            "too big together",
            [raw(0x02, &[0; 600]), raw(0x80, &[0; 401])].concat(),
            E::MessageTooBig,
        ),
        (
            "five fragments",
            [
                raw(0x02, b""),
                raw(0, b""),
                raw(0, b""),
                raw(0, b""),
                raw(0x80, b""),
            ]
            .concat(),
            E::TooManyFragments,
        ),
        ("text", raw(0x81, b"\xff"), E::InvalidUtf8),
        ("cut text", raw(0x81, b"\xe2\x82"), E::InvalidUtf8),
        ("close of 1", raw(0x88, b"a"), E::TruncatedCloseCode),
        (
            "close 1005",
            raw(0x88, &1005u16.to_be_bytes()),
            E::InvalidCloseCode,
        ),
        (
            "close 999",
            raw(0x88, &999u16.to_be_bytes()),
            E::InvalidCloseCode,
        ),
        ("close text", raw(0x88, b"\x03\xe8\xff"), E::InvalidUtf8),
    ];
    for (name, bytes, error) in cases {
        assert_eq!(decode(&bytes), Err(error), "{name}");
    }
}

#[test]
fn an_oversized_frame_is_refused_by_its_header() {
    assert_eq!(
        decode(&[0x82, 0xfe, 0x03, 0xe9, 0, 0, 0, 0]),
        Err(ProtocolError::MessageTooBig)
    );
}

#[test]
fn bad_text_fails_inside_an_incomplete_frame() {
    let mut frame = raw(0x81, b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80 and much more");
    frame.truncate(6 + 7);
    assert_eq!(decode(&frame), Err(ProtocolError::InvalidUtf8));
}

#[test]
fn control_frames_come_between_fragments() {
    let bytes = [
        raw(0x01, b"a"),
        raw(0x89, b"p"),
        raw(0x80, b"b"),
        raw(0x88, b""),
    ]
    .concat();
    assert_eq!(
        decode(&bytes),
        Ok(vec![
            "Ping([112])".into(),
            "Text(\"ab\")".into(),
            "Close(None)".into()
        ])
    );
}

#[test]
fn the_memory_of_a_finished_message_is_given_back() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut bytes = [raw(0x02, &[1; 500]), raw(0x80, &[1; 400])].concat();
    let mut input = &mut bytes[..];
    assert!(matches!(decoder.next(&mut input), Ok(Some(Event::Binary(b))) if b.len() == 900));
    assert!(matches!(decoder.next(&mut &mut [][..]), Ok(None)));
    assert!(format!("{decoder:?}").contains("idle"));
}

#[test]
fn a_reason_is_cut_at_a_character() {
    let payload = close_payload(CloseCode::NORMAL, &"é".repeat(100));
    assert_eq!(payload.len(), 2 + 122);
    assert!(std::str::from_utf8(&payload[2..]).is_ok());
}

fn message() -> impl Strategy<Value = (bool, Vec<u8>)> {
    prop_oneof![
        "\\PC{0,300}".prop_map(|text| (true, text.into_bytes())),
        proptest::collection::vec(any::<u8>(), 0..900).prop_map(|bytes| (false, bytes)),
    ]
}

proptest! {
    #[test]
    fn messages_survive_fragments_masks_and_chunks(
        messages in proptest::collection::vec((message(), 1usize..5, any::<[u8; 4]>()), 0..6),
        chunks in proptest::collection::vec(1usize..400, 1..20),
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for ((text, payload), fragments, key) in &messages {
            let size = payload.len().div_ceil(*fragments).max(1);
            let mut pieces: Vec<&[u8]> = payload.chunks(size).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            for (index, piece) in pieces.iter().enumerate() {
                let opcode = match (index, text) {
                    (0, true) => Opcode::Text,
                    (0, false) => Opcode::Binary,
                    _ => Opcode::Continuation,
                };
                let mut frame = masked_frame(opcode, piece, *key);
                if index + 1 < pieces.len() {
                    frame[0] &= 0x7f;
                }
                bytes.extend(frame);
                bytes.extend(masked_frame(Opcode::Ping, b"hi", *key));
            }
            expected.push((*text, payload.clone()));
        }
        let mut decoder = Decoder::new(Role::Server, LIMITS);
        let mut seen = Vec::new();
        let mut sizes = chunks.iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at((*sizes.next().expect("cycle")).min(rest.len()));
            rest = after;
            let mut chunk = chunk.to_vec();
            let mut input = &mut chunk[..];
            loop {
                match decoder.next(&mut input) {
                    Ok(None) => break,
                    Ok(Some(Event::Text(text))) => seen.push((true, text.as_bytes().to_vec())),
                    Ok(Some(Event::Binary(bytes))) => seen.push((false, bytes.to_vec())),
                    Ok(Some(Event::Ping(b"hi"))) => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn garbage_gets_the_same_verdict_whatever_the_chunks(bytes: Vec<u8>, chunks in proptest::collection::vec(any::<u8>(), 0..8)) {
        fuzz::same_verdict_whatever_the_chunks(&bytes, &chunks);
    }

    #[test]
    fn almost_valid_frames_get_the_same_verdict_whatever_the_chunks(
        frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..200)), 0..8),
        chunks in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(first, payload)| raw(first & 0x8f, payload)).collect();
        fuzz::same_verdict_whatever_the_chunks(&bytes, &chunks);
    }

    #[test]
    fn a_server_frame_is_read_by_a_client(payload in proptest::collection::vec(any::<u8>(), 0..70_000)) {
        let mut bytes = frame(Opcode::Binary, &payload).to_vec();
        let limits = Limits { message_bytes: 70_000, fragments: 1 };
        let mut decoder = Decoder::new(Role::Client, limits);
        let mut input = &mut bytes[..];
        let event = decoder.next(&mut input);
        prop_assert_eq!(event, Ok(Some(Event::Binary(&payload))));
    }
}
