//! Who is let in: the list of clients as it is when a handshake is complete.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use rustls::AlertDescription;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::State;
use super::{ClientTls, LinkError, PrivateKey, World, flush, recv, within};

#[tokio::test]
async fn the_list_of_clients_changes_under_a_running_server() {
    let world = World::new();
    let stranger = PrivateKey::generate().unwrap();
    let tls = ClientTls::new(&stranger, vec![world.server.public()]).unwrap();
    world.clients.replace([stranger.public()]);

    let (mut near, mut far) = world.pair_with(&tls).await;
    let (_, server) = world.establish(&mut near, &mut far).await;
    assert_eq!(server.unwrap().peer, stranger.public());

    far.finish_with(2, AlertDescription::AccessDenied);
    flush(&mut far).await.unwrap();
    assert!(matches!(
        recv(&mut near).await,
        Err(LinkError::KeyNotListed(None))
    ));
}

/// The list is looked at when the key is shown; the proof of it may come much later.
#[tokio::test]
async fn a_key_taken_off_the_list_before_its_handshake_is_complete_is_not_let_in() {
    let world = World::new();
    let (mut client, mut far) = world.raw_client().await;
    let mut tls = world.client_tls();
    // Key and proof in records of their own, so that the key is judged before the proof is there.
    Arc::make_mut(&mut tls.config).max_fragment_size = Some(64);
    let mut shown = tls.connection().unwrap();
    let hello = written(&mut shown);
    client.write_all(&hello).await.unwrap();
    while shown.is_handshaking() {
        let mut space = [0; 4096];
        let count = tokio::select! {
            read = client.read(&mut space) => read.unwrap(),
            ended = poll_fn(|cx| far.poll_handshake(cx)) => panic!("{ended:?}"),
        };
        shown.read_tls(&mut space.get(..count).unwrap()).unwrap();
        shown.process_new_packets().unwrap();
    }
    let proof = written(&mut shown);
    let (most, last) = proof.split_at(proof.len() - 1);
    client.write_all(most).await.unwrap();
    within(poll_fn(|cx| {
        assert!(far.poll_handshake(cx).is_pending());
        let wanted = hello.len() + most.len();
        let has_all = matches!(
            far.state,
            State::Handshaking { received_bytes, .. } if received_bytes == wanted
        );
        if has_all {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }))
    .await;

    world.clients.replace([]);
    client.write_all(last).await.unwrap();

    let refusal = async {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        drop(client);
        rest
    };
    let (seen, rest) = tokio::join!(
        within(poll_fn(|cx| far.poll_handshake(cx))),
        within(refusal)
    );
    assert!(
        matches!(seen, Err(LinkError::KeyNotListed(Some(key))) if key == world.client.public()),
        "{seen:?}"
    );
    shown.read_tls(&mut rest.as_slice()).unwrap();
    let told = shown.process_new_packets().unwrap_err();
    assert_eq!(
        told,
        rustls::Error::AlertReceived(AlertDescription::AccessDenied)
    );
}

fn written(tls: &mut rustls::ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    bytes
}
