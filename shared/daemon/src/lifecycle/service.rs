//! What the service manager is told. Without one (`NOTIFY_SOCKET` is not set) nothing happens.

use sd_notify::NotifyState;

/// Tells that the daemon serves, after start and after a reload.
pub fn notify_ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells that the configuration is being read again; [`notify_ready`] must follow.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
    }
}

/// Tells that the daemon has begun to stop.
pub fn notify_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Sets the one-line status that `systemctl status` shows. No address of an application in it.
pub fn notify_status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told; is NOTIFY_SOCKET right?");
    }
}
