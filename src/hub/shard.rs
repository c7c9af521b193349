use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;

use super::admission::{Bucket, PlaceGuard};
use super::delivery::UserPlaceGuard;
use super::reservation::Reservation;
use super::session::{Acks, Phase, Session, SessionKey, Transport};
use super::socket::Link;
use super::state::State;
use super::wheel::ticks;
use super::{Format, Hub, SubscribeRule, UserLimit, reader};
use crate::backplane::{CursorMove, From, Opened};
use crate::model::{Address, ChannelName, DeviceName, Grant, Origin, Position, Since, UserId};
use crate::tickets::Pass;
use crate::wire::frames::{ErrorCode, ServerFrame};

/// One core's share of a node. Lives on its thread; everything in it is touched by that thread alone.
pub struct Shard {
    pub(super) state: RefCell<State>,
    pub(super) read_buffer: RefCell<Box<[u8]>>,
    /// What all shards share.
    pub hub: Arc<Hub>,
    pub(super) index: usize,
    /// Something was put into an outbox outside of the shard's loop.
    pub(super) work: Notify,
    /// Who may read streams at the same time.
    pub(super) reading: Semaphore,
    /// The listening socket is to be closed.
    pub(super) stop_accepting: Notify,
}

/// How a client wants its connection.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Where it begins in its inbox; none = at its cursor.
    pub since: Option<Since>,
    /// Channels of the query and where it begins in each; the ticket's come on top.
    pub channels: Vec<(ChannelName, Since)>,
    /// How far it says it has got in channels: it begins there if it subscribes to them.
    pub reached: Vec<(ChannelName, Since)>,
    /// It says so of its inbox too, which is an acknowledgement by its device.
    pub acknowledges: bool,
    /// Who moves its cursor; unless set, the node for a connection without a device.
    pub acks: Option<Acks>,
    /// The page that it is from.
    pub origin: Option<Origin>,
    /// How messages look.
    pub format: Format,
    /// Pings are frames of the wire.
    pub ping_frame: bool,
    /// No heartbeats, for [`SILENT_MAX`] at most: it measures how long what stands between lets a silent link live.
    pub silent: bool,
    /// Sends every message back (test builds).
    #[cfg(feature = "echo")]
    pub echo: bool,
}

/// How long a session without heartbeats may last: a client that is gone is not found out before.
pub const SILENT_MAX: Duration = Duration::from_secs(10 * 60);

/// Why a session was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAdmitted {
    /// The user has as many connections as it may.
    UserLimit,
    /// The backplane cannot be reached.
    Unavailable(String),
}

/// A session in the making: all is settled but the socket.
pub struct Prepared {
    grant: Grant,
    asked: Asked,
    place: PlaceGuard,
    reservation: Reservation,
    user_place: Option<UserPlaceGuard>,
    inbox: Followed,
    channels: Vec<Followed>,
    refused: Vec<(ChannelName, ErrorCode, &'static str)>,
}

/// An address that is followed for a session, and where it begins in its stream.
type Followed = (Hold, Option<Opened>);

/// Keeps this shard following an address while nobody is attached to it yet.
pub(super) struct Hold {
    shard: Rc<Shard>,
    pub(super) address: Address,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shard.state.borrow_mut();
        if let Some(followers) = state.followers.get_mut(&self.address) {
            followers.holds -= 1;
        }
        state.leave_if_unfollowed(&self.address);
    }
}

impl Shard {
    /// Makes this node listen to an address and this shard follow it.
    pub(super) async fn hold(self: &Rc<Self>, address: Address) -> Result<Hold, String> {
        {
            let mut state = self.state.borrow_mut();
            let index = state.index;
            if !state.followers.contains_key(&address) {
                state.hub.delivery.follow(&address, index);
            }
            let followers = state.followers.entry(address.clone()).or_default();
            followers.holds += 1;
        }
        let hold = Hold {
            shard: self.clone(),
            address,
        };
        // Also where others here follow it already: the link may have been lost since.
        self.hub.backplane.listen(hold.address.clone()).await?;
        Ok(hold)
    }

