//! Fuzz target of everything that reads what an NBD client sent.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| freshet::nbd::read_untrusted(data));
