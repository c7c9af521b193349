use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::model::{ChannelName, DeviceName, Grant, GrantError, IpPrefix, Origin, Since, UserId};

/// The fields of a ticket as gRPC and HTTP bring them, unchecked. An empty text is the same as none.
#[derive(Debug, Clone, Default)]
pub struct GrantFields {
    /// Whose connection it opens.
    pub user_id: String,
    /// Which of the user's ends it is.
    pub device: Option<String>,
    /// Subscribed at once.
    pub channels: Vec<String>,
    /// The text of a JSON object.
    pub claims: Option<String>,
    /// Origins that may redeem it.
    pub origins: Vec<String>,
    /// Addresses or prefixes that may redeem it.
    pub ips: Vec<String>,
    /// How long the session may live; none or 0 = no end of its own.
    pub session_seconds: Option<u64>,
    /// Where the inbox starts; `now` = live only.
    pub since: Option<String>,
}

impl GrantFields {
    /// Checks every field. A channel that is named twice counts once.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn into_grant(self) -> Result<Grant, GrantError> {
        let user = UserId::parse(&self.user_id).map_err(|e| invalid("user_id", e))?;
        let claims = self.claims.as_deref().unwrap_or_default();
        let claims = match claims {
            "" => None,
            text => Some(Grant::check_claims(text)?),
        };
        Ok(Grant {
            user,
            device: parse_device(self.device.as_deref().unwrap_or_default())?,
            channels: parse_channels("channels", &self.channels)?,
            claims,
            origins: parse_list("origins", &self.origins, Origin::parse)?.into(),
            ips: parse_list("ips", &self.ips, IpPrefix::parse)?.into(),
            session_seconds: check_session(self.session_seconds)?,
            since: parse_since(self.since.as_deref().unwrap_or_default())?,
            resumes: None,
        })
    }
}

/// The longest `session_seconds`: a year of 366 days. More than that is a wrong unit, and would overflow clocks.
pub const SESSION_SECONDS_MAX: u64 = 366 * 24 * 60 * 60;

/// Parses `device`, of a ticket or of the request that swaps a JWT for one; empty = none.
///
/// # Errors
/// It breaks the rule of device names.
pub fn parse_device(text: &str) -> Result<Option<DeviceName>, GrantError> {
    match text {
        "" => Ok(None),
        text => DeviceName::parse(text)
            .map(Some)
            .map_err(|e| invalid("device", e)),
    }
}

/// Parses `since`, of a ticket, of the request that swaps a JWT for one, or of a query: empty = none, `now` = live only.
///
/// # Errors
/// It is neither `now` nor a position.
pub fn parse_since(text: &str) -> Result<Option<Since>, GrantError> {
    match text {
        "" => Ok(None),
        text => Since::parse(text)
            .map(Some)
            .map_err(|e| invalid("since", e)),
    }
}

/// Parses a list of channels, each once, in the order given.
pub(super) fn parse_channels(
    field: &'static str,
    list: &[impl AsRef<str>],
) -> Result<Arc<[ChannelName]>, GrantError> {
    let mut channels = parse_list(field, list, ChannelName::parse)?;
    let mut seen = HashSet::with_capacity(channels.len());
    channels.retain(|channel| seen.insert(channel.clone()));
    Ok(channels.into())
}

fn parse_list<T, E: fmt::Display>(
    field: &'static str,
    list: &[impl AsRef<str>],
    parse: fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, GrantError> {
    if list.len() > Grant::LIST_MAX {
        let limit = Grant::LIST_MAX;
        return Err(invalid(field, format_args!("must be at most {limit}")));
    }
    list.iter()
        .map(|text| parse(text.as_ref()).map_err(|e| invalid(field, e)))
        .collect()
}

fn check_session(seconds: Option<u64>) -> Result<Option<u64>, GrantError> {
    match seconds {
        None | Some(0) => Ok(None),
        Some(seconds) if seconds <= SESSION_SECONDS_MAX => Ok(Some(seconds)),
        Some(_) => Err(invalid(
            "session_seconds",
            format_args!("must be at most {SESSION_SECONDS_MAX} (366 days)"),
        )),
    }
}

fn invalid(field: &'static str, problem: impl fmt::Display) -> GrantError {
    GrantError {
        field,
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Position, Tag};

    fn fields() -> GrantFields {
        GrantFields {
            user_id: "42".into(),
            ..GrantFields::default()
        }
    }

    fn field_of(fields: GrantFields) -> &'static str {
        match fields.into_grant() {
            Err(e) => e.field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_alone_is_enough() {
        let grant = fields().into_grant().expect("valid");
        assert_eq!(grant, Grant::of(UserId::parse("42").expect("a user")));
        let empty = GrantFields {
            device: Some(String::new()),
            claims: Some(String::new()),
            session_seconds: Some(0),
            since: Some(String::new()),
            ..fields()
        };
        assert_eq!(empty.into_grant(), Ok(grant));
    }

    #[test]
    fn every_field_arrives_and_a_channel_only_once() {
        let grant = GrantFields {
            device: Some("phone".into()),
            channels: ["b", "a:1", "b"].map(String::from).into(),
            claims: Some(r#"{"role":"admin"}"#.into()),
            origins: vec!["https://App.example.com:443".into()],
            ips: vec!["10.0.0.0/8".into(), "::1".into()],
            session_seconds: Some(3_600),
            since: Some("now".into()),
            ..fields()
        };
        let grant = grant.into_grant().expect("valid");
        let channels: Vec<_> = grant.channels.iter().map(ChannelName::as_str).collect();
        assert_eq!(channels, ["b", "a:1"]);
        assert_eq!(grant.device.expect("named").as_str(), "phone");
        assert_eq!(grant.claims.as_deref(), Some(r#"{"role":"admin"}"#));
        assert_eq!(grant.origins[0].as_str(), "https://app.example.com");
        assert_eq!(grant.ips.len(), 2);
        assert_eq!(grant.session_seconds, Some(3_600));
        assert_eq!(grant.since, Some(Since::Now));
    }

    #[test]
    fn a_bad_field_is_named() {
        type Break = fn(&mut GrantFields);
        let breaks: [(&str, Break); 12] = [
            ("user_id", |f| f.user_id = String::new()),
            ("user_id", |f| f.user_id = "a b".into()),
            ("device", |f| f.device = Some("a b".into())),
            ("channels", |f| f.channels = vec![String::new()]),
            ("channels", |f| f.channels = vec!["a".into(); 101]),
            ("claims", |f| f.claims = Some("[1]".into())),
            ("claims", |f| {
                f.claims = Some(format!("{{\"a\":\"{}\"}}", "x".repeat(1_024)))
            }),
            ("origins", |f| f.origins = vec!["null".into()]),
            ("ips", |f| f.ips = vec!["10.0.0.0/33".into()]),
            ("session_seconds", |f| f.session_seconds = Some(u64::MAX)),
            ("since", |f| f.since = Some("a b".into())),
            ("since", |f| f.since = Some("a".repeat(65))),
        ];
        for (field, spoil) in breaks {
            let mut fields = fields();
            spoil(&mut fields);
            assert_eq!(field_of(fields), field);
        }
    }

    #[test]
    fn a_position_arrives() {
        let position = Position {
            epoch: 1,
            offset: 2,
            tag: Tag(3),
        };
        let resumed = GrantFields {
            since: Some(position.to_string()),
            ..fields()
        };
        let since = resumed.into_grant().expect("valid").since;
        assert_eq!(since, Some(Since::After(position)));
    }
}
