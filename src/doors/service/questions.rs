use std::time::Duration;

use super::api::Api;
use super::error::ApiError;
use super::keys::ApiKey;
use crate::backplane::NodeLease;
use crate::hub::{History, Refusal};
use crate::model::{Address, ChannelName, ConnectionInfo, Members, Position, UserId};

/// How long the backplane has to tell which nodes there are.
const NODES_TIMEOUT: Duration = Duration::from_secs(4);
/// Messages of a history, unless the caller names a number, and the most of them.
const HISTORY_MESSAGES: u32 = 100;
const HISTORY_MESSAGES_MAX: u32 = 1000;

/// What is only asked, and changes nothing.
impl Api {
    pub(super) async fn where_is(
        &self,
        user: &str,
    ) -> Result<(Vec<ConnectionInfo>, u32), ApiError> {
        let user = UserId::parse(user).map_err(|e| ApiError::invalid("user_id", e))?;
        Ok(self.router.where_is(user).await?)
    }

    /// Who subscribes to a channel, and how many nodes did not answer.
    pub(super) async fn presence(&self, channel: &str) -> Result<(Members, u32), ApiError> {
        let channel = ChannelName::parse(channel).map_err(|e| ApiError::invalid("channel", e))?;
        self.router.presence(channel).await.map_err(unanswered)
    }

    /// What a stream holds; `since` empty = from the oldest message on, `limit` 0 = the default.
    pub(super) async fn history(
        &self,
        caller: &ApiKey,
        address: &str,
        since: &str,
        limit: u32,
    ) -> Result<History, ApiError> {
        let address = Address::parse(address).map_err(|e| ApiError::invalid("address", e))?;
        let since = match since {
            "" => None,
            text => Some(Position::parse(text).map_err(|_| {
                let problem = "must be a position as an answer or a frame gave it, unchanged";
                ApiError::invalid("since", problem)
            })?),
        };
        let most = match limit {
            0 => HISTORY_MESSAGES,
            1..=HISTORY_MESSAGES_MAX => limit,
            _ => {
                let problem = format!("must be at most {HISTORY_MESSAGES_MAX}");
                return Err(ApiError::invalid("limit", problem));
            }
        };
        caller.require_address(&address)?;
        let history = self.router.history(&address, since, most as usize).await;
        history.map_err(unanswered)
    }

    /// The nodes of the cluster, by name.
    pub(super) async fn nodes(&self) -> Result<Vec<NodeLease>, ApiError> {
        let found = tokio::time::timeout(NODES_TIMEOUT, self.leases.nodes()).await;
        let silent = || Err("the backplane does not answer".into());
        let mut nodes = found
            .unwrap_or_else(|_| silent())
            .map_err(ApiError::unavailable)?;
        nodes.sort_by(|a, b| (&a.node, a.since).cmp(&(&b.node, b.since)));
        Ok(nodes)
    }
}

/// A question has nothing to accept, so its refusal does not say so.
fn unanswered(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Unavailable(problem) => ApiError::unavailable(problem),
        refusal => refusal.into(),
    }
}
