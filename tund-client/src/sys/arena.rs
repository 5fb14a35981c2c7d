//! Memory for the rings of connection A: address space for every slot at once, pages only for those
//! in use.
//!
//! One private mapping without reserve holds all slots; a slot takes pages when its rings are
//! written and gives them back when told that it is idle. Between two flows the netstack clears its
//! rings, and an idle slot reads as zeros: nothing of one flow is there for the next. The mapping
//! is never unmapped, so slices of it live as long as the process.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use super::error::{ErrorKind, SystemError};

/// Rings begin at pages, whatever their size on this machine (64 KiB is the largest in use), so
/// that no page belongs to two of them.
const RING_ALIGNMENT: usize = 64 * 1024;

/// The sizes of the two rings of a slot, each rounded up to 64 KiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SlotLayout {
    /// Ring for what applications send.
    pub(crate) receive_bytes: usize,
    /// Ring for what is sent to applications.
    pub(crate) send_bytes: usize,
}

/// Both rings of a slot, for the life of the process.
#[derive(Debug)]
pub(crate) struct SlotMemory {
    /// Ring for what applications send.
    pub(crate) receive: &'static mut [u8],
    /// Ring for what is sent to applications.
    pub(crate) send: &'static mut [u8],
}

/// Address space for a fixed number of slots, handed out in order.
#[derive(Debug)]
pub(crate) struct Arena {
    layout: SlotLayout,
    slots: usize,
    /// Where the mapping begins, as an exposed address.
    base: usize,
    /// How many slots are handed out: exactly those before `rest`.
    taken: usize,
    /// What is not handed out.
    rest: &'static mut [u8],
}

impl SlotLayout {
    fn rounded(self) -> Option<(Self, NonZeroUsize)> {
        let layout = Self {
            receive_bytes: self
                .receive_bytes
                .checked_next_multiple_of(RING_ALIGNMENT)?,
            send_bytes: self.send_bytes.checked_next_multiple_of(RING_ALIGNMENT)?,
        };
        let slot = layout.receive_bytes.checked_add(layout.send_bytes)?;
        Some((layout, NonZeroUsize::new(slot)?))
    }
}

impl Arena {
    /// Reserves address space for `slots` slots, or for as many as the system allows.
    ///
    /// Fewer than wanted happen where overcommit is forbidden or address space is limited; it is
    /// logged, and [`Self::rings`] ends earlier.
    ///
    /// # Errors
    ///
    /// When there is not even room for one slot.
    pub(crate) fn reserve(layout: SlotLayout, slots: usize) -> Result<Self, SystemError> {
        let tried = "reserve address space for the rings of connections";
        let Some((layout, slot_bytes)) = layout.rounded() else {
            let found = format!("{layout:?} is no size for memory");
            return Err(SystemError::new(
                ErrorKind::Failed,
                tried,
                found,
                "use smaller rings",
            ));
        };
        let mut possible = slots.max(1);
        loop {
            let bytes = slot_bytes.checked_mul(NonZeroUsize::new(possible).unwrap_or(slot_bytes));
            let mapped = bytes.ok_or(Errno::ENOMEM).and_then(map);
            match mapped {
                Ok(rest) => {
                    if possible < slots {
                        tracing::warn!(wanted = slots, possible, "address space is limited");
                    }
                    let base = rest.as_mut_ptr().expose_provenance();
                    return Ok(Self {
                        layout,
                        slots: possible,
                        base,
                        taken: 0,
                        rest,
                    });
                }
                Err(Errno::ENOMEM) if possible > 1 => possible /= 2,
                Err(errno) => {
                    let remedy = "raise `ulimit -v`, or allow overcommit (vm.overcommit_memory)";
                    return Err(SystemError::from_io(tried, errno.into(), remedy));
                }
            }
        }
    }

    /// Hands out the rings of `slot`, once; slots are taken in order from 0. `None` for any other,
    /// and when there are no more.
    pub(crate) fn rings(&mut self, slot: usize) -> Option<SlotMemory> {
        if slot != self.taken || slot >= self.slots {
            return None;
        }
        let (receive, rest) =
            std::mem::take(&mut self.rest).split_at_mut_checked(self.layout.receive_bytes)?;
        let (send, rest) = rest.split_at_mut_checked(self.layout.send_bytes)?;
        self.rest = rest;
        self.taken += 1;
        Some(SlotMemory { receive, send })
    }

    /// Gives the pages of `slot` back: what was in its rings is lost, and they read as zeros.
    ///
    /// Only for a slot in whose rings nobody relies on a byte.
    pub(crate) fn idle(&self, slot: usize) {
        if slot >= self.taken {
            return;
        }
        let slot_bytes = self.layout.receive_bytes + self.layout.send_bytes;
        // Lies within the mapping, as `slot` was handed out.
        let Some(begin) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(
            self.base + slot * slot_bytes,
        )) else {
            return;
        };
        if let Err(error) = release(begin, slot_bytes) {
            tracing::debug!(%error, slot, "the pages of an idle slot stay");
        }
    }
}

