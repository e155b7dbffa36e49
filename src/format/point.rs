//! Points: segment boundaries at which the VMs they name are crash-consistent together.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ids::{Time, VmId};

use super::decode_error::{DecodeError, DecodeResult};
use super::wire::{Reader, Writer};

/// Most VMs of one domain.
pub(crate) const MAX_VMS: usize = 100_000;

/// What is special about a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PointFlags {
    /// A disk was open for writing elsewhere while it was read: its blocks may be of different moments.
    pub fuzzy: bool,
    /// The file systems of all guests that it covers were frozen while it was cut: what they had written is whole, not
    /// only in order.
    pub quiesced: bool,
}

impl PointFlags {
    const FUZZY: u16 = 1;
    const QUIESCED: u16 = 2;

    pub(crate) fn bits(self) -> u16 {
        (if self.fuzzy { Self::FUZZY } else { 0 }) | (if self.quiesced { Self::QUIESCED } else { 0 })
    }

    pub(crate) fn from_bits(bits: u16) -> DecodeResult<PointFlags> {
        match bits & !(Self::FUZZY | Self::QUIESCED) {
            0 => Ok(PointFlags { fuzzy: bits & Self::FUZZY != 0, quiesced: bits & Self::QUIESCED != 0 }),
            other => Err(DecodeError::value("point", format!("unknown flags {other:#x}"))),
        }
    }
}

/// A point, as the segment that ends at it tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// When: never below the previous point's time.
    pub time: Time,
    /// What is special about it.
    pub flags: PointFlags,
    /// VMs whose disks are consistent together here, sorted. Shared, since the points of a manifest seldom differ in it.
    pub vms: Arc<[VmId]>,
}

impl Point {
    /// A point; sorts the VMs.
    pub fn new(time: Time, flags: PointFlags, vms: impl IntoIterator<Item = VmId>) -> Point {
        let vms: BTreeSet<VmId> = vms.into_iter().collect();
        Point { time, flags, vms: vms.into_iter().collect() }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.put(&self.time).put(&self.flags.bits());
        put_vms(&mut out, &self.vms);
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> DecodeResult<Point> {
        let mut from = Reader::new("point", bytes);
        let time = from.take()?;
        let flags = PointFlags::from_bits(from.take()?)?;
        let vms = take_vms(&mut from)?;
        from.finish()?;
        Ok(Point { time, flags, vms })
    }
}

pub(crate) fn put_vms(out: &mut Writer, vms: &[VmId]) {
    out.count(vms.len());
    for vm in vms {
        out.put(vm);
    }
}

pub(crate) fn take_vms(from: &mut Reader<'_>) -> DecodeResult<Arc<[VmId]>> {
    let n = from.count(16, MAX_VMS)?;
    let vms = (0..n).map(|_| from.take()).collect::<DecodeResult<Arc<[VmId]>>>()?;
    check_vms(&vms)?;
    Ok(vms)
}

/// A set of VMs is sorted, so that there is one way to write it, and holds no more than a domain does.
pub(crate) fn check_vms(vms: &[VmId]) -> DecodeResult<()> {
    match vms.len() <= MAX_VMS && vms.is_sorted_by(|a, b| a < b) {
        true => Ok(()),
        false => Err(DecodeError::value("point", format!("{} VMs, which are not a sorted set", vms.len()))),
    }
}
