use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{ChannelName, DeviceName, Resumes, Since, UserId};

/// What a redeemed ticket (or a JWT) allows: who the session is and what it starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose connection it is.
    pub user: UserId,
    /// Which of the user's ends it is.
    pub device: Option<DeviceName>,
    /// Subscribed at once, and allowed again later.
    pub channels: Arc<[ChannelName]>,
    /// A JSON object, shown to nobody but services; at most [`Grant::CLAIMS_MAX_BYTES`].
    pub claims: Option<Arc<str>>,
    /// Origins that may redeem it; none = those of the configuration.
    pub origins: Arc<[Origin]>,
    /// Addresses that may redeem it; none = any.
    pub ips: Arc<[IpPrefix]>,
    /// How long the session may live, in seconds; none = no end of its own.
    pub session_seconds: Option<u64>,
    /// Where it begins in its inbox, unless the handshake says otherwise.
    pub since: Option<Since>,
    /// The session that it continues: of a resume ticket alone.
    pub resumes: Option<Box<Resumes>>,
}

/// Why something is not part of a grant: the field and the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantError {
    /// The field.
    pub field: &'static str,
    /// The rule that it breaks.
    pub problem: String,
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl std::error::Error for GrantError {}

impl Grant {
    /// The most bytes of `claims`.
    pub const CLAIMS_MAX_BYTES: usize = 1024;
    /// The most `channels`, `origins` and `ips`.
    pub const LIST_MAX: usize = 100;

    /// A grant for a user and nothing more.
    pub fn of(user: UserId) -> Self {
        Self {
            user,
            device: None,
            channels: Arc::new([]),
            claims: None,
            origins: Arc::new([]),
            ips: Arc::new([]),
            session_seconds: None,
            since: None,
            resumes: None,
        }
    }

    /// Checks the claims of a ticket: one JSON object within the limit.
    ///
    /// # Errors
    /// The rule that they break.
    pub fn check_claims(text: &str) -> Result<Arc<str>, GrantError> {
        let problem = |problem: String| GrantError {
            field: "claims",
            problem,
        };
        if text.len() > Self::CLAIMS_MAX_BYTES {
            return Err(problem(format!(
                "must be at most {} bytes",
                Self::CLAIMS_MAX_BYTES
            )));
        }
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
            .map(|_| text.into())
            .map_err(|e| problem(format!("must be a JSON object: {e}")))
    }
}

/// An origin (RFC 6454): scheme, host and port, in lower case, the default port left out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin(Arc<str>);

impl Origin {
    /// Parses `https://app.example.com` or `http://127.0.0.1:8080`. No path, no `null`.
    ///
    /// # Errors
    /// A sentence that says what an origin looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fix = || {
            format!(
                "{text:?} is not an origin; write scheme, host and port alone, as in \"https://app.example.com\""
            )
        };
        let lower = text.to_ascii_lowercase();
        let (scheme, rest) = lower.split_once("://").ok_or_else(fix)?;
        let authority: http::uri::Authority = rest.parse().map_err(|_| fix())?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if scheme.is_empty() || !scheme.chars().all(plain) || rest.contains('@') {
            return Err(fix());
        }
        let default = match scheme {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        };
        Ok(Self(
            match authority.port_u16().filter(|p| Some(*p) != default) {
                Some(port) => format!("{scheme}://{}:{port}", authority.host()).into(),
                None => format!("{scheme}://{}", authority.host()).into(),
            },
        ))
    }

    /// Its normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Origin {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// An IP address with a prefix length (CIDR); a bare address is its own prefix. An IPv4 address that arrives mapped into
/// IPv6 is compared as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

impl IpPrefix {
    /// Parses `10.0.0.0/8`, `2001:db8::/32` or `127.0.0.1`.
    ///
    /// # Errors
    /// A sentence that says what one looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fix = || {
            format!(
                "{text:?} is not an address or prefix; write it as in \"10.0.0.0/8\" or \"2001:db8::1\""
            )
        };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| fix())?)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| fix())?.to_canonical();
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(bits);
        if length > bits {
            return Err(fix());
        }
        Ok(Self { address, length })
    }

    /// Whether an address is within it.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same(a: u128, b: u128, bits: u32, length: u32) -> bool {
            length == 0 || (a ^ b) >> (bits - length) == 0
        }
        let length = u32::from(self.length);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same(a.to_bits().into(), b.to_bits().into(), 32, length)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128, length),
            _ => false,
        }
    }
}

impl serde::Serialize for IpPrefix {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for IpPrefix {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a, b| assert_eq!(Origin::parse(a).expect(a), Origin::parse(b).expect(b));
        same("https://app.example.com", "HTTPS://App.Example.com:443");
        same("http://127.0.0.1:8080", "http://127.0.0.1:8080");
        assert_ne!(Origin::parse("http://a.b"), Origin::parse("https://a.b"));
        assert_ne!(
            Origin::parse("http://a.b"),
            Origin::parse("http://a.b:8080")
        );
        for bad in [
            "null",
            "a.b",
            "https://",
            "https://a.b/x",
            "https://u@a.b",
            "*",
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_contains_its_addresses() {
        let contains = |prefix: &str, address: &str| {
            IpPrefix::parse(prefix)
                .expect(prefix)
                .contains(address.parse().expect(address))
        };
        assert!(contains("10.0.0.0/8", "10.1.2.3"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("0.0.0.0/0", "1.2.3.4"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1"));
        assert!(contains("127.0.0.1", "127.0.0.1"));
        for bad in ["10.0.0.0/33", "10.0.0", "::/129", "a/8", ""] {
            assert!(IpPrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
