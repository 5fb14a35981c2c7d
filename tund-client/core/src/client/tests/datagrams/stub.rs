//! Questions to the stub go to the server's resolver, which the application knows by the stub's address.

use super::super::world::World;
use super::{dual_stack, payload, read, server, v4};
use crate::client::ClientConfig;
use crate::netstack::tests::world::APP_V4;
use std::net::{IpAddr, SocketAddr};
use tund_session::wire::frame::{Protocol, capability, resolver};

const STUB: &str = "10.111.0.1";

fn world() -> World {
    let config = ClientConfig {
        stub: Some(STUB.parse().unwrap()),
        ..dual_stack()
    };
    World::with(config, server(capability::DATAGRAM))
}

#[test]
fn a_question_to_the_stub_goes_to_the_resolver_and_its_answer_comes_from_the_stub() {
    let mut world = world();
    let (app, origin) = v4();
    let stub = SocketAddr::new(STUB.parse().unwrap(), 53);
    let (question, answer) = (payload(40), payload(400));
    world.throw((app, stub), &question);
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(resolver(true), question)]);
    assert_eq!(world.opened[0].1.destination, resolver(true));
    let (_, row) = world.client.mappings().iter().next().unwrap();
    assert_eq!(row.destination, stub);

    world.answer(mapping, resolver(true), &answer);
    assert_eq!(read(&world.seen()), (stub, app, answer.clone()));

    // By the same mapping others are reached as ever, and by no other name anything of the stub.
    world.throw((app, origin), b"x");
    assert_eq!(world.at_server(mapping), [(origin, b"x".to_vec())]);
    let other = SocketAddr::new(stub.ip(), 54);
    world.throw((app, other), b"y");
    assert_eq!(world.at_server(mapping), []);
    assert_eq!(world.seen().len(), 1, "as of a host where nobody listens");
    world.bounce(mapping, resolver(true), 111, 0);
    assert_eq!(
        world.seen().len(),
        1,
        "an error about the question names the stub"
    );
}

#[test]
fn who_never_asked_gets_no_answer() {
    let mut world = world();
    let (app, origin) = v4();
    world.throw((app, origin), b"x");
    let mapping = world.mapping();
    world.answer(mapping, resolver(true), b"uninvited");
    assert!(world.seen().is_empty());
}

#[test]
fn connections_to_the_stub_go_there_too() {
    let mut world = world();
    let (from, to) = (
        SocketAddr::new(APP_V4, 4001),
        SocketAddr::new(STUB.parse().unwrap(), 53),
    );
    world.kernel.connect(from, to, 4096);
    world.run();
    let open = &world.opened.last().unwrap().1;
    assert_eq!(
        (open.protocol, open.destination),
        (Protocol::Tcp, resolver(true))
    );
}

#[test]
fn nothing_else_is_at_the_stub() {
    let mut world = world();
    let stub: IpAddr = STUB.parse().unwrap();
    let from = SocketAddr::new(APP_V4, 4001);
    let socket = world.kernel.connect(from, SocketAddr::new(stub, 80), 4096);
    world.run();
    assert!(world.opened.is_empty());
    let state = world.kernel.socket(socket).state();
    assert_eq!(state, smoltcp::socket::tcp::State::Closed);
}
