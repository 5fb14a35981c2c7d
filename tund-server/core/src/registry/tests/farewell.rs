//! How links are closed, those of a removed key above all.

use super::world::{START, World, config, key};
use crate::registry::{
    Farewell, LAST_WORDS, LAST_WORDS_REVOKED, Registry, RegistryEvent, TurnedAway,
};
use std::time::Duration;
use tund_session::wire::frame::CloseCode;
use tund_session::{LinkDeath, LinkId, Secret, SessionId};

#[test]
fn a_removed_key_has_half_of_its_second_for_last_words_and_others_more() {
    for (code, expected) in [
        (CloseCode::KeyRemoved, Farewell::Revoked(LAST_WORDS_REVOKED)),
        (CloseCode::Asked, Farewell::LastWords(LAST_WORDS)),
    ] {
        let mut world = World::new(config());
        let (_, id) = world.attached(1, key(1));
        let link = world.registry.session(id).unwrap().carrier().unwrap();

        if code == CloseCode::KeyRemoved {
            world.registry.retain_keys(|_| false, world.now);
        } else {
            world.registry.close(id, code, world.now);
        }

        let farewell = world.registry.farewell(link, LinkDeath::SessionEnded);
        assert_eq!(farewell, expected);
    }
    assert!(LAST_WORDS_REVOKED <= Duration::from_millis(500));
}

#[test]
fn a_dead_link_has_no_last_words() {
    let registry = Registry::new(config());
    for death in [
        LinkDeath::Transport,
        LinkDeath::Silent,
        LinkDeath::PeerClosed,
        LinkDeath::AttachFailed,
    ] {
        assert_eq!(registry.farewell(LinkId(1), death), Farewell::None);
    }
}

/// Links told to go because their key was removed.
fn removed(registry: &mut Registry) -> Vec<LinkId> {
    let events = std::iter::from_fn(|| registry.poll_event());
    let gone = events.filter_map(|event| match event {
        RegistryEvent::TurnedAway {
            link,
            reason: TurnedAway::KeyRemoved,
        } => Some(link),
        RegistryEvent::TurnedAway { .. }
        | RegistryEvent::Session { .. }
        | RegistryEvent::Final { .. }
        | RegistryEvent::Held { .. } => None,
    });
    gone.collect()
}

#[test]
fn a_link_that_is_closing_already_goes_with_its_key() {
    // Its session has ended before.
    let mut world = World::new(config());
    let (_, id) = world.attached(1, key(1));
    let ended = world.registry.session(id).unwrap().carrier().unwrap();
    world.registry.close(id, CloseCode::Asked, world.now);
    world.registry.retain_keys(|of| *of == key(1), world.now);
    assert_eq!(removed(&mut world.registry), []);
    world.registry.retain_keys(|_| false, world.now);
    assert_eq!(removed(&mut world.registry), [ended]);

    // It was turned away, and has not read the answer.
    let mut registry = Registry::new(config());
    let (link, secret) = (LinkId(1), Secret::new([1; 32]));
    registry.handle_link_up(link, key(1), secret, SessionId([1; 16]), START);
    registry.handle_bytes(link, vec![0xee; 5000].into(), START);
    registry.retain_keys(|of| *of == key(1), START);
    assert_eq!(removed(&mut registry), []);
    registry.retain_keys(|_| false, START);
    assert_eq!(removed(&mut registry), [link]);
}