#[expect(
    unsafe_code,
    reason = "mapping memory and making a slice of it has no safe wrapper"
)]
fn map(bytes: NonZeroUsize) -> Result<&'static mut [u8], Errno> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing else.
    let begin = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
    // Huge pages would make one written byte cost 2 MiB; what applications send is nothing for a
    // core file. A kernel that knows neither does neither.
    for advice in [MmapAdvise::MADV_NOHUGEPAGE, MmapAdvise::MADV_DONTDUMP] {
        // SAFETY: the range is the mapping made above; neither advice changes its contents.
        if let Err(error) = unsafe { madvise(begin, bytes.get(), advice) } {
            tracing::debug!(%error, ?advice, "advice about memory was not taken");
        }
    }
    // SAFETY: `begin` is the start of `bytes` readable, writable, zeroed bytes that nothing else
    // points to and that are never unmapped.
    Ok(unsafe { std::slice::from_raw_parts_mut(begin.as_ptr().cast(), bytes.get()) })
}

#[expect(unsafe_code, reason = "giving pages back has no safe wrapper")]
fn release(begin: NonNull<c_void>, bytes: usize) -> Result<(), Errno> {
    // SAFETY: the range is one slot of the mapping, whole pages, and stays mapped: every byte of it
    // is a `u8` before and after. Its owner has said that it relies on none of their values.
    unsafe { madvise(begin, bytes, MmapAdvise::MADV_DONTNEED) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const LAYOUT: SlotLayout = SlotLayout {
        receive_bytes: 256 * 1024,
        send_bytes: 512 * 1024,
    };

    #[test]
    fn slots_are_apart_and_handed_out_once_in_order() {
        let mut arena = Arena::reserve(LAYOUT, 2).unwrap();
        assert!(arena.rings(1).is_none());

        let first = arena.rings(0).unwrap();
        first.receive.fill(1);
        first.send.fill(2);
        let second = arena.rings(1).unwrap();

        assert_eq!(
            (first.receive.len(), first.send.len()),
            (256 * 1024, 512 * 1024)
        );
        assert!(
            second
                .receive
                .iter()
                .chain(second.send.iter())
                .all(|byte| *byte == 0)
        );
        assert!(arena.rings(0).is_none());
        assert!(arena.rings(2).is_none());
    }

    #[test]
    fn an_idle_slot_reads_as_zeros_and_its_neighbour_keeps_its_bytes() {
        let mut arena = Arena::reserve(LAYOUT, 2).unwrap();
        let (first, second) = (arena.rings(0).unwrap(), arena.rings(1).unwrap());
        first.send.fill(7);
        second.receive.fill(8);

        arena.idle(0);
        arena.idle(5);

        assert!(first.send.iter().all(|byte| *byte == 0));
        assert!(second.receive.iter().all(|byte| *byte == 8));
    }

    #[test]
    fn reserved_slots_take_no_memory_until_they_are_written_and_none_when_idle() {
        let mut arena = Arena::reserve(LAYOUT, 65_536).unwrap();
        let slots: Vec<SlotMemory> = (0..64).map(|slot| arena.rings(slot).unwrap()).collect();
        assert_eq!(arena.slots, 65_536);
        assert_eq!(resident_pages(&arena), 0);

        for slot in slots {
            slot.receive[0] = 1;
        }
        // 64 slots with one page each, not 64 huge ones.
        assert_eq!(resident_pages(&arena), 64);

        (0..64).for_each(|slot| arena.idle(slot));
        assert_eq!(resident_pages(&arena), 0);
    }

    #[test]
    fn sizes_that_no_memory_has_are_refused() {
        let layout = SlotLayout {
            receive_bytes: usize::MAX,
            send_bytes: 1,
        };

        assert!(Arena::reserve(layout, 1).is_err());
    }

    #[test]
    fn more_slots_than_there_are_addresses_become_fewer() {
        let arena = Arena::reserve(LAYOUT, usize::MAX / 2).unwrap();

        assert!(
            (1_000..usize::MAX / 2).contains(&arena.slots),
            "{}",
            arena.slots
        );
    }

    /// Pages of the first 64 slots that are in memory, from the kernel's map of this process.
    fn resident_pages(arena: &Arena) -> usize {
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        let page_bytes = page_bytes();
        let slot_bytes = LAYOUT.receive_bytes + LAYOUT.send_bytes;
        let mut entries = vec![0; 64 * slot_bytes / page_bytes * 8];
        let offset = u64::try_from(arena.base / page_bytes * 8).unwrap();
        map.read_exact_at(&mut entries, offset).unwrap();
        // Little-endian: the top bit of the last byte says "present".
        entries
            .chunks_exact(8)
            .filter(|entry| entry[7] & 0x80 != 0)
            .count()
    }

    fn page_bytes() -> usize {
        let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .unwrap()
            .unwrap();
        usize::try_from(bytes).unwrap()
    }
}
