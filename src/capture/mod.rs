//! Capture.
mod compare;
mod occupants;
mod source;
mod zeros;
