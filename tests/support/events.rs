//! A reader of server-sent events that is not ours: what an `EventSource` does with the bytes (WHATWG HTML, 9.2.6).

use serde_json::Value;

use super::{DEADLINE, TestNode};

/// One open stream of events.
pub struct Events {
    response: reqwest::Response,
    text: String,
    /// The last event ID that a dispatch has set.
    pub last_id: String,
    id: String,
    /// The latest `retry:`.
    pub retry: Option<u64>,
    /// The comments so far.
    pub comments: Vec<String>,
}

impl Events {
    /// Asks for events; the status and the body where there are none.
    pub async fn open(
        node: &TestNode,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, (u16, Value)> {
        let url = format!("http://{}/sse?{query}", node.at.public);
        let events = Self::at(&node.http, &url, headers).await?;
        assert_eq!(events.header("cache-control"), Some("no-store"));
        assert_eq!(events.header("x-accel-buffering"), Some("no"));
        Ok(events)
    }

    /// Asks for events at a URL: a proxy's.
    pub async fn at(
        http: &reqwest::Client,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, (u16, Value)> {
        let mut request = http.get(url).header("accept", "text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("answered");
        let status = response.status().as_u16();
        if status != 200 {
            let body = response.text().await.expect("a body");
            return Err((status, serde_json::from_str(&body).unwrap_or_default()));
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self {
            response,
            text: String::new(),
            last_id: String::new(),
            id: String::new(),
            retry: None,
            comments: Vec::new(),
        })
    }

    /// Comes back as a browser does: to the same URL, with the last event ID.
    pub async fn back(node: &TestNode, query: &str, last_id: &str) -> Result<Self, (u16, Value)> {
        Self::open(node, query, &[("last-event-id", last_id)]).await
    }

    /// A header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next line; `None` = the stream has ended.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.text.find('\n') {
                let rest = self.text.split_off(at + 1);
                let mut line = std::mem::replace(&mut self.text, rest);
                line.pop();
                return Some(line);
            }
            let chunk = tokio::time::timeout(DEADLINE, self.response.chunk());
            let chunk = chunk.await.expect("something in time").ok().flatten()?;
            self.text
                .push_str(std::str::from_utf8(&chunk).expect("whole characters"));
        }
    }

    /// Reads up to an empty line, or the end; the data of what that dispatches.
    async fn block(&mut self) -> Option<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                self.last_id = self.id.clone();
                return Some(data);
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => {
                    self.comments.push(value.into());
                }
                "id" => self.id = value.into(),
                "retry" => self.retry = value.parse().ok(),
                "event" => assert_eq!(value, "message"),
                "data" => match &mut data {
                    None => data = Some(value.into()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                },
                other => panic!("no field of events: {other:?}"),
            }
        }
    }

    /// The text of the next event's data; `None` = the stream has ended.
    pub async fn text(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.block().await? {
                return Some(data);
            }
        }
    }

    /// The next frame; `None` = the stream has ended.
    pub async fn try_next(&mut self) -> Option<Value> {
        let text = self.text().await?;
        Some(serde_json::from_str(&text).expect("JSON"))
    }

    /// The next frame.
    pub async fn next(&mut self) -> Value {
        self.try_next().await.expect("a frame")
    }

    /// The next frame, of this type.
    pub async fn next_of(&mut self, kind: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["type"], kind, "{frame}");
        frame
    }

    /// Reads until there is a comment more, passing over nothing else.
    pub async fn comment(&mut self) {
        let had = self.comments.len();
        while self.comments.len() == had {
            assert_eq!(self.block().await, Some(None));
        }
    }

    /// Reads until there is another id, without an event.
    pub async fn renewed(&mut self) {
        let had = self.last_id.clone();
        while self.last_id == had {
            assert_eq!(self.block().await, Some(None));
        }
    }
}
