//! Fuzz target of the entries of tasks' journals; see the library beside it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| freshet_fuzz::check_journal_entry(data));
