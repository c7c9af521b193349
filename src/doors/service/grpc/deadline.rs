use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::super::api::CALL_TIMEOUT;
use super::super::error::{ApiError, Code};

/// Where a caller says how long it waits.
pub(super) const HEADER: &str = "grpc-timeout";
/// An answer leaves this long before the caller gives up, so that it still arrives.
const MARGIN: Duration = Duration::from_millis(50);

/// When a call that came just now must be answered: [`MARGIN`] before the deadline in `grpc-timeout`; for a timeout under
/// twice the margin, at its half. Without a deadline, [`CALL_TIMEOUT`] from now.
///
/// # Errors
/// `INVALID_ARGUMENT`: the header is not what gRPC says.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Instant, ApiError> {
    let now = Instant::now();
    let Some(header) = headers.get(HEADER) else {
        return Ok(now + CALL_TIMEOUT);
    };
    let timeout = header.to_str().ok().and_then(parse).ok_or_else(|| {
        ApiError::new(
            Code::InvalidArgument,
            "grpc-timeout must be 1 to 8 digits and one of H, M, S, m, u, n",
        )
    })?;
    Ok(now + timeout.saturating_sub(MARGIN.min(timeout / 2)))
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2 (doc/PROTOCOL-HTTP2.md in grpc/grpc, *Requests*).
fn parse(text: &str) -> Option<Duration> {
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let digits = (1..=8).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    let value: u64 = value.parse().ok().filter(|_| digits)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(timeout: &str) -> Result<Duration, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, timeout.parse().expect("a header value"));
        let before = Instant::now();
        deadline(&headers).map(|at| at - before)
    }

    #[test]
    fn a_call_is_answered_before_its_deadline() {
        for (timeout, answered) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("1S", Duration::from_secs(1)),
            ("400m", Duration::from_millis(400)),
            ("99999999u", Duration::from_micros(99_999_999)),
        ] {
            let slack = Duration::from_millis(30);
            let left = left(timeout).expect("valid");
            assert!(left >= answered - MARGIN, "{timeout}: {left:?}");
            assert!(left < answered - MARGIN + slack, "{timeout}: {left:?}");
        }
        assert!(left("20m").expect("valid") >= Duration::from_millis(10));
        assert!(left("99999999H").is_ok() && left("0n").is_ok());
        let none = deadline(&HeaderMap::new()).expect("valid") - Instant::now();
        assert!(none > CALL_TIMEOUT - Duration::from_millis(50), "{none:?}");
    }

    #[test]
    fn a_timeout_that_is_none_is_refused() {
        for wrong in [
            "",
            "S",
            "5",
            "5s",
            "-1S",
            "+1S",
            "1.5S",
            "123456789S",
            "1 S",
        ] {
            let error = left(wrong).expect_err(wrong);
            assert_eq!(error.code, Code::InvalidArgument, "{wrong}");
        }
    }
}
