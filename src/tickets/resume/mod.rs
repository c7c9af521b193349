//! Resume tickets: what lets a session be continued, at any node, while the auth service is away. They are not stored: a
//! node seals all that it must know into the ticket itself. What is kept is which were used, and who was disconnected
//! since.

mod memory;
mod redis;
mod seal;
mod store;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use self::seal::{Opened, Sealed, Sealing};
use super::slots::SLOT_LIFE_MAX;
use super::{Presented, Redemption, StoreError};
use crate::model::{ChannelName, ConnectionId, DeviceName, Lineage, Origin, Secret, UserId};
use crate::telemetry::Metrics;

pub use memory::MemoryResume;
pub use redis::RedisResume;
pub use store::{Opening, ResumeId, ResumeRefusal, ResumeStore, Revoked, Shown, Taken};

/// What a resume ticket begins with: the version of what follows.
const PREFIX: &str = "r1.";
/// The longest resume ticket, in bytes of its text.
pub const RESUME_MAX_BYTES: usize = 4096;
/// The longest life of a resume ticket; what is revoked stays so for as long.
pub const RESUME_LIFE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long what is kept of a ticket outlives it: a slot may lengthen its life, and clocks of two primaries may differ by a
/// minute.
const MARGIN: Duration = SLOT_LIFE_MAX.saturating_add(Duration::from_secs(60));
/// How often a ticket that does not open makes a node look whether the cluster's own secret is another one now.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// How often a node sees to it that the cluster's own secret is kept.
const REFRESH_EVERY: Duration = Duration::from_secs(30);

/// A session, as far as a resume ticket tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Whose.
    pub user: UserId,
    /// Which of the user's ends.
    pub device: Option<DeviceName>,
    /// Those of the first ticket.
    pub claims: Option<Arc<str>>,
    /// The page that it is of; another one may not use the ticket.
    pub origin: Option<Origin>,
    /// Channels that a ticket or a service named.
    pub granted: Vec<ChannelName>,
    /// Channels that it subscribes to.
    pub subscribed: Vec<ChannelName>,
    /// The session itself: who redeems the ticket takes its place.
    pub connection: ConnectionId,
    /// What it continues.
    pub lineage: Lineage,
}

/// Why there is no resume ticket for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealError {
    /// Channels and claims are more than [`RESUME_MAX_BYTES`] hold.
    TooLarge,
    /// The session has no time left.
    Ended,
    /// The cluster's own secret was not reached yet.
    NoSecret,
    /// The random source failed.
    Random(String),
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(
                f,
                "channels and claims are more than a resume ticket holds ({RESUME_MAX_BYTES} bytes)"
            ),
            Self::Ended => f.write_str("the session has no time left"),
            Self::NoSecret => f.write_str(
                "the cluster's secret was not reached yet; set [backplane] secret to need no Redis for it",
            ),
            Self::Random(why) => write!(f, "the random source of the operating system failed: {why}"),
        }
    }
}

impl std::error::Error for SealError {}

/// What there is to say of a resume ticket before it is redeemed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is genuine and has life left.
    Good,
    /// It is genuine, and its life is over; a slot that it was given before may give it more.
    Expired,
    /// It is good for nothing.
    Unknown,
    /// It is for another origin.
    WrongOrigin,
    /// It is for another address.
    WrongIp,
}

/// Seals and redeems resume tickets.
pub struct ResumeTickets {
    store: Arc<dyn ResumeStore>,
    keys: RwLock<Keys>,
    metrics: Metrics,
}

/// The secret that seals, and the one before it.
#[derive(Default)]
struct Keys {
    current: Option<(Secret, Sealing)>,
    previous: Option<Sealing>,
    /// The configuration's, which stays as it is.
    fixed: bool,
    looked: Option<Instant>,
}

impl Keys {
    fn adopt(&mut self, secret: Secret) {
        self.looked = Some(Instant::now());
        if self.current.as_ref().is_some_and(|(own, _)| *own == secret) {
            return;
        }
        let sealing = Sealing::new(&secret);
        let old = self.current.replace((secret, sealing));
        if old.is_some() {
            tracing::warn!("the cluster's own secret is another one now; resume tickets go by it");
        }
        self.previous = old.map(|(_, sealing)| sealing).or(self.previous.take());
    }
}

impl ResumeTickets {
    /// Whether a text that was shown as a ticket claims to be a resume ticket.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// With the configuration's secret; without one, with the cluster's own, which is still to be fetched
    /// ([`Self::refresh`]).
    pub fn new(secret: Option<&Secret>, store: Arc<dyn ResumeStore>, metrics: Metrics) -> Self {
        let keys = Keys {
            current: secret.map(|secret| (secret.clone(), Sealing::new(secret))),
            fixed: secret.is_some(),
            ..Keys::default()
        };
        Self {
            store,
            keys: RwLock::new(keys),
            metrics,
        }
    }

    /// The backplane's clock, in Unix milliseconds; never ahead.
    pub fn now(&self) -> u64 {
        self.store.now()
    }

