//! Allocates the elements of `SLOTS` to the tables of sets.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// How long freed chunks are kept from being used again.
///
/// A program that has read a frontend just before it moved reads its old table a moment later. The table must not
/// belong to another set by then. Programs run for microseconds and can be preempted for milliseconds. Memory that is
/// mapped into this process has no RCU grace period of its own, as the elements of hash maps have.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// Consecutive chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    pub(crate) first: u32,
    pub(crate) chunks: u32,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Freed chunks may be used again at that time.
    Until(Duration),
    /// Too much is in use.
    Full,
}

/// First-fit allocator of chunks.
#[derive(Clone, Debug)]
pub(crate) struct Heap {
    free: BTreeMap<u32, u32>,
    in_grace: VecDeque<(Duration, Extent)>,
}

impl Heap {
    /// A heap of `chunks` chunks.
    pub(crate) fn new(chunks: u32) -> Self {
        let free = if chunks > 0 { BTreeMap::from([(0, chunks)]) } else { BTreeMap::new() };
        Self { free, in_grace: VecDeque::new() }
    }

    /// Takes `extent` if all of it is free.
    pub(crate) fn take(&mut self, extent: Extent) -> bool {
        let Some((&first, &chunks)) = self.free.range(..=extent.first).next_back() else { return false };
        let (end, wanted_end) = (first + chunks, u64::from(extent.first) + u64::from(extent.chunks));
        if wanted_end > u64::from(end) {
            return false;
        }
        self.carve(first, chunks, extent);
        true
    }

    /// Chunks that can be had, now or after [`GRACE`].
    pub(crate) fn unused(&self) -> u32 {
        let in_grace = self.in_grace.iter().map(|(_, extent)| extent.chunks);
        self.free.values().copied().chain(in_grace).sum()
    }

    /// Room for `chunks` chunks at `now`.
    pub(crate) fn allocate(&mut self, chunks: u32, now: Duration) -> Result<Extent, NoRoom> {
        self.end_grace(now);
        let fits = self.free.iter().find(|&(_, &room)| room >= chunks);
        let Some((&first, &room)) = fits else {
            return Err(self.in_grace.back().map_or(NoRoom::Full, |&(at, _)| NoRoom::Until(at)));
        };
        let extent = Extent { first, chunks };
        self.carve(first, room, extent);
        Ok(extent)
    }

    /// Releases `extent`, to be used again after [`GRACE`].
    pub(crate) fn free(&mut self, extent: Extent, now: Duration) {
        self.in_grace.push_back((now + GRACE, extent));
    }

    /// Keeps everything that is free now from being used before [`GRACE`] has passed: some of it may have been in use a
    /// moment ago.
    pub(crate) fn delay_reuse(&mut self, now: Duration) {
        let free = std::mem::take(&mut self.free);
        self.in_grace.extend(free.into_iter().map(|(first, chunks)| (now + GRACE, Extent { first, chunks })));
    }

    fn end_grace(&mut self, now: Duration) {
        while let Some(&(at, extent)) = self.in_grace.front() {
            if at > now {
                break;
            }
            self.in_grace.pop_front();
            self.release(extent);
        }
    }

    fn carve(&mut self, first: u32, chunks: u32, extent: Extent) {
        self.free.remove(&first);
        if extent.first > first {
            self.free.insert(first, extent.first - first);
        }
        let (end, taken) = (first + chunks, extent.first + extent.chunks);
        if end > taken {
            self.free.insert(taken, end - taken);
        }
    }

    fn release(&mut self, Extent { mut first, mut chunks }: Extent) {
        if let Some((&before, &size)) = self.free.range(..first).next_back()
            && before + size == first
        {
            self.free.remove(&before);
            first = before;
            chunks += size;
        }
        if let Some(size) = self.free.remove(&(first + chunks)) {
            chunks += size;
        }
        self.free.insert(first, chunks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn extent(first: u32, chunks: u32) -> Extent {
        Extent { first, chunks }
    }

    #[test]
    fn the_first_gap_that_fits_is_taken() {
        let mut heap = Heap::new(10);
        let a = heap.allocate(3, ZERO).unwrap();
        let b = heap.allocate(2, ZERO).unwrap();
        assert_eq!((a, b), (extent(0, 3), extent(3, 2)));
        heap.free(a, ZERO);
        assert_eq!(heap.allocate(4, GRACE), Ok(extent(5, 4)));
        assert_eq!(heap.allocate(2, GRACE), Ok(extent(0, 2)));
    }

    #[test]
    fn freed_chunks_wait_and_neighbours_join() {
        let mut heap = Heap::new(4);
        let a = heap.allocate(2, ZERO).unwrap();
        let b = heap.allocate(2, ZERO).unwrap();
        assert_eq!(heap.allocate(1, ZERO), Err(NoRoom::Full));
        heap.free(b, ZERO);
        heap.free(a, ZERO);
        assert_eq!(heap.allocate(4, GRACE - Duration::from_nanos(1)), Err(NoRoom::Until(GRACE)));
        assert_eq!(heap.allocate(4, GRACE), Ok(extent(0, 4)));
    }

    #[test]
    fn what_an_earlier_process_used_is_taken_once() {
        let mut heap = Heap::new(8);
        assert!(heap.take(extent(2, 3)));
        assert!(!heap.take(extent(4, 1)));
        assert!(!heap.take(extent(7, 2)));
        assert!(!heap.take(extent(u32::MAX, 2)));
        assert_eq!(heap.allocate(3, ZERO), Ok(extent(5, 3)));
        assert_eq!(heap.allocate(2, ZERO), Ok(extent(0, 2)));
    }

    #[test]
    fn a_heap_whose_reuse_is_delayed_is_usable_after_the_grace_period() {
        let mut heap = Heap::new(8);
        heap.delay_reuse(ZERO);
        assert_eq!(heap.allocate(1, ZERO), Err(NoRoom::Until(GRACE)));
        assert_eq!(heap.allocate(1, GRACE), Ok(extent(0, 1)));
    }
}
