use crate::wire::codec::CloseCode;

/// Why a session ends: the documented set. Each has a close code and a name, which is the text of the close frame (unless
/// a service gave its own) and the reason in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CloseReason {
    /// The node restarts: come back, elsewhere.
    Restart,
    /// More frames a second than the limit.
    TooManyFrames,
    /// A message was begun and not finished in time.
    TooSlow,
    /// RFC 6455 was broken; the code and the name are the codec's.
    Protocol { code: CloseCode, name: &'static str },
    /// The ticket's `session_seconds` are over: fetch a new ticket.
    SessionEnded,
    /// More waits for it than may.
    SlowConsumer,
    /// No answer to a ping.
    NoPong,
    /// Too many bad frames.
    ClientErrors,
    /// A service said so.
    Disconnected,
    /// A newer connection of the user took its place.
    Replaced,
    /// A session that continues it has taken its place.
    Resumed,
    /// The socket failed, or the client went without a close frame.
    Lost,
    /// The client closed.
    Client,
}

impl CloseReason {
    /// The close code (RFC 6455, section 7.4; 4000–4499 = come back, 4500–4999 = do not).
    pub fn code(self) -> CloseCode {
        match self {
            Self::Restart => CloseCode::RESTART,
            Self::TooManyFrames | Self::TooSlow => CloseCode::POLICY,
            Self::Protocol { code, .. } => code,
            Self::SessionEnded => CloseCode::SESSION_ENDED,
            Self::SlowConsumer => CloseCode::SLOW_CONSUMER,
            Self::NoPong => CloseCode::NO_PONG,
            Self::ClientErrors => CloseCode::CLIENT_ERRORS,
            Self::Disconnected => CloseCode::DISCONNECTED,
            Self::Replaced => CloseCode::REPLACED,
            // The latter two are never sent: there is nobody to send them to.
            Self::Resumed | Self::Lost | Self::Client => CloseCode::NORMAL,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::TooManyFrames => "too_many_frames",
            Self::TooSlow => "too_slow",
            Self::Protocol { name, .. } => name,
            Self::SessionEnded => "session_ended",
            Self::SlowConsumer => "slow_consumer",
            Self::NoPong => "no_pong",
            Self::ClientErrors => "client_errors",
            Self::Disconnected => "disconnected",
            Self::Replaced => "replaced",
            Self::Resumed => "resumed",
            Self::Lost => "lost",
            Self::Client => "client",
        }
    }
}
