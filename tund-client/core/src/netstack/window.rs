//! The receive window of one connection as its application is told it: never more than the owner
//! lets in, never taken back.

/// Keeps three edges of the application's byte stream, each an offset from its first byte.
///
/// The ring's end is what smoltcp would promise. `intake_end` is what the owner lets in.
/// `promised_end` is what the application was told; it only grows, and what lies before it is
/// always taken, also where a later window field, cut down to a multiple of its scale, says up to
/// `2^shift - 1` bytes less (RFC 7323 §2.4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiveWindow {
    /// Sequence number of the application's first byte.
    first: u32,
    /// Window scale that both ends use, zero if the application did not offer it.
    shift: u8,
    /// Size of the ring in bytes.
    capacity: u64,
    /// Bytes that the owner has taken out of the ring.
    taken: u64,
    /// The owner lets in the bytes before this; only grows.
    intake_end: u64,
    /// The application may have sent the bytes before this; at most `intake_end`, and at most
    /// `taken + capacity`.
    promised_end: u64,
    /// Highest byte that arrived, plus one: beyond what is in order if something is missing.
    arrived_end: u64,
    /// Acknowledgement and window of the last packet sent.
    last: Option<(u32, u16)>,
}

/// At most this may be promised ahead: comparing sequence numbers needs the other half.
const MAX_AHEAD_BYTES: u64 = 1 << 30;

impl ReceiveWindow {
    /// The window of a connection whose SYN has the number `isn`.
    pub(crate) const fn new(isn: u32, shift: u8, capacity: u64, intake_bytes: u64) -> Self {
        let intake_end = if intake_bytes < MAX_AHEAD_BYTES {
            intake_bytes
        } else {
            MAX_AHEAD_BYTES
        };
        Self {
            first: isn.wrapping_add(1),
            shift,
            capacity,
            taken: 0,
            intake_end,
            promised_end: 0,
            arrived_end: 0,
            last: None,
        }
    }

    /// Number of the application's SYN.
    pub(crate) const fn isn(&self) -> u32 {
        self.first.wrapping_sub(1)
    }

    /// Sequence number of the byte at `offset`.
    pub(crate) fn sequence(&self, offset: u64) -> u32 {
        let low = u32::try_from(offset & u64::from(u32::MAX)).unwrap_or(0);
        self.first.wrapping_add(low)
    }

    /// Offset of sequence number `sequence`, if it is not further than half the number space from
    /// what was taken; numbers before the first byte yield `None` too.
    fn offset(&self, sequence: u32) -> Option<u64> {
        let ahead = sequence
            .wrapping_sub(self.sequence(self.taken))
            .cast_signed();
        self.taken.checked_add_signed(i64::from(ahead))
    }

    /// Bytes taken by the owner so far.
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    /// The owner took `count` bytes out of the ring.
    pub(crate) const fn take(&mut self, count: u64) {
        self.taken += count;
    }

    /// The owner lets in `bytes` beyond what it has taken; true if that is more than before.
    pub(crate) fn let_in(&mut self, bytes: u64) -> bool {
        let end = self.taken + bytes.min(MAX_AHEAD_BYTES);
        let more = end > self.intake_end;
        self.intake_end = self.intake_end.max(end);
        more
    }

    /// How many of the bytes up to `sequence + bytes` were never promised.
    pub(crate) fn excess(&self, sequence: u32, bytes: u32) -> usize {
        let end = self.offset(sequence.wrapping_add(bytes)).unwrap_or(0);
        let excess = end.saturating_sub(self.promised_end).min(u64::from(bytes));
        usize::try_from(excess).unwrap_or(usize::MAX)
    }

    /// Payload up to `sequence` arrived.
    pub(crate) fn arrived(&mut self, sequence: u32) {
        if let Some(end) = self.offset(sequence) {
            self.arrived_end = self.arrived_end.max(end.min(self.promised_end));
        }
    }

    /// Something arrived behind a gap, `in_order` bytes of what was not taken being before it.
    pub(crate) const fn has_gap(&self, in_order: u64) -> bool {
        self.arrived_end > self.taken + in_order
    }

    /// `sequence` lies ahead of what has come in order, and within what was promised.
    pub(crate) fn is_ahead(&self, in_order: u64, sequence: u32) -> bool {
        let received = self.taken + in_order;
        self.offset(sequence)
            .is_some_and(|at| at > received && at < self.promised_end)
    }

    /// The end of what may be promised. The ring keeps `2^shift - 1` bytes for itself, so that
    /// smoltcp, which rounds its own window down, never cuts off what was promised here.
    fn limit(&self) -> u64 {
        let rounding = (1 << self.shift) - 1;
        self.intake_end
            .min((self.taken + self.capacity).saturating_sub(rounding))
    }

