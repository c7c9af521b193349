use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Instant;

use serde_json::value::RawValue;
use tokio::net::TcpStream;

use super::close::CloseReason;
use super::router::ACCEPT_TIMEOUT;
use super::session::{Phase, SessionKey};
use super::shard::Shard;
use super::{Draft, Format, PublishRule, Refusal};
use crate::backplane::From;
use crate::model::{Address, Body, ChannelName, Since};
use crate::wire::codec::{self, Decoder, Event, Opcode, Role};
use crate::wire::frames::{self, ClientFrame, ErrorCode, ServerFrame};

/// What a client asked that has to wait for others. Its connection is read on once it is done, so a client's wishes are
/// met in its order, and a client can never have more than one under way.
enum Wish {
    Subscribe {
        reference: Option<Box<RawValue>>,
        channel: ChannelName,
        since: Since,
    },
    Publish {
        reference: Option<Box<RawValue>>,
        channel: ChannelName,
        data: Body,
    },
}

enum Step {
    /// The socket has no more for now.
    Wait,
    /// There was more than one buffer of it: others first.
    Yield,
    /// Something has to be waited for; `pending` holds what came behind it.
    Wish(Wish),
    /// The session is gone.
    End,
}

/// Where a connection's bytes come from.
pub(super) struct Inlet {
    pub(super) socket: Rc<TcpStream>,
    /// They are encrypted; the session has what decrypts them.
    pub(super) is_tls: bool,
}

/// The one loop of a connection. Its input: the socket; what it writes goes through the outbox. It ends with the session,
/// which aborts it.
pub(super) async fn read_loop(shard: Rc<Shard>, key: SessionKey, inlet: Inlet, early: Vec<u8>) {
    let limits = shard.hub.limits.now();
    let limits = codec::Limits {
        message_bytes: limits.message_bytes,
        fragments: limits.fragments,
    };
    let mut decoder = Decoder::new(Role::Server, limits);
    let mut pending = early;
    loop {
        let step = shard.step(key, &inlet, &mut decoder, &mut pending);
        shard.work.notify_one();
        match step {
            Step::Wait => {
                if inlet.socket.readable().await.is_err() {
                    return;
                }
            }
            Step::Yield => tokio::task::yield_now().await,
            // Boxed, so that a connection that never asks does not pay for it.
            Step::Wish(wish) => Box::pin(shard.fulfil(key, wish)).await,
            Step::End => return,
        }
    }
}

impl Shard {
    /// Reads once and takes what came.
    fn step(
        &self,
        key: SessionKey,
        inlet: &Inlet,
        decoder: &mut Decoder,
        pending: &mut Vec<u8>,
    ) -> Step {
        if !pending.is_empty() {
            let mut bytes = std::mem::take(pending);
            return match self.take(key, decoder, &mut bytes, pending) {
                Step::Wait => Step::Yield,
                step => step,
            };
        }
        let mut buffer = self.read_buffer.borrow_mut();
        let received = match inlet.is_tls {
            false => inlet.socket.try_read(&mut buffer),
            true => self.try_read_tls(key, &mut buffer),
        };
        match received {
            Ok(0) => {
                self.state.borrow_mut().remove(key, false);
                Step::End
            }
            Ok(count) => {
                self.hub.metrics.bytes_in.inc_by(count as u64);
                self.state.borrow_mut().heard(key);
                let step = self.take(key, decoder, &mut buffer[..count], pending);
                let unfinished = decoder.held_bytes() > 0;
                self.state.borrow_mut().set_unfinished(key, unfinished);
                match step {
                    Step::Wait => Step::Yield,
                    step => step,
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Wait,
            Err(error) if error.kind() == ErrorKind::Interrupted => Step::Yield,
            Err(_) => {
                self.state.borrow_mut().remove(key, false);
                Step::End
            }
        }
    }

    /// Reads and decrypts. What TLS itself has to answer to that goes out at once.
    fn try_read_tls(&self, key: SessionKey, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut state = self.state.borrow_mut();
        let Some(session) = state.get(key) else {
            return Ok(0);
        };
        let received = session.transport.try_read_tls(buffer);
        if session.transport.is_waiting() {
            state.flush(key);
        }
        received
    }

    /// Decodes bytes and does what their frames say, up to a wish.
    fn take(
        &self,
        key: SessionKey,
        decoder: &mut Decoder,
        bytes: &mut [u8],
        pending: &mut Vec<u8>,
    ) -> Step {
        let mut rest = bytes;
        while !rest.is_empty() {
            let lingering = self.state.borrow_mut().get(key).map(|s| s.phase);
            match lingering {
                None => return Step::End,
                // Whatever comes behind a close frame is not looked at (RFC 6455, 5.5.1).
                Some(Phase::Lingering { .. }) => return Step::Wait,
                Some(_) => {}
            }
            let wish = match decoder.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(event)) => self.event(key, event),
                Err(error) => {
                    let reason = CloseReason::Protocol {
                        code: error.close_code(),
                        name: error.name(),
                    };
                    self.state.borrow_mut().close(key, reason, None);
                    return Step::Wait;
                }
            };
            if let Some(wish) = wish {
                *pending = rest.to_vec();
                return Step::Wish(wish);
            }
        }
        Step::Wait
    }

