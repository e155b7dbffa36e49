//! Fuzz target of one format; see the library beside it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| freshet_fuzz::check_index(data));
