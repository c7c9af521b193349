/// Checks UTF-8 that comes in pieces, and fails at the first byte that cannot be part of it.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose end has not come.
    begun: [u8; 4],
    length: u8,
}

impl Utf8 {
    /// Takes a piece. False = the text is not UTF-8, whatever follows.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> bool {
        while self.length > 0 {
            let Some((&byte, rest)) = piece.split_first() else {
                return true;
            };
            self.begun[usize::from(self.length)] = byte;
            self.length += 1;
            piece = rest;
            match std::str::from_utf8(&self.begun[..usize::from(self.length)]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let tail = &piece[error.valid_up_to()..];
                self.begun[..tail.len()].copy_from_slice(tail);
                self.length = tail.len() as u8;
                true
            }
        }
    }

    /// Whether the text may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where std can know that the text is wrong: after the first byte that no continuation mends.
    fn earliest_failure(bytes: &[u8]) -> Option<usize> {
        (1..=bytes.len())
            .find(|&end| std::str::from_utf8(&bytes[..end]).is_err_and(|e| e.error_len().is_some()))
    }

    proptest::proptest! {
        #[test]
        fn it_fails_at_the_earliest_byte_and_agrees_with_std(
            bytes in proptest::collection::vec(proptest::sample::select(
                vec![0x00u8, 0x41, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xe0, 0xe2, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5]
            ), 0..12),
        ) {
            let mut utf8 = Utf8::default();
            let failed = bytes.iter().position(|b| !utf8.take(&[*b])).map(|i| i + 1);
            proptest::prop_assert_eq!(failed, earliest_failure(&bytes));
            if failed.is_none() {
                proptest::prop_assert_eq!(utf8.is_complete(), std::str::from_utf8(&bytes).is_ok());
            }
        }

        #[test]
        fn the_cut_does_not_matter(text: String, cuts in proptest::collection::vec(0usize..8, 0..20)) {
            let mut utf8 = Utf8::default();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                proptest::prop_assert!(utf8.take(piece));
                rest = after;
            }
            proptest::prop_assert!(utf8.take(rest) && utf8.is_complete());
        }
    }
}
