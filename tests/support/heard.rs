//! A device that listens all the time and remembers what it heard.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt as _};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::until;

#[derive(Default)]
struct State {
    messages: Vec<Value>,
    ids: HashSet<String>,
    ended: Option<String>,
}

/// Closes its connection when it is dropped.
pub struct Heard {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heard {
    /// From here on, over an open connection.
    pub fn on<S>(mut socket: S) -> Self
    where
        S: Stream<Item = Result<Message, Error>> + Unpin + Send + 'static,
    {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let ended = loop {
                match socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let frame: Value = serde_json::from_str(&text).expect("JSON");
                        if frame["type"] == "message" {
                            let mut state = shared.lock().expect("not poisoned");
                            state.ids.insert(id(&frame));
                            state.messages.push(frame);
                        }
                    }
                    Some(Ok(Message::Ping(_))) => {}
                    end => break format!("{end:?}"),
                }
            };
            shared.lock().expect("not poisoned").ended = Some(ended);
        });
        Self { state, task }
    }

    /// The messages so far, in their order.
    pub fn messages(&self) -> Vec<Value> {
        self.state.lock().expect("not poisoned").messages.clone()
    }

    /// Their data.
    pub fn data(&self) -> Vec<Value> {
        let messages = self.messages();
        messages.into_iter().map(|m| m["data"].clone()).collect()
    }

    /// Their ids, in their order.
    pub fn ids(&self) -> Vec<String> {
        self.messages().iter().map(id).collect()
    }

    pub fn count(&self) -> usize {
        self.state.lock().expect("not poisoned").messages.len()
    }

    /// Whether the message of an answer has come.
    pub fn has(&self, answer: &Value) -> bool {
        let id = answer["message_id"].as_str().expect("an id");
        self.state.lock().expect("not poisoned").ids.contains(id)
    }

    pub async fn until_it_has(&self, answer: &Value) {
        until(&format!("a device has {answer}"), async || {
            self.assert_open();
            self.has(answer)
        })
        .await;
    }

    /// Fails if the connection has ended.
    pub fn assert_open(&self) {
        let ended = &self.state.lock().expect("not poisoned").ended;
        assert_eq!(ended, &None, "the connection has ended");
    }

    /// Fails if a message came twice.
    pub fn assert_no_doubles(&self) {
        let ids = self.ids();
        let mut seen = HashSet::new();
        for (at, id) in ids.iter().enumerate() {
            if !seen.insert(id) {
                let first = ids.iter().position(|other| other == id);
                let data = self.data();
                panic!(
                    "a message came twice, as {first:?} and {at} of {}: {}",
                    ids.len(),
                    data[at]
                );
            }
        }
    }
}

fn id(frame: &Value) -> String {
    frame["id"].as_str().expect("an id").into()
}
