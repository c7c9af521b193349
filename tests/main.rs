//! Tests over real sockets and real servers, a file per behaviour.

#![allow(missing_docs, unreachable_pub)]

mod acl;
mod admission;
mod command_line;
mod deadline;
mod delivery;
mod drain;
mod layers;
mod limits;
mod openapi;
mod secrets;
mod service;
mod sources;
mod support;
mod wire;
