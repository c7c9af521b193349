use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::Clock;
use super::fetch::{self, Fetch};
use super::keys::Keys;
use super::{JwtAlgorithm, JwtConfig};

/// How old what was read of a file may be.
const FILE_REFRESH: Duration = Duration::from_secs(2);
/// The wait after the first fetch that failed; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A JWKS that is fetched when it is needed, by one task at a time, and kept.
///
/// - Older than `refresh`: who needs it waits for a new one, so that a key that was taken away ends with the refresh. A
///   little earlier somebody's need starts the fetch and waits for nothing, so a busy node never waits.
/// - A fetch that fails leaves the old keys in use, is told, and is tried again after a growing pause.
/// - A token with an unknown key starts a fetch, at most one per `min_refresh`.
///
/// Nothing runs while no token comes. The task in flight belongs to this value and ends with it.
pub(super) struct Jwks {
    shared: Arc<Shared>,
}

struct Shared {
    fetch: Fetch,
    only: Option<JwtAlgorithm>,
    refresh: Duration,
    min_refresh: Duration,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    keys: Option<Arc<Keys>>,
    /// From when on a need starts a fetch.
    soon: Instant,
    /// From when on a need waits for it.
    stale: Instant,
    /// From when on an unknown key may start a fetch.
    unknown_from: Instant,
    /// Before this nothing starts one: the last failed.
    retry_from: Instant,
    /// Fetches that failed in a row, and why the last one did.
    failures: u32,
    problem: String,
    flight: Option<Flight>,
}

/// A fetch under way. `done` closes when its task has ended, whatever the way.
struct Flight {
    task: JoinHandle<()>,
    done: watch::Receiver<()>,
}

impl Jwks {
    /// One that is served at a URL; fetched at the first use.
    pub(super) fn url(url: &str, config: &JwtConfig, clock: Clock) -> Result<Self, String> {
        let fetch = Fetch::url(url, fetch::TIMEOUT)?;
        let shared = Shared::new(fetch, config, clock);
        Ok(Self { shared })
    }

    /// One in a file; read now, so that a mistake shows at start.
    pub(super) fn file(path: &Path, config: &JwtConfig, clock: Clock) -> Result<Self, String> {
        let config = JwtConfig {
            jwks_refresh: FILE_REFRESH,
            jwks_min_refresh: FILE_REFRESH,
            ..config.clone()
        };
        let shared = Shared::new(Fetch::file(path), &config, clock);
        let sentence = |e: String| format!("[jwt] jwks_file {}: {e}", path.display());
        let json = std::fs::read(path).map_err(|e| sentence(format!("it cannot be read: {e}")))?;
        let keys = shared.parse(&json).map_err(sentence)?;
        shared.settle(Ok(keys));
        Ok(Self { shared })
    }

    /// The keys, fetched if they are not there or stale.
    ///
    /// # Errors
    /// There are none, and they could not be fetched: why.
    pub(super) async fn current(&self) -> Result<Arc<Keys>, String> {
        let flight = {
            let now = (self.shared.clock)();
            let mut state = self.shared.lock();
            if now >= state.soon && now >= state.retry_from {
                self.shared.start(&mut state);
            }
            match &state.keys {
                Some(keys) if now < state.stale => return Ok(keys.clone()),
                _ => state.under_way(),
            }
        };
        wait_for(flight).await;
        let state = self.shared.lock();
        state.keys.clone().ok_or_else(|| state.problem.clone())
    }

    /// Keys that came after these, fetched if it may be; none = there are no newer ones.
    ///
    /// # Errors
    /// The last fetch failed, so nobody knows: why.
    pub(super) async fn newer_than(&self, seen: &Arc<Keys>) -> Result<Option<Arc<Keys>>, String> {
        let is_newer = |keys: &Arc<Keys>| !Arc::ptr_eq(keys, seen);
        let flight = {
            let now = (self.shared.clock)();
            let mut state = self.shared.lock();
            if let Some(newer) = state.keys.clone().filter(is_newer) {
                return Ok(Some(newer));
            }
            if now >= state.unknown_from && now >= state.retry_from {
                self.shared.start(&mut state);
            }
            state.under_way()
        };
        wait_for(flight).await;
        let state = self.shared.lock();
        match state.keys.clone().filter(is_newer) {
            None if state.failures > 0 => Err(state.problem.clone()),
            newer => Ok(newer),
        }
    }
}

