//! Proves the TUN device against the kernel, in network namespaces of the tests' own.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::sys::testing::{PATIENCE, eventually, in_namespace, ip, ip_output};

#[test]
fn a_packet_of_an_application_arrives_whole_behind_its_header() {
    with_runtime(async || {
        let mut tun = TunDevice::open(&options()).unwrap();
        ip("route add 10.9.0.0/16 dev tund0");
        let application = UdpSocket::bind("10.111.0.2:0").unwrap();

        application.send_to(b"hello", "10.9.0.1:9").unwrap();
        let packet = read(&mut tun).await;

        assert!(tun.vnet());
        assert_eq!(tun.offload(), Offload::Segmentation);
        assert_eq!(tun.mtu(), 1500);
        assert_eq!(packet.len(), VNET_HEADER_BYTES + 20 + 8 + 5);
        assert_eq!(
            destination(&packet[VNET_HEADER_BYTES..]),
            Ipv4Addr::new(10, 9, 0, 1)
        );
        assert!(packet.ends_with(b"hello"));
    });
}

#[test]
fn a_packet_that_is_written_reaches_the_application() {
    with_runtime(async || {
        let mut tun = TunDevice::open(&options()).unwrap();
        ip("route add 10.9.0.0/16 dev tund0");
        let application = UdpSocket::bind("10.111.0.2:0").unwrap();
        application.set_read_timeout(Some(PATIENCE)).unwrap();
        application.send_to(b"hello", "10.9.0.1:9").unwrap();

        let mut packet = read(&mut tun).await;
        turn_round(&mut packet[VNET_HEADER_BYTES..]);
        tun.try_write(&packet).unwrap();

        let mut answer = [0; 16];
        let (length, from) = application.recv_from(&mut answer).unwrap();
        assert_eq!(
            (&answer[..length], from),
            (&b"hello"[..], "10.9.0.1:9".parse().unwrap())
        );
    });
}

#[test]
fn large_writes_of_an_application_come_unsegmented() {
    with_runtime(async || {
        let mut tun = TunDevice::open(&options()).unwrap();
        ip("route add 10.9.0.0/16 dev tund0");
        let mut application = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::STREAM.nonblocking(),
            None,
        )
        .unwrap();
        let origin: std::net::SocketAddr = "10.9.0.1:80".parse().unwrap();
        let started = application.connect(&origin.into()).unwrap_err();
        assert_eq!(started.raw_os_error(), Some(Errno::EINPROGRESS as i32));

        let mut syn = read(&mut tun).await;
        // NEEDS_CSUM, where the TCP header starts, where its checksum is.
        assert_eq!((syn[0], &syn[6..10]), (1, &[20, 0, 16, 0][..]));
        answer_with_syn_ack(&mut syn[VNET_HEADER_BYTES..]);
        tun.try_write(&syn).unwrap();
        assert!(io::Write::write(&mut application, &[7; 10_000]).unwrap() >= 10_000);
        let acknowledgement = read(&mut tun).await;
        let segment = read(&mut tun).await;

        assert_eq!(acknowledgement.len(), VNET_HEADER_BYTES + 20 + 32);
        assert!(segment.len() > 5_000, "{}", segment.len());
        // VIRTIO_NET_HDR_GSO_TCPV4, and the size that the segments should have.
        let gso_size = u16::from_le_bytes([segment[4], segment[5]]);
        assert_eq!((segment[0], segment[1], gso_size), (1, 1, 1448));
    });
}

