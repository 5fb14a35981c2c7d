//! Clients of HTTP, and what measures its servers.

use super::check::{Check, Middle};
use super::servers::{APT, NGINX};
use super::stage::{Server, run};

const MB: u64 = 1_000_000;

/// Files of [`NGINX`], fetched whole.
pub(super) const FEW: [Check; 2] = [
    Check {
        title: "curl, a file of 12 MB by HTTP/1.1",
        run: r#"curl -sS -o big "http://$TO/big""#,
        ends: 0,
        shows: r#"cmp big "$DIR/www/big""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "curl, the middle of a file",
        run: r#"curl -sS -r 1000000-10999999 -w '%{http_code}' -o part "http://$TO/big""#,
        ends: 0,
        shows: r#"tail -c +1000001 "$DIR/www/big" | head -c 10000000 | cmp - part; cat out"#,
        middle: Middle::Bytes(3 * MB),
    },
];

const CURL: [Check; 5] = [
    Check {
        title: "curl, 40 files over one connection",
        run: r#"curl -sS -w '%{num_connects}\n' --remote-name-all "http://$TO/small/[1-40]""#,
        ends: 0,
        shows: r#"
            for n in $(seq 40); do cmp "$n" "$DIR/www/small/$n"; done
            awk '{ connects += $1 } END { print connects }' out
        "#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "curl, 12 MB over HTTP/2 without TLS",
        run: r#"curl -sS --http2-prior-knowledge -w '%{http_version}' -o big "http://$TO:8082/big""#,
        ends: 0,
        shows: r#"cmp big "$DIR/www/big"; cat out"#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "curl, the rest of a file over IPv6",
        run: r#"head -c 2000000 "$DIR/www/big" >big; curl -sS -g -C - -o big "http://[$TO6]/big""#,
        ends: 0,
        shows: r#"cmp big "$DIR/www/big""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "curl, PUT of 12 MB",
        run: r#"curl -sS -T "$DIR/www/big" -w '%{http_code}' "http://$TO/put/$WAY""#,
        ends: 0,
        shows: r#"cmp "$DIR/www/big" "$DIR/www/put/$WAY"; cat out"#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "apt-get update and install --download-only",
        run: r#"
            mkdir -p state/lists/partial cache/archives/partial
            : >status
            echo "deb [trusted=yes] http://$TO/apt ./" >sources.list
            cat >apt.conf <<END
                Dir::Etc::main "-"; Dir::Etc::parts "-"; Dir::Etc::sourceparts "-";
                Dir::Etc::sourcelist "$PWD/sources.list"; Dir::State "$PWD/state";
                Dir::State::status "$PWD/status"; Dir::Cache "$PWD/cache";
                APT::Sandbox::User "root"; Acquire::Languages "none";
END
            export APT_CONFIG=apt.conf
            apt-get -q update
            apt-get -q -y install --download-only tund-battery
        "#,
        ends: 0,
        shows: r#"cmp cache/archives/tund-battery_1_all.deb "$DIR/www/apt/tund-battery_1_all.deb""#,
        middle: Middle::Bytes(2 * MB),
    },
];

const OTHERS: [Check; 5] = [
    Check {
        title: "wget, a file of 12 MB",
        run: r#"wget -nv "http://$TO/big""#,
        ends: 0,
        shows: r#"cmp big "$DIR/www/big""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "wget -r, a directory of 40 files",
        run: r#"wget -q -r -np -nH "http://$TO/small/""#,
        ends: 0,
        shows: r#"for n in $(seq 40); do cmp "small/$n" "$DIR/www/small/$n"; done; ls small | wc -l"#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "ab, a connection each",
        run: r#"ab -q -n 4000 -c 16 "http://$TO/one""#,
        ends: 0,
        shows: r#"grep -E '^(Complete|Failed) requests' out; if grep Non-2xx out; then exit 1; fi"#,
        middle: Middle::Bytes(MB),
    },
    Check {
        title: "wrk, 16 connections",
        run: r#"wrk -t1 -c16 -d"${LASTS}s" --timeout 30s "http://$TO/one""#,
        ends: 0,
        shows: r#"
            grep -q '[1-9][0-9]* requests in' out
            if grep -E 'Socket errors|Non-2xx' out; then exit 1; fi
        "#,
        middle: Middle::Bytes(MB),
    },
    Check {
        title: "h2load, 4 connections of 10 streams",
        run: r#"h2load -n 12000 -c 4 -m 10 "http://$TO:8082/one""#,
        ends: 0,
        shows: "grep -E '^(requests|status codes):' out",
        middle: Middle::Bytes(2 * MB),
    },
];

/// [`NGINX`] with a package for apt.
const WITH_PACKAGE: Server = Server { then: APT, ..NGINX };

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn curl_and_apt_get_end_as_they_do_directly() {
    run("curl", &[&WITH_PACKAGE], &CURL);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn wget_ab_wrk_and_h2load_end_as_they_do_directly() {
    run("HTTP", &[&NGINX], &OTHERS);
}
