/// Why a command failed: its exit code and what the person reads.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The runtime of a command.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no runtime: {e}")))?
        .block_on(future)
}
