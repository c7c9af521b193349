//! A new configuration for a node that runs: checked and built as a whole, then taken up, or nothing of it is.

use std::sync::Arc;
use std::time::Duration;

use super::Node;
use crate::backplane::BackplaneKind;
use crate::config::{Changes, Config, Mode};
use crate::doors::public::Public;
use crate::doors::service::{ApiKeys, LiveKeys};
use crate::hub::Namespaces;
use crate::tickets::JwtVerifier;
use crate::tls::{Certificates, Found};

/// How long the files of all certificates may take to be read.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// What of a node a reload changes, but for the hub, and by which configuration it runs.
pub(super) struct Live {
    pub(super) config: Config,
    pub(super) mode: Mode,
    /// Something was kept when it began.
    pub(super) kept: bool,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) keys: Arc<LiveKeys>,
    pub(super) door: Arc<Public>,
    pub(super) certificates: Arc<Certificates>,
}

/// What was built of a new configuration before anything of it is taken up.
struct Built {
    config: Config,
    changes: Changes,
    keys: ApiKeys,
    jwt: Option<Arc<JwtVerifier>>,
}

impl Node {
    /// What it runs with.
    pub fn config(&self) -> &Config {
        &self.live.config
    }

    /// Loads a new configuration and takes up what may change while connections live: API keys, `[jwt]`, limits, namespaces,
    /// origins and trusted proxies, and what is in the files of certificates now. What else differs takes a restart, and is
    /// named in a warning. All or nothing; each outcome is counted and logged.
    ///
    /// # Errors
    /// What is wrong with the new configuration or with a certificate: what was before stays.
    pub async fn reload(
        &mut self,
        load: impl FnOnce() -> Result<Config, String>,
    ) -> Result<Changes, String> {
        let certificates = self.live.look_at_certificates().await;
        let built = load().and_then(|config| self.live.build(config));
        let built = match (built, certificates) {
            (Ok(built), Ok(found)) => Ok((built, found)),
            (Ok(_), Err(problem)) | (Err(problem), Ok(_)) => Err(problem),
            (Err(one), Err(another)) => Err(format!("{one}\n{another}")),
        };
        match built {
            Ok((built, found)) => Ok(self.take_up(built, found).await),
            Err(problem) => {
                self.metrics().reloads.refused();
                tracing::error!(
                    "the reload is refused, and nothing of it is taken up; mend this, and send SIGHUP again:\n{problem}"
                );
                Err(problem)
            }
        }
    }

    async fn take_up(&mut self, built: Built, found: Found) -> Changes {
        let Built {
            config,
            changes,
            keys,
            jwt,
        } = built;
        let live = &mut self.live;
        live.certificates.take_up(found);
        live.keys.replace(keys);
        live.namespaces.replace(&config.namespaces);
        live.door.take_up(&config.public, jwt);
        live.config = live.config.taking_up(&config);
        self.hub.take_up(config.limits).await;
        self.metrics().reloads.applied();
        let (applied, restart) = (changes.applied.join(", "), changes.restart.join(", "));
        tracing::info!(changed = applied, "the configuration was reloaded");
        if !restart.is_empty() {
            tracing::warn!("changed, but needs a restart: {restart}");
        }
        changes
    }
}

impl Live {
    async fn look_at_certificates(&self) -> Result<Found, String> {
        let certificates = self.certificates.clone();
        // A file on a disk that hangs must hold up neither who else runs on this thread nor a signal to leave.
        let looking = tokio::task::spawn_blocking(move || certificates.look());
        let looked = tokio::time::timeout(LOOK_TIMEOUT, looking).await;
        let looked = looked.map_err(|_| {
            "the files of the certificates could not be read within 10 s; is their disk there?"
                .to_owned()
        })?;
        looked
            .unwrap_or_else(|e| Err(e.to_string()))
            .map_err(|problem| {
                format!(
                    "{problem} (by the paths that the node was started with; others take a restart)"
                )
            })
    }

    fn build(&self, config: Config) -> Result<Built, String> {
        config.check(self.mode)?;
        // What evicts must not keep, and a Redis is looked at for that if something was kept when the node began.
        let redis = self.config.backplane.kind == BackplaneKind::Redis;
        if redis && !self.kept && config.keeps() {
            return Err(
                "[[namespaces]] max_messages: this node began without anything that is kept, so it never looked whether its Redis may; restart it".into(),
            );
        }
        let changes = self.config.changes(&config)?;
        let keys = self.config.taking_up(&config).callers()?;
        let jwt = match (&config.jwt, self.door.jwt()) {
            // The keys that it has fetched go on; it fetches others by itself.
            (Some(jwt), Some(verifier)) if jwt.jwks_url.is_some() && verifier.is_by(jwt) => {
                Some(verifier)
            }
            // What is in a file may be new.
            (Some(jwt), _) => Some(Arc::new(JwtVerifier::new(jwt)?)),
            (None, _) => None,
        };
        Ok(Built {
            config,
            changes,
            keys,
            jwt,
        })
    }
}
