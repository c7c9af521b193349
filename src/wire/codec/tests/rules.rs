//! Frames: sections 5.1 to 5.6 of the RFC, the families 1 to 5 of the Autobahn suite.

use super::*;

#[test]
fn messages_of_every_length_form_arrive_whole() {
    for len in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 70_000] {
        let payload = "*".repeat(len);
        let frames = [
            sent(FIN | TEXT, payload.as_bytes()),
            sent(FIN | BINARY, payload.as_bytes()),
        ];
        let expected = good(vec![text(&payload), binary(payload.as_bytes())]);
        assert_eq!(received(&frames), expected, "{len} bytes");
    }
}

#[test]
fn the_frames_of_the_rfc_are_read_as_it_says() {
    // Section 5.7: "Hello" in two unmasked fragments, and masked.
    let fragments = b"\x01\x03Hel\x80\x02lo";
    let outcome = decode(Role::Client, LIMITS, fragments, &[usize::MAX]);
    assert_eq!(outcome, good(vec![text("Hello")]));
    let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    let outcome = decode(Role::Server, LIMITS, masked, &[usize::MAX]);
    assert_eq!(outcome, good(vec![text("Hello")]));
}

#[test]
fn pings_and_pongs_carry_up_to_125_bytes_and_come_one_by_one() {
    let full = [0xfe; 125];
    let mut frames = vec![sent(FIN | PONG, b"unasked"), sent(FIN | PING, &full)];
    let mut expected = vec![pong(b"unasked"), ping(&full)];
    for n in 0..10 {
        frames.push(sent(FIN | PING, &[n]));
        expected.push(ping(&[n]));
    }
    frames.push(sent(FIN | PING, b""));
    expected.push(ping(b""));
    assert_eq!(received(&frames), good(expected));
}

#[test]
fn a_control_frame_over_125_bytes_is_refused_from_its_length() {
    for opcode in [CLOSE, PING, PONG] {
        let frame = sent(FIN | opcode, &[0; 126]);
        let expected = (2, ProtocolError::OversizedControl);
        assert_eq!(refused_after(&frame), expected);
    }
}

#[test]
fn a_control_frame_must_not_be_fragmented() {
    for opcode in [CLOSE, PING, PONG] {
        let frame = sent(opcode, b"");
        assert_eq!(refused_after(&frame), (1, ProtocolError::FragmentedControl));
    }
}

#[test]
fn a_reserved_bit_is_refused_at_once_and_what_came_before_is_still_given() {
    for bits in 1..8 {
        for opcode in [TEXT, BINARY, CLOSE, PING, PONG] {
            let wrong = sent(FIN | bits << 4 | opcode, b"x");
            assert_eq!(refused_after(&wrong), (1, ProtocolError::ReservedBits));
            let frames = [sent(FIN | TEXT, b"before"), wrong, sent(FIN | PING, b"")];
            let outcome = received(&frames);
            assert_eq!(outcome.events, [text("before")]);
            assert_eq!(outcome.error, Some(ProtocolError::ReservedBits));
        }
    }
}

#[test]
fn a_reserved_opcode_is_refused_at_once() {
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        let frame = sent(FIN | opcode, b"");
        assert_eq!(refused_after(&frame), (1, ProtocolError::ReservedOpcode));
    }
}

#[test]
fn fragments_make_one_message_and_pings_may_come_between_them() {
    let frames = [
        sent(TEXT, b"frag"),
        sent(FIN | PING, b"1"),
        sent(CONTINUATION, b"ment"),
        sent(CONTINUATION, b""),
        sent(FIN | PONG, b"2"),
        sent(FIN | CONTINUATION, b"ed"),
        sent(BINARY, b""),
        sent(FIN | CONTINUATION, b""),
        sent(FIN | TEXT, b"next"),
    ];
    let expected = vec![
        ping(b"1"),
        pong(b"2"),
        text("fragmented"),
        binary(b""),
        text("next"),
    ];
    assert_eq!(received(&frames), good(expected));
}