#[test]
fn device_addresses_and_routes_outlive_the_daemon() {
    with_runtime(async || {
        let first = TunDevice::open(&options()).unwrap();
        let index = first.index;
        ip("route add 10.9.0.0/16 dev tund0");
        ip("-6 route add 2001:db8:9::/48 dev tund0");
        drop(first);

        assert!(
            nft_ruleset().contains("table inet tund-tund0"),
            "the guard went"
        );
        assert!(ip_output("address show dev tund0").contains("10.111.0.2/32"));
        assert!(ip_output("address show dev tund0").contains("fd11::2/128"));
        assert!(ip_output("route show dev tund0").contains("10.9.0.0/16"));

        let mut second = TunDevice::open(&options()).unwrap();
        assert_eq!(second.index, index);
        assert!(ip_output("route show dev tund0").contains("10.9.0.0/16"));
        assert!(ip_output("-6 route show dev tund0").contains("2001:db8:9::/48"));
        let application = UdpSocket::bind("10.111.0.2:0").unwrap();
        application.send_to(b"again", "10.9.0.1:9").unwrap();
        assert!(read(&mut second).await.ends_with(b"again"));
    });
}

#[test]
fn ipv6_addresses_work_at_once_and_the_kernel_adds_none() {
    with_runtime(async || {
        let tun = TunDevice::open(&options()).unwrap();

        UdpSocket::bind("[fd11::2]:0").unwrap();
        TcpListener::bind("[fd11::2]:0").unwrap();

        let addresses: Vec<String> = tun.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.111.0.2/32", "fd11::2/128"]);
        assert!(!ip_output("address show dev tund0").contains("fe80::"));
    });
}

#[test]
fn ipv6_switched_off_leaves_ipv4_working() {
    with_runtime(async || {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();

        let tun = TunDevice::open(&options()).unwrap();

        let addresses: Vec<String> = tun.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.111.0.2/32"]);
    });
}

#[test]
fn what_the_configuration_dropped_goes_and_what_the_user_added_stays() {
    with_runtime(async || {
        drop(TunDevice::open(&options()).unwrap());
        ip("address add 10.111.7.7/32 dev tund0");
        ip("route add 10.9.0.0/16 dev tund0");
        let mut changed = options();
        changed.addresses = vec![address("10.111.0.3", 32), address("fd11::2", 64)];

        let tun = TunDevice::open(&changed).unwrap();

        let mut addresses = tun.addresses.to_vec();
        addresses.sort();
        assert_eq!(
            addresses,
            [
                address("10.111.0.3", 32),
                address("10.111.7.7", 32),
                address("fd11::2", 64)
            ]
        );
        assert!(ip_output("route show dev tund0").contains("10.9.0.0/16"));
    });
}

#[test]
fn a_prefix_that_grew_keeps_the_address() {
    with_runtime(async || {
        drop(TunDevice::open(&options()).unwrap());
        let mut changed = options();
        changed.addresses = vec![address("10.111.0.2", 24), address("10.111.0.3", 24)];
        drop(TunDevice::open(&changed).unwrap());
        changed.addresses = vec![address("10.111.0.3", 24)];

        let tun = TunDevice::open(&changed).unwrap();

        assert_eq!(tun.addresses, [address("10.111.0.3", 24)]);
    });
}

#[test]
fn a_second_opener_is_told_that_the_device_is_in_use() {
    with_runtime(async || {
        let _first = TunDevice::open(&options()).unwrap();

        let error = TunDevice::open(&options()).unwrap_err();

        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("tund0"), "{error}");
    });
}

#[test]
fn a_device_of_another_kind_with_the_name_is_a_conflict() {
    for kind in [
        "link add tund0 type bridge",
        "tuntap add dev tund0 mode tap",
    ] {
        with_runtime(async || {
            ip(kind);

            let error = TunDevice::open(&options()).unwrap_err();

            assert_eq!(error.kind(), ErrorKind::Conflict, "{kind}: {error}");
        });
    }
}

#[test]
fn a_device_that_was_made_by_hand_with_other_flags_is_taken_over() {
    with_runtime(async || {
        ip("tuntap add dev tund0 mode tun pi");

        let mut tun = TunDevice::open(&options()).unwrap();

        ip("route add 10.9.0.0/16 dev tund0");
        let application = UdpSocket::bind("10.111.0.2:0").unwrap();
        application.send_to(b"hello", "10.9.0.1:9").unwrap();
        assert_eq!(read(&mut tun).await.len(), VNET_HEADER_BYTES + 20 + 8 + 5);
    });
}