    /// The window field for a packet that acknowledges `acknowledgment`; what it says is promised.
    /// The field of a SYN is not scaled (RFC 7323 §2.2).
    pub(crate) fn announce(&mut self, acknowledgment: u32, is_syn: bool) -> u16 {
        let shift = if is_syn { 0 } else { self.shift };
        let acknowledged = self.offset(acknowledgment).unwrap_or(self.taken);
        let open = self.limit().saturating_sub(acknowledged);
        let field = u16::try_from(open >> shift).unwrap_or(u16::MAX);
        self.promised_end = self
            .promised_end
            .max(acknowledged + (u64::from(field) << shift));
        self.last = Some((acknowledgment, field));
        field
    }

    /// The last packet already said `acknowledgment`, and all of the window that there is.
    pub(crate) fn is_old_news(&self, acknowledgment: u32) -> bool {
        let acknowledged = self.offset(acknowledgment).unwrap_or(self.taken);
        let open = self.limit().saturating_sub(acknowledged);
        let field = u16::try_from(open >> self.shift).unwrap_or(u16::MAX);
        self.last == Some((acknowledgment, field))
    }

    /// The window has opened enough for a packet that says nothing else, with `in_order` bytes in
    /// the ring: little of it was left, it has at least doubled, and by a whole segment at least
    /// unless it was shut (receiver's silly-window avoidance, RFC 9293 §3.8.6.2.2).
    pub(crate) fn wants_update(&self, in_order: u64, segment_bytes: u64) -> bool {
        let received = self.taken + in_order;
        let old = self.promised_end.saturating_sub(received) >> self.shift;
        let new = self.limit().saturating_sub(received) >> self.shift;
        let step = segment_bytes.min(self.capacity / 2) >> self.shift;
        let is_low = old << self.shift < self.capacity / LOW_WINDOW;
        is_low && new > old && new >= 2 * old && (old == 0 || new - old >= step)
    }
}

/// While more than this part of the ring is promised, a sender does not wait for more.
const LOW_WINDOW: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 256 * 1024;

    /// A window whose numbers wrap within the test.
    fn window(intake_bytes: u64) -> ReceiveWindow {
        let mut window = ReceiveWindow::new(u32::MAX - 1000, 3, RING, intake_bytes);
        window.announce(window.sequence(0), true);
        window
    }

    #[test]
    fn a_syn_announces_what_is_let_in_unscaled() {
        let mut narrow = ReceiveWindow::new(7, 3, RING, 10_000);
        let mut wide = ReceiveWindow::new(7, 3, RING, 1 << 40);

        assert_eq!(narrow.announce(8, true), 10_000);
        assert_eq!(wide.announce(8, true), u16::MAX);
        assert_eq!(
            wide.announce(8, false),
            u16::try_from((RING - 7) >> 3).unwrap()
        );
    }

    #[test]
    fn what_was_promised_stays_promised_whatever_the_order_of_events() {
        let mut window = window(100_000);
        let mut edge = 0;
        let mut received = 0;

        for step in 1_u64..2_000 {
            // Odd sizes, so that the scale rounds; the owner takes less than what comes.
            let more = (step * 7919 % 1500).min(window.promised_end - received);
            received += more;
            window.arrived(window.sequence(received));
            if step % 3 == 0 {
                let held = received - window.taken;
                window.take(held / 2);
                window.let_in(step * 31 % 100_000);
            }
            let field = window.announce(window.sequence(received), false);
            let told = received + (u64::from(field) << 3);

            assert!(window.promised_end >= edge, "step {step}");
            assert!(
                told + 7 >= window.promised_end,
                "step {step}: taken back beyond the scale"
            );
            assert!(window.promised_end <= window.intake_end, "step {step}");
            assert!(window.promised_end <= window.taken + RING, "step {step}");
            edge = window.promised_end;
        }
        assert!(edge > u64::from(u16::MAX), "the window moved");
    }

    #[test]
    fn bytes_beyond_the_promise_are_excess() {
        let window = window(1000);

        assert_eq!(window.excess(window.sequence(0), 1000), 0);
        assert_eq!(window.excess(window.sequence(0), 1001), 1);
        assert_eq!(window.excess(window.sequence(990), 100), 90);
        assert_eq!(window.excess(window.sequence(5000), 100), 100);
        assert_eq!(window.excess(window.isn(), 1), 0);
    }

    #[test]
    fn a_gap_lasts_until_it_is_filled() {
        let mut window = window(10_000);

        window.arrived(window.sequence(3000));
        assert!(window.has_gap(0));
        assert!(window.has_gap(2999));
        assert!(!window.has_gap(3000));
        window.take(3000);
        assert!(!window.has_gap(0));
    }

    #[test]
    fn an_update_waits_for_a_segment_unless_the_window_was_shut() {
        let mut window = window(8000);
        window.announce(window.sequence(0), false);

        assert!(!window.wants_update(0, 1460));
        window.let_in(9000);
        assert!(!window.wants_update(0, 1460), "not doubled");
        window.let_in(16_000);
        assert!(window.wants_update(0, 1460));
        assert!(window.wants_update(7000, 1460));

        let mut shut = self::window(0);
        assert!(!shut.wants_update(0, 1460));
        shut.let_in(100);
        assert!(shut.wants_update(0, 1460));
    }
}
