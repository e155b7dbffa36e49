//! Fuzz target of the file in which the QEMU driver keeps a VM; see the library beside it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| freshet_fuzz::check_qemu_vm(data));
