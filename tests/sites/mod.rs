//! One file for each group of cases; what they share is in `estate` (networks, sites, storage site) and `guest` (what runs
//! on the disks, and what of that must be there at each start).

mod estate;
mod faults;
mod guest;
mod modes;
mod relay;
mod trips;
mod weather;

/// A number that the environment gives, as for more rounds than every run has time for.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}
