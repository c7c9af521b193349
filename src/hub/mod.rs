//! The hub: the node's shards and the router in front of them. It decides; doors translate.

mod config;
mod router;

pub use config::{
    HeartbeatConfig, HubConfig, InboxConfig, Limits, Namespace, Namespaces, PublishRule, Rules,
    SubscribeRule, UserLimit,
};
pub use router::{Accepted, Applied, ConnectionInfo, Refusal, Router, Sessions, Status};