    /// Seals a ticket for a session. It dies with the session's end, if that comes before its life is over.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn seal(&self, pass: &Pass, life: Duration) -> Result<Secret, SealError> {
        let now = self.store.now();
        let expires = now.saturating_add(millis(life.min(RESUME_LIFE_MAX)));
        let expires = pass.lineage.ends.map_or(expires, |ends| ends.min(expires));
        if expires <= now {
            return Err(SealError::Ended);
        }
        let sealing = self.read().current.as_ref().map(|(_, s)| s.clone());
        let ticket = sealing.ok_or(SealError::NoSecret)?.seal(pass, expires)?;
        self.metrics.resume_tickets.inc();
        Ok(ticket)
    }

    /// What there is to say of a ticket without asking who used it. Nothing is spent, and nothing counted.
    ///
    /// # Errors
    /// The store is away.
    pub async fn check(&self, text: &str, presented: &Presented) -> Result<Checked, StoreError> {
        let Some(sealed) = Sealed::parse(text) else {
            return Ok(Checked::Unknown);
        };
        let Some(opened) = self.open(&sealed).await? else {
            return Ok(Checked::Unknown);
        };
        let now = self.store.now();
        let ended = opened.resumes.lineage.ends.is_some_and(|ends| ends <= now);
        Ok(match presented.refused_by(&opened.grant) {
            Some(Redemption::WrongOrigin) => Checked::WrongOrigin,
            Some(_) => Checked::WrongIp,
            None if ended => Checked::Unknown,
            None if opened.expires <= now => Checked::Expired,
            None => Checked::Good,
        })
    }

    /// Redeems what was shown. One that is not good is [`Redemption::Unknown`], and why is counted.
    ///
    /// # Errors
    /// The store is full or away.
    pub async fn redeem(
        &self,
        text: &str,
        presented: &Presented,
        opening: Opening,
    ) -> Result<Redemption, StoreError> {
        self.redeem_until(text, presented, opening, 0).await
    }

    /// The same for one that lives at least until then, in Unix milliseconds, since it was given a slot while it was good;
    /// but never longer than its session.
    ///
    /// # Errors
    /// As above.
    pub async fn redeem_until(
        &self,
        text: &str,
        presented: &Presented,
        opening: Opening,
        until: u64,
    ) -> Result<Redemption, StoreError> {
        let Some(sealed) = Sealed::parse(text) else {
            return Ok(self.refused(ResumeRefusal::Malformed));
        };
        let Some(opened) = self.open(&sealed).await? else {
            return Ok(self.refused(ResumeRefusal::Seal));
        };
        let Opened {
            id,
            mut grant,
            mut resumes,
            expires,
        } = opened;
        let ends = resumes.lineage.ends.unwrap_or(u64::MAX);
        let expires = expires.max(until.min(ends));
        if let Some(refused) = presented.refused_by(&grant) {
            return Ok(refused);
        }
        let shown = Shown {
            id,
            user: grant.user.clone(),
            lineage: resumes.lineage,
            expires,
            opening,
        };
        match self.store.take(shown).await? {
            Taken::First => {}
            Taken::Again(before) => resumes.replaces.push(before),
            Taken::Refused(why) => return Ok(self.refused(why)),
        }
        self.metrics.resumed.inc();
        grant.resumes = Some(Box::new(resumes));
        Ok(Redemption::Granted(grant))
    }

    /// Ends all resume tickets of the sessions that a user has or had until now.
    ///
    /// # Errors
    /// The store is full or away; then it is not known whether they have ended.
    pub async fn revoke_user(&self, user: &UserId) -> Result<(), StoreError> {
        self.store.revoke(user.clone(), Revoked::All).await
    }

    /// Ends all resume tickets of one line of sessions.
    ///
    /// # Errors
    /// As above.
    pub async fn revoke_line(&self, user: &UserId, lineage: &Lineage) -> Result<(), StoreError> {
        let line = Revoked::Line(lineage.first);
        self.store.revoke(user.clone(), line).await
    }

    /// Fetches the cluster's own secret, and puts it there if there is none; nothing to do where the configuration has
    /// one.
    ///
    /// # Errors
    /// The store is away.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let own = {
            let keys = self.read();
            if keys.fixed {
                return Ok(());
            }
            keys.current.as_ref().map(|(secret, _)| secret.clone())
        };
        let offered = match own {
            Some(own) => own,
            None => random_secret()?,
        };
        let kept = self.store.secret(offered).await?;
        self.write().adopt(kept);
        Ok(())
    }

    /// Does that now and then, for a store that may lose it.
    pub async fn keep_fresh(self: Arc<Self>) {
        if self.read().fixed {
            return;
        }
        loop {
            let pause = match self.refresh().await {
                Ok(()) => REFRESH_EVERY,
                Err(problem) => {
                    tracing::debug!(%problem, "the cluster's own secret was not looked at");
                    REFRESH_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn open(&self, sealed: &Sealed) -> Result<Option<Opened>, StoreError> {
        if let Some(opened) = self.try_open(sealed) {
            return Ok(Some(opened));
        }
        // Perhaps a node that is newer than the last look has sealed it.
        let look = {
            let keys = self.read();
            let due = |looked: Instant| looked.elapsed() >= REFRESH_PAUSE;
            !keys.fixed && keys.looked.is_none_or(due)
        };
        if !look {
            return Ok(None);
        }
        self.refresh().await?;
        Ok(self.try_open(sealed))
    }

    fn try_open(&self, sealed: &Sealed) -> Option<Opened> {
        let (current, previous) = {
            let keys = self.read();
            let current = keys.current.as_ref().map(|(_, sealing)| sealing.clone());
            (current, keys.previous.clone())
        };
        let both = [current, previous].into_iter().flatten();
        both.into_iter().find_map(|sealing| sealing.open(sealed))
    }

    fn refused(&self, why: ResumeRefusal) -> Redemption {
        tracing::debug!(reason = why.label(), "a resume ticket is not good");
        self.metrics.refused_resume(why.label());
        Redemption::Unknown
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn random_secret() -> Result<Secret, StoreError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| {
        StoreError::Unavailable(format!(
            "the random source of the operating system failed: {e}"
        ))
    })?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