    fn event(&self, key: SessionKey, event: Event<'_>) -> Option<Wish> {
        self.hub.metrics.frames_in.inc();
        let mut state = self.state.borrow_mut();
        let session = state.get(key)?;
        if let Some(bucket) = &mut session.frames
            && session.phase == Phase::Open
            && !bucket.take(1.0, Instant::now())
        {
            state.close(key, CloseReason::TooManyFrames, None);
            return None;
        }
        let open = session.is_open();
        if matches!(event, Event::Text(_) | Event::Binary(_)) {
            // What is unfinished behind it was begun just now.
            session.unfinished = 0;
        }
        match event {
            Event::Close(close) => {
                state.closed_by_client(key, close.map(|close| close.code));
                None
            }
            Event::Ping(payload) if open => {
                state.push_frame(key, codec::frame(Opcode::Pong, &payload));
                None
            }
            #[cfg(feature = "echo")]
            Event::Text(text) if open && session.echo => {
                state.push_frame(key, codec::frame(Opcode::Text, text.as_bytes()));
                None
            }
            #[cfg(feature = "echo")]
            Event::Binary(bytes) if open && session.echo => {
                state.push_frame(key, codec::frame(Opcode::Binary, &bytes));
                None
            }
            Event::Text(text) if open => {
                drop(state);
                self.client_frame(key, &text)
            }
            Event::Binary(_) if open => {
                drop(state);
                let message = "a binary frame is not of the wire; send JSON text";
                self.client_error(key, None, ErrorCode::BadRequest, message);
                None
            }
            _ => None,
        }
    }

