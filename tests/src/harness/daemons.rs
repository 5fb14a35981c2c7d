//! What befalls daemons: the user disconnects, or one of them starts again.

use super::books::Books;
use super::coverage::Situation;
use super::world::{CLIENT, SERVER, World, registry};
use tund_session::wire::frame::CloseCode;

impl World {
    /// The user disconnects, or the last flow has ended and `linger` is over.
    pub fn close(&mut self, code: CloseCode) {
        let now = self.now;
        let Some(client) = &mut self.client else {
            return;
        };
        let attached = client.session.is_attached();
        client.books.closing = true;
        client.session.close(code, now);
        self.met(Situation::UserDisconnect);
        if !attached {
            self.met(Situation::UserDisconnectDetached);
        }
        self.tell(|| "user disconnects".to_owned());
        self.drain();
    }

    /// The client daemon dies and starts again.
    pub fn restart_client(&mut self) {
        self.client_instance = self.client_instance.wrapping_add(1);
        self.tell(|| "client restarts".to_owned());
        self.stop_delivering(true);
        self.empty_client_lobby();
        let Some(client) = self.client.take() else {
            return;
        };
        if !client.books.locals.is_empty() {
            self.met(Situation::ClientRestart);
        }
        self.abandon_sockets(&client.books, CLIENT, Some("client restarted"));
        for link in client.books.links {
            self.hang_up(link, CLIENT, false);
        }
        self.drain();
    }

    /// The server daemon dies and starts again.
    pub fn restart_server(&mut self) {
        self.server_instance = self.server_instance.wrapping_add(1);
        self.tell(|| "server restarts".to_owned());
        for books in std::mem::take(&mut self.books).into_values() {
            if !books.locals.is_empty() {
                self.met(Situation::ServerRestart);
            }
            self.abandon_sockets(&books, SERVER, Some("server restarted"));
        }
        self.ready.clear();
        self.registry = registry(&self.knobs, self.server_instance);
        self.restart_desk();
        self.empty_server_lobby();
        for link in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.hang_up(link, SERVER, false);
        }
        self.drain();
    }

    /// The local sockets of a session that is no more are reset at once; those that have ended
    /// already only when their daemon itself is gone.
    pub fn abandon_sockets(&mut self, books: &Books, side: usize, crash: Option<&'static str>) {
        self.end_mappings(books.mappings.values().copied(), side);
        for local in books
            .locals
            .values()
            .filter(|l| crash.is_some() || !l.is_complete())
        {
            let unit = &mut self.units[local.unit];
            unit.aborted = unit.aborted.or(crash).or(Some("session ended"));
            if let Some(socket) = &mut unit.sockets[side] {
                socket.reset();
            }
        }
    }
}
