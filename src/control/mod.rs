//! The control plane: an appliance that serves one site, and the catalog of what it knows.
//!
//! ```text
//!  freshet ..., programs --gRPC: socket, TLS--> access --> services --> appliance --+--> catalog (SQLite)
//!                                               who may                             +--> stores, looks (storage sites)
//!                                                                                   '--> hosting (running protections)
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `settings` | `freshet.toml` |
//! | `catalog` | what is remembered |
//! | `serve`, `listen` | the order of starting and ending; sockets |
//! | `access`, `fault`, `confirm`, `told`, `turns` | who may call; what errors look like; what is confirmed, of what was told; whose turn it is |
//! | `appliance` | what the services share, and the rules of every act |
//! | `stores`, `looks`, `hosting`, `view` | open stores; what was seen in them; protections that run; domains as they are shown |
//! | `guests`, `astray` | what is wrong with guests that run here; those that run on other disks than the served ones |
//! | `fresh` | definitions that travel with disks, kept as the hypervisor has them |
//! | `damage`, `watched` | damage of disks that follow, as it is shown; one look for all who watch a domain |
//! | `socket_group` | hypervisors of other users, let at their disks |
//! | `answers` | what a site is told that asks for a domain of this one |
//! | `ends` | how tasks ended, as events |
//! | `quiesce` | points with guests' file systems frozen |
//! | `taking_in`, `new_images` | VMs that the hypervisor runs already, and images that are made for them |
//! | `letting_go`, `reach` | VMs that are protected no longer; a hypervisor of another user at their images |
//! | `change_over`, `moves`, `moving_on` | disks on their way: before they change over, how far they are, what is gone on with |
//! | `world` | this site as the engine of failovers sees it |
//! | `services` | the API's methods |
//! | `metrics` | figures for Prometheus |
//! | `client` | the way from a command to an appliance |
//! | `proto` | what was made of `proto/` |
//!
//! Nothing here moves a guest's bytes: the library does, and goes on doing so while nobody asks.

mod access;
mod answers;
mod appliance;
mod astray;
mod catalog;
mod change_over;
mod client;
mod confirm;
mod copies;
mod damage;
mod doubt;
mod ends;
mod fault;
mod fresh;
mod guests;
mod hosting;
mod letting_go;
mod listen;
mod looks;
mod metrics;
mod moves;
mod moving_on;
mod new_images;
pub mod proto;
mod quiesce;
mod reach;
mod serve;
mod services;
pub mod settings;
mod socket_group;
mod stores;
mod taking_in;
mod thaw_guard;
mod told;
mod turns;
mod view;
mod watched;
mod world;

pub use access::{ROLES, subject_of};
pub use appliance::Appliance;
pub use catalog::inspect_catalog;
pub use client::{Client, ClientTls, Target, json_of};
pub use fault::{CODES, ERROR_DOMAIN, from_status};
pub use metrics::{Kind as MetricKind, METRICS, Metric};
pub use moves::move_words;
pub use serve::{Addresses, serve};
pub use settings::Settings;
pub use thaw_guard::stand_by;
pub use view::{mode_words, status_words};
