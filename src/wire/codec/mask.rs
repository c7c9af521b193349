/// The mask of a frame, turned to the byte of the payload that comes next (RFC 6455 section 5.3).
///
/// All zero, it changes nothing: that is also what stands for an unmasked frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask([u8; 4]);

impl Mask {
    /// No mask.
    pub(super) const NONE: Self = Self([0; 4]);

    pub(super) const fn new(key: [u8; 4]) -> Self {
        Self(key)
    }

    /// Masks or unmasks the next bytes of the payload; both are the same.
    pub(super) fn apply(&mut self, payload: &mut [u8]) {
        if self.0 == [0; 4] {
            return;
        }
        let [a, b, c, d] = self.0;
        // In the order of memory on both sides, so the machine's byte order does not matter.
        let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (words, rest) = payload.as_chunks_mut::<8>();
        for bytes in words {
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(self.0.iter().cycle()) {
            *byte ^= key;
        }
        self.0.rotate_left(rest.len() % 4);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn byte_by_byte(key: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let byte = |(at, byte): (usize, &u8)| byte ^ key[at % 4];
        payload.iter().enumerate().map(byte).collect()
    }

    proptest! {
        #[test]
        fn masking_by_words_is_masking_byte_by_byte(
            key: [u8; 4],
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            start in 0_usize..8,
        ) {
            // From any alignment.
            let start = start.min(payload.len());
            let mut masked = payload.clone();
            Mask::new(key).apply(&mut masked[start..]);
            prop_assert_eq!(&masked[..start], &payload[..start]);
            prop_assert_eq!(&masked[start..], byte_by_byte(key, &payload[start..]));
        }

        #[test]
        fn a_payload_may_be_unmasked_in_any_pieces(
            key: [u8; 4],
            mut payload in proptest::collection::vec(any::<u8>(), 0..200),
            pieces in proptest::collection::vec(0_usize..20, 0..20),
        ) {
            let expected = byte_by_byte(key, &payload);
            let mut mask = Mask::new(key);
            let mut rest = payload.as_mut_slice();
            for piece in pieces {
                let (piece, after) = rest.split_at_mut(piece.min(rest.len()));
                mask.apply(piece);
                rest = after;
            }
            mask.apply(rest);
            prop_assert_eq!(payload, expected);
        }
    }

    #[test]
    fn the_example_of_the_rfc_is_unmasked() {
        // Section 5.7: a masked "Hello".
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        Mask::new([0x37, 0xfa, 0x21, 0x3d]).apply(&mut payload);
        assert_eq!(&payload, b"Hello");
    }
}
