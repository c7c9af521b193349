//! What would be machines of their own and share one here: those of the clients and the balancer, and those of the
//! services that push.

use std::io;

use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads for some of those who take part. They end with their handle.
#[derive(Debug)]
pub(crate) struct Machine {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Machine {
    /// For clients. `stands_back` = they take only what everything else leaves of the cores, so that what publishers
    /// notice of a crowd is what it does to nodes and Redis, and not that it stands in their way.
    pub(crate) fn of_clients(stands_back: bool) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        if stands_back {
            builder.on_thread_start(stand_back);
        }
        Self::start(&mut builder)
    }

    /// For services that push: what these wait for is a node, and no client's work.
    pub(crate) fn of_publishers() -> io::Result<Self> {
        Self::start(Builder::new_multi_thread().worker_threads(1))
    }

    fn start(builder: &mut Builder) -> io::Result<Self> {
        let runtime = builder.enable_all().build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever drops it may not wait.
            runtime.shutdown_background();
        }
    }
}

/// Does something, such as to start a process, on a thread that stands back, as what comes of it then does.
pub(crate) fn standing_back<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            stand_back();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Has this thread run when nothing else wants to.
fn stand_back() {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let thread = thread_native_id();
    if let Err(error) = set_thread_priority_and_policy(thread, ThreadPriority::Min, policy) {
        eprintln!("clients and balancer compete with the nodes for the cores: {error}");
    }
}
