//! Disks of VMs that a hypervisor runs already: looked at, moved onto Freshet's exports, and back.
//!
//! A driver that can do this offers it by [`Hypervisor::guest_disks`](super::Hypervisor::guest_disks). Every call may be
//! made again after it failed or was cut off in the middle: it looks at what is so, and does what is missing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;

use super::DiskSpec;
use crate::error::Result;
use crate::format::VmShape;
use crate::ids::Name;

/// Where a disk of a VM has its bytes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskPlace {
    /// A raw image file or a block device, which can be served as it is.
    Raw(PathBuf),
    /// An image file in another format, which must be copied to be served.
    Image {
        /// The file.
        path: PathBuf,
        /// Its format, such as `qcow2`.
        format: String,
    },
    /// An NBD export.
    Export {
        /// Its name.
        name: String,
        /// Its Unix socket, where it has one.
        socket: Option<PathBuf>,
    },
}

/// A disk of a VM that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Its name in the VM.
    pub name: Name,
    /// Where its bytes are.
    pub place: DiskPlace,
    /// Bytes that the guest sees.
    pub size: u64,
}

/// A VM that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVm {
    /// It runs.
    pub running: bool,
    /// Which run of its guest this is: another text after each start. Empty where it is off, or where that cannot be told.
    pub run: String,
    /// What the definition is written in.
    pub definition_kind: String,
    /// The definition that its next start takes.
    pub definition: String,
    /// The normal form.
    pub shape: VmShape,
    /// Its disks, in order.
    pub disks: Vec<FoundDisk>,
    /// What does not follow it to another site.
    pub notes: Vec<String>,
}

/// A disk of a VM, and where it is, as far as that can be told at little cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDisk {
    /// Its name in the VM.
    pub name: String,
    /// The name and Unix socket of the NBD export that it is on, where it is on one.
    pub export: Option<(String, PathBuf)>,
    /// Where it is, in words.
    pub place: String,
}

/// Where the disks of a VM are: now of one that runs, at its next start of one that is off.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whereabouts {
    /// It runs.
    pub running: bool,
    /// Its hard disks, in order.
    pub disks: Vec<SeenDisk>,
}

/// What became of the definition that travels with a VM's disks, since that was taken last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refresh {
    /// The one to be taken instead, where it is another.
    pub new: Option<Refreshed>,
    /// What was found is to be compared with the next time.
    pub remember: bool,
}

/// A definition that is to travel with a VM's disks instead of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// The definition.
    pub definition: String,
    /// Its normal form.
    pub shape: VmShape,
    /// What is other, in words.
    pub changes: String,
}

/// How far a disk that is moved is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStage {
    /// It is copied, or was, and what is written meanwhile is copied after it.
    Copying,
    /// All is copied, and every write goes to both places.
    Ready,
    /// Its guest uses the copy.
    Moved,
}

/// A disk that is moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCopy {
    /// Its name in the VM.
    pub disk: Name,
    /// How far it is.
    pub stage: CopyStage,
    /// Bytes that are copied.
    pub done: u64,
    /// Bytes that are to be copied, as far as that is known: what the guest writes meanwhile is added. 0 before that.
    pub total: u64,
}

/// Who has disks moved, as the driver that moves them sees it.
#[async_trait]
pub trait MoveWatcher: Send + Sync {
    /// How far all disks are that the call moves. Told each time that it looked.
    fn copies(&self, copies: &[DiskCopy]);

    /// All are ready, and the first is about to be switched over: told once, before that. Not told where none is.
    ///
    /// # Errors
    /// Any ends the move: all copies are ended, and the VM uses its old disks.
    async fn pivoting(&self) -> Result<()>;
}

/// See the module.
#[async_trait]
pub trait GuestDisks: Send + Sync {
    /// The VM of this name; `None` where there is none.
    ///
    /// # Errors
    /// `Refused` with all the reasons why it cannot be recovered elsewhere; `Unreachable`.
    async fn look(&self, vm: &Name) -> Result<Option<FoundVm>>;

    /// What became of `kept`, the definition that travels with the disks of a VM, by what was `found` now and what was found
    /// before, where that was to be remembered. What it says of the places of its disks stays.
    ///
    /// # Errors
    /// `Invalid` where one of them cannot be understood.
    fn refresh(&self, kept: (&str, &str), before: Option<&str>, found: &FoundVm) -> Result<Refresh>;

    /// Where the disks of these VMs are, whatever else they have. VMs that are not known are left out.
    ///
    /// # Errors
    /// `Unreachable`.
    async fn whereabouts(&self, vms: &[Name]) -> Result<BTreeMap<Name, Whereabouts>>;

    /// Has a VM that is off use exports from its next start on. No byte is read or written.
    ///
    /// # Errors
    /// `Refused` where it runs; `NotFound`; `Unreachable`.
    async fn attach(&self, vm: &Name, disks: &[DiskSpec]) -> Result<()>;

    /// Copies the disks of a running VM onto exports and has it use those, now and from its next start on. After an
    /// error the VM uses its old disks, unless some of them had moved before: those stay moved, and the error says so.
    ///
    /// # Errors
    /// `Refused` where it does not run; `NotFound`; `Unreachable`; `Io` where a copy fails.
    async fn move_onto(&self, vm: &Name, disks: &[DiskSpec], watcher: &dyn MoveWatcher) -> Result<()>;

    /// Ends copies that a process before this one began and did not finish. The VM uses its old disks.
    ///
    /// # Errors
    /// `Unreachable`.
    async fn abandon_moves(&self, vm: &Name) -> Result<()>;

    /// Has a VM that is off use raw images, each the one behind the export that it has, from its next start on.
    ///
    /// # Errors
    /// As [`attach`](GuestDisks::attach).
    async fn detach(&self, vm: &Name, images: &[(DiskSpec, PathBuf)]) -> Result<()>;

    /// Those of the disks of a VM that have no image to go back to in `definition`: it names none that is there, or the one
    /// that is served. The paths beside the exports are those that are served.
    ///
    /// # Errors
    /// `Invalid` where the definition is none.
    fn placeless(&self, definition: &str, images: &[(DiskSpec, PathBuf)]) -> Result<Vec<Name>>;

    /// Copies the disks of a running VM from exports onto the images that it had in `definition`, or onto those `made` for
    /// them, raw ones, and has it use those, now and from its next start on. The paths beside the exports are those that are
    /// served. Answers with where each is.
    ///
    /// # Errors
    /// As [`move_onto`](GuestDisks::move_onto); `Refused` where there is neither.
    async fn move_back(
        &self,
        vm: &Name,
        definition: &str,
        images: &[(DiskSpec, PathBuf)],
        made: &BTreeMap<Name, PathBuf>,
        watcher: &dyn MoveWatcher,
    ) -> Result<Vec<(Name, PathBuf)>>;
}
