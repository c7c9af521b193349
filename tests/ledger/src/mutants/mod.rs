//! Mutants: a node that does wrong, made of a right one and a relay between it and its clients. Before the ledger is
//! believed it must find each of them, and nothing else.

mod mutant;
mod relay;
mod run;

pub(crate) use run::run;