#[test]
fn an_address_that_another_device_has_is_a_conflict_and_changes_nothing() {
    with_runtime(async || {
        ip("address add 10.111.0.2/32 dev lo");

        let error = TunDevice::open(&options()).unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("10.111.0.2"), "{error}");
        // A child that another test is just starting may have the device for a moment.
        eventually(|| ip_output("link show dev tund0").is_empty());
    });
}

#[test]
fn without_offloads_packets_are_plain_and_large() {
    with_runtime(async || {
        drop(TunDevice::open(&options()).unwrap());
        let plain = TunOptions {
            offload: Offload::None,
            ..options()
        };

        let mut tun = TunDevice::open(&plain).unwrap();
        ip("route add 10.9.0.0/16 dev tund0");
        let application = UdpSocket::bind("10.111.0.2:0").unwrap();
        application.send_to(&[7; 40_000], "10.9.0.1:9").unwrap();
        let packet = read(&mut tun).await;

        assert_eq!(
            (tun.vnet(), tun.offload(), tun.mtu()),
            (false, Offload::None, 65_535)
        );
        assert_eq!(packet.len(), 20 + 8 + 40_000);
        // The run before had left checksums to us; they are the kernel's again.
        assert_eq!(udp_sum(&packet), 0xffff);
        assert_eq!(destination(&packet), Ipv4Addr::new(10, 9, 0, 1));
    });
}

#[test]
fn a_header_of_another_length_is_set_right() {
    with_runtime(async || {
        let first = TunDevice::open(&options()).unwrap();
        let (fd, longer) = (first.fd.as_raw_fd(), 12);
        set_header_bytes(fd, longer);
        drop(first);

        let mut tun = TunDevice::open(&options()).unwrap();
        ip("route add 10.9.0.0/16 dev tund0");
        let application = UdpSocket::bind("10.111.0.2:0").unwrap();
        application.send_to(b"hello", "10.9.0.1:9").unwrap();

        assert_eq!(read(&mut tun).await.len(), VNET_HEADER_BYTES + 20 + 8 + 5);
    });
}

#[test]
fn checksum_offload_alone_keeps_the_header() {
    with_runtime(async || {
        let tun = TunDevice::open(&TunOptions {
            offload: Offload::Checksum,
            ..options()
        })
        .unwrap();

        assert_eq!(
            (tun.vnet(), tun.offload(), tun.mtu()),
            (true, Offload::Checksum, 65_535)
        );
    });
}

#[test]
fn a_configured_mtu_is_taken() {
    with_runtime(async || {
        let tun = TunDevice::open(&TunOptions {
            mtu: Some(1400),
            ..options()
        })
        .unwrap();

        assert_eq!(tun.mtu(), 1400);
        let shown = ip_output("link show dev tund0");
        assert!(
            shown.contains("mtu 1400") && shown.contains("qlen 10000"),
            "{shown}"
        );
    });
}

#[test]
fn a_device_that_is_removed_says_so() {
    with_runtime(async || {
        let mut tun = TunDevice::open(&options()).unwrap();

        ip("link del tund0");

        let mut buf = [0; 100];
        let read = tokio::time::timeout(PATIENCE, poll_fn(|cx| tun.poll_read(cx, &mut buf)));
        let error = read.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("was removed"), "{error}");
        let error = tun.try_write(&[0; 40]).unwrap_err();
        assert!(error.to_string().contains("was removed"), "{error}");
    });
}

#[test]
fn a_missing_driver_says_how_to_get_it() {
    in_namespace(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        for arguments in ["--make-rprivate /", "-t tmpfs none /dev/net"] {
            let status = Command::new("mount")
                .args(arguments.split(' '))
                .status()
                .unwrap();
            assert!(status.success(), "mount {arguments}");
        }

        let error = TunDevice::open(&options()).unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Missing);
        assert!(error.to_string().contains("modprobe tun"), "{error}");
    });
}

