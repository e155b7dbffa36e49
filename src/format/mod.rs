//! Bytes of every object and file: encoding and decoding, no I/O.
