//! Freshet: disaster recovery for virtual machines.
//!
//! ```text
//!  protected site                    storage site                     recovery site
//!  disk images --capture--> segments, map pages, manifests --rehydrate--> log, disks
//! ```
//!
//! Dependencies between the modules point one way, downwards in this list:
//!
//! | module | what flows through it |
//! |---|---|
//! | [`control`] | sites, domains, tasks and who may do what: gRPC over a catalog |
//! | [`capture`] | disk images into segments, map pages and manifests |
//! | [`protect`] | writes of running guests into segments, in order, within about a second |
//! | [`failover`] | plans and tasks that move a domain from site to site, journaled step by step |
//! | [`hypervisor`] | VMs defined over served disks, started, stopped and looked at |
//! | [`datastore`] | buffers, and the engine that moves them to and from local disks |
//! | [`mod@format`] | bytes of every object and file, no I/O |
//! | [`intent`] | which regions of a protected disk the chain may lack, durable before they are written |
//! | [`inspect`] | any one object or file, explained and verified |
//! | [`log`] | segments as they land, durable in a ring on local storage |
//! | [`cli`], [`demo`], [`scan`], [`verify`] | what an operator runs, over the modules below |
//! | [`map`] | where each live byte is stored at a point |
//! | [`nbd`] | disks served over NBD, and the disk behind an export |
//! | [`rehydrate`] | from the storage site onto disks, point by point |
//! | [`store`] | objects of a storage site |
//! | [`s3_server`] | an S3 server for the demo, tests and benches; no part of an appliance |
//! | [`error`], [`ids`], [`clock`] | words that every module shares |

pub mod cancel;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod control;
pub mod datastore;
pub mod demo;
pub mod error;
pub mod failover;
pub mod format;
pub mod hypervisor;
pub mod ids;
pub mod inspect;
pub mod intent;
pub mod log;
mod log_context;
pub mod map;
pub mod nbd;
pub mod progress;
pub mod protect;
mod quantity;
pub mod rehydrate;
pub mod s3_server;
pub mod scan;
pub mod store;
pub mod verify;
