//! The log as a whole: against a model, in use, against crashes at every sync, against damage.

mod basic;
mod ring_model;
mod support;
