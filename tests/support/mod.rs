//! What several integration tests and benches share; each module is self-contained.
//!
//! Nothing here is part of the library. Modules refer to each other by `super::`, never by `crate::`, so that a bench
//! or an example can include one of them by `#[path]`.

#![allow(dead_code, unused_imports, reason = "every test binary compiles all of this and uses a part of it")]

pub(crate) mod s3;
