use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;

use super::close::CloseReason;
use super::command::Command;
use super::mend::Missing;
use super::session::{Session, SessionKey, Transport};
use super::shard::Shard;
use super::state::{Followers, State};
use super::wheel::{TICK, ticks};
use crate::backplane::From;
use crate::model::{
    Address, Ask, ChannelName, ConnectionInfo, Member, Members, Said, Sessions, Since,
};
use crate::wire::events::CHANNELS_MAX;
use crate::wire::frames::{ErrorCode, ServerFrame};

/// Commands taken from the queue before anything is written.
const COMMANDS_PER_TURN: usize = 256;
/// Sessions written to before other work of the shard has its turn.
const WRITES_PER_YIELD: usize = 256;
/// Below this share of busy time a shard writes at once; above [`LOAD_FULL`] the window is all of `coalesce`.
const LOAD_QUIET: f64 = 0.3;
const LOAD_FULL: f64 = 0.7;
/// How long a session that is closed for good stays for the revocation to be stored.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Over how long the load is measured.
const LOAD_SPAN: Duration = Duration::from_millis(20);

impl Shard {
    /// The shard's loop. Its inputs: commands of the router; work that readers left; a tick of the wheel; the window of
    /// busy sessions.
    pub(super) async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(COMMANDS_PER_TURN);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut load = Load::new();
        let mut window: Vec<SessionKey> = Vec::new();
        let mut window_until: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                count = commands.recv_many(&mut batch, COMMANDS_PER_TURN) => if count == 0 { return },
                () = self.work.notified() => {}
                _ = tick.tick() => self.turn_wheel(),
                () = until(window_until) => {
                    window_until = None;
                    self.state.borrow_mut().dirty.append(&mut window);
                }
            }
            load.busy_from(Instant::now());
            for command in batch.drain(..) {
                if matches!(command, Command::End) {
                    return;
                }
                self.obey(command);
            }
            let span = load.window(self.hub.config.coalesce);
            self.flush_dirty(span, &mut window).await;
            if !window.is_empty() && window_until.is_none() {
                window_until = Some(tokio::time::Instant::now() + span);
            }
            load.idle_from(Instant::now());
            self.hub.loads[self.index].store(load.thousandths(), Ordering::Relaxed);
        }
    }

    fn turn_wheel(self: &Rc<Self>) {
        let mut due = Vec::new();
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        state.wheel.turn(now, &mut due);
        let tick = state.wheel.tick(now);
        for (key, armed) in due {
            state.due(key, armed, tick);
        }
    }

    /// Writes to every dirty session, but for those that were written to within the window: they wait for its end.
    async fn flush_dirty(self: &Rc<Self>, span: Duration, window: &mut Vec<SessionKey>) {
        let span = span.as_millis() as u32;
        let dirty = std::mem::take(&mut self.state.borrow_mut().dirty);
        for chunk in dirty.chunks(WRITES_PER_YIELD) {
            {
                let mut state = self.state.borrow_mut();
                let millis = state.millis(Instant::now());
                for &key in chunk {
                    let Some(session) = state.get(key) else {
                        continue;
                    };
                    if span > 0 && millis.wrapping_sub(session.last_write) < span {
                        window.push(key);
                        continue;
                    }
                    session.queued = false;
                    state.flush(key);
                }
                self.await_stalled(&mut state);
                state.settle();
            }
            if chunk.len() == WRITES_PER_YIELD {
                tokio::task::yield_now().await;
            }
        }
        let mut state = self.state.borrow_mut();
        if state.dirty.is_empty() {
            let mut dirty = dirty;
            dirty.clear();
            if dirty.capacity() <= 4096 {
                state.dirty = dirty;
            }
        }
        self.await_stalled(&mut state);
        // What was written outside of the loop, too: whoever wrote there has woken it.
        state.settle();
    }

    /// Watches sockets that took less than was there.
    fn await_stalled(self: &Rc<Self>, state: &mut State) {
        while let Some(key) = state.stalled.pop() {
            let Some(session) = state.get(key) else {
                continue;
            };
            let Transport::Socket(stream) = &session.transport else {
                continue;
            };
            let stream = stream.clone();
            let shard = self.clone();
            let task = spawn_local(async move {
                // An error shows at the next write.
                let _ = stream.writable().await;
                let mut state = shard.state.borrow_mut();
                if let Some(session) = state.get(key) {
                    session.blocked = None;
                }
                state.flush(key);
                shard.work.notify_one();
            });
            session.blocked = Some(task.abort_handle());
        }
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Deliver(delivered) => {
                let missing = self.state.borrow_mut().deliver(delivered);
                if let Missing::Before(delivered) = missing {
                    self.mend_before(delivered);
                }
            }
            Command::Missed(addresses) => {
                // Owned by the shard's thread; it ends once the backplane answers, or with the thread.
                spawn_local(self.clone().compare(addresses));
            }
            Command::Ask { ask, answer } => self.answer(ask, answer),
            Command::Replace { connection } => {
                let sessions = Sessions::Connection(connection);
                let closing = self.clone().end(sessions, CloseReason::Replaced, None);
                spawn_local(closing);
            }
            // The loop has ended on it.
            Command::End => {}
            Command::StopAccepting => self.stop_accepting.notify_one(),
            Command::Drain { spread } => {
                let mut state = self.state.borrow_mut();
                let now = state.wheel.tick(Instant::now());
                for key in state.keys() {
                    let slot = now + rand::random_range(0..=ticks(spread));
                    if let Some(session) = state.get(key) {
                        session.slot = slot.max(1);
                    }
                    state.rearm(key);
                }
            }
            Command::CloseAll => {
                let mut state = self.state.borrow_mut();
                for key in state.keys() {
                    state.close(key, CloseReason::Restart, None);
                }
            }
        }
    }

    /// Answers a question about sessions. Whoever asked may have gone: its deadline passed.
    fn answer(self: &Rc<Self>, ask: Ask, answer: oneshot::Sender<Said>) {
        let said = match ask {
            Ask::WhereIs(user) => Said::Connections(self.where_is(&Address::User(user))),
            Ask::Disconnect(Sessions::OfUser(user), reason) => {
                // What the user could come back with was revoked before this was asked.
                let mut state = self.state.borrow_mut();
                let keys = self.find(&mut state, &Sessions::OfUser(user));
                for &key in &keys {
                    let text = (!reason.is_empty()).then_some(&*reason);
                    state.close(key, CloseReason::Disconnected, text);
                }
                Said::Applied(keys.len() as u32)
            }
            Ask::Disconnect(sessions, reason) => {
                let text = (!reason.is_empty()).then_some(reason);
                let ending = self.clone().end(sessions, CloseReason::Disconnected, text);
                spawn_local(async move {
                    // Closed, but perhaps not for good: the dropped answer says that it is not known.
                    if let Some(applied) = ending.await {
                        let _ = answer.send(Said::Applied(applied));
                    }
                });
                return;
            }
            Ask::Replace(connection) => {
                let mut state = self.state.borrow_mut();
                let keys = self.find(&mut state, &Sessions::Connection(connection));
                for &key in &keys {
                    state.close(key, CloseReason::Resumed, None);
                }
                let ours = connection.incarnation == self.hub.incarnation;
                let cancelled = ours && state.cancel(SessionKey::of(connection));
                Said::Applied(keys.len() as u32 + u32::from(cancelled))
            }
            Ask::Subscribe(sessions, channel) => {
                let shard = self.clone();
                spawn_local(async move { shard.subscribe(sessions, channel, answer).await });
                return;
            }
            Ask::Unsubscribe(sessions, channel) => {
                Said::Applied(self.unsubscribe(&sessions, &channel))
            }
            Ask::Presence(channel) => Said::Members(self.members(&Address::Channel(channel))),
        };
        let _ = answer.send(said);
    }

    /// Closes sessions for good: what continues them is revoked first. Answers how many; nothing if it is not certain that
    /// they do not come back.
    async fn end(
        self: Rc<Self>,
        sessions: Sessions,
        reason: CloseReason,
        text: Option<Box<str>>,
    ) -> Option<u32> {
        let lines: Vec<_> = {
            let mut state = self.state.borrow_mut();
            let keys = self.find(&mut state, &sessions);
            let line = |key| state.get(key).map(|s| (s.user.clone(), s.lineage));
            keys.into_iter().filter_map(line).collect()
        };
        let mut all = true;
        for (user, lineage) in lines {
            let revoking = self.hub.resume.revoke_line(&user, &lineage);
            let done = tokio::time::timeout(REVOKE_TIMEOUT, revoking).await;
            all &= done.is_ok_and(|done| done.is_ok());
        }
        let mut state = self.state.borrow_mut();
        let keys = self.find(&mut state, &sessions);
        for &key in &keys {
            state.close(key, reason, text.as_deref());
        }
        drop(state);
        self.work.notify_one();
        all.then_some(keys.len() as u32)
    }

    /// The open sessions that are meant.
    fn find(&self, state: &mut State, sessions: &Sessions) -> Vec<SessionKey> {
        match sessions {
            Sessions::OfUser(user) => {
                let followers = state.followers.get(&Address::User(user.clone()));
                followers.map_or_else(Vec::new, Followers::sessions)
            }
            Sessions::Connection(id) => {
                let ours =
                    id.incarnation == self.hub.incarnation && usize::from(id.shard) == self.index;
                let key = SessionKey {
                    slot: id.slot,
                    generation: id.generation,
                };
                let open = ours && state.get(key).is_some_and(|s: &mut Session| s.is_open());
                if open { vec![key] } else { Vec::new() }
            }
        }
    }

    fn where_is(&self, user: &Address) -> Vec<ConnectionInfo> {
        let mut state = self.state.borrow_mut();
        let keys = state
            .followers
            .get(user)
            .map_or_else(Vec::new, Followers::sessions);
        let info = |s: &mut Session| ConnectionInfo {
            node: self.hub.node.clone(),
            connection: s.id,
            device: s.device.clone(),
            claims: s.claims.clone(),
            connected_at: s.connected_at,
            channels: s.channels().cloned().collect(),
        };
        keys.into_iter()
            .filter_map(|key| state.get(key).map(info))
            .collect()
    }

    fn members(&self, channel: &Address) -> Members {
        let mut state = self.state.borrow_mut();
        let followers = state.followers.get(channel);
        let keys = followers.map_or_else(Vec::new, Followers::sessions);
        let mut members = Members::default();
        for key in keys {
            if let Some(session) = state.get(key) {
                members.add(|| Member {
                    user: session.user.clone(),
                    connection: session.id,
                    device: session.device.clone(),
                    node: self.hub.node.clone(),
                });
            }
        }
        members
    }

    /// A service subscribes sessions: the channel is granted to them, and they are told.
    async fn subscribe(
        self: Rc<Self>,
        sessions: Sessions,
        channel: ChannelName,
        answer: oneshot::Sender<Said>,
    ) {
        let address = Address::Channel(channel.clone());
        // Without a confirmation nothing is applied, and the dropped answer says so.
        let now = From::Since(Since::Now);
        let Ok((hold, opened)) = self.follow(address.clone(), now).await else {
            return;
        };
        let start = opened.map(|opened| opened.start);
        let mut applied = 0;
        {
            let mut state = self.state.borrow_mut();
            for key in self.find(&mut state, &sessions) {
                let Some(session) = state.get(key) else {
                    continue;
                };
                let limit = match session.format.is_events() {
                    true => self.hub.limits.subscriptions.min(CHANNELS_MAX),
                    false => self.hub.limits.subscriptions,
                };
                if !session.granted.contains(&channel) && session.granted.len() < limit {
                    session.granted.push(channel.clone());
                }
                if !session.subscribes_to(&address) {
                    if session.channels().count() >= limit {
                        continue;
                    }
                    self.join(&mut state, key, address.clone(), start);
                    state.resubscribed(key);
                    state.reply(
                        key,
                        &ServerFrame::Subscribed {
                            reference: None,
                            channel: &channel,
                            position: start,
                            recovered: None,
                        },
                    );
                }
                applied += 1;
            }
        }
        drop(hold);
        self.work.notify_one();
        let _ = answer.send(Said::Applied(applied));
    }

    /// A service ends that: the grant goes too.
    fn unsubscribe(&self, sessions: &Sessions, channel: &ChannelName) -> u32 {
        let address = Address::Channel(channel.clone());
        let mut state = self.state.borrow_mut();
        let mut applied = 0;
        for key in self.find(&mut state, sessions) {
            if let Some(session) = state.get(key) {
                session.granted.retain(|granted| granted != channel);
            }
            if state.detach(key, &address) {
                applied += 1;
                state.resubscribed(key);
                state.reply(
                    key,
                    &ServerFrame::Unsubscribed {
                        reference: None,
                        channel,
                        code: Some(ErrorCode::Revoked),
                    },
                );
            }
        }
        applied
    }
}

