//! Tells the one task that owns thousands of sockets which of them have something to do.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A queue of tokens whose wakers were woken since the owner last looked.
///
/// Give each socket the waker of its own token and keep that waker as long as the socket: tokio
/// then neither clones nor compares more than a pointer at each poll. A token is queued at most
/// once, so the queue is never longer than the number of wakers registered.
pub struct ReadySet {
    shared: Arc<Shared>,
    /// Swapped with the queue at each drain, so that neither is allocated again.
    spare: Vec<Arc<Token>>,
}

struct Shared {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    woken: Vec<Arc<Token>>,
    owner: Option<Waker>,
    closed: bool,
}

struct Token {
    number: u64,
    /// Whether it is in the queue, or about to be.
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl ReadySet {
    /// Makes an empty set.
    pub fn new() -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
        });
        Self {
            shared,
            spare: Vec::new(),
        }
    }

    /// Makes the waker that reports `token`; what the number means is the owner's business.
    ///
    /// It may outlive the set, and then does nothing. A token may be reported once more after its
    /// socket is gone: never use a number twice.
    pub fn register(&self, token: u64) -> Waker {
        let shared = Arc::clone(&self.shared);
        Waker::from(Arc::new(Token {
            number: token,
            queued: AtomicBool::new(false),
            shared,
        }))
    }

    /// Appends the tokens woken since the last call to `out`, or asks to be woken when there are.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, out: &mut Vec<u64>) -> Poll<()> {
        let mut queue = self.shared.lock();
        if queue.woken.is_empty() {
            if !queue
                .owner
                .as_ref()
                .is_some_and(|owner| owner.will_wake(cx.waker()))
            {
                queue.owner = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        mem::swap(&mut queue.woken, &mut self.spare);
        drop(queue);
        for token in self.spare.drain(..) {
            // Cleared before the owner looks at the socket: what happens there from now on must
            // queue the token again.
            token.queued.swap(false, Ordering::AcqRel);
            out.push(token.number);
        }
        Poll::Ready(())
    }
}

impl Default for ReadySet {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ReadySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadySet")
            .field("woken", &self.shared.lock().woken.len())
            .finish()
    }
}

impl Drop for ReadySet {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.owner = None;
        // The queue and its tokens hold each other; dropped outside the lock.
        let woken = mem::take(&mut queue.woken);
        drop(queue);
        drop(woken);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held, and a queue of tokens is whole at every moment.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    fn enqueue(self: Arc<Self>) {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        if queue.closed {
            return;
        }
        queue.woken.push(self);
        let owner = queue.owner.take();
        drop(queue);
        if let Some(owner) = owner {
            owner.wake();
        }
    }
}

impl Wake for Token {
    fn wake(self: Arc<Self>) {
        // A swap and not a load: it orders what made the socket ready before the owner's look.
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.enqueue();
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            Arc::clone(self).enqueue();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Owner(AtomicBool);

    impl Wake for Owner {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    impl Owner {
        fn was_woken(&self) -> bool {
            self.0.swap(false, Ordering::SeqCst)
        }
    }

    fn drain(set: &mut ReadySet, owner: &Arc<Owner>) -> Vec<u64> {
        let waker = Waker::from(Arc::clone(owner));
        let mut out = Vec::new();
        let ready = set
            .poll_ready(&mut Context::from_waker(&waker), &mut out)
            .is_ready();
        assert_eq!(ready, !out.is_empty());
        out
    }

    #[test]
    fn a_token_is_reported_once_however_often_it_is_woken_and_again_after_a_drain() {
        let (mut set, owner) = (ReadySet::new(), Arc::new(Owner::default()));
        let (one, two) = (set.register(1), set.register(2));
        assert!(drain(&mut set, &owner).is_empty());

        one.wake_by_ref();
        two.wake_by_ref();
        one.wake_by_ref();

        assert!(owner.was_woken());
        assert_eq!(drain(&mut set, &owner), [1, 2]);
        assert!(drain(&mut set, &owner).is_empty());

        one.wake_by_ref();
        assert!(owner.was_woken());
        assert_eq!(drain(&mut set, &owner), [1]);
    }

    #[test]
    fn a_wake_before_the_owner_ever_looked_is_not_lost() {
        let (mut set, owner) = (ReadySet::new(), Arc::new(Owner::default()));
        set.register(7).wake();

        assert_eq!(drain(&mut set, &owner), [7]);
    }

    #[test]
    fn wakers_outlive_their_set_and_free_everything() {
        let set = ReadySet::new();
        let (queued, idle) = (set.register(1), set.register(2));
        queued.wake_by_ref();
        let shared = Arc::downgrade(&set.shared);

        drop(set);
        idle.wake_by_ref();
        queued.wake_by_ref();
        drop((queued, idle));

        assert_eq!(shared.strong_count(), 0);
    }

    #[tokio::test]
    async fn sockets_of_one_task_are_told_apart() {
        use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, duplex};

        let mut set = ReadySet::new();
        let mut pairs: Vec<_> = (0..8).map(|_| duplex(64)).collect();
        let wakers: Vec<_> = (0..8).map(|token| set.register(token)).collect();
        for ((near, _), waker) in pairs.iter_mut().zip(&wakers) {
            let mut space = [0; 4];
            let mut cx = Context::from_waker(waker);
            let read = std::pin::Pin::new(near).poll_read(&mut cx, &mut ReadBuf::new(&mut space));
            assert!(read.is_pending());
        }

        pairs[5].1.write_all(b"x").await.unwrap();
        let mut woken = Vec::new();
        std::future::poll_fn(|cx| set.poll_ready(cx, &mut woken)).await;

        assert_eq!(woken, [5]);
    }
}
