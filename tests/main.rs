//! Tests over real sockets and real servers, a file per behaviour.

#![allow(missing_docs, unreachable_pub)]

mod acl;
mod admission;
mod backplane;
mod cluster;
mod cluster_tickets;
mod command_line;
mod control;
mod deadline;
mod delivery;
mod drain;
mod failover;
mod forgery;
mod history;
mod layers;
mod limits;
mod links;
mod nginx;
mod openapi;
mod outages;
mod presence;
mod redis_errors;
mod refusals;
mod resume;
mod resume_tickets;
mod secrets;
mod service;
mod sources;
mod sources_stream;
mod streams;
mod streams_model;
mod streams_redis;
mod support;
mod tools;
mod wire;
