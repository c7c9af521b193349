use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, ServerError, Value};
use tokio::sync::{mpsc, oneshot};

use super::backoff::Backoff;
use super::place::{Endpoint, Place};
use crate::backplane::Later;

/// Commands that may wait for their turn.
const QUEUE: usize = 8192;
/// Commands in one pipeline.
const BATCH: usize = 512;
/// Pipelines under way; fewer than the library's queue holds, so that each takes its place there at once.
const IN_FLIGHT: usize = 8;

/// Why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It never left.
    NotSent(String),
    /// Redis said no: nothing was done. The error's code, and all of it for people.
    Refused(String, String),
    /// It may or may not have been done.
    Unknown(String),
}

impl Failure {
    /// What happened, for the operator.
    pub(crate) fn into_problem(self) -> String {
        match self {
            Self::NotSent(problem) | Self::Refused(_, problem) | Self::Unknown(problem) => problem,
        }
    }
}

struct Job {
    command: Cmd,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// One connection for commands to one primary. What is queued goes out as one pipeline; several may be under way. Each
/// command is sent at most once.
#[derive(Clone)]
pub(super) struct Commands {
    jobs: mpsc::Sender<Job>,
    line: Arc<Line>,
}

/// How the connection is.
#[derive(Default)]
struct Line(Mutex<LineState>);

#[derive(Default)]
struct LineState {
    /// Since when it is not there, and why.
    down: Option<(Instant, String)>,
    ever: bool,
}

/// What a pipeline's end means for the connection.
enum Ended {
    Well,
    /// Connect anew; perhaps elsewhere.
    Broken(String),
}

impl Commands {
    /// The handle, and the task behind it, which ends with the last handle. `moved` is called when Redis says that keys
    /// are elsewhere. With `replicas`, each pipeline waits for that many of them.
    pub(super) fn new(
        place: Arc<Place>,
        endpoint: Endpoint,
        replicas: u32,
        moved: impl Fn() + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let line = Arc::new(Line::default());
        line.went_down("not connected yet".into());
        let handle = Self {
            jobs,
            line: line.clone(),
        };
        let task = Task {
            place,
            endpoint,
            replicas,
            moved: Box::new(moved),
            line,
        };
        (handle, task.run(queue))
    }

    /// Runs one command.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(super) async fn run(&self, command: Cmd) -> Result<Value, Failure> {
        if let Some((_, why)) = self.down() {
            return Err(Failure::NotSent(why));
        }
        let (answer, answered) = oneshot::channel();
        let ended = || Failure::NotSent("this node is leaving".into());
        self.jobs
            .send(Job { command, answer })
            .await
            .map_err(|_| ended())?;
        let lost = || Failure::Unknown("the connection to Redis was lost".into());
        answered.await.map_err(|_| lost())?
    }

    /// Since when the connection is not there, and why.
    pub(super) fn down(&self) -> Option<(Instant, String)> {
        self.line.lock().down.clone()
    }

    /// Whether it ever was there.
    pub(super) fn ever(&self) -> bool {
        self.line.lock().ever
    }
}

impl Line {
    fn lock(&self) -> std::sync::MutexGuard<'_, LineState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn went_down(&self, why: String) {
        let mut state = self.lock();
        let since = state
            .down
            .take()
            .map_or_else(Instant::now, |(since, _)| since);
        state.down = Some((since, why));
    }

    fn came_up(&self) {
        let mut state = self.lock();
        state.down = None;
        state.ever = true;
    }
}

struct Task {
    place: Arc<Place>,
    endpoint: Endpoint,
    replicas: u32,
    moved: Box<dyn Fn() + Send + Sync>,
    line: Arc<Line>,
}

