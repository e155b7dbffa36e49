//! One file for each group of cases; what they share is here and in `appliance`.

mod abandoned;
mod access;
mod appliance;
mod catalog;
mod certs;
mod destroy;
mod docs;
mod failovers;
mod figures;
mod flow;
mod hostile;
mod logs;
mod outsider;
mod quiesce;
mod rivals;
