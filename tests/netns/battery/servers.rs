//! The servers that programs talk to, as Debian has them, with what they serve.

use super::stage::{Port, Server};

/// Files of several sizes over HTTP/1.1, at port 8082 over HTTP/2 without TLS; takes PUT, and has a
/// package for apt.
pub(super) const NGINX: Server = Server {
    title: "nginx",
    prepare: r#"
        mkdir -p www/put www/small tmp
        head -c 12000000 /dev/urandom >www/big
        head -c 1000 /dev/urandom >www/one
        for n in $(seq 40); do head -c 250000 /dev/urandom >"www/small/$n"; done
        cat >nginx.conf <<END
            daemon off; user root; pid nginx.pid; worker_processes 1; error_log stderr;
            events { worker_connections 1024; }
            http {
                access_log off; client_max_body_size 0; client_body_temp_path tmp;
                keepalive_requests 100000;
                server {
                    listen 80; listen [::]:80; root www; autoindex on;
                    location /put/ { dav_methods PUT; }
                }
                server { listen 8082 http2; root www; }
            }
END
    "#,
    run: r#"exec nginx -e stderr -p "$DIR" -c nginx.conf"#,
    port: Port::Tcp(80),
    then: "",
};

/// A package of 8 MB in a repository, below [`NGINX`]'s files; no server of its own.
pub(super) const APT: &str = r#"
    mkdir -p www/apt made/DEBIAN
    head -c 8000000 /dev/urandom >made/payload
    printf '%s\n' 'Package: tund-battery' 'Version: 1' 'Architecture: all' \
        'Maintainer: nobody <nobody@example.org>' 'Description: a payload' >made/DEBIAN/control
    dpkg-deb --build -Znone made www/apt/tund-battery_1_all.deb >/dev/null
    cd www/apt
    { cat ../../made/DEBIAN/control
      echo "Filename: ./tund-battery_1_all.deb"
      echo "Size: $(stat -c %s tund-battery_1_all.deb)"
      echo "SHA256: $(sha256sum <tund-battery_1_all.deb | cut -d' ' -f1)"
    } >Packages
"#;

/// Takes the key that it made for the client, as a user without anything of this machine's: its
/// own home, its own files below `/run` and `/var/log`.
pub(super) const SSHD: Server = Server {
    title: "sshd",
    prepare: r#"
        mkdir -p home tree
        head -c 10000000 /dev/urandom >data
        for n in $(seq 30); do head -c 300000 /dev/urandom >"tree/$n"; done
        ssh-keygen -q -t ed25519 -N '' -f host-key
        ssh-keygen -q -t ed25519 -N '' -f user-key
        echo "* $(cat host-key.pub)" >known-hosts
        sed "s#^root:.*#root:x:0:0::$DIR/home:/bin/sh#" /etc/passwd >passwd
        sed 's#^root:[^:]*#root:*#' /etc/shadow >shadow
        cat >sshd.conf <<END
            HostKey $DIR/host-key
            AuthorizedKeysFile $DIR/user-key.pub
            StrictModes no
            UsePAM no
            PidFile none
            PermitRootLogin prohibit-password
            AcceptEnv LANG LC_*
            Subsystem sftp internal-sftp
END
        cat >ssh.conf <<END
            IdentityFile $DIR/user-key
            UserKnownHostsFile $DIR/known-hosts
            GlobalKnownHostsFile none
            IdentitiesOnly yes
            BatchMode yes
            User root
END
    "#,
    run: r#"
        exec unshare --mount sh -euc '
            mount -t tmpfs tmpfs /run
            mount -t tmpfs tmpfs /var/log
            mount --bind passwd /etc/passwd
            mount --bind shadow /etc/shadow
            mkdir /run/sshd
            : >/var/log/lastlog
            exec /usr/sbin/sshd -D -e -f sshd.conf
        '
    "#,
    port: Port::Tcp(22),
    then: "",
};

/// One repository to clone, and an empty one for each way to push to.
pub(super) const GIT: Server = Server {
    title: "git-daemon",
    prepare: r#"
        mkdir git
        git init -q -b main git/source
        cd git/source
        git config user.name nobody
        git config user.email nobody@example.org
        for n in $(seq 30); do head -c 300000 /dev/urandom >"file-$n"; git add .; git commit -qm "$n"; done
        cd ..
        git clone -q --bare source source.git
        for protocol in git ssh; do
            for way in direct tund cut switched; do git init -q --bare -b main "$protocol-$way.git"; done
        done
    "#,
    run: r#"exec git daemon --reuseaddr --base-path="$DIR/git" --export-all --enable=receive-pack"#,
    port: Port::Tcp(9418),
    then: "",
};

/// A module to read from.
pub(super) const RSYNCD: Server = Server {
    title: "rsyncd",
    prepare: r#"
        mkdir module
        for n in $(seq 30); do head -c 300000 /dev/urandom >"module/$n"; done
        printf '%s\n' 'use chroot = no' 'uid = root' 'gid = root' '[module]' "path = $DIR/module" >rsyncd.conf
    "#,
    run: "exec rsync --daemon --no-detach --config=rsyncd.conf",
    port: Port::Tcp(873),
    then: "",
};

