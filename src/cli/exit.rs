use std::io::Write as _;
use std::time::Duration;

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

    /// Whoever read our output has gone: nothing is left to do or to say.
    fn unheard() -> Self {
        Self::failed("")
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

/// Prints a line for whoever reads standard output.
///
/// # Errors
/// Nobody does any more, as behind `| head -1`.
pub(super) fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::unheard(),
            _ => Failure::failed(format!("standard output: {error}")),
        })
}

/// How long threads that still read a file may take once a command is done.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// The runtime of a command.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no runtime: {e}")))?;
    let result = runtime.block_on(future);
    // A read of a disk that hangs must not keep the process.
    runtime.shutdown_timeout(LAST_THREADS);
    result
}

/// Rows of cells, the first one of titles, as lines in columns.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
