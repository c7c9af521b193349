use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::error::{ApiError, Code};
use super::keys::ApiKey;
use super::live_keys::LiveKeys;
use crate::backplane::{Leases, Once};
use crate::doors::config::Scope;
use crate::hub::{ACCEPT_TIMEOUT, Accepted, Applied, BroadcastAccepted, Draft, LiveLimits, Router};
use crate::model::{Address, Body, ChannelName, Class, ConnectionId, Sessions, UserId, sha256};
use crate::telemetry::{Call, Metrics};
use crate::tickets::{GrantFields, IssueRequest, Issued, Tickets};

/// How long a push, publish or broadcast may take, if the caller set no deadline.
pub(super) const CALL_TIMEOUT: Duration = ACCEPT_TIMEOUT;
/// How much a close frame's reason may hold (RFC 6455 section 5.5).
const REASON_MAX_BYTES: usize = 123;

/// What the service door can do: the one place where requests of both protocols meet the hub.
pub struct Api {
    /// Where messages go.
    pub router: Arc<Router>,
    /// Who issues tickets.
    pub tickets: Arc<Tickets>,
    /// Which nodes there are.
    pub leases: Arc<dyn Leases>,
    /// Who may call.
    pub keys: Arc<LiveKeys>,
    /// What is too much.
    pub limits: LiveLimits,
    /// How clients reach the public door.
    pub url: Option<String>,
    /// Counters.
    pub metrics: Metrics,
}

/// A body as it came, in whichever field.
pub(super) enum Given {
    Text(String),
    Json(String),
    Binary(bytes::Bytes),
}

/// The options of a push, publish or broadcast, as they came.
pub(super) struct Options {
    pub(super) body: Option<Given>,
    pub(super) class: Class,
    pub(super) ttl: Option<Duration>,
    /// Empty = none, as in the next one.
    pub(super) collapse_key: String,
    pub(super) idempotency_key: String,
    pub(super) waits: bool,
    /// When the answer must leave.
    pub(super) deadline: Instant,
}

