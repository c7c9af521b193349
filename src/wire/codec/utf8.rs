use super::ProtocolError;

/// Text that arrives in pieces, which may end inside a character. Each byte is judged as it comes, and once.
#[derive(Debug, Default)]
pub(super) struct Utf8Buffer {
    text: String,
    /// The beginning of a character whose end is still to come.
    tail: [u8; 4],
    tail_len: u8,
}

impl Utf8Buffer {
    /// Bytes taken so far.
    pub(super) fn len(&self) -> usize {
        self.text.len() + usize::from(self.tail_len)
    }

    /// Bytes of memory behind the text.
    pub(super) fn capacity(&self) -> usize {
        self.text.capacity()
    }

    /// Takes the next piece, and refuses it if no text can begin with what came so far.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        while self.tail_len > 0 {
            let Some((&next, rest)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = rest;
            self.complete(next)?;
        }
        match str::from_utf8(bytes) {
            Ok(text) => self.text.push_str(text),
            Err(error) if error.error_len().is_some() => return Err(ProtocolError::InvalidUtf8),
            Err(error) => {
                let (valid, tail) = bytes.split_at(error.valid_up_to());
                let valid = str::from_utf8(valid).expect("valid up to there, says the error");
                self.text.push_str(valid);
                self.tail[..tail.len()].copy_from_slice(tail);
                self.tail_len = tail.len() as u8;
            }
        }
        Ok(())
    }

    /// Adds one byte to the character that is not whole.
    fn complete(&mut self, byte: u8) -> Result<(), ProtocolError> {
        let len = usize::from(self.tail_len);
        // In bounds: with four bytes, a character is whole or wrong.
        self.tail[len] = byte;
        match str::from_utf8(&self.tail[..=len]) {
            Ok(character) => {
                self.text.push_str(character);
                self.tail_len = 0;
            }
            Err(error) if error.error_len().is_some() => return Err(ProtocolError::InvalidUtf8),
            Err(_) => self.tail_len += 1,
        }
        Ok(())
    }

    /// The whole text; an error if it ends inside a character.
    pub(super) fn finish(self) -> Result<String, ProtocolError> {
        match self.tail_len {
            0 => Ok(self.text),
            _ => Err(ProtocolError::InvalidUtf8),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Bytes that are nearly UTF-8: characters of each length, with stray bytes between them.
    fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            4 => "[ -~]{0,12}".prop_map(String::into_bytes),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    /// Where std can first know that no text begins like this.
    fn earliest_error(bytes: &[u8]) -> Option<usize> {
        let hopeless = |end: &usize| {
            str::from_utf8(&bytes[..*end]).is_err_and(|error| error.error_len().is_some())
        };
        (1..=bytes.len()).find(hopeless)
    }

    proptest! {
        #[test]
        fn text_in_pieces_has_the_verdict_of_the_whole(
            bytes in nearly_text(),
            cuts in proptest::collection::vec(1_usize..6, 1..6),
        ) {
            let mut buffer = Utf8Buffer::default();
            let mut rest = bytes.as_slice();
            let mut verdict = Ok(());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || verdict.is_err() {
                    break;
                }
                let (piece, after) = rest.split_at(rest.len().min(*cut));
                verdict = buffer.push(piece);
                rest = after;
                prop_assert!(verdict.is_err() || buffer.len() == bytes.len() - rest.len());
            }
            let text = verdict.and_then(|()| buffer.finish()).ok();
            prop_assert_eq!(text, String::from_utf8(bytes).ok());
        }

        #[test]
        fn wrong_text_is_refused_at_the_first_byte_that_std_can_know_of(bytes in nearly_text()) {
            let mut buffer = Utf8Buffer::default();
            let refused = bytes.chunks(1).position(|byte| buffer.push(byte).is_err());
            prop_assert_eq!(refused.map(|at| at + 1), earliest_error(&bytes));
        }
    }

    #[test]
    fn a_beginning_is_accepted_exactly_if_some_character_begins_so() {
        // Not by what std says of errors, but by every character that there is.
        let mut beginnings = HashSet::new();
        for character in '\0'..=char::MAX {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            for end in 1..bytes.len() {
                beginnings.insert(bytes[..end].to_vec());
            }
        }
        let accepted = |bytes: &[u8]| {
            let mut buffer = Utf8Buffer::default();
            bytes.chunks(1).all(|byte| buffer.push(byte).is_ok())
        };
        for lead in 0x80..=u8::MAX {
            assert_eq!(accepted(&[lead]), beginnings.contains(&[lead][..]));
            for second in 0x80..0xc0 {
                let pair = [lead, second];
                let whole = str::from_utf8(&pair).is_ok();
                assert_eq!(accepted(&pair), whole || beginnings.contains(&pair[..]));
            }
        }
    }

    #[test]
    fn text_that_ends_inside_a_character_is_refused_at_its_end() {
        let mut buffer = Utf8Buffer::default();
        buffer.push("κόσμε".as_bytes()).unwrap();
        buffer.push(&"𝄞".as_bytes()[..3]).unwrap();
        assert_eq!(buffer.finish(), Err(ProtocolError::InvalidUtf8));
    }
}
