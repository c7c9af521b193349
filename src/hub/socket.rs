//! What a session's frames are written to and its client's are read from: a TCP socket, with or without TLS on it. Both
//! halves are the shard's, which never waits on them, so that nothing is locked.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConnection;
use tokio_rustls::server::TlsStream;

/// The most that is encrypted before the socket has taken it: two records. Beyond that frames wait as they are, where
/// they can be superseded.
const ENCRYPTED_MAX: usize = 32 << 10;
/// Reads of a socket that bring no byte of the client's, before others have their turn.
const IDLE_READS: usize = 16;

/// An upgraded connection, out of hyper's hands.
pub enum Link {
    /// A socket.
    Plain(TcpStream),
    /// A socket with TLS on it.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// TLS on a socket, without a wait: what it cannot do now is done when the socket is ready.
pub(super) struct Tls {
    socket: Rc<TcpStream>,
    session: ServerConnection,
    /// Bytes of frames that are encrypted and that the socket has not taken yet.
    waiting: usize,
    /// It has said that nothing more comes.
    ended: bool,
}

impl Tls {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        let (socket, mut session) = stream.into_inner();
        session.set_buffer_limit(Some(ENCRYPTED_MAX));
        Self {
            socket: Rc::new(socket),
            session,
            waiting: 0,
            ended: false,
        }
    }

    pub(super) fn socket(&self) -> &Rc<TcpStream> {
        &self.socket
    }

    /// Bytes of frames that are neither in the outbox nor in the kernel.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether the socket has to take something yet.
    pub(super) fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// What the client sent, as a socket's `try_read`: `WouldBlock` only when no decrypted byte is left, 0 at the end. A
    /// connection that is cut off without a `close_notify` (RFC 8446, section 6.1) ends as a plain one does.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..IDLE_READS {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if self.session.read_tls(&mut Bare(&self.socket))? == 0 {
                return Ok(0);
            }
            // On an error there is an alert to be written, which says why.
            let processed = self.session.process_new_packets();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        Err(ErrorKind::Interrupted.into())
    }

    /// Encrypts what is given, once all before it is out: small frames go in one record. `WouldBlock` = nothing of it was
    /// taken. What was taken is the socket's as soon as that is ready.
    pub(super) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.push()?;
        let taken = self.session.writer().write_vectored(slices)?;
        self.waiting += taken;
        match self.push() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Writes what is encrypted.
    pub(super) fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Bare(&self.socket)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.waiting = 0;
        Ok(())
    }

    /// Says that nothing more comes; whether the socket has taken that.
    pub(super) fn end(&mut self) -> bool {
        if !std::mem::replace(&mut self.ended, true) {
            self.session.send_close_notify();
        }
        self.push().is_ok()
    }
}

/// A socket for who reads and writes without waiting.
struct Bare<'a>(&'a TcpStream);

impl Read for Bare<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Bare<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
