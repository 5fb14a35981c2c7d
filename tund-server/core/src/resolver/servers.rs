//! Which name server is asked when, and which answer of several is passed on.

use super::message::{Header, code};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::Instant;

/// Times that a question is put, at most: a stub resolver gives up after 5 s to 10 s.
const TRIES: usize = 3;
/// A name server that has not answered is asked last for so long.
const ASIDE: Duration = Duration::from_secs(30);

/// Which name servers have not answered of late.
#[derive(Debug, Default)]
pub struct Silence {
    until: BTreeMap<SocketAddr, Instant>,
}

impl Silence {
    /// A question is put to these, in the order in which the host lists them.
    pub fn tries(&mut self, listed: &[SocketAddr], now: Instant) -> Tries {
        self.until
            .retain(|server, until| *until > now && listed.contains(server));
        let is_silent = |server: &SocketAddr| self.until.contains_key(server);
        let mut order = listed.to_vec();
        order.sort_by_key(is_silent);
        Tries {
            order: order.into(),
            left: TRIES,
            answer: None,
        }
    }

    /// Whether that one has answered, whatever it was.
    pub fn note(&mut self, server: SocketAddr, has_answered: bool, now: Instant) {
        if has_answered {
            self.until.remove(&server);
        } else {
            self.until.insert(server, now + ASIDE);
        }
    }
}

/// The way of one question from one name server to the next.
#[derive(Debug)]
pub struct Tries {
    order: VecDeque<SocketAddr>,
    left: usize,
    answer: Option<Vec<u8>>,
}

impl Tries {
    /// Who is asked now; nobody more once there is an answer, or no use in asking.
    pub fn next_server(&mut self) -> Option<SocketAddr> {
        self.left = self.left.checked_sub(1)?;
        let server = self.order.pop_front()?;
        self.order.push_back(server);
        Some(server)
    }

    /// What that one has answered. One that cannot or will not tell is asked no more; another may.
    pub fn answered(&mut self, server: SocketAddr, answer: Vec<u8>) {
        let code = Header::of(&answer).map(Header::code);
        if matches!(
            code,
            Some(code::SERVER_FAILURE | code::NOT_IMPLEMENTED | code::REFUSED)
        ) {
            self.order.retain(|other| *other != server);
        } else {
            self.order.clear();
        }
        self.answer = Some(answer);
    }

    /// The answer: the last, if all are of that kind.
    pub fn into_answer(self) -> Option<Vec<u8>> {
        self.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 53))
    }

    fn answer(mark: u8, code: u8) -> Vec<u8> {
        vec![mark, 0, 0x81, 0x80 | code, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn order(mut tries: Tries) -> Vec<SocketAddr> {
        std::iter::from_fn(|| tries.next_server()).collect()
    }

    #[test]
    fn three_tries_go_round() {
        let of = |servers: &[u8]| {
            let listed: Vec<_> = servers.iter().map(|number| server(*number)).collect();
            order(Silence::default().tries(&listed, at(1)))
        };
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[1]), [1, 1, 1].map(server));
        assert_eq!(of(&[1, 2]), [1, 2, 1].map(server));
        assert_eq!(of(&[1, 2, 3]), [1, 2, 3].map(server));
    }

    #[test]
    fn who_has_not_answered_is_asked_last_for_half_a_minute() {
        let listed = [1, 2, 3].map(server);
        let mut silence = Silence::default();
        silence.note(server(1), false, at(10));
        assert_eq!(order(silence.tries(&listed, at(11))), [2, 3, 1].map(server));
        silence.note(server(2), false, at(20));
        assert_eq!(order(silence.tries(&listed, at(39))), [3, 1, 2].map(server));
        assert_eq!(order(silence.tries(&listed, at(40))), [1, 3, 2].map(server));
        silence.note(server(2), true, at(41));
        assert_eq!(order(silence.tries(&listed, at(42))), [1, 2, 3].map(server));
        for number in 1..=3 {
            silence.note(server(number), false, at(43));
        }
        assert_eq!(order(silence.tries(&listed, at(44))), [1, 2, 3].map(server));
        // Who is listed no more is forgotten.
        silence.tries(&[server(2)], at(45));
        assert_eq!(silence.until.len(), 1);
    }

    #[test]
    fn an_answer_ends_it_and_a_failure_asks_the_next() {
        let listed = [1, 2].map(server);
        for code in [code::NO_ERROR, code::FORMAT_ERROR, code::NAME_ERROR] {
            let mut tries = Silence::default().tries(&listed, at(1));
            tries.next_server();
            tries.answered(server(1), answer(1, code));
            assert_eq!(tries.next_server(), None, "{code}");
            assert_eq!(tries.into_answer(), Some(answer(1, code)));
        }
        for code in [code::SERVER_FAILURE, code::NOT_IMPLEMENTED, code::REFUSED] {
            let mut tries = Silence::default().tries(&listed, at(1));
            tries.next_server();
            tries.answered(server(1), answer(1, code));
            assert_eq!(tries.next_server(), Some(server(2)), "{code}");
            // It does not answer, and is asked again; the first is not.
            assert_eq!(tries.next_server(), Some(server(2)), "{code}");
            assert_eq!(tries.next_server(), None);
            assert_eq!(tries.into_answer(), Some(answer(1, code)), "what there is");
        }
        let mut tries = Silence::default().tries(&listed, at(1));
        tries.answered(server(1), answer(1, code::REFUSED));
        tries.answered(server(2), answer(2, code::SERVER_FAILURE));
        assert_eq!(tries.next_server(), None, "nobody is left");
        let last = Some(answer(2, code::SERVER_FAILURE));
        assert_eq!(tries.into_answer(), last);
    }
}
