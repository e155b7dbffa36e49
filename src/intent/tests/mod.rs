//! Tests of the bitmap: the rule against a model with crashes, commits and their failures, opening, the range lock.

mod files;
mod groups;
mod locks;
mod memory_file;
mod model;
mod model_run;
