use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{
    MemoryTickets, Presented, Redemption, StoreError, TTL_MAX, TTL_MIN, Ticket, TicketConfig,
    TicketStore,
};
use crate::model::{Grant, GrantError, unix_millis};

/// What a door asks: issue a ticket, redeem one.
#[derive(Clone)]
pub struct Tickets {
    store: Arc<dyn TicketStore>,
    ttl: Duration,
}

/// A ticket to be issued.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// What it grants.
    pub grant: Grant,
    /// Its life, 5–300 s; none = the configuration's.
    pub ttl: Option<Duration>,
}

/// A ticket that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The ticket, for its owner alone.
    pub ticket: Ticket,
    /// When it dies, in Unix milliseconds.
    pub expires_at: u64,
}

/// Why no ticket was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IssueError {
    /// A field breaks its rule.
    Invalid(GrantError),
    /// As many tickets wait as may; try again later.
    Full,
    /// The store or the random source is away; a sentence for the operator.
    Unavailable(String),
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => error.fmt(f),
            Self::Full => StoreError::Full.fmt(f),
            Self::Unavailable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for IssueError {}

impl From<StoreError> for IssueError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            away @ StoreError::Unavailable(_) => Self::Unavailable(away.to_string()),
        }
    }
}

impl Tickets {
    /// Tickets that wait in this store.
    ///
    /// # Errors
    /// The configuration breaks a rule; a sentence with the fix.
    pub fn new(config: &TicketConfig, store: Arc<dyn TicketStore>) -> Result<Self, String> {
        config.check()?;
        Ok(Self {
            store,
            ttl: config.ttl,
        })
    }

    /// Tickets that wait in this process.
    ///
    /// # Errors
    /// The configuration breaks a rule; a sentence with the fix.
    pub fn in_memory(config: &TicketConfig) -> Result<Self, String> {
        Self::new(config, Arc::new(MemoryTickets::new(config.max_pending)))
    }

    /// Issues a ticket.
    ///
    /// # Errors
    /// `ttl` is out of range, or the store is full or away; nothing was issued then.
    pub async fn issue(&self, request: IssueRequest) -> Result<Issued, IssueError> {
        let life = request.ttl.unwrap_or(self.ttl);
        if !(TTL_MIN..=TTL_MAX).contains(&life) {
            return Err(IssueError::Invalid(GrantError {
                field: "ttl",
                problem: "must be from 5s to 300s".into(),
            }));
        }
        let ticket = Ticket::generate().map_err(IssueError::Unavailable)?;
        // By the clock before the store's answer: the owner is never told more life than the ticket has.
        let expires_at = unix_millis() + u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        self.store.issue(ticket.hash(), request.grant, life).await?;
        Ok(Issued { ticket, expires_at })
    }

    /// Redeems what a client showed as its ticket. What cannot be one is [`Redemption::Unknown`] without asking the store.
    ///
    /// # Errors
    /// The store is away.
    pub async fn redeem(&self, text: &str, shown: &Presented) -> Result<Redemption, StoreError> {
        match Ticket::parse(text) {
            Some(ticket) => self.store.redeem(ticket.hash(), shown).await,
            None => Ok(Redemption::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TicketHash;
    use super::*;
    use crate::backplane::Later;
    use crate::model::UserId;

    /// A store that is always away.
    struct Away;

    impl TicketStore for Away {
        fn issue(&self, _: TicketHash, _: Grant, _: Duration) -> Later<'_, Result<(), StoreError>> {
            Box::pin(async { Err(StoreError::Unavailable("no answer".into())) })
        }

        fn redeem<'a>(
            &'a self,
            _: TicketHash,
            _: &'a Presented,
        ) -> Later<'a, Result<Redemption, StoreError>> {
            Box::pin(async { Err(StoreError::Unavailable("no answer".into())) })
        }
    }

    fn request(ttl: Option<Duration>) -> IssueRequest {
        IssueRequest {
            grant: Grant::of(UserId::parse("42").expect("a user")),
            ttl,
        }
    }

    fn anyone() -> Presented {
        Presented {
            origin: None,
            ip: [127, 0, 0, 1].into(),
        }
    }

    #[tokio::test]
    async fn a_ticket_opens_once() {
        let tickets = Tickets::in_memory(&TicketConfig::default()).expect("valid");
        let issued = tickets.issue(request(None)).await.expect("room");
        let shown = issued.ticket.expose();
        let granted = Redemption::Granted(request(None).grant);
        assert_eq!(tickets.redeem(shown, &anyone()).await, Ok(granted));
        assert_eq!(
            tickets.redeem(shown, &anyone()).await,
            Ok(Redemption::Unknown)
        );
    }

    #[tokio::test]
    async fn its_life_is_the_callers_or_the_configurations_and_within_the_limits() {
        let tickets = Tickets::in_memory(&TicketConfig::default()).expect("valid");
        let lives = [(None, 30), (Some(5), 5), (Some(300), 300)];
        for (ttl, seconds) in lives {
            let earliest = unix_millis() + seconds * 1_000;
            let issued = tickets.issue(request(ttl.map(Duration::from_secs))).await;
            let expires_at = issued.expect("within the limits").expires_at;
            assert!((earliest..=unix_millis() + seconds * 1_000).contains(&expires_at));
        }
        for bad in [0, 4_999, 300_001, u64::MAX] {
            match tickets
                .issue(request(Some(Duration::from_millis(bad))))
                .await
            {
                Err(IssueError::Invalid(e)) => assert_eq!(e.field, "ttl"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_a_ticket_is_refused_without_asking_the_store() {
        let tickets = Tickets::new(&TicketConfig::default(), Arc::new(Away)).expect("valid");
        let unknown = Ok(Redemption::Unknown);
        for bad in ["", "abc", &"A".repeat(44), &"=".repeat(43)] {
            assert_eq!(tickets.redeem(bad, &anyone()).await, unknown);
        }
        let asked = tickets.redeem(&"A".repeat(43), &anyone()).await;
        assert!(matches!(asked, Err(StoreError::Unavailable(_))));
        let issued = tickets.issue(request(None)).await;
        assert!(matches!(issued, Err(IssueError::Unavailable(_))));
    }

    #[tokio::test]
    async fn a_full_store_says_so() {
        let config = TicketConfig {
            max_pending: 1,
            ..TicketConfig::default()
        };
        let tickets = Tickets::in_memory(&config).expect("valid");
        tickets.issue(request(None)).await.expect("room");
        let second = tickets.issue(request(None)).await;
        assert_eq!(second.map(|_| ()), Err(IssueError::Full));
    }
}
