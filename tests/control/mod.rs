//! One file for each group of cases; what they share is in `support`.

mod abandoned;
mod access;
mod catalog;
mod certs;
mod clocks;
mod damage;
mod destroy;
mod docs;
mod failovers;
mod figures;
mod flow;
mod hostile;
mod libvirt;
mod libvirt_cards;
mod libvirt_daemon;
mod libvirt_disks;
mod libvirt_life;
mod libvirt_refused;
mod live;
mod logs;
mod no_hypervisor;
mod outsider;
mod qemu;
mod quiesce;
mod rivals;
mod seed;
mod uefi;

pub(crate) use crate::support::appliance;