#[test]
fn a_missing_privilege_names_the_capability() {
    in_namespace(|| {
        become_nobody();

        let error = TunDevice::open(&options()).unwrap_err();

        assert!(error.is_missing_privilege(), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn names_that_could_leave_a_rule_are_refused() {
    for name in ["tund0", "tun-7", "7", "a.b_c", "abcdefghijklmno"] {
        assert!(name.parse::<TunName>().is_ok(), "{name}");
    }
    for name in [
        "",
        "-tun",
        "tun%d",
        "tun*",
        "a b",
        "a\"b",
        "a/b",
        "..",
        "abcdefghijklmnop",
        "tün",
    ] {
        assert!(name.parse::<TunName>().is_err(), "{name}");
    }
}

fn options() -> TunOptions {
    TunOptions {
        name: "tund0".parse().unwrap(),
        mtu: None,
        addresses: vec![address("10.111.0.2", 32), address("fd11::2", 128)],
        offload: Offload::Segmentation,
    }
}

fn address(address: &str, prefix_length: u8) -> InterfaceAddress {
    (address.parse::<IpAddr>().unwrap(), prefix_length).into()
}

fn nft_ruleset() -> String {
    let output = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn with_runtime(body: impl AsyncFnOnce() + Send) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
    });
}

/// Reads packets until one of IPv4 comes (the kernel may say something in IPv6 on its own).
async fn read(tun: &mut TunDevice) -> Vec<u8> {
    let start = if tun.vnet() { VNET_HEADER_BYTES } else { 0 };
    let mut buf = vec![0; READ_BYTES];
    loop {
        let read = poll_fn(|cx| tun.poll_read(cx, &mut buf));
        let length = tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        if buf[start] >> 4 == 4 {
            buf.truncate(length);
            return buf;
        }
    }
}

fn destination(packet: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19])
}

/// Swaps addresses and ports of a packet; both checksums stay what they were.
fn turn_round(packet: &mut [u8]) {
    let (source, rest) = packet[12..].split_at_mut(4);
    source.swap_with_slice(&mut rest[..4]);
    let (source, rest) = packet[20..].split_at_mut(2);
    source.swap_with_slice(&mut rest[..2]);
}

/// Makes an application's SYN the answer to it. Its checksum is that of the pseudo-header alone,
/// which stays what it was.
fn answer_with_syn_ack(packet: &mut [u8]) {
    turn_round(packet);
    let sequence = u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]);
    packet[28..32].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    packet[33] = 0x12;
}

/// The sum over pseudo-header and datagram: all ones if its checksum is right.
fn udp_sum(packet: &[u8]) -> u32 {
    let words = packet[12..].chunks(2);
    let length = u32::try_from(packet.len() - 20).unwrap();
    let sum = words.fold(17 + length, |sum, word| {
        sum + u32::from(u16::from_be_bytes([
            word[0],
            word.get(1).copied().unwrap_or(0),
        ]))
    });
    (0..2).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16))
}

#[expect(unsafe_code, reason = "as in the code under test")]
fn set_header_bytes(fd: std::os::fd::RawFd, bytes: nix::libc::c_int) {
    // SAFETY: `fd` is an open TUN descriptor and `bytes` a live `int` that the kernel only reads.
    unsafe { ioctl::tun_set_vnet_header_size(fd, &raw const bytes) }.unwrap();
}

/// Gives up root for this thread alone: the C library's call would do so for the whole process.
#[expect(unsafe_code, reason = "the call for one thread has no safe wrapper")]
fn become_nobody() {
    const NOBODY: nix::libc::uid_t = 65_534;
    // SAFETY: a system call on plain numbers; it changes the credentials of this thread only.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0);
}
