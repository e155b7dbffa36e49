//! The requests of one connection that are not answered yet.
//!
//! Owns the table of them. Ids are positions, used again once a request is answered; the table never grows past the
//! number of requests that a connection may have in flight.

use super::export::ExportError;
use super::op::RequestId;

/// What a request asked for, as far as its answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A read in chunks of any order; in one chunk if `whole`.
    Read { whole: bool },
    /// A read whose data goes out in order, as one simple reply of several pieces; `begun` when the first is out.
    InOrder { begun: bool },
    /// A write; made durable by a flush behind its last piece if `flush`.
    Write { flush: bool },
    /// Zeros that must be fast, the only ones that may be refused as not supported.
    FastZeroes,
    /// The status of a range.
    Status,
    /// Anything else, answered with a plain success.
    Other,
}

/// One request.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) cookie: u64,
    pub(super) kind: Kind,
    /// Calls under way.
    pub(super) calls: usize,
    /// Whether further calls are to come.
    pub(super) more: bool,
    /// The first failure.
    pub(super) error: Option<ExportError>,
    /// Whether nobody waits for the answer any more.
    pub(super) abandoned: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Requests {
    table: Vec<Option<Active>>,
    free: Vec<RequestId>,
}

impl Requests {
    /// Requests not answered.
    pub(super) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// One more.
    pub(super) fn insert(&mut self, cookie: u64, kind: Kind) -> RequestId {
        let active = Active { cookie, kind, calls: 0, more: false, error: None, abandoned: false };
        match self.free.pop() {
            Some(id) => {
                self.table[id] = Some(active);
                id
            }
            None => {
                self.table.push(Some(active));
                self.table.len() - 1
            }
        }
    }

    /// The request of this id, which is in the table.
    pub(super) fn get(&mut self, id: RequestId) -> &mut Active {
        self.table[id].as_mut().expect("ids are used only between insert and remove")
    }

    /// Takes it out.
    pub(super) fn remove(&mut self, id: RequestId) -> Active {
        self.free.push(id);
        self.table[id].take().expect("ids are used only between insert and remove")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again() {
        let mut requests = Requests::default();
        let ids: Vec<_> = (0..3).map(|cookie| requests.insert(cookie, Kind::Other)).collect();
        assert_eq!(requests.remove(ids[1]).cookie, 1);
        assert_eq!(requests.insert(9, Kind::Other), ids[1]);
        assert_eq!((requests.len(), requests.get(ids[1]).cookie), (3, 9));
        for id in ids {
            requests.remove(id);
        }
        assert_eq!((requests.len(), requests.table.len()), (0, 3));
    }
}