#[test]
fn a_continuation_needs_a_message_to_continue() {
    for first in [CONTINUATION, FIN | CONTINUATION] {
        let alone = sent(first, b"x");
        let expected = (1, ProtocolError::UnexpectedContinuation);
        assert_eq!(refused_after(&alone), expected);

        let frames = [
            sent(TEXT, b"a"),
            sent(FIN | CONTINUATION, b"b"),
            sent(first, b"c"),
        ];
        let outcome = received(&frames);
        assert_eq!(outcome.events, [text("ab")]);
        assert_eq!(outcome.error, Some(ProtocolError::UnexpectedContinuation));
    }
}

#[test]
fn a_new_message_must_wait_for_the_end_of_the_open_one() {
    for first in [TEXT, BINARY, FIN | TEXT, FIN | BINARY] {
        let open = sent(TEXT, b"open");
        let after = open.len() + 1;
        let frames = [open, sent(first, b"new")].concat();
        let expected = (after, ProtocolError::ExpectedContinuation);
        assert_eq!(refused_after(&frames), expected);
    }
}

#[test]
fn a_client_masks_and_a_server_does_not() {
    assert_eq!(
        refused_after(&unmasked(FIN | TEXT, b"x")),
        (2, ProtocolError::Unmasked)
    );
    let mut client = Decoder::new(Role::Client, LIMITS);
    assert_eq!(
        refusal(&mut client, &sent(FIN | TEXT, b"x")),
        Some((2, ProtocolError::Masked))
    );
}

#[test]
fn a_length_is_written_in_as_few_bytes_as_it_needs() {
    let too_wide = |len: &[u8]| refused_after(&[&[FIN | BINARY], len, &KEY].concat());
    let expected = ProtocolError::LengthNotMinimal;
    assert_eq!(too_wide(&[0xfe, 0, 125]), (4, expected));
    assert_eq!(too_wide(&[0xff, 0, 0, 0, 0, 0, 0, 0, 1]), (10, expected));
    assert_eq!(
        too_wide(&[0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
        (10, expected)
    );
}

#[test]
fn a_length_has_its_highest_bit_clear() {
    let frame = [&[FIN | BINARY, 0xff, 0x80][..], &[0; 7], &KEY].concat();
    assert_eq!(refused_after(&frame), (10, ProtocolError::LengthOutOfRange));
}

#[test]
fn a_message_over_the_limit_is_refused_from_the_header_of_its_frame() {
    let too_big = sent(FIN | BINARY, &[0; 70_001]);
    assert_eq!(refused_after(&too_big), (10, ProtocolError::MessageTooBig));
    let endless = [FIN | BINARY, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(refused_after(&endless), (10, ProtocolError::MessageTooBig));
}

#[test]
fn the_limit_counts_all_fragments_of_a_message() {
    let first = sent(BINARY, &[1; 69_990]);
    let mut fits = [first.clone(), sent(FIN | CONTINUATION, &[1; 10])];
    let outcome = received(&fits);
    assert_eq!(outcome, good(vec![binary(&[1; 70_000])]));

    fits[1] = sent(FIN | CONTINUATION, &[1; 11]);
    let expected = (first.len() + 2, ProtocolError::MessageTooBig);
    assert_eq!(refused_after(&fits.concat()), expected);
}

#[test]
fn the_limit_of_one_message_leaves_the_next_and_the_pings_alone() {
    let limits = Limits {
        message_bytes: 4,
        fragments: 2,
    };
    let frames = [
        sent(TEXT, b"ab"),
        sent(FIN | PING, &[7; 125]),
        sent(FIN | CONTINUATION, b"cd"),
        sent(FIN | TEXT, b"efgh"),
    ];
    let outcome = decode(Role::Server, limits, &frames.concat(), &[3]);
    let expected = vec![ping(&[7; 125]), text("abcd"), text("efgh")];
    assert_eq!(outcome, good(expected));
}

#[test]
fn a_message_of_too_many_fragments_is_refused_even_if_they_are_empty() {
    let mut frames = vec![sent(TEXT, b"")];
    frames.resize(8, sent(CONTINUATION, b""));
    frames.push(sent(FIN | PING, b"")); // is no fragment
    assert_eq!(received(&frames), good(vec![ping(b"")]));

    frames.push(sent(FIN | CONTINUATION, b""));
    let outcome = received(&frames);
    assert_eq!(outcome.error, Some(ProtocolError::TooManyFragments));
}
