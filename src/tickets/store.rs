use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::TicketHash;
use crate::backplane::Later;
use crate::model::{Grant, Origin};

/// Who shows a ticket, as far as the ticket itself may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// The `Origin` header; none = there was none. A door refuses `null`, and what the configuration does not allow,
    /// before it redeems.
    pub origin: Option<Origin>,
    /// The client's address.
    pub ip: IpAddr,
}

/// What became of a ticket that was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redemption {
    /// It was good, and is spent now.
    Granted(Grant),
    /// No such ticket waits: never issued, used or expired, which look alike on purpose.
    Unknown,
    /// The ticket is for other origins. It is not spent.
    WrongOrigin,
    /// The ticket is for other addresses. It is not spent.
    WrongIp,
}

/// Why a store did not do what it was asked; nothing was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// As many tickets wait as may; some room comes as soon as one is redeemed or expires.
    Full,
    /// The store cannot be reached; a sentence for the operator.
    Unavailable(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str(
                "too many tickets wait to be redeemed; try again later, or raise [tickets] max_pending",
            ),
            Self::Unavailable(why) => write!(f, "the ticket store cannot be reached: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Where tickets wait, by their hash. A ticket is redeemed once in the whole cluster, however many nodes race for it.
pub trait TicketStore: Send + Sync + 'static {
    /// Keeps what a new ticket grants, for the length of its life.
    ///
    /// # Errors
    /// The store is full or away.
    fn issue(
        &self,
        hash: TicketHash,
        grant: Grant,
        life: Duration,
    ) -> Later<'_, Result<(), StoreError>>;

    /// Takes the ticket, if it waits, has life left and is for who shows it. Only [`Redemption::Granted`] spends it.
    ///
    /// The take is one atomic step. The look at `origins` and `ips` need not be part of it: they never change, so a store
    /// may read first and then take, and who loses the ticket in between gets [`Redemption::Unknown`].
    ///
    /// # Errors
    /// The store is away.
    fn redeem<'a>(
        &'a self,
        hash: TicketHash,
        shown: &'a Presented,
    ) -> Later<'a, Result<Redemption, StoreError>>;
}

impl Presented {
    /// Whether the ticket's own `origins` or `ips` refuse who shows it. No origin at all is no browser (or a page's own
    /// `EventSource`, which sends none) and is accepted, as everywhere: what can leave the header out can also forge it.
    pub(super) fn refused_by(&self, grant: &Grant) -> Option<Redemption> {
        let is_named = |origin| grant.origins.is_empty() || grant.origins.contains(origin);
        if !self.origin.as_ref().is_none_or(is_named) {
            return Some(Redemption::WrongOrigin);
        }
        let is_within = grant.ips.is_empty() || grant.ips.iter().any(|p| p.contains(self.ip));
        (!is_within).then_some(Redemption::WrongIp)
    }
}
