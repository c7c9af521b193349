use super::Public;
use super::arrival::Arrival;
use super::handshake::Proof;
use super::refusal::{Kind, Refusal};
use crate::model::{Grant, Origin, Secret};
use crate::tickets::{JwtError, Opening, Presented, Redemption, ResumeTickets};

/// What a handshake without a good ticket or JWT is told, whatever is wrong with it.
pub(super) const NOT_GOOD: &str =
    "the ticket is missing, unknown, used or expired; fetch a new one";

/// Takes the ticket, or checks the JWT, that a handshake shows. A resume ticket lives at least `until`, in Unix
/// milliseconds.
pub(super) async fn redeem(
    door: &Public,
    arrival: &Arrival,
    proof: &Proof,
    origin: Option<Origin>,
    opening: Opening,
    until: u64,
) -> Result<Grant, Refusal> {
    let text = match proof {
        Proof::Nothing => return Err(not_good()),
        Proof::Jwt(token) => return verify(door, arrival, token, NOT_GOOD).await,
        Proof::Ticket(text) => text,
    };
    let shown = Presented {
        origin,
        ip: arrival.client,
    };
    let text = text.expose();
    let redeemed = match ResumeTickets::is_one(text) {
        true => {
            let resume = &arrival.shard.hub.resume;
            resume.redeem_until(text, &shown, opening, until).await
        }
        false => door.tickets.redeem(text, &shown).await,
    };
    let refused = match redeemed {
        Ok(Redemption::Granted(grant)) => return Ok(grant),
        Ok(Redemption::Unknown) => not_good(),
        Ok(Redemption::WrongOrigin) => wrong_origin(),
        Ok(Redemption::WrongIp) => wrong_ip(),
        Err(error) => {
            tracing::warn!(problem = %error, "a ticket could not be checked");
            unchecked()
        }
    };
    Err(refused)
}

pub(super) fn not_good() -> Refusal {
    Refusal::new(Kind::Ticket, NOT_GOOD)
}

pub(super) fn wrong_origin() -> Refusal {
    Refusal::new(Kind::Origin, "the ticket is for another origin")
}

pub(super) fn wrong_ip() -> Refusal {
    Refusal::new(Kind::Ip, "the ticket is for another address")
}

/// The store is away.
pub(super) fn unchecked() -> Refusal {
    let told = "tickets cannot be checked now; come back later";
    Refusal::later(Kind::Unavailable, told)
}

/// Checks a JWT. Whoever shows a bad one is told `not_good` and no more: why it is bad helps who forges one. The reason is
/// in a metric and in the log.
pub(super) async fn verify(
    door: &Public,
    arrival: &Arrival,
    token: &Secret,
    not_good: &'static str,
) -> Result<Grant, Refusal> {
    let reason = match door.jwt() {
        // Nobody can have a good one for this node.
        None => "not_configured",
        Some(jwt) => match jwt.verify(token.expose()).await {
            Ok(grant) => return Ok(grant),
            Err(JwtError::Invalid(why)) => why.label(),
            Err(JwtError::Unavailable(problem)) => {
                tracing::warn!(%problem, "a JWT could not be checked");
                let told = "JWTs cannot be checked now; come back later";
                return Err(Refusal::later(Kind::Unavailable, told));
            }
        },
    };
    arrival.shard.hub.metrics.refused_jwt(reason);
    tracing::debug!(client = %arrival.client, reason, "a JWT is not good");
    Err(Refusal::new(Kind::Ticket, not_good))
}
