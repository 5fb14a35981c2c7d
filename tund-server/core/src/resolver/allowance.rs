//! How often a session may ask.

use std::time::Duration;
use tund_session::Instant;

/// A session may put a question so often …
const QUESTIONS_EVERY: Duration = Duration::from_millis(5);
/// … but so many at once.
const QUESTIONS_AT_ONCE: u32 = 200;

/// How many questions a session may put: 200 a second, and as many at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    /// When the next one would be due, were they to come evenly.
    next: Instant,
}

impl Allowance {
    /// One more question.
    ///
    /// # Errors
    ///
    /// From when on it may be put.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let most = QUESTIONS_EVERY * (QUESTIONS_AT_ONCE - 1);
        if self.next > now + most {
            return Err(Instant::from_nanos(self.next.as_nanos().saturating_sub(
                u64::try_from(most.as_nanos()).unwrap_or(u64::MAX),
            )));
        }
        self.next = self.next.max(now) + QUESTIONS_EVERY;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_questions_a_second_and_as_many_at_once() {
        let mut allowance = Allowance::default();
        let start = Instant::from_nanos(1_000_000_000_000);
        for _ in 0..QUESTIONS_AT_ONCE {
            assert_eq!(allowance.take(start), Ok(()));
        }
        let due = allowance.take(start).unwrap_err();
        assert_eq!(due, start + QUESTIONS_EVERY);
        assert!(allowance.take(due).is_ok());
        let later = start + Duration::from_secs(100);
        let taken = (0..1000).filter(|_| allowance.take(later).is_ok()).count();
        assert_eq!(taken, 200);
    }
}
