use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, PushInfo, PushKind, ServerError, Value};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant as Deadline;

use super::backoff::Backoff;
use super::inspection::{Inspection, Run};
use super::place::{Endpoint, Place};
use crate::backplane::Later;

/// Commands that may wait for their turn.
const QUEUE: usize = 8192;
/// Commands in one pipeline.
const BATCH: usize = 512;
/// Pipelines under way; fewer than the library's queue holds, so that each takes its place there at once.
const IN_FLIGHT: usize = 8;
/// Bytes of one pipeline, beyond its first command.
const BATCH_BYTES: usize = 1 << 20;
/// How long a command may take with the wait for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection must have served for the next failure to be the first again.
const SETTLED: Duration = Duration::from_secs(5);

/// Why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It never left.
    NotSent(String),
    /// Redis said no: nothing was done. The error's code, and all of it for people.
    Refused(String, String),
    /// There was no room for it by the deadline: it never left.
    Busy,
    /// It may or may not have been done.
    Unknown(String),
}

impl Failure {
    /// What happened, for the operator.
    pub(crate) fn into_problem(self) -> String {
        match self {
            Self::NotSent(problem) | Self::Refused(_, problem) | Self::Unknown(problem) => problem,
            Self::Busy => "too many commands wait for Redis".into(),
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
    up: Option<Instant>,
    /// It was reached, and is not to be used.
    unfit: bool,
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
        ever: bool,
        up: Arc<Notify>,
        inspection: Inspection,
        moved: impl Fn() + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let line = Arc::new(Line::default());
        line.went_down("not connected yet".into(), false);
        line.lock().ever = ever;
        let handle = Self {
            jobs,
            line: line.clone(),
        };
        let task = Task {
            place,
            endpoint,
            replicas,
            up,
            inspection,
            moved: Box::new(moved),
            line,
        };
        (handle, task.run(queue))
    }

    /// Runs one command, and answers by the deadline.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(super) async fn run_by(&self, command: Cmd, deadline: Deadline) -> Result<Value, Failure> {
        if let Some((_, why)) = self.down() {
            return Err(Failure::NotSent(why));
        }
        let (answer, answered) = oneshot::channel();
        let ended = || Failure::NotSent("the link to Redis is being replaced".into());
        let place = tokio::time::timeout_at(deadline, self.jobs.reserve()).await;
        let place = place.map_err(|_| Failure::Busy)?.map_err(|_| ended())?;
        place.send(Job { command, answer });
        let unknown = |why: &str| Failure::Unknown(why.into());
        let answered = tokio::time::timeout_at(deadline, answered).await;
        answered
            .map_err(|_| unknown("Redis did not answer within the call's deadline"))?
            .map_err(|_| unknown("the connection to Redis was lost"))?
    }

    /// The same, with time enough for any command.
    pub(super) async fn run(&self, command: Cmd) -> Result<Value, Failure> {
        self.run_by(command, Deadline::now() + PATIENCE).await
    }

    /// Since when the connection is there.
    pub(super) fn up(&self) -> Option<Instant> {
        self.line.lock().up
    }

    /// Since when the connection is not there, and why.
    pub(super) fn down(&self) -> Option<(Instant, String)> {
        self.line.lock().down.clone()
    }