    /// Settles all that a session needs but its socket: the user's limit, and the backplane's confirmation for its inbox
    /// and channels.
    ///
    /// # Errors
    /// See [`NotAdmitted`]; nothing is kept.
    pub async fn prepare(
        self: &Rc<Self>,
        grant: Grant,
        asked: Asked,
        (place, reservation): (PlaceGuard, Reservation),
    ) -> Result<Prepared, NotAdmitted> {
        let limits = self.hub.limits.now();
        let user_place = self.take_user_place(&grant).await?;
        let unavailable = NotAdmitted::Unavailable;
        let from = match asked.since.or(grant.since) {
            Some(since) => From::Since(since),
            None => From::Cursor(grant.device.clone()),
        };
        let inbox = self
            .follow(Address::User(grant.user.clone()), from.clone())
            .await
            .map_err(unavailable)?;
        self.check_elsewhere(&grant, user_place.as_ref()).await?;
        let user_place = user_place.map(|(guard, _)| guard);
        if let (From::Cursor(Some(device)), Some(opened)) = (from, inbox.1)
            && opened.recovered.is_none()
        {
            // Should it vanish before its first ack, it comes back to where it began, and not to where others are.
            let place = CursorMove {
                user: grant.user.clone(),
                device: Some(device),
                to: opened.start,
            };
            let advanced = self.hub.streams.advance(vec![place]).await;
            advanced.map_err(unavailable)?;
        }
        let mut channels: Vec<Followed> = Vec::new();
        let mut refused = Vec::new();
        let named = |channel: &ChannelName| {
            let mut named = asked.reached.iter().chain(&asked.channels);
            named
                .find(|(name, _)| name == channel)
                .map(|(_, since)| *since)
        };
        let first = match &grant.resumes {
            Some(resumes) => &resumes.subscribed[..],
            None => &grant.channels[..],
        };
        let wanted = first.iter();
        let wanted = wanted.chain(asked.channels.iter().map(|(channel, _)| channel));
        for channel in wanted {
            let address = Address::Channel(channel.clone());
            if channels.iter().any(|(hold, _)| hold.address == address) {
                continue;
            }
            if let Err((code, why)) = self.may_subscribe(channel, grant.channels.contains(channel))
            {
                refused.push((channel.clone(), code, why));
            } else if channels.len() >= limits.subscriptions {
                refused.push((channel.clone(), ErrorCode::Limit, "too many subscriptions"));
            } else {
                let from = From::Since(named(channel).unwrap_or(Since::Now));
                channels.push(self.follow(address, from).await.map_err(unavailable)?);
            }
        }
        Ok(Prepared {
            grant,
            asked,
            place,
            reservation,
            user_place,
            inbox,
            channels,
            refused,
        })
    }

    /// Whether a session may subscribe to a channel by the rules of its namespace.
    pub(super) fn may_subscribe(
        &self,
        channel: &ChannelName,
        granted: bool,
    ) -> Result<(), (ErrorCode, &'static str)> {
        match self.hub.namespaces.of(channel).subscribe {
            SubscribeRule::Any => Ok(()),
            SubscribeRule::Ticket if granted => Ok(()),
            SubscribeRule::Ticket => Err((
                ErrorCode::Forbidden,
                "only a ticket or a service may name a channel of this namespace",
            )),
            SubscribeRule::Nobody => Err((
                ErrorCode::Forbidden,
                "nobody may subscribe in this namespace",
            )),
        }
    }

