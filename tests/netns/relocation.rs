//! The server moves to another address: its sessions, their ids and their flows go on there.

use tund_tests::lab::{Family, Lab, Settings};

use crate::proxy::{HAPROXY_PORT, LISTED, haproxy, logged, shown};
use crate::support::{Echo, SOON, Scene};

const OLD: &str = "10.77.3.2";
const NEW: &str = "10.77.3.7";

fn settings(addresses: &str) -> Settings {
    Settings::new()
        .server("origin", "proxy_protocol", LISTED)
        .client("server", "address", addresses)
}

/// Takes the old address away and gives the server another one, of which `announce` tells; flow and
/// id outlive it, and two more outages.
fn moves(scene: &Scene, announce: impl FnOnce()) {
    let proxy = haproxy(&scene.lab);
    // Connection C goes by a device and an address that stay.
    let to = scene.lab.hidden_origin_address(Family::V4, HAPROXY_PORT);
    let mut kept = Echo::open(&scene.lab.client, to).unwrap();
    let id = shown(scene);
    let remote = || {
        let link = scene.tund.client.wait_attached(SOON).link;
        link.map(|link| link.remote).unwrap_or_default()
    };
    assert_eq!(remote(), format!("{OLD}:443"));

    announce();
    scene.lab.server.ip_batch(&[
        format!("addr del {OLD}/24 dev up"),
        format!("addr add {NEW}/24 dev up"),
        "route replace default via 10.77.3.1 dev up".to_owned(),
    ]);

    for outages in 1..=3 {
        kept.round_trip().unwrap();
        assert_eq!(remote(), format!("{NEW}:443"));
        assert_eq!(shown(scene), id);
        let seen = logged(&proxy, &scene.lab.client, to);
        assert_eq!(seen, (id.clone(), "10.77.1.2".to_owned()));
        assert_eq!(scene.tund.client.status().outages.count, outages);
        scene.lab.forget();
    }
}

#[test]
fn a_server_whose_name_leads_elsewhere_is_found_there_with_its_session() {
    let lab = Lab::new("a name that leads elsewhere");
    let hosts = lab.directory().join("hosts");
    let name = |address: &str| std::fs::write(&hosts, format!("{address} server.test\n")).unwrap();
    name(OLD);
    let settings = settings("[\"server.test:443\"]").hosts(&hosts);
    let scene = Scene::within(lab, &settings);

    moves(&scene, || name(NEW));
}

#[test]
fn a_server_that_moves_to_its_other_address_is_found_there_with_its_session() {
    let both = format!("[\"{OLD}:443\", \"{NEW}:443\"]");
    let scene = Scene::new("another address", &settings(&both));

    moves(&scene, || {});
}
