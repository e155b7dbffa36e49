//! Storage sites: objects by URL, with retries, hedged reads and a probe of what the store can be trusted with.
//!
//! ```text
//! StorageSite --+-- file://            FileStore: O_DIRECT preads into pooled buffers, durable create by link(2)
//!               +-- s3:// az:// gs://  CloudStore: one try over object_store; retry and hedge decide what follows
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `url` | what a site's URL may look like |
//! | `options` | credentials, endpoint, limits; their bounds |
//! | `keys` | where each object lives |
//! | `object` | what is handed out |
//! | `site` | [`StorageSite`], the one door |
//! | `probe`, `network` | what a store can be trusted with, found out by trying |
//! | `file`, `pool` | directories, aligned buffers |
//! | `cloud`, `listing` | operations on an object store: tries, pauses, second requests |
//! | `retry`, `hedge`, `failure`, `store_clock` | what is decided, without I/O |
//! | `figures` | how long operations took, and what failed |
//! | `client`, `connector` | the HTTP client and the layer that watches it |
//! | `ownership`, `horizon` | who may write a domain, which objects count; no I/O |
//! | `owner_log`, `prefix` | reading and appending ownership records; how far segments exist |
//! | `domain`, `points` | [`Domain`]: what a reader may take of one domain |
//! | `hand_over` | asking for a domain, giving it up, going on: what each appends |
//! | `writer`, `seat` | [`DomainWriter`]: claim, base, acceptance, heartbeat, fencing |
//! | `erase` | deleting a whole domain |
//! | `take_over`, `liveness`, `process` | what a take-over would cut off; whether another writer lives |
//!
//! Promises: a body is never cut by a limit on its whole time; a range comes whole or as an error; a create is atomic
//! and durable when it is reported; nothing shown or logged holds a secret; every loop has a limit.

mod client;
mod cloud;
mod connector;
mod counters;
mod domain;
mod erase;
mod failure;
mod figures;
mod file;
mod hand_over;
mod hedge;
mod horizon;
pub mod keys;
mod listing;
mod liveness;
mod network;
mod object;
mod options;
mod owner_log;
mod ownership;
mod points;
mod pool;
mod prefix;
mod probe;
mod process;
mod recovery_settings;
mod reread;
mod retry;
mod seat;
mod site;
mod store_clock;
mod take_over;
mod url;
mod writer;

pub use domain::{Domain, FoundManifest, Next, list_domains};
pub use erase::{Inventory, erase};
pub use figures::{LATENCY_BOUNDS, Latency, Operation, OperationFigures, StoreFigures};
pub use horizon::{Horizon, Seen};
pub use liveness::{LIVE_FOR_MS, LastSign};
pub use object::{Created, Fetched, ObjectInfo, Settled, StoreCounters};
pub use options::{HedgeLimits, RetryLimits, StoreOptions};
pub use ownership::{Acceptance, Asked, Base, Effect, GenerationInfo, HandOver, Ownership, Void};
pub use points::{FoundPoint, PointInfo, Points};
pub use probe::{Capability, Outcome, Verdict, probe};
pub(crate) use reread::reread;
pub use site::StorageSite;
pub use take_over::{BaseChoice, TakeOverPreview};
pub use url::{Provider, StoreUrl};
pub use writer::{DomainWriter, StartOptions};
