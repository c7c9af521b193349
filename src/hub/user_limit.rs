//! `[limits] connections_per_user`, on this node and across the cluster. Nothing is kept of it anywhere: a node counts its
//! own, and asks those that listen for the user. A node that does not answer in time holds none, as far as is known.

use std::time::Duration;

use super::command::Command;
use super::delivery::UserPlaceGuard;
use super::shard::Shard;
use super::{NotAdmitted, Router, UserLimit};
use crate::model::{Address, Ask, ConnectionId, Grant, Said, UserId};

/// How long other nodes have to say what they hold of a user's. A node of an earlier version does not know the question.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long all of it may take, once a session was admitted.
const KEEP_TIMEOUT: Duration = Duration::from_secs(5);

/// A session's place under the limit, and how many of its user's there are on this node with it.
pub(super) type UserPlace = (UserPlaceGuard, u32);

impl Shard {
    /// Takes a place for one more session of a user, by what this node holds. None = there is no limit.
    pub(super) async fn take_user_place(
        &self,
        grant: &Grant,
    ) -> Result<Option<UserPlace>, NotAdmitted> {
        let limits = self.hub.limits.now();
        if limits.connections_per_user == 0 {
            return Ok(None);
        }
        let (guard, count) = self.hub.delivery.take_user_place(&grant.user);
        // With "replace" nobody is refused: what is too much closes once the new one is there.
        if limits.user_limit == UserLimit::Refuse
            && count > limits.connections_per_user
            && self.make_way(grant, count).await == 0
        {
            return Err(NotAdmitted::UserLimit);
        }
        Ok(Some((guard, count)))
    }

    /// How many of a user's connections here, which are too many, make way for one that continues them.
    async fn make_way(&self, grant: &Grant, count: u32) -> u32 {
        match &grant.resumes {
            Some(resumes) if count > self.hub.limits.now().connections_per_user => {
                let router = &self.hub.router;
                router.held_here(&grant.user, &resumes.replaces).await
            }
            _ => 0,
        }
    }

    /// With `user_limit = "refuse"`: whether there is room for it beside what other nodes hold. It is asked once this node
    /// listens for the user and has its place, so of two nodes that admit at once at least one sees the other.
    pub(super) async fn check_elsewhere(
        &self,
        grant: &Grant,
        place: Option<&UserPlace>,
    ) -> Result<(), NotAdmitted> {
        let limits = self.hub.limits.now();
        let Some((_, count)) = place.filter(|_| limits.user_limit == UserLimit::Refuse) else {
            return Ok(());
        };
        let router = &self.hub.router;
        let all = count.saturating_add(router.places_elsewhere(&grant.user).await);
        if all <= limits.connections_per_user {
            return Ok(());
        }
        let way = match &grant.resumes {
            Some(resumes) => router.held_anywhere(&grant.user, &resumes.replaces).await,
            None => 0,
        };
        // One that takes the place of another does not make them more, however many others move at the same time.
        match way > 0 {
            true => Ok(()),
            false => Err(NotAdmitted::UserLimit),
        }
    }
}

impl Router {
    /// With `user_limit = "replace"`: closes the oldest of a user's connections on all nodes, so that no more than `limit`
    /// remain with the one that has just begun. `gone` are those whose place it has taken. Whichever of several that begin at
    /// once comes last sees all the others, and those who see the same close the same.
    pub(super) async fn keep_to_limit(&self, user: &UserId, gone: &[ConnectionId], limit: u32) {
        let keeping = self.close_beyond(user, gone, limit);
        if tokio::time::timeout(KEEP_TIMEOUT, keeping).await.is_err() {
            tracing::debug!("it was not known in time how many connections a user has");
        }
    }

    async fn close_beyond(&self, user: &UserId, gone: &[ConnectionId], limit: u32) {
        let mut all = if self.others_listen(user).await {
            let asked = self.ask_within(Ask::WhereIs(user.clone()), ASK_TIMEOUT);
            let Ok((said, _)) = asked.await else {
                return;
            };
            said.into_iter().filter_map(connections).flatten().collect()
        } else if self.delivery.user_places(user) > limit {
            self.connections_here(user).await
        } else {
            return;
        };
        all.retain(|c| !gone.contains(&c.connection));
        // By the backplane's clock and then by their ids: whoever looks at the same time closes the same.
        all.sort_by_key(|c| (c.connected_at, c.connection.to_bytes()));
        let over = all.len().saturating_sub(limit as usize);
        for oldest in all.into_iter().take(over) {
            self.evict(oldest.connection).await;
        }
    }

    /// Closes one with 4502, wherever it is.
    async fn evict(&self, connection: ConnectionId) {
        if connection.incarnation == self.incarnation {
            self.evict_here(connection).await;
        } else if let Err(problem) = self.ask_within(Ask::Evict(connection), ASK_TIMEOUT).await {
            tracing::warn!(%connection, ?problem, "a connection beyond its user's limit was not closed");
        }
    }

    pub(super) async fn evict_here(&self, connection: ConnectionId) {
        if let Some(shard) = self.delivery.shards().get(usize::from(connection.shard)) {
            let _ = shard.send(Command::Replace { connection }).await;
        }
    }

    /// How many places of a user other nodes hold, handshakes under way included.
    async fn places_elsewhere(&self, user: &UserId) -> u32 {
        if !self.others_listen(user).await {
            return 0;
        }
        let asked = self
            .ask_within(Ask::Places(user.clone()), ASK_TIMEOUT)
            .await;
        let said = asked.map_or_else(|_| Vec::new(), |(said, _)| said);
        let places = said.iter().map(|said| match said {
            Said::Applied(places) => *places,
            _ => 0,
        });
        places.fold(0, u32::saturating_add)
    }

    /// How many of these connections of a user there are on all nodes.
    async fn held_anywhere(&self, user: &UserId, named: &[ConnectionId]) -> u32 {
        let asked = self
            .ask_within(Ask::WhereIs(user.clone()), ASK_TIMEOUT)
            .await;
        let said = asked.map_or_else(|_| Vec::new(), |(said, _)| said);
        let held = said.into_iter().filter_map(connections).flatten();
        held.filter(|c| named.contains(&c.connection)).count() as u32
    }

    /// Whether nodes beside this one listen for a user, which is asked when this one does.
    async fn others_listen(&self, user: &UserId) -> bool {
        let listeners = self.backplane.listeners(Address::User(user.clone())).await;
        // Where that is not known, nothing else is.
        listeners.is_ok_and(|listeners| listeners > 1)
    }
}

fn connections(said: Said) -> Option<Vec<crate::model::ConnectionInfo>> {
    match said {
        Said::Connections(connections) => Some(connections),
        _ => None,
    }
}
