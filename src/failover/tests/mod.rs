//! Tests of the engine: what a task becomes, whole modes on simulated sites, and the same with every step killed, failed
//! and done twice.

mod doc;
mod drill;
mod entries;
mod modes;
mod races;
mod runbooks;
mod transitions;
mod validation;