impl Task {
    async fn run(self, mut queue: mpsc::Receiver<Job>) {
        let mut backoff = Backoff::default();
        loop {
            let connecting = self.place.connect(&self.endpoint, None);
            let Some(connected) = meanwhile_refuse(&mut queue, &self.line, connecting).await else {
                return;
            };
            let why = match connected {
                Ok(connection) => {
                    tracing::info!(endpoint = ?self.endpoint, "the command link to Redis is up");
                    backoff.reset();
                    self.line.came_up();
                    match self.serve(connection, &mut queue).await {
                        Ended::Well => return,
                        Ended::Broken(why) => why,
                    }
                }
                Err(why) => why,
            };
            let delay = backoff.next();
            tracing::warn!(
                endpoint = ?self.endpoint,
                problem = %why,
                "the command link to Redis is down; is Redis running, and does it accept this node? trying again in {delay:.1?}"
            );
            self.line.went_down(why);
            (self.moved)();
            let pause = tokio::time::sleep(delay);
            if meanwhile_refuse(&mut queue, &self.line, pause)
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Until the connection breaks; `Well` = no handle is left.
    async fn serve(
        &self,
        connection: MultiplexedConnection,
        queue: &mut mpsc::Receiver<Job>,
    ) -> Ended {
        let mut under_way: FuturesUnordered<Later<'_, Ended>> = FuturesUnordered::new();
        let mut jobs = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some(ended) = under_way.next() => {
                    // The rest is dropped, and whoever waits for it is told that it is unknown.
                    if let Ended::Broken(why) = ended {
                        return Ended::Broken(why);
                    }
                }
                count = queue.recv_many(&mut jobs, BATCH), if under_way.len() < IN_FLIGHT => {
                    if count == 0 {
                        while let Some(ended) = under_way.next().await {
                            if matches!(ended, Ended::Broken(_)) { break }
                        }
                        return Ended::Well;
                    }
                    // Whoever went away meanwhile has a deadline that passed: nothing of it has left.
                    jobs.retain(|job: &Job| !job.answer.is_closed());
                    let mut batch: Later<'_, Ended> =
                        Box::pin(self.pipeline(connection.clone(), std::mem::take(&mut jobs)));
                    // The first poll puts it into the connection's queue: pipelines leave in the order of their jobs.
                    match futures_util::poll!(&mut batch) {
                        std::task::Poll::Ready(Ended::Broken(why)) => return Ended::Broken(why),
                        std::task::Poll::Ready(Ended::Well) => {}
                        std::task::Poll::Pending => under_way.push(batch),
                    }
                }
            }
        }
    }

    async fn pipeline(&self, mut connection: MultiplexedConnection, jobs: Vec<Job>) -> Ended {
        if jobs.is_empty() {
            return Ended::Well;
        }
        let mut pipeline = Pipeline::with_capacity(jobs.len() + 1);
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            pipeline.add_command(job.command);
            answers.push(job.answer);
        }
        if self.replicas > 0 {
            // Behind the batch on the same connection: it counts only up to that connection's own last command.
            let most = super::place::TIMEOUT / 2;
            pipeline
                .cmd("WAIT")
                .arg(self.replicas)
                .arg(u64::try_from(most.as_millis()).unwrap_or(1000));
        }
        let count = pipeline.len();
        let mut values = match connection.send_packed_commands(&pipeline, 0, count).await {
            Ok(values) => values,
            Err(error) => {
                let why = match error.is_timeout() {
                    true => "Redis does not answer".to_owned(),
                    false => error.to_string(),
                };
                for answer in answers {
                    let _ = answer.send(Err(Failure::Unknown(why.clone())));
                }
                return Ended::Broken(why);
            }
        };
        let missing = self.missing_replicas(&mut values);
        let mut ended = Ended::Well;
        for (answer, value) in answers.into_iter().zip(values) {
            let result = match value {
                Value::ServerError(error) => {
                    if let Some(why) = self.breaks(&error) {
                        ended = Ended::Broken(why);
                    }
                    Err(Failure::Refused(error.code().to_owned(), describe(&error)))
                }
                value => match &missing {
                    Some(why) => Err(Failure::Unknown(why.clone())),
                    None => Ok(value),
                },
            };
            // Whoever asked may have gone: its deadline passed.
            let _ = answer.send(result);
        }
        ended
    }

    fn missing_replicas(&self, values: &mut Vec<Value>) -> Option<String> {
        if self.replicas == 0 {
            return None;
        }
        let have = match values.pop() {
            Some(Value::Int(have)) => have,
            _ => 0,
        };
        (have < i64::from(self.replicas)).then(|| {
            format!(
                "{have} of {} replicas confirmed ([backplane] min_replicas)",
                self.replicas
            )
        })
    }

    /// Whether an error of the server means that this connection is of no more use.
    fn breaks(&self, error: &ServerError) -> Option<String> {
        match error.code() {
            "MOVED" | "CLUSTERDOWN" => {
                (self.moved)();
                None
            }
            // The primary may be elsewhere now, or our login is not good any more.
            "READONLY" | "MASTERDOWN" | "NOAUTH" | "WRONGPASS" => Some(describe(error)),
            _ => None,
        }
    }
}

fn describe(error: &ServerError) -> String {
    format!(
        "Redis said {} {}",
        error.code(),
        error.details().unwrap_or_default()
    )
}

/// Waits, and refuses all commands meanwhile; `None` = no handle is left.
async fn meanwhile_refuse<T>(
    queue: &mut mpsc::Receiver<Job>,
    line: &Line,
    waited: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(waited);
    loop {
        tokio::select! {
            done = &mut waited => return Some(done),
            job = queue.recv() => {
                let why = line.lock().down.as_ref().map_or_else(String::new, |(_, why)| why.clone());
                let _ = job?.answer.send(Err(Failure::NotSent(why)));
            }
        }
    }
}
