//! A stream of pushes: what may be under way at once is bounded, and the pushes for one user keep their order.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::super::api::{Api, CALL_TIMEOUT};
use super::super::error::ApiError;
use super::super::keys::ApiKey;
use super::{Grpc, push};
use crate::fleet::{Phase, Phases};
use crate::proto::tidings::v1 as pb;

/// Lanes of one stream of pushes: pushes for one user keep their order by going through one of them, which does one
/// after the other.
const LANES: usize = 16;

/// What comes out of a stream of pushes.
pub(super) type Results = Pin<Box<dyn Stream<Item = Result<pb::PushResult, Status>> + Send>>;

/// Runs a stream of pushes. Each item has [`CALL_TIMEOUT`], and at most the rest of the stream's own time.
pub(super) fn run(
    grpc: &Grpc,
    caller: &Arc<ApiKey>,
    items: Streaming<pb::PushItem>,
    last: Option<Instant>,
) -> Results {
    let per_lane = (grpc.window / LANES).max(1);
    let (results, out) = mpsc::channel(grpc.window.max(1));
    let lanes: Vec<_> = (0..LANES)
        .map(|_| {
            let (sender, items) = mpsc::channel(per_lane);
            let lane = Lane {
                api: grpc.api.clone(),
                caller: caller.clone(),
                last,
            };
            tokio::spawn(lane.run(items, results.clone()));
            sender
        })
        .collect();
    tokio::spawn(read_items(items, lanes, results, grpc.phases.clone()));
    Box::pin(ReceiverStream::new(out))
}

/// Gives each item to the lane of its user, until the stream ends or the node closes. Ends with the call: the lanes and
/// the results close behind it.
async fn read_items(
    mut items: Streaming<pb::PushItem>,
    lanes: Vec<mpsc::Sender<pb::PushItem>>,
    results: mpsc::Sender<Result<pb::PushResult, Status>>,
    mut phases: Phases,
) {
    let hasher = RandomState::new();
    loop {
        let item = tokio::select! {
            item = items.next() => item,
            () = phases.reached(Phase::Closing) => return,
            () = results.closed() => return,
        };
        match item {
            Some(Ok(item)) => {
                let user = item.push.as_ref().map_or("", |push| &push.user_id);
                let lane = hasher.hash_one(user) % lanes.len() as u64;
                if lanes[lane as usize].send(item).await.is_err() {
                    return;
                }
            }
            Some(Err(status)) => {
                let _ = results.send(Err(status)).await;
                return;
            }
            None => return,
        }
    }
}

/// One lane of a stream.
struct Lane {
    api: Arc<Api>,
    caller: Arc<ApiKey>,
    /// When the stream's own time is over.
    last: Option<Instant>,
}

impl Lane {
    async fn run(
        self,
        mut items: mpsc::Receiver<pb::PushItem>,
        results: mpsc::Sender<Result<pb::PushResult, Status>>,
    ) {
        use pb::push_result::Result as Outcome;
        while let Some(item) = items.recv().await {
            let outcome = self.push(item.push).await;
            self.api
                .note("PushNotifications", self.caller.name(), &outcome);
            let result = match outcome {
                Ok(response) => Outcome::Response(response),
                Err(error) => Outcome::Error(error.to_rpc_status()),
            };
            let answer = pb::PushResult {
                r#ref: item.r#ref,
                result: Some(result),
            };
            if results.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }

    async fn push(&self, request: Option<pb::PushRequest>) -> Result<pb::PushResponse, ApiError> {
        self.caller.require_current()?;
        let request = request.ok_or_else(|| ApiError::invalid("push", "is missing"))?;
        let deadline = Instant::now() + CALL_TIMEOUT;
        let deadline = self.last.map_or(deadline, |last| deadline.min(last));
        push(&self.api, &self.caller, request, deadline).await
    }
}
