use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the server has seen and what it says; it outlives a server that is stopped.
struct Served {
    body: Mutex<String>,
    status: AtomicU16,
    requests: AtomicUsize,
    open: watch::Sender<bool>,
}

/// An auth service that serves its keys on loopback.
pub(super) struct Server {
    address: SocketAddr,
    served: Arc<Served>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(keys: &[Value]) -> Self {
        let served = Arc::new(Served {
            body: Mutex::default(),
            status: AtomicU16::new(200),
            requests: AtomicUsize::new(0),
            open: watch::Sender::new(true),
        });
        let (address, task) = listen(SocketAddr::from(([127, 0, 0, 1], 0)), &served).await;
        let server = Self {
            address,
            served,
            task,
        };
        server.serve(keys);
        server
    }

    /// Serves these keys from now on.
    pub(super) fn serve(&self, keys: &[Value]) {
        self.say(200, &json!({ "keys": keys }).to_string());
    }

    /// Answers this from now on.
    pub(super) fn say(&self, status: u16, body: &str) {
        self.served.status.store(status, SeqCst);
        *self.served.body.lock().expect("not poisoned") = body.into();
    }

    /// Whether answers wait from now on, or go out.
    pub(super) fn hold_answers(&self, hold: bool) {
        self.served.open.send_replace(!hold);
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// How many it has had.
    pub(super) fn requests(&self) -> usize {
        self.served.requests.load(SeqCst)
    }

    pub(super) async fn stop(&mut self) {
        self.task.abort();
        // Its listener is gone when the task is.
        let _ = (&mut self.task).await;
    }

    pub(super) async fn come_back(&mut self) {
        (_, self.task) = listen(self.address, &self.served).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(at: SocketAddr, served: &Arc<Served>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(at).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let app = axum::Router::new().fallback(answer);
    let app = app.with_state(served.clone());
    let task = tokio::spawn(async move {
        axum::serve(listener, app).await.expect("it serves");
    });
    (address, task)
}

async fn answer(State(served): State<Arc<Served>>) -> impl IntoResponse {
    served.requests.fetch_add(1, SeqCst);
    let _ = served.open.subscribe().wait_for(|open| *open).await;
    let status = StatusCode::from_u16(served.status.load(SeqCst)).expect("a status");
    let body = served.body.lock().expect("not poisoned").clone();
    // Only a redirection minds it.
    let there = (header::LOCATION, "/elsewhere");
    (status, [there], body)
}
