//! The log as a whole: against a model, in use, against crashes at every sync, against damage, by two processes.

mod basic;
mod crash;
mod crash_disk;
mod damage;
mod made;
mod processes;
mod ring_model;
mod rows;
mod support;
