//! The client against servers that answer as a test says, over real sockets: what the true server does rarely or never.

mod direct;
mod fake;
mod owners;
mod routes;
mod scans;
mod stopped;
