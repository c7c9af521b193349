use std::fmt;
use std::sync::Arc;

/// Bytes that no id may hold, because backplanes build keys, hash tags and subjects from ids.
const RESERVED: &[char] = &['{', '}', ',', '*', '>', '~'];

/// Why a text is not an id; the sentence names the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Nothing at all.
    Empty,
    /// More bytes than the limit.
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A character that the kind of id does not allow.
    Character(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "must not be empty"),
            Self::TooLong { limit } => write!(f, "must be at most {limit} bytes"),
            Self::Character(' ') => write!(f, "must not contain spaces"),
            Self::Character(c) => write!(f, "must not contain {c:?}"),
        }
    }
}

impl std::error::Error for NameError {}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $limit:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses and checks.
            ///
            /// # Errors
            /// The rule that the text breaks.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                if text.is_empty() {
                    return Err(NameError::Empty);
                }
                if text.len() > $limit {
                    return Err(NameError::TooLong { limit: $limit });
                }
                let allowed: fn(char) -> bool = $allowed;
                match text.chars().find(|&c| RESERVED.contains(&c) || !allowed(c)) {
                    Some(c) => Err(NameError::Character(c)),
                    None => Ok(Self(text.into())),
                }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// Whom a ticket names: 1–128 bytes of UTF-8 without control characters, white space or any of `{ } , * > ~`.
    UserId,
    128,
    |c| !c.is_control() && !c.is_whitespace()
);
name!(
    /// A named address that sessions subscribe to: 1–255 bytes of printable ASCII without spaces or any of
    /// `{ } , * > ~ @`.
    ChannelName,
    255,
    |c| c.is_ascii_graphic() && c != '@'
);
name!(
    /// An optional name for one of a user's ends: 1–64 bytes of printable ASCII without spaces or any of
    /// `{ } , * > ~`.
    DeviceName,
    64,
    |c| c.is_ascii_graphic()
);

impl ChannelName {
    /// The part before the first `:`; a channel without one is its own namespace.
    pub fn namespace(&self) -> &str {
        self.0.split_once(':').map_or(&*self.0, |(space, _)| space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_keeps_to_its_alphabet() {
        for good in ["42", "a@b.c", "日本", "a/b:c", &"x".repeat(128)] {
            assert_eq!(UserId::parse(good).map(|u| u.to_string()), Ok(good.into()));
        }
        assert_eq!(UserId::parse(""), Err(NameError::Empty));
        assert_eq!(
            UserId::parse(&"x".repeat(129)),
            Err(NameError::TooLong { limit: 128 })
        );
        for (bad, c) in [("a b", ' '), ("a\n", '\n'), ("{42}", '{'), ("a~", '~')] {
            assert_eq!(UserId::parse(bad), Err(NameError::Character(c)));
        }
    }

    #[test]
    fn a_channel_is_printable_ascii_and_has_a_namespace() {
        let orders = ChannelName::parse("orders:eu:1").expect("valid");
        assert_eq!(orders.namespace(), "orders");
        assert_eq!(
            ChannelName::parse("lobby").expect("valid").namespace(),
            "lobby"
        );
        for bad in ["a@b", "é", "a,b", "a b", "a*"] {
            assert!(ChannelName::parse(bad).is_err(), "{bad}");
        }
    }
}