/// A table of 10 MB, those of pgbench, and an empty one for each way. Its System V memory ends with
/// its own namespace, its files with the lab, however it ends.
pub(super) const POSTGRES: Server = Server {
    title: "postgres",
    prepare: r#"
        bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
        ln -s "$bin" bin
        install -d -o postgres -g postgres postgres
        setpriv --reuid=postgres --regid=postgres --clear-groups bin/initdb -D postgres \
            -U postgres -A trust --no-sync -E UTF8 --locale=C.UTF-8 >/dev/null
        printf '%s\n' 'local all all trust' 'host all all all trust' >postgres/pg_hba.conf
    "#,
    run: r#"
        exec unshare --ipc setpriv --reuid=postgres --regid=postgres --clear-groups \
            bin/postgres -D postgres -c listen_addresses='*' -c unix_socket_directories= \
            -c fsync=off -c shared_buffers=32MB -c dynamic_shared_memory_type=mmap
    "#,
    port: Port::Tcp(5432),
    then: r#"
        seq 120000 | sed 's/.*/&\tand so many bytes that a hundred thousand rows are some megabytes of &/' >rows
        until psql -X -h "$PLAIN" -U postgres -qc 'select 1' >/dev/null 2>&1; do :; done
        psql -X -h "$PLAIN" -U postgres -q <<END
            create table source (n int, text text);
            \copy source from rows
            create table direct (n int, text text);
            create table tund (like direct);
            create table cut (like direct);
            create table switched (like direct);
END
        pgbench -h "$PLAIN" -U postgres -iq postgres >/dev/null 2>&1
    "#,
};

/// Keeps nothing.
pub(super) const REDIS: Server = Server {
    title: "redis",
    prepare: "",
    run: "exec redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save '' --appendonly no",
    port: Port::Tcp(6379),
    then: "",
};

/// Anybody may say and hear anything.
pub(super) const MOSQUITTO: Server = Server {
    title: "mosquitto",
    prepare: r#"
        printf '%s\n' 'listener 1883' 'allow_anonymous true' 'max_queued_messages 0' 'user root' >mosquitto.conf
    "#,
    run: "exec mosquitto -c mosquitto.conf",
    port: Port::Tcp(1883),
    then: "",
};

/// Sends every message back.
pub(super) const WEBSOCKET: Server = Server {
    title: "websocket",
    prepare: r#"
        cat >echo.py <<END
import asyncio, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with websockets.serve(echo, "0.0.0.0", 9003, max_size=None):
        await asyncio.Future()
asyncio.run(main())
END
        cat >talk.py <<END
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], max_size=None, compression=None) as socket:
        for n in range(40):
            message = bytes([n]) * 150_000
            await socket.send(message)
            assert await socket.recv() == message, n
        print(n)
asyncio.run(main())
END
    "#,
    run: "exec /usr/bin/python3 echo.py",
    port: Port::Tcp(9003),
    then: "",
};

/// One test at a time, at each address: it answers datagrams from the address of its socket.
pub(super) const IPERF: Server = Server {
    title: "iperf3",
    prepare: "",
    run: r#"iperf3 -s -B "$STEERED" & exec iperf3 -s -B "$PLAIN""#,
    port: Port::Tcp(5201),
    then: "",
};

/// Names below `lab`, one of them with an answer too large for a datagram.
pub(super) const DNSMASQ: Server = Server {
    title: "dnsmasq",
    prepare: r#"
        seq 2000 | sed 's/.*/n&.lab A/' >names
        head -n 500 names >few-names
        head -n 1000 names >some-names
        yes 'large.lab TXT' | head -n 400 >larges
        { for n in $(seq 2000); do echo "address=/n$n.lab/10.9.$((n / 250)).$((n % 250))"; done
          for n in $(seq 30); do
              echo "txt-record=large.lab,\"$n $(head -c 100 /dev/zero | tr '\0' x)\""
          done
        } >dnsmasq.conf
    "#,
    run: r#"
        exec dnsmasq --keep-in-foreground --conf-file=dnsmasq.conf --no-resolv --no-hosts --local=/lab/ \
            --pid-file= --user=root --group=root --log-facility=-
    "#,
    port: Port::Udp(53),
    then: "",
};

/// At 9001 the checksum of what comes, once its end has come.
pub(super) const DIGEST: Server = Server {
    title: "digest",
    prepare: "head -c 10000000 /dev/urandom >data",
    run: "exec socat -t 60 TCP-LISTEN:9001,fork,reuseaddr EXEC:sha256sum",
    port: Port::Tcp(9001),
    then: "",
};

/// At 9002 what comes.
pub(super) const CAT: Server = Server {
    title: "cat",
    prepare: "head -c 8000000 /dev/urandom >data",
    run: "exec socat -t 60 TCP-LISTEN:9002,fork,reuseaddr EXEC:cat",
    port: Port::Tcp(9002),
    then: "",
};