    /// Makes a session of an upgraded socket: `welcome`, then `subscribed` for each channel, then messages. `early` is
    /// what the client sent behind its handshake.
    pub fn admit(self: &Rc<Self>, prepared: Prepared, link: Link, early: Vec<u8>) {
        let transport = Transport::from(link);
        let is_tls = matches!(transport, Transport::Tls(_));
        let Some(socket) = transport.socket().cloned() else {
            return;
        };
        let Some(key) = self.begin(prepared, transport) else {
            return;
        };
        let inlet = reader::Inlet { socket, is_tls };
        let task = spawn_local(reader::read_loop(self.clone(), key, inlet, early));
        if let Some(session) = self.state.borrow_mut().get(key) {
            session.reader = Some(task.abort_handle());
        }
    }

    /// Makes a session, and queues what comes first; `None` if another one has taken its place already.
    pub(super) fn begin(
        self: &Rc<Self>,
        prepared: Prepared,
        transport: Transport,
    ) -> Option<SessionKey> {
        let Prepared {
            grant,
            asked,
            place,
            reservation,
            user_place,
            inbox,
            channels,
            refused,
        } = prepared;
        let mut state = self.state.borrow_mut();
        if !state.is_reserved(reservation.key) {
            // Another one has taken its place before it was there. The guards look at the state when they go.
            drop(state);
            return None;
        }
        let key = reservation.key;
        let session = self.session(
            &state,
            &reservation,
            &grant,
            &asked,
            transport,
            (place, user_place),
        );
        let id = session.id;
        state.insert(key, session);
        reservation.keep();
        let start = |followed: &Followed| followed.1.map(|opened| opened.start);
        if let Some(session) = state.get(key) {
            session.reached = start(&inbox);
            // A welcome alone moves no cursor.
            session.told = start(&inbox).map_or(u64::MAX, |start| start.offset);
        }
        self.join(&mut state, key, inbox.0.address.clone(), start(&inbox));
        let heartbeat = match asked.silent {
            true => 0,
            false => self.hub.heartbeat.interval.as_secs(),
        };
        let device = grant.device.as_ref();
        if asked.format.is_events() {
            state.push_retry(key);
        }
        if !asked.is_echo() {
            let welcome = ServerFrame::Welcome {
                connection: id.to_string(),
                user: &grant.user,
                device,
                node: &self.hub.node.0,
                heartbeat_seconds: heartbeat,
                position: start(&inbox),
                recovered: inbox.1.and_then(|opened| opened.recovered),
            };
            state.reply(key, &welcome);
        }
        for followed in &channels {
            let (hold, opened) = followed;
            if let Address::Channel(channel) = &hold.address {
                self.join(&mut state, key, hold.address.clone(), start(followed));
                state.reply(
                    key,
                    &ServerFrame::Subscribed {
                        reference: None,
                        channel,
                        position: start(followed),
                        recovered: opened.and_then(|opened| opened.recovered),
                    },
                );
            }
        }
        for (channel, code, why) in &refused {
            self.hub.metrics.client_error(code.name());
            let message = format!("channel {channel}: {why}");
            state.reply(
                key,
                &ServerFrame::Error {
                    reference: None,
                    code: *code,
                    message: &message,
                },
            );
        }
        self.hub.metrics.handshakes.inc();
        if asked.silent {
            self.hub.metrics.silent.inc();
        }
        state.flush(key);
        state.rearm(key);
        // Admitted while the others leave already, it leaves with them.
        state.draw_moment(key);
        // The holds look at the state when they go.
        drop(state);
        drop((inbox, channels));
        self.work.notify_one();
        self.replace_others(grant);
        Some(key)
    }

    /// Closes what a session takes the place of, and then what is beyond its user's limit.
    fn replace_others(&self, grant: Grant) {
        let limits = self.hub.limits.now();
        let limit = limits.connections_per_user;
        let keeps = limit > 0 && limits.user_limit == UserLimit::Replace;
        if grant.resumes.is_none() && !keeps {
            return;
        }
        let router = self.hub.router.clone();
        // Owned by the shard's thread; both have a deadline.
        spawn_local(async move {
            let gone = grant
                .resumes
                .map_or_else(Vec::new, |resumes| resumes.replaces);
            router.replace(&gone).await;
            if keeps {
                router.keep_to_limit(&grant.user, &gone, limit).await;
            }
        });
    }