async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How busy the shard's loop is, from 0 to 1, over the last [`LOAD_SPAN`] or two.
struct Load {
    since: Instant,
    busy: Duration,
    idle: Duration,
}

impl Load {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            busy: Duration::ZERO,
            idle: LOAD_SPAN,
        }
    }

    fn busy_from(&mut self, now: Instant) {
        self.idle += now.saturating_duration_since(self.since);
        self.since = now;
    }

    fn idle_from(&mut self, now: Instant) {
        self.busy += now.saturating_duration_since(self.since);
        self.since = now;
        // Older time counts half, and half again.
        while self.busy + self.idle > LOAD_SPAN * 2 {
            self.busy /= 2;
            self.idle /= 2;
        }
    }

    fn busy_part(&self) -> f64 {
        let busy = self.busy.as_secs_f64();
        busy / (busy + self.idle.as_secs_f64())
    }

    fn thousandths(&self) -> u16 {
        (self.busy_part() * 1000.0) as u16
    }

    /// The window opens by load: none on a quiet shard, all of `coalesce` on a busy one.
    fn window(&self, coalesce: Duration) -> Duration {
        let load = self.busy_part();
        coalesce.mul_f64(((load - LOAD_QUIET) / (LOAD_FULL - LOAD_QUIET)).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_by_load_and_shuts_when_it_is_quiet() {
        let coalesce = Duration::from_millis(4);
        let mut load = Load::new();
        let mut now = load.since;
        assert_eq!(load.window(coalesce), Duration::ZERO);
        for _ in 0..100 {
            load.busy_from(now);
            now += Duration::from_millis(5);
            load.idle_from(now);
        }
        assert_eq!(load.window(coalesce), coalesce);
        now += Duration::from_secs(1);
        load.busy_from(now);
        load.idle_from(now);
        assert_eq!(load.window(coalesce), Duration::ZERO);
    }
}
