//! Fuzz target of one format; see the library beside it.

#![no_main]

use freshet::format::magic;

libfuzzer_sys::fuzz_target!(|data: &[u8]| freshet_fuzz::check(magic::RECOVERY_SETTINGS, data));
