//! What a shard does when the router asks.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::close::CloseReason;
use super::command::Command;
use super::followers::Followers;
use super::mend::Missing;
use super::session::{Session, SessionKey};
use super::shard::Shard;
use super::state::State;
use crate::backplane::From;
use crate::model::{
    Address, Ask, ChannelName, ConnectionInfo, Member, Members, Said, Sessions, Since,
};
use crate::wire::events::CHANNELS_MAX;
use crate::wire::frames::{ErrorCode, ServerFrame};

/// How long a session that is closed for good stays for the revocation to be stored.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(2);

impl Shard {
    pub(super) fn obey(self: &Rc<Self>, command: Command) {
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
            Command::Limits(limits) => self.state.borrow_mut().take_up(limits),
            // The loop has ended on it.
            Command::End => {}
            Command::StopAccepting => self.stop_accepting.notify_one(),
            Command::Drain { how, spread } => self.state.borrow_mut().begin_leaving(how, spread),
            Command::Hold(true) => self.state.borrow_mut().hold_leaving(),
            Command::Hold(false) => self.state.borrow_mut().release_leaving(),
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
                    state.give_way(key);
                }
                let ours = connection.incarnation == self.hub.incarnation;
                let cancelled = ours && state.cancel(SessionKey::of(connection));
                Said::Applied(keys.len() as u32 + u32::from(cancelled))
            }
            Ask::Evict(connection) => {
                let sessions = Sessions::Connection(connection);
                let closing = self.clone().end(sessions, CloseReason::Replaced, None);
                spawn_local(async move {
                    if let Some(applied) = closing.await {
                        let _ = answer.send(Said::Applied(applied));
                    }
                });
                return;
            }
            // The node answers that itself.
            Ask::Places(_) => return,
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
                let open = ours && state.get(key).is_some_and(|s: &mut Session| s.may_follow());
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
            ip: Some(s.places.0.ip()),
            channels: s.channels().cloned().collect(),
        };
        keys.into_iter()
            .filter_map(|key| state.get(key).map(info))
            .collect()
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
            let most = state.limits.subscriptions;
            for key in self.find(&mut state, &sessions) {
                let Some(session) = state.get(key) else {
                    continue;
                };
                let limit = match session.format.is_events() {
                    true => most.min(CHANNELS_MAX),
                    false => most,
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
}