/// The most bytes of an idempotency key or a collapse key.
const KEY_MAX_BYTES: usize = 128;
/// The longest `ttl`: beyond it nothing is kept anyway.
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl Api {
    /// Authenticates, demands a scope, runs the call and counts its outcome.
    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        scope: Scope,
        headers: &HeaderMap,
        run: impl AsyncFnOnce(&ApiKey) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let caller = self.admit(method, scope, headers)?;
        let outcome = run(&caller).await;
        self.note(method, caller.name(), &outcome);
        outcome
    }

    /// Authenticates and demands a scope; a refusal is counted and logged.
    pub(super) fn admit(
        &self,
        method: &'static str,
        scope: Scope,
        headers: &HeaderMap,
    ) -> Result<Arc<ApiKey>, ApiError> {
        let known = self.keys.now().authenticate(headers);
        let name = known.as_ref().map_or("?", |caller| caller.name());
        let allowed = match &known {
            Ok(caller) => caller.require(scope),
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = &allowed {
            self.refused(method, name, error);
        }
        allowed.and(known)
    }

    /// Counts what became of a call; a refusal is logged too.
    pub(super) fn note<T>(
        &self,
        method: &'static str,
        caller: &str,
        outcome: &Result<T, ApiError>,
    ) {
        match outcome {
            Ok(_) => self.count(method, "OK"),
            Err(error) => self.refused(method, caller, error),
        }
    }

    pub(super) fn refused(&self, method: &'static str, caller: &str, error: &ApiError) {
        let code = error.code.name();
        tracing::debug!(method, caller, code, detail = %error.detail, "a call was refused");
        self.count(method, code);
    }

    fn count(&self, method: &'static str, code: &'static str) {
        self.metrics
            .calls
            .get_or_create(&Call { method, code })
            .inc();
    }

    fn draft(&self, caller: &ApiKey, options: Options) -> Result<Draft, ApiError> {
        if options.waits {
            let problem = "beyond ACCEPTED is not implemented yet; leave it out";
            return Err(ApiError::unimplemented("wait_for", problem));
        }
        for (field, key) in [
            ("idempotency_key", &options.idempotency_key),
            ("collapse_key", &options.collapse_key),
        ] {
            if key.len() > KEY_MAX_BYTES {
                let problem = format!("must be at most {KEY_MAX_BYTES} bytes");
                return Err(ApiError::invalid(field, problem));
            }
        }
        if options
            .ttl
            .is_some_and(|ttl| ttl.is_zero() || ttl > TTL_MAX)
        {
            let problem = "must be more than 0 s and at most 366 days";
            return Err(ApiError::invalid("ttl", problem));
        }
        let body = match options.body {
            None => {
                return Err(ApiError::invalid(
                    "message",
                    "is missing: give one of message, json and binary",
                ));
            }
            Some(Given::Text(text)) => Body::Text(text.into()),
            Some(Given::Json(text)) => {
                Body::json(&text).map_err(|e| ApiError::invalid("json", e))?
            }
            Some(Given::Binary(bytes)) => Body::Binary(bytes),
        };
        let most = self.limits.now().message_bytes;
        if body.len() > most {
            return Err(ApiError::invalid(
                "message",
                format!(
                    "is {} bytes; the limit is {most} ([limits] message_bytes)",
                    body.len()
                ),
            ));
        }
        let once = match options.idempotency_key.as_str() {
            "" => None,
            key => Some(once(caller.name(), key, &body)),
        };
        let collapse_key = match options.collapse_key.as_str() {
            "" => None,
            key => Some(key.into()),
        };
        Ok(Draft {
            body,
            class: options.class,
            ttl: options.ttl,
            collapse_key,
            once,
            deadline: options.deadline,
        })
    }

    pub(super) async fn push(
        &self,
        caller: &ApiKey,
        user: &str,
        options: Options,
    ) -> Result<Accepted, ApiError> {
        let user = UserId::parse(user).map_err(|e| ApiError::invalid("user_id", e))?;
        let draft = self.draft(caller, options)?;
        caller.require_address(&Address::User(user.clone()))?;
        caller.spend()?;
        Ok(self.router.push(user, draft).await?)
    }

    pub(super) async fn publish(
        &self,
        caller: &ApiKey,
        channel: &str,
        options: Options,
    ) -> Result<Accepted, ApiError> {
        let channel = ChannelName::parse(channel).map_err(|e| ApiError::invalid("channel", e))?;
        let draft = self.draft(caller, options)?;
        caller.require_address(&Address::Channel(channel.clone()))?;
        caller.spend()?;
        Ok(self.router.publish(channel, draft).await?)
    }

    pub(super) async fn broadcast(
        &self,
        caller: &ApiKey,
        users: &[String],
        everyone: bool,
        options: Options,
    ) -> Result<BroadcastAccepted, ApiError> {
        if everyone != users.is_empty() {
            return Err(ApiError::invalid(
                "user_ids",
                "or everyone must be given, and not both",
            ));
        }
        let most = self.limits.now().broadcast_users;
        if users.len() > most {
            return Err(ApiError::invalid(
                "user_ids",
                format!(
                    "are {}; at most {most} a call ([limits] broadcast_users)",
                    users.len()
                ),
            ));
        }
        let mut parsed = Vec::with_capacity(users.len());
        let mut seen = std::collections::HashSet::with_capacity(users.len());
        for user in users {
            let user = UserId::parse(user).map_err(|e| ApiError::invalid("user_ids", e))?;
            caller.require_address(&Address::User(user.clone()))?;
            if seen.insert(user.clone()) {
                parsed.push(user);
            }
        }
        let draft = self.draft(caller, options)?;
        if everyone {
            caller.require_address(&Address::Everyone)?;
        }
        caller.spend()?;
        if everyone {
            let whole = self.router.broadcast_everyone(draft).await?;
            return Ok(BroadcastAccepted {
                whole,
                users: 0,
                failures: Vec::new(),
            });
        }
        Ok(self.router.broadcast(parsed.into(), draft).await?)
    }

    pub(super) async fn issue_ticket(
        &self,
        fields: GrantFields,
        ttl: Option<Duration>,
    ) -> Result<Issued, ApiError> {
        let grant = fields.into_grant()?;
        for channel in grant.channels.iter() {
            self.router.check_grantable("channels", channel)?;
        }
        let issued = self.tickets.issue(IssueRequest { grant, ttl }).await?;
        self.metrics.tickets_issued.inc();
        Ok(issued)
    }

    pub(super) async fn disconnect(
        &self,
        caller: &ApiKey,
        sessions: Sessions,
        reason: String,
    ) -> Result<Applied, ApiError> {
        check_reason(&reason)?;
        let applied = self
            .router
            .disconnect(sessions.clone(), reason.clone())
            .await?;
        audit("disconnected", caller, &sessions, None, &reason, applied);
        Ok(applied)
    }

    pub(super) async fn subscribe(
        &self,
        caller: &ApiKey,
        sessions: Sessions,
        channel: &str,
        reason: &str,
        on: bool,
    ) -> Result<Applied, ApiError> {
        check_reason(reason)?;
        let name = ChannelName::parse(channel).map_err(|e| ApiError::invalid("channel", e))?;
        let (applied, what) = if on {
            let applied = self.router.subscribe(sessions.clone(), name).await?;
            (applied, "subscribed")
        } else {
            let applied = self.router.unsubscribe(sessions.clone(), name).await?;
            (applied, "unsubscribed")
        };
        audit(what, caller, &sessions, Some(channel), reason, applied);
        Ok(applied)
    }
}

