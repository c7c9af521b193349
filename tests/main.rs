//! Tests over real sockets and real servers, a file per behaviour.
