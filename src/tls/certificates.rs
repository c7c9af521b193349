use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_rustls::rustls::ServerConfig;

use super::load::{Files, Loaded, Wanted, unix_seconds};
use crate::telemetry::TlsMetrics;

/// Files are replaced one after the other: what does not fit is looked at again after this, before anybody is told.
const SETTLING: Duration = Duration::from_secs(1);
/// A certificate that ends within this, or within a fifth of its life, ends soon.
const SOON: i64 = 7 * 24 * 60 * 60;
/// How often it is said again that a certificate ends, in seconds.
const SAID_AGAIN: i64 = 24 * 60 * 60;

/// The certificates of all doors that speak TLS.
pub struct Certificates {
    doors: Vec<Arc<DoorTls>>,
}

/// What one door shows now.
pub struct DoorTls {
    wanted: Wanted,
    current: RwLock<Loaded>,
    told: Mutex<Told>,
    metrics: TlsMetrics,
}

/// What is in the files of every door, all of it good, and not shown yet.
pub struct Found(Vec<(Arc<DoorTls>, News)>);

/// What a look at a door's files found.
struct News {
    /// None = what it shows already.
    new: Option<Loaded>,
    /// What it showed then.
    before: [u8; 32],
}

/// What the log has said already.
#[derive(Default)]
struct Told {
    problem: Option<String>,
    /// When it was said that the certificate ends, in Unix seconds.
    ending: i64,
}

impl Certificates {
    /// Reads and checks them all.
    ///
    /// # Errors
    /// A line for each door whose files are not good: which file, and what is wrong.
    pub fn load(wanted: Vec<Wanted>, metrics: &TlsMetrics) -> Result<Self, String> {
        let (mut doors, mut problems) = (Vec::new(), Vec::new());
        for wanted in wanted {
            let loaded = Files::read(&wanted).and_then(|files| files.load(&wanted));
            match loaded {
                Ok(loaded) => doors.push(Arc::new(DoorTls::new(wanted, loaded, metrics.clone()))),
                Err(problem) => problems.push(format!("[{}.tls] {problem}", wanted.door)),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { doors }),
            false => Err(problems.join("\n")),
        }
    }

    /// What a door shows; none = it speaks without TLS.
    pub fn door(&self, name: &str) -> Option<Arc<DoorTls>> {
        self.doors
            .iter()
            .find(|door| door.wanted.door == name)
            .cloned()
    }

    /// What is in the files now, to be taken up as a whole or not at all. Reads files: not for a thread that others wait
    /// for.
    ///
    /// # Errors
    /// A line for each door whose new files are not good.
    pub fn look(&self) -> Result<Found, String> {
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for door in &self.doors {
            match door.look() {
                Ok(news) => found.push((door.clone(), news)),
                Err(problem) => {
                    problems.push(format!("[{}.tls] {problem}", door.wanted.door));
                    door.refuse(problem);
                }
            }
        }
        match problems.is_empty() {
            true => Ok(Found(found)),
            false => Err(problems.join("\n")),
        }
    }

    /// Shows what was found.
    pub fn take_up(&self, found: Found) {
        for (door, news) in found.0 {
            door.take_up(news);
        }
    }

    /// Takes up what is new, for each door by itself. Reads files.
    fn refresh(&self) {
        for door in &self.doors {
            match door.look() {
                Ok(news) => door.take_up(news),
                Err(problem) if door.refuse(problem.clone()) => tracing::error!(
                    door = door.wanted.door,
                    %problem,
                    "a new certificate is not good; the old one is kept, and the files are looked at again"
                ),
                Err(_) => {}
            }
        }
    }