    /// Why what is there is not to be used.
    pub(super) fn unfit(&self) -> Option<String> {
        let state = self.line.lock();
        let down = state.down.as_ref().filter(|_| state.unfit);
        down.map(|(_, why)| why.clone())
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

    fn went_down(&self, why: String, unfit: bool) {
        let mut state = self.lock();
        state.unfit = unfit;
        let since = state
            .down
            .take()
            .map_or_else(Instant::now, |(since, _)| since);
        state.down = Some((since, why));
        state.up = None;
    }

    fn came_up(&self) {
        let mut state = self.lock();
        state.down = None;
        state.up = Some(Instant::now());
        state.unfit = false;
        state.ever = true;
    }
}

struct Task {
    place: Arc<Place>,
    endpoint: Endpoint,
    replicas: u32,
    up: Arc<Notify>,
    inspection: Inspection,
    moved: Box<dyn Fn() + Send + Sync>,
    line: Arc<Line>,
}

impl Task {
    async fn run(self, mut queue: mpsc::Receiver<Job>) {
        let mut backoff = Backoff::default();
        loop {
            let lost = Arc::new(Notify::new());
            let connecting = self.connect(lost.clone());
            let Some(connected) = meanwhile_refuse(&mut queue, &self.line, connecting).await else {
                return;
            };
            let (why, unfit) = match connected {
                Ok((connection, run)) => {
                    tracing::info!(endpoint = ?self.endpoint, "the command link to Redis is up");
                    self.line.came_up();
                    self.up.notify_waiters();
                    let began = Instant::now();
                    // What is asked for meanwhile waits.
                    let ended = match self.inspection.compare(connection.clone(), run).await {
                        Ok(()) => self.serve(connection, &mut queue, &lost).await,
                        Err(why) => Ended::Broken(why),
                    };
                    // One that breaks at once must not be tried as if it never had.
                    if began.elapsed() >= SETTLED {
                        backoff.reset();
                    }
                    match ended {
                        Ended::Well => return,
                        Ended::Broken(why) => (why, false),
                    }
                }
                Err(failed) => failed,
            };
            let delay = backoff.next();
            tracing::warn!(
                endpoint = ?self.endpoint,
                problem = %why,
                "the command link to Redis is down; is Redis running, and does it accept this node? trying again in {delay:.1?}"
            );
            self.line.went_down(why, unfit);
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

    /// A connection to a Redis that is fit to be used, and which run of it that is. Else why not, and whether it was there.
    async fn connect(
        &self,
        lost: Arc<Notify>,
    ) -> Result<(MultiplexedConnection, Option<Run>), (String, bool)> {
        let connecting = self.place.connect(&self.endpoint, Some(on_push(lost)));
        let connection = connecting.await.map_err(|why| (why, false))?;
        let run = self.inspection.fitness(connection.clone()).await;
        Ok((connection, run.map_err(|why| (why, true))?))
    }

    /// Until the connection breaks; `Well` = no handle is left.
    async fn serve(
        &self,
        connection: MultiplexedConnection,
        queue: &mut mpsc::Receiver<Job>,
        lost: &Notify,
    ) -> Ended {
        let mut under_way: FuturesUnordered<Later<'_, Ended>> = FuturesUnordered::new();
        // What waits for replicas blocks all behind it on its connection: one at a time.
        let most = if self.replicas > 0 { 1 } else { IN_FLIGHT };
        let (mut jobs, mut waiting) = (Vec::new(), VecDeque::new());
        loop {
            while !waiting.is_empty() && under_way.len() < most {
                let batch = self.pipeline(connection.clone(), next_batch(&mut waiting));
                let mut batch: Later<'_, Ended> = Box::pin(batch);
                // The first poll puts it into the connection's queue: pipelines leave in the order of their jobs.
                match futures_util::poll!(&mut batch) {
                    Poll::Ready(Ended::Broken(why)) => return Ended::Broken(why),
                    Poll::Ready(Ended::Well) => {}
                    Poll::Pending => under_way.push(batch),
                }
            }
            tokio::select! {
                biased;
                () = lost.notified() => return Ended::Broken("the connection ended".into()),
                Some(ended) = under_way.next() => {
                    // The rest is dropped, and whoever waits for it is told that it is unknown.
                    if let Ended::Broken(why) = ended {
                        return Ended::Broken(why);
                    }
                }
                count = queue.recv_many(&mut jobs, BATCH), if waiting.is_empty() && under_way.len() < most => {
                    if count == 0 {
                        while let Some(Ended::Well) = under_way.next().await {}
                        return Ended::Well;
                    }
                    // Whoever went away meanwhile has a deadline that passed: nothing of it has left.
                    waiting.extend(jobs.drain(..).filter(|job: &Job| !job.answer.is_closed()));
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

/// Tells when the connection ends, also while nothing is asked of it.
fn on_push(lost: Arc<Notify>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
    Box::new(move |push| {
        if push.kind == PushKind::Disconnection {
            lost.notify_one();
        }
    })
}

/// The first jobs, as many as one pipeline holds.
fn next_batch(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|job| {
        let before = bytes;
        bytes += job.command.args_iter().map(size).sum::<usize>();
        before == 0 || bytes <= BATCH_BYTES
    });
    let count = fits.count();
    waiting.drain(..count).collect()
}

fn size(argument: redis::Arg<&[u8]>) -> usize {
    match argument {
        redis::Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    }
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
