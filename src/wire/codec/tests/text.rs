//! UTF-8: section 8.1 of the RFC, family 6 of the Autobahn suite.

use super::*;

/// "κόσμε", then a surrogate, then "edited".
const BROKEN: &[u8] = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited";
/// The second byte of the surrogate is the first one that no text has.
const SEEN_AT: usize = 13;

#[test]
fn wrong_text_is_refused_at_its_first_wrong_byte_inside_a_frame() {
    let frame = sent(FIN | TEXT, BROKEN);
    let header = frame.len() - BROKEN.len();
    assert_eq!(
        refused_after(&frame),
        (header + SEEN_AT, ProtocolError::InvalidUtf8)
    );
}

#[test]
fn wrong_text_is_refused_inside_a_fragment_long_before_the_message_ends() {
    for cut in 0..BROKEN.len() {
        let frames = [
            sent(TEXT, &BROKEN[..cut]),
            sent(CONTINUATION, &BROKEN[cut..]),
            sent(FIN | CONTINUATION, b""),
        ];
        let headers = if cut < SEEN_AT { 12 } else { 6 };
        assert_eq!(
            refused_after(&frames.concat()),
            (headers + SEEN_AT, ProtocolError::InvalidUtf8),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_code_point_beyond_unicode_is_refused_at_its_second_byte() {
    // U+110000, in frames as case 6.4.1 of the suite sends it: refused by the second frame's first byte.
    let frames = [
        sent(TEXT, b"\xce\xba\xf4"),
        sent(CONTINUATION, b"\x90"),
        sent(FIN | CONTINUATION, b"\x80\x80"),
    ];
    let expected = (9 + 7, ProtocolError::InvalidUtf8);
    assert_eq!(refused_after(&frames.concat()), expected);
}

#[test]
fn a_character_may_be_cut_between_fragments() {
    let whole = "Hello-µ@ßöäüàá-κόσμε-𝄞!!";
    let bytes = whole.as_bytes();
    for first in 0..bytes.len() {
        for second in first..bytes.len() {
            let frames = [
                sent(TEXT, &bytes[..first]),
                sent(CONTINUATION, &bytes[first..second]),
                sent(FIN | PING, b"\xff"), // belongs to no text
                sent(FIN | CONTINUATION, &bytes[second..]),
            ];
            let expected = good(vec![ping(b"\xff"), text(whole)]);
            assert_eq!(received(&frames), expected);
        }
    }
}

#[test]
fn text_that_ends_inside_a_character_is_refused_when_the_message_ends() {
    let cut = &"κόσμε𝄞".as_bytes()[..13];
    let whole = sent(FIN | TEXT, cut);
    assert_eq!(
        refused_after(&whole),
        (whole.len(), ProtocolError::InvalidUtf8)
    );
    let outcome = received(&[whole]);
    assert_eq!(outcome.error, Some(ProtocolError::InvalidUtf8));

    let frames = [sent(TEXT, cut), sent(FIN | CONTINUATION, b"")].concat();
    assert_eq!(
        refused_after(&frames),
        (frames.len(), ProtocolError::InvalidUtf8)
    );
}

#[test]
fn a_binary_message_may_be_anything() {
    let frames = [sent(BINARY, BROKEN), sent(FIN | CONTINUATION, b"\xff")];
    let expected = [BROKEN, b"\xff"].concat();
    assert_eq!(received(&frames), good(vec![binary(&expected)]));
}