    /// Looks at the files again and again: whoever rotates them gives no signal.
    pub async fn watch(self: Arc<Self>, every: Duration) {
        if every.is_zero() || self.doors.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let these = self.clone();
            // A file on a disk that hangs holds up this one alone.
            let looked = tokio::task::spawn_blocking(move || {
                these.doors.iter().for_each(|door| door.warn_of_the_end());
                these.doors.iter().all(|door| !door.has_bad_news())
            });
            if !looked.await.unwrap_or(false) {
                tokio::time::sleep(SETTLING.min(every)).await;
            }
            let these = self.clone();
            let _ = tokio::task::spawn_blocking(move || these.refresh()).await;
        }
    }
}

impl DoorTls {
    fn new(wanted: Wanted, loaded: Loaded, metrics: TlsMetrics) -> Self {
        let door = Self {
            wanted,
            current: RwLock::new(loaded),
            told: Mutex::default(),
            metrics,
        };
        door.taken_up();
        door
    }

    /// What a handshake that begins now is held with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current().config.clone()
    }

    /// Counts a handshake that failed.
    pub fn failed(&self, reason: &'static str) {
        self.metrics.failed(self.wanted.door, reason);
    }

    fn current(&self) -> RwLockReadGuard<'_, Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is new in the files, if it is good.
    fn look(&self) -> Result<News, String> {
        let before = self.current().digest;
        let files = Files::read(&self.wanted)?;
        if files.digest() == before {
            return Ok(News { new: None, before });
        }
        let loaded = files.load(&self.wanted)?;
        let now = unix_seconds();
        if loaded.is_expired(now) && !self.current().is_expired(now) {
            return Err(format!(
                "{}: this certificate expired at {}, and the one before it is still good; put a new one into the file, or the old one back",
                self.wanted.cert_file.display(),
                loaded.until
            ));
        }
        let new = Some(loaded);
        Ok(News { new, before })
    }

    /// Whether something is wrong with the files that was not told yet.
    fn has_bad_news(&self) -> bool {
        let problem = self.look().err();
        let told = self.told();
        problem.is_some() && problem != told.problem
    }

    /// Counts files that are not good; whether what is wrong with them was not told yet.
    fn refuse(&self, problem: String) -> bool {
        self.metrics.reloaded(self.wanted.door, "refused");
        let before = self.told().problem.replace(problem.clone());
        before != Some(problem)
    }

    fn take_up(&self, news: News) {
        let door = self.wanted.door;
        let was_bad = self.told().problem.take().is_some();
        let Some(loaded) = news.new else {
            if was_bad {
                tracing::info!(
                    door,
                    "the files of the certificate are as they were, and good"
                );
            }
            return;
        };
        let until = loaded.until.clone();
        {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            if current.digest != news.before {
                // Somebody was faster, and what he saw may be younger; if it is not, the next look tells.
                return;
            }
            *current = loaded;
        }
        self.metrics.reloaded(door, "taken");
        tracing::info!(door, until, "a new certificate is shown from now on");
        self.taken_up();
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken_up(&self) {
        let until = self.current().validity.1;
        self.metrics.expires(self.wanted.door, until);
        self.told().ending = 0;
        self.warn_of_the_end();
    }

    /// Says, once a day, that the certificate has ended or is about to, or is not good yet.
    fn warn_of_the_end(&self) {
        let (now, door) = (unix_seconds(), self.wanted.door);
        let file = self.wanted.cert_file.display();
        let (validity, until) = {
            let current = self.current();
            (current.validity, current.until.clone())
        };
        let (from, end) = validity;
        let soon = SOON.min((end - from) / 5);
        if from <= now && end > now + soon {
            return;
        }
        {
            let mut told = self.told();
            if told.ending + SAID_AGAIN > now {
                return;
            }
            told.ending = now;
        }
        if from > now {
            tracing::warn!(door, %file, "the certificate is not good yet: is the clock right?");
        } else if end < now {
            tracing::warn!(door, %file, until, "the certificate has expired, and clients refuse it; put a new one into the file");
        } else {
            tracing::warn!(door, %file, until, "the certificate expires soon; put a new one into the file");
        }
    }
}
