//! The log as a whole: against a model, in use, against crashes at every sync, against damage.

mod basic;
mod crash;
mod crash_disk;
mod ring_model;
mod support;
