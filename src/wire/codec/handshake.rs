use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;
const KEY_CHARS: usize = 24;

/// Whether a `Sec-WebSocket-Key` is what it must be: 16 bytes in base64 (section 4.2.1). If not, refuse with 400.
pub fn is_valid_key(sec_websocket_key: &str) -> bool {
    // The length first, so that a long header is not decoded.
    sec_websocket_key.len() == KEY_CHARS
        && STANDARD
            .decode(sec_websocket_key)
            .is_ok_and(|key| key.len() == KEY_BYTES)
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (section 4.2.2). It proves that the server speaks the
/// protocol, and keeps no secret: SHA-1 is safe here.
pub fn accept_key(sec_websocket_key: &str) -> String {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(sec_websocket_key.as_bytes());
    digest.update(GUID);
    STANDARD.encode(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_answered_as_it_says() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        assert!(is_valid_key(key));
        assert_eq!(accept_key(key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_sixteen_bytes_of_base64_and_nothing_else() {
        for wrong in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",           // no padding
            "dGhlIHNhbXBsZSBub25jZ===",         // padding where no padding goes
            " dGhlIHNhbXBsZSBub25jZQ",          // the length alone is right
            "dGhlIHNhbXBsZSBub25jZS4u",         // 18 bytes
            "dGhlIHNhbXBsZSBub25jZS4=",         // 17 bytes
            "dGhlIHNhbXBsZSBub24_ZQ==",         // the alphabet of URLs
            "dGhlIHNhbXBsZSBub25jZQ==AAAAAAAA", // more than a key
        ] {
            assert!(!is_valid_key(wrong), "{wrong:?}");
        }
    }
}