    fn session(
        &self,
        state: &State,
        reservation: &Reservation,
        grant: &Grant,
        asked: &Asked,
        transport: Transport,
        places: (PlaceGuard, Option<UserPlaceGuard>),
    ) -> Session {
        let now = state.wheel.tick(Instant::now());
        let interval = match asked.silent {
            true => 0,
            false => ticks(self.hub.heartbeat.interval),
        };
        let rate = state.limits.client_frames_per_second;
        let lineage = reservation.lineage(grant);
        Session {
            id: reservation.connection(),
            user: grant.user.clone(),
            device: grant.device.clone(),
            claims: grant.claims.clone(),
            // By the clock of all nodes: it says who is older, wherever they are.
            connected_at: SystemTime::UNIX_EPOCH + Duration::from_millis(self.hub.resume.now()),
            transport,
            phase: Phase::Open,
            format: asked.format,
            ping_frame: asked.ping_frame,
            #[cfg(feature = "echo")]
            echo: asked.echo,
            outbox: Default::default(),
            reached: None,
            acks: match (asked.acks, &grant.device) {
                (Some(acks), _) => acks,
                (None, None) => Acks::Auto,
                (None, Some(_)) => Acks::Client,
            },
            told: u64::MAX,
            room: None,
            queued: false,
            blocked: None,
            reader: None,
            last_write: 0,
            heard: now,
            sent: now,
            pinged: 0,
            unfinished: 0,
            interval: interval.saturating_sub(rand::random_range(0..=interval / 5)),
            armed: 0,
            ends: {
                let left = |ends: u64| ends.saturating_sub(self.hub.resume.now());
                let left = lineage.ends.map(|ends| Duration::from_millis(left(ends)));
                let most = asked.silent.then_some(self.hub.heartbeat.silent_max);
                let first = left.into_iter().chain(most).min();
                first.map_or(0, |first| now + ticks(first).max(1))
            },
            slot: 0,
            told_to_leave: false,
            resumed: false,
            errors: 0,
            frames: (rate > 0 && !asked.is_echo() && !asked.format.is_events())
                .then(|| Box::new(Bucket::new(rate, Instant::now()))),
            subscriptions: Vec::with_capacity(1),
            origin: asked.origin.clone(),
            lineage,
            granted: grant.channels.to_vec(),
            places,
        }
    }
}

impl Prepared {
    /// What a resume ticket tells of the session.
    pub(super) fn pass(&self) -> Pass {
        let channels = self.channels.iter().map(|(hold, _)| &hold.address);
        let subscribed = channels.filter_map(|address| match address {
            Address::Channel(channel) => Some(channel.clone()),
            _ => None,
        });
        Pass {
            subscribed: subscribed.collect(),
            ..Shard::pass(&self.grant, &self.reservation, &self.asked)
        }
    }

    /// Where it begins in the channels that are kept.
    pub(super) fn positions(&self) -> Vec<(ChannelName, Position)> {
        let position = |(hold, opened): &Followed| match (&hold.address, opened) {
            (Address::Channel(channel), Some(opened)) => Some((channel.clone(), opened.start)),
            _ => None,
        };
        self.channels.iter().filter_map(position).collect()
    }

    /// What its device acknowledges by where it begins: a position that its inbox has.
    pub(super) fn acknowledged(&self) -> Option<(UserId, DeviceName, Position)> {
        let opened = self.inbox.1.filter(|_| self.asked.acknowledges)?;
        let device = self.grant.device.clone()?;
        let known = opened.recovered == Some(true);
        known.then(|| (self.grant.user.clone(), device, opened.start))
    }
}

impl Asked {
    /// Whether every message goes back (test builds).
    pub(super) fn is_echo(&self) -> bool {
        #[cfg(feature = "echo")]
        return self.echo;
        #[cfg(not(feature = "echo"))]
        return false;
    }
}
