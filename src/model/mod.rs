//! The words of Tidings as plain data, parsed once at the edge into types that cannot be wrong. This room knows nothing
//! but itself: no socket, no clock but the system's, no other room.

mod address;
mod body;
mod control;
mod grant;
mod host;
mod id;
mod lineage;
mod name;
mod position;
mod secret;
pub mod units;

pub use address::{Address, AddressError};
pub use body::{Body, BodyError, Class, Message, Target};
pub use control::{Ask, ConnectionInfo, Member, Members, Said, Sessions};
pub use grant::{Grant, GrantError, IpPrefix, Origin};
pub use host::is_loopback;
pub use id::{ConnectionId, MessageId, NodeId};
pub use lineage::{Lineage, Resumes};
pub use name::{ChannelName, DeviceName, NameError, UserId};
pub use position::{Place, Position, PositionError, Since, Tag};
pub use secret::{Secret, sha256};

/// Milliseconds since the Unix epoch, by the system's clock.
pub fn unix_millis() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