#[cfg(test)]
impl Jwks {
    /// Shows whether anything still holds the cache.
    pub(super) fn watch(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.shared)
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        if let Some(flight) = self.shared.lock().flight.take() {
            flight.task.abort();
        }
    }
}

async fn wait_for(flight: Option<watch::Receiver<()>>) {
    if let Some(mut done) = flight {
        // Nothing is ever sent: this is an error, and the end, when the task has dropped its end.
        let _ = done.changed().await;
    }
}

impl State {
    fn under_way(&self) -> Option<watch::Receiver<()>> {
        let flight = self.flight.as_ref()?;
        // A task that its runtime dropped has closed the channel without settling anything.
        let is_alive = flight.done.has_changed().is_ok();
        is_alive.then(|| flight.done.clone())
    }
}

impl Shared {
    fn new(fetch: Fetch, config: &JwtConfig, clock: Clock) -> Arc<Self> {
        let now = clock();
        Arc::new(Self {
            fetch,
            only: config.algorithm,
            refresh: config.jwks_refresh,
            min_refresh: config.jwks_min_refresh,
            clock,
            state: Mutex::new(State {
                keys: None,
                soon: now,
                stale: now,
                unknown_from: now,
                retry_from: now,
                failures: 0,
                problem: "they were not fetched yet".into(),
                flight: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a fetch unless one is under way.
    fn start(self: &Arc<Self>, state: &mut State) {
        if state.under_way().is_some() {
            return;
        }
        let (ended, done) = watch::channel(());
        let shared = self.clone();
        let task = tokio::spawn(async move {
            let fetched = shared.fetch.read().await;
            shared.settle(fetched.and_then(|json| shared.parse(&json)));
            drop(ended);
        });
        state.flight = Some(Flight { task, done });
    }

    fn parse(&self, json: &[u8]) -> Result<Keys, String> {
        if json.len() > fetch::MAX_BYTES {
            return Err(format!("it is larger than {} KiB", fetch::MAX_BYTES >> 10));
        }
        let keys = Keys::jwks(json, self.fetch.may_hold_secrets(), self.only)?;
        if keys.len() == 0 {
            tracing::warn!(
                from = self.fetch.from(),
                "the JWKS holds no key that is of use: every JWT is refused"
            );
        }
        Ok(keys)
    }

    /// Keeps what a fetch brought.
    fn settle(&self, fetched: Result<Keys, String>) {
        let now = (self.clock)();
        let mut state = self.lock();
        state.flight = None;
        state.unknown_from = now + self.min_refresh;
        match fetched {
            Ok(keys) => {
                if state.failures > 0 {
                    tracing::info!(from = self.fetch.from(), "the JWKS could be fetched again");
                }
                state.keys = Some(Arc::new(keys));
                state.failures = 0;
                // Drawn anew each time, so that the nodes of a fleet do not ask at once.
                state.soon = now + self.refresh.mul_f64(rand::random_range(0.75..0.9));
                state.stale = now + self.refresh;
            }
            Err(problem) => {
                let pause = backoff(state.failures);
                state.failures = state.failures.saturating_add(1);
                state.retry_from = now + pause;
                tracing::warn!(
                    from = self.fetch.from(),
                    problem,
                    failures = state.failures,
                    retry_in = ?pause,
                    has_keys = state.keys.is_some(),
                    "the JWKS could not be fetched; the keys that are there go on"
                );
                state.problem = problem;
            }
        }
    }
}

/// The pause after a fetch that failed, with so many failures before it: doubled each time, and up to a quarter longer, so
/// that the nodes of a fleet do not ask at once.
fn backoff(failures_before: u32) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << failures_before.min(16));
    doubled
        .min(BACKOFF_MAX)
        .mul_f64(rand::random_range(1.0..1.25))
}