/// What makes a retry one with the first: the caller and its key, and the body by which something else is told.
fn once(caller: &str, key: &str, body: &Body) -> Once {
    let (kind, bytes) = match body {
        Body::Text(text) => (b"t", text.as_bytes()),
        Body::Json(text) => (b"j", text.as_bytes()),
        Body::Binary(bytes) => (b"b", bytes.as_ref()),
    };
    Once {
        // The name of a key has no zero byte.
        key: sha256(&[caller.as_bytes(), b"\0", key.as_bytes()].concat()),
        asked: sha256(&[kind, bytes].concat()),
    }
}

/// Who changed whose connections, and why: for those who ask later.
fn audit(
    what: &str,
    caller: &ApiKey,
    sessions: &Sessions,
    channel: Option<&str>,
    reason: &str,
    done: Applied,
) {
    let (caller, Applied { applied, unknown }) = (caller.name(), done);
    tracing::info!(caller, %sessions, channel, reason, applied, unknown, "a service {what} connections");
}

/// Whom a control call is about: a user or a connection, and not both.
pub(super) fn sessions(user: Option<&str>, connection: Option<&str>) -> Result<Sessions, ApiError> {
    match (user, connection) {
        (Some(user), None) => {
            let user = UserId::parse(user).map_err(|e| ApiError::invalid("user_id", e))?;
            Ok(Sessions::OfUser(user))
        }
        (None, Some(id)) => ConnectionId::parse(id)
            .map(Sessions::Connection)
            .ok_or_else(|| {
                ApiError::invalid("connection", "is not a connection's id; WhereIs tells them")
            }),
        _ => Err(ApiError::invalid(
            "user_id",
            "or connection must be given, and not both",
        )),
    }
}

fn check_reason(reason: &str) -> Result<(), ApiError> {
    if reason.len() > REASON_MAX_BYTES {
        return Err(ApiError::invalid(
            "reason",
            format!("must be at most {REASON_MAX_BYTES} bytes"),
        ));
    }
    Ok(())
}

/// For calls that this version does not answer.
pub(super) fn unimplemented<T>(method: &str) -> Result<T, ApiError> {
    Err(ApiError::new(
        Code::Unimplemented,
        format!("{method} is not implemented yet"),
    ))
}
