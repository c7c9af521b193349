//! What a connection costs: nothing is copied that lies whole in the read buffer, and nothing is kept that is done with.

use std::borrow::Cow;

use super::*;

fn next<'a>(decoder: &mut Decoder, input: &mut &'a mut [u8]) -> Option<Event<'a>> {
    decoder.next(input).expect("no rule is broken")
}

#[test]
fn a_message_that_lies_whole_in_the_read_buffer_is_borrowed_from_it() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut buffer = [
        sent(FIN | TEXT, b"Hello"),
        sent(FIN | BINARY, &[9; 1000]),
        sent(FIN | PING, b"?"),
        sent(FIN | CLOSE, b"\x03\xe8bye"),
    ]
    .concat();
    let range = buffer.as_ptr_range();
    let mut input = buffer.as_mut_slice();

    let Some(Event::Text(Cow::Borrowed(message))) = next(&mut decoder, &mut input) else {
        panic!("text was copied");
    };
    assert!(range.contains(&message.as_ptr()));
    let binary = next(&mut decoder, &mut input);
    assert!(matches!(binary, Some(Event::Binary(Cow::Borrowed(_)))));
    let ping = next(&mut decoder, &mut input);
    assert!(matches!(ping, Some(Event::Ping(Cow::Borrowed(_)))));
    assert_eq!(decoder.held_bytes(), 0);
    let Some(Event::Close(Some(close))) = next(&mut decoder, &mut input) else {
        panic!("no close");
    };
    assert!(matches!(close.reason, Cow::Borrowed("bye")));
}

#[test]
fn an_event_may_be_used_while_the_decoder_goes_on() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut buffer = [sent(FIN | TEXT, b"one"), sent(FIN | TEXT, b"two")].concat();
    let mut input = buffer.as_mut_slice();
    let one = next(&mut decoder, &mut input);
    let two = next(&mut decoder, &mut input);
    assert_eq!((one, two), (Some(text("one")), Some(text("two"))));
}

#[test]
fn a_read_takes_one_message_and_leaves_the_next() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let second = sent(FIN | TEXT, b"two");
    let mut buffer = [sent(FIN | TEXT, b"one"), second.clone()].concat();
    let mut input = buffer.as_mut_slice();
    assert_eq!(next(&mut decoder, &mut input), Some(text("one")));
    assert_eq!(*input, second);
}

#[test]
fn an_empty_read_keeps_nothing() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    assert_eq!(next(&mut decoder, &mut [].as_mut_slice()), None);
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn memory_grows_with_what_arrived_not_with_what_was_announced() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut frame = sent(FIN | BINARY, &[0; 70_000]);
    assert_eq!(next(&mut decoder, &mut &mut frame[..100]), None);
    assert!(decoder.held_bytes() < 600);
}

#[test]
fn what_an_incomplete_message_used_is_given_back_when_it_is_whole() {
    let message = [0x55; 70_000];
    for frames in [
        sent(FIN | BINARY, &message),
        [
            sent(BINARY, &message[..40_000]),
            sent(FIN | CONTINUATION, &message[40_000..]),
        ]
        .concat(),
    ] {
        for cut in [1, 5, 14, 50_000, frames.len() - 1] {
            let mut decoder = Decoder::new(Role::Server, LIMITS);
            let mut frames = frames.clone();
            let (mut start, mut end) = frames.split_at_mut(cut);
            assert_eq!(next(&mut decoder, &mut start), None);
            assert!(decoder.held_bytes() > 0);
            assert_eq!(next(&mut decoder, &mut end), Some(binary(&message)));
            assert_eq!(decoder.held_bytes(), 0, "cut at {cut}");
        }
    }
}

#[test]
fn a_ping_in_pieces_leaves_nothing_behind_and_an_open_message_alone() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut lone = sent(FIN | PING, b"0123456789");
    for cut in lone.chunks_mut(7) {
        let mut input = cut;
        while next(&mut decoder, &mut input).is_some() {}
    }
    assert_eq!(decoder.held_bytes(), 0);

    let mut between = [sent(TEXT, b"a"), sent(FIN | PING, b"0123456789")].concat();
    for cut in between.chunks_mut(9) {
        let mut input = cut;
        while next(&mut decoder, &mut input).is_some() {}
    }
    let mut end = sent(FIN | CONTINUATION, b"b");
    let event = next(&mut decoder, &mut end.as_mut_slice());
    assert_eq!(event, Some(text("ab")));
}
