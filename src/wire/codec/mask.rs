/// Masks or unmasks (RFC 6455 section 5.3), eight bytes at a time. `offset` is how many bytes of the payload came before.
pub(super) fn apply(bytes: &mut [u8], mask: [u8; 4], offset: u64) {
    let mut key = mask;
    key.rotate_left((offset % 4) as usize);
    let wide = u64::from_ne_bytes([
        key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3],
    ]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn wide_masking_equals_the_byte_loop(bytes: Vec<u8>, mask: [u8; 4], offset in 0u64..1000) {
            let mut wide = bytes.clone();
            super::apply(&mut wide, mask, offset);
            let slow: Vec<u8> = bytes
                .iter()
                .enumerate()
                .map(|(i, b)| b ^ mask[(i + offset as usize) % 4])
                .collect();
            proptest::prop_assert_eq!(wide, slow);
        }
    }
}
