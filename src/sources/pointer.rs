use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A JSON pointer (RFC 6901): where in an event a value is. The empty one is the whole event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pointer(Box<[String]>);

impl Pointer {
    /// Parses its text form.
    ///
    /// # Errors
    /// A sentence with the fix.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |fix: &str| Err(format!("{text:?} is not a JSON pointer; {fix}"));
        if text.is_empty() {
            return Ok(Self::default());
        }
        let Some(rest) = text.strip_prefix('/') else {
            return wrong(
                "begin it with /, as in \"/customer/id\", or leave it \"\" for the whole event",
            );
        };
        let mut steps = Vec::new();
        for step in rest.split('/') {
            let escapes = step.split('~').skip(1);
            if escapes
                .into_iter()
                .any(|rest| !rest.starts_with(['0', '1']))
            {
                return wrong("write ~ as ~0, and / within a name as ~1");
            }
            steps.push(step.replace("~1", "/").replace("~0", "~"));
        }
        Ok(Self(steps.into()))
    }

    /// What is there, byte for byte as the event has it.
    pub(super) fn find<'a>(&self, event: &'a RawValue) -> Option<&'a RawValue> {
        let mut at = event;
        for step in &self.0 {
            let text = at.get();
            at = match text.as_bytes().first() {
                Some(b'{') => {
                    let fields: HashMap<String, &'a RawValue> = serde_json::from_str(text).ok()?;
                    *fields.get(step.as_str())?
                }
                Some(b'[') => {
                    let items: Vec<&'a RawValue> = serde_json::from_str(text).ok()?;
                    *items.get(index(step)?)?
                }
                _ => return None,
            };
        }
        Some(at)
    }
}

/// An array's index: digits alone, without zeros in front (RFC 6901 section 4).
fn index(step: &str) -> Option<usize> {
    let digits = step.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (step == "0" || !step.starts_with('0'));
    plain.then(|| step.parse().ok()).flatten()
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.0 {
            write!(f, "/{}", step.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

impl Serialize for Pointer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(pointer: &str, event: &str) -> Option<String> {
        let pointer = Pointer::parse(pointer).expect("a pointer");
        let event: &RawValue = serde_json::from_str(event).expect("JSON");
        pointer.find(event).map(|found| found.get().to_owned())
    }

    #[test]
    fn the_pointers_of_the_rfc_point_where_it_says() {
        // RFC 6901 section 5.
        let event = r#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;
        for (pointer, found) in [
            ("", event),
            ("/foo", r#"["bar", "baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(find(pointer, event).as_deref(), Some(found), "{pointer}");
            let again = Pointer::parse(pointer).expect("a pointer").to_string();
            assert_eq!(again, pointer);
        }
        for nothing in [
            "/x", "/foo/2", "/foo/00", "/foo/-", "/foo/+1", "/foo/0/0", "/foo/", "/a/b",
        ] {
            assert_eq!(find(nothing, event), None, "{nothing}");
        }
    }

    #[test]
    fn what_is_found_is_byte_for_byte() {
        let event = r#"{"a": {"b" : [1, {"n":12345678901234567890123.50, "z":1, "a":"\u00e9"}]}}"#;
        let found = r#"{"n":12345678901234567890123.50, "z":1, "a":"\u00e9"}"#;
        assert_eq!(find("/a/b/1", event).as_deref(), Some(found));
        assert_eq!(find("/n\u{e9}", r#"{"n\u00e9":1}"#).as_deref(), Some("1"));
    }

    #[test]
    fn a_text_that_is_no_pointer_is_explained() {
        for (text, fix) in [
            ("customer/id", "begin it with /"),
            ("$.id", "begin it with /"),
            ("/a~", "~0"),
            ("/a~2b", "~0"),
        ] {
            let error = Pointer::parse(text).expect_err(text);
            assert!(error.contains(fix), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_finds_or_not(text: String, event: String) {
            if let Ok(pointer) = Pointer::parse(&text) {
                proptest::prop_assert_eq!(pointer.to_string(), text);
                if let Ok(event) = serde_json::from_str::<&RawValue>(&event) {
                    pointer.find(event);
                }
            }
        }
    }
}