    fn client_frame(&self, key: SessionKey, text: &str) -> Option<Wish> {
        let (frame, reference) = match frames::parse_client(text) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.client_error(key, error.reference, error.code, &error.message);
                return None;
            }
        };
        let owned = reference.map(ToOwned::to_owned);
        match frame {
            ClientFrame::Pong => None,
            ClientFrame::Ping => {
                self.state
                    .borrow_mut()
                    .reply(key, &ServerFrame::Pong { reference });
                None
            }
            ClientFrame::Subscribe { channel, since } => Some(Wish::Subscribe {
                reference: owned,
                channel,
                since: since.unwrap_or(Since::Now),
            }),
            ClientFrame::Ack(position) => {
                if !self.state.borrow_mut().ack(key, position) {
                    let message = "this position is not one that this connection was sent";
                    self.client_error(key, reference, ErrorCode::BadRequest, message);
                }
                None
            }
            // Receipts: nobody waits for them.
            ClientFrame::AckChannel(channel, _) => {
                let address = Address::Channel(channel);
                let mut state = self.state.borrow_mut();
                let follows = state.get(key).is_some_and(|s| s.subscribes_to(&address));
                drop(state);
                if !follows {
                    let message = "this connection does not subscribe to the channel";
                    self.client_error(key, reference, ErrorCode::NotSubscribed, message);
                }
                None
            }
            ClientFrame::AckOne(_) => None,
            ClientFrame::Publish { channel, data } => Some(Wish::Publish {
                reference: owned,
                channel,
                data: Body::Json(data.get().into()),
            }),
            ClientFrame::Unsubscribe { channel } => {
                let left = self
                    .state
                    .borrow_mut()
                    .detach(key, &Address::Channel(channel.clone()));
                if left {
                    self.state.borrow_mut().reply(
                        key,
                        &ServerFrame::Unsubscribed {
                            reference,
                            channel: &channel,
                            code: None,
                        },
                    );
                } else {
                    let message = format!("this connection does not subscribe to {channel}");
                    self.client_error(key, reference, ErrorCode::NotSubscribed, &message);
                }
                None
            }
        }
    }

    /// Answers a bad frame; too many end the connection.
    fn client_error(
        &self,
        key: SessionKey,
        reference: Option<&RawValue>,
        code: ErrorCode,
        message: &str,
    ) {
        self.hub.metrics.client_error(code.name());
        let mut state = self.state.borrow_mut();
        let most = state.limits.max_client_errors.max(1);
        state.reply(
            key,
            &ServerFrame::Error {
                reference,
                code,
                message,
            },
        );
        let Some(session) = state.get(key) else {
            return;
        };
        // A refusal of what was well asked is not the client's error.
        if matches!(code, ErrorCode::BadRequest) {
            session.errors += 1;
            let many = session.errors >= most;
            if many {
                state.close(key, CloseReason::ClientErrors, None);
            }
        }
    }

    async fn fulfil(self: &Rc<Self>, key: SessionKey, wish: Wish) {
        match wish {
            Wish::Subscribe {
                reference,
                channel,
                since,
            } => {
                self.subscribe_one(key, reference.as_deref(), channel, since)
                    .await
            }
            Wish::Publish {
                reference,
                channel,
                data,
            } => {
                self.publish_one(key, reference.as_deref(), channel, data)
                    .await
            }
        }
        self.state.borrow_mut().flush(key);
    }

    async fn subscribe_one(
        self: &Rc<Self>,
        key: SessionKey,
        reference: Option<&RawValue>,
        channel: ChannelName,
        since: Since,
    ) {
        let address = Address::Channel(channel.clone());
        let mut opened = None;
        let verdict = {
            let mut state = self.state.borrow_mut();
            let most = state.limits.subscriptions;
            let Some(session) = state.get(key) else {
                return;
            };
            let full = session.channels().count() >= most;
            let granted = session.granted.contains(&channel);
            match self.may_subscribe(&channel, granted) {
                _ if session.subscribes_to(&address) => Ok(true),
                Err(refused) => Err(refused),
                Ok(()) if full => Err((
                    ErrorCode::Limit,
                    "too many subscriptions; unsubscribe from another first",
                )),
                Ok(()) => Ok(false),
            }
        };
        match verdict {
            Err((code, why)) => {
                return self.client_error(
                    key,
                    reference,
                    code,
                    &format!("channel {channel}: {why}"),
                );
            }
            Ok(true) => {}
            Ok(false) => {
                let hold = match self.follow(address.clone(), From::Since(since)).await {
                    Ok((hold, begins)) => {
                        opened = begins;
                        hold
                    }
                    Err(_) => {
                        let message = "the backplane cannot be reached; try again";
                        return self.client_error(key, reference, ErrorCode::Unavailable, message);
                    }
                };
                {
                    let mut state = self.state.borrow_mut();
                    let Some(session) = state.get(key).filter(|s| s.may_follow()) else {
                        return;
                    };
                    // A service may have taken the grant back meanwhile.
                    let granted = session.granted.contains(&channel);
                    if let Err((code, why)) = self.may_subscribe(&channel, granted) {
                        drop(state);
                        drop(hold);
                        let message = format!("channel {channel}: {why}");
                        return self.client_error(key, reference, code, &message);
                    }
                    // Or have subscribed it, to what comes from then on: what was asked for here begins earlier.
                    state.detach(key, &address);
                    self.join(&mut state, key, address.clone(), opened.map(|o| o.start));
                }
                drop(hold);
            }
        }
        let mut state = self.state.borrow_mut();
        // Of one that it subscribes to already: where it is now, unless it is still being sent what it missed.
        let position = opened
            .map(|o| o.start)
            .or_else(|| state.place_of(key, &address));
        state.reply(
            key,
            &ServerFrame::Subscribed {
                reference,
                channel: &channel,
                position,
                recovered: opened.and_then(|o| o.recovered),
            },
        );
    }

    async fn publish_one(
        self: &Rc<Self>,
        key: SessionKey,
        reference: Option<&RawValue>,
        channel: ChannelName,
        data: Body,
    ) {
        let raw = {
            let mut state = self.state.borrow_mut();
            let Some(session) = state.get(key) else {
                return;
            };
            let subscribes = session.subscribes_to(&Address::Channel(channel.clone()));
            let refused = match self.hub.namespaces.of(&channel).publish {
                PublishRule::Any => None,
                PublishRule::Subscriber if subscribes => None,
                PublishRule::Subscriber => {
                    Some("subscribe first: only subscribers may publish in this namespace")
                }
                PublishRule::Nobody => Some("clients may not publish in this namespace"),
            };
            let raw = session.format == Format::Raw;
            drop(state);
            if let Some(why) = refused {
                let message = format!("channel {channel}: {why}");
                return self.client_error(key, reference, ErrorCode::Forbidden, &message);
            }
            raw
        };
        let deadline = tokio::time::Instant::now() + ACCEPT_TIMEOUT;
        let draft = Draft::new(data, deadline);
        let outcome = self.hub.router.publish(channel, draft).await;
        match outcome {
            Ok(_) if raw => {}
            Ok(accepted) => self.state.borrow_mut().reply(
                key,
                &ServerFrame::Published {
                    reference,
                    id: accepted.id.to_string(),
                    position: accepted.position,
                },
            ),
            Err(refusal) => {
                let (code, message) = match refusal {
                    Refusal::Invalid { field, problem } => {
                        (ErrorCode::BadRequest, format!("{field} {problem}"))
                    }
                    // A client gives no idempotency key.
                    Refusal::Conflict | Refusal::Busy { .. } => {
                        (ErrorCode::Limit, "the node is busy; try again".into())
                    }
                    Refusal::Unavailable(_) => (
                        ErrorCode::Unavailable,
                        "the backplane cannot be reached".into(),
                    ),
                    Refusal::Unknown { id, .. } => (
                        ErrorCode::Unavailable,
                        format!("it is not known whether message {id} was accepted"),
                    ),
                };
                self.client_error(key, reference, code, &message);
            }
        }
    }
}
