//! Closing: sections 5.5.1 and 7.4 of the RFC, family 7 of the Autobahn suite.

use super::*;

fn closes_with(payload: &[u8]) -> Result<Event<'static>, ProtocolError> {
    let mut outcome = received(&[sent(FIN | CLOSE, payload)]);
    match outcome.error {
        Some(error) => Err(error),
        None => Ok(outcome.events.remove(0)),
    }
}

#[test]
fn a_close_may_say_nothing_a_code_or_a_code_and_a_reason() {
    assert_eq!(closes_with(b""), Ok(Event::Close(None)));
    assert_eq!(closes_with(b"\x03\xe8"), Ok(close(1000, "")));
    let reason = "é".repeat(61) + "!";
    let payload = [b"\x0f\xa2", reason.as_bytes()].concat();
    assert_eq!(payload.len(), 125);
    assert_eq!(closes_with(&payload), Ok(close(4002, &reason)));
}

#[test]
fn half_a_code_is_refused() {
    assert_eq!(closes_with(b"\x03"), Err(ProtocolError::TruncatedCloseCode));
}

#[test]
fn only_codes_that_may_be_sent_are_taken() {
    for code in 0..=u16::MAX {
        let taken = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let expected = match taken {
            true => Ok(close(code, "")),
            false => Err(ProtocolError::InvalidCloseCode),
        };
        assert_eq!(closes_with(&code.to_be_bytes()), expected, "{code}");
    }
}

#[test]
fn a_reason_is_text() {
    assert_eq!(
        closes_with(b"\x03\xe8\xce\xba\xed\xa0\x80"),
        Err(ProtocolError::InvalidUtf8)
    );
    assert_eq!(
        closes_with(b"\x03\xe8\xce"),
        Err(ProtocolError::InvalidUtf8)
    );
}

#[test]
fn what_comes_after_a_close_means_nothing() {
    for after in [
        sent(FIN | TEXT, b"late"),
        sent(FIN | PING, b""),
        sent(FIN | CLOSE, b"\x03\xe9"),
        vec![0xff; 20],
    ] {
        let outcome = received(&[sent(FIN | CLOSE, b"\x03\xe8"), after]);
        assert_eq!(outcome, good(vec![close(1000, "")]));
    }
}

#[test]
fn a_close_may_come_while_a_message_is_open_and_ends_it() {
    let frames = [
        sent(TEXT, b"never"),
        sent(FIN | CLOSE, b"\x03\xe9"),
        sent(FIN | CONTINUATION, b"ends"),
    ];
    assert_eq!(received(&frames), good(vec![close(1001, "")]));
}
