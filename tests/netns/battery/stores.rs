//! Clients of databases and of a message broker.

use super::check::{Check, Middle};
use super::servers::{MOSQUITTO, POSTGRES, REDIS};
use super::stage::run;

const MB: u64 = 1_000_000;

const DATABASE: [Check; 4] = [
    Check {
        title: "psql, COPY of 120,000 rows out",
        run: r#"psql -X -h "$TO" -U postgres -qc '\copy source to got'"#,
        ends: 0,
        shows: r#"cmp got "$DIR/rows""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "psql, COPY of 120,000 rows in",
        run: r#"psql -X -h "$TO" -U postgres -c "\\copy $WAY from $DIR/rows""#,
        ends: 0,
        shows: r#"
            cat out
            psql -X -h "$PLAIN" -U postgres -qc "\\copy $WAY to stored"
            cmp stored "$DIR/rows"
        "#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "pgbench, 4 clients",
        run: r#"pgbench -h "$TO" -U postgres -n -c 4 -j 1 -t 400 postgres"#,
        ends: 0,
        shows: "grep -E 'actually processed|failed transactions' out",
        middle: Middle::Bytes(MB),
    },
    Check {
        title: "pgbench -C, a connection each",
        run: r#"pgbench -h "$TO" -U postgres -n -S -C -c 2 -j 1 -t 40 postgres"#,
        ends: 0,
        shows: "grep -E 'actually processed|failed transactions' out",
        middle: Middle::Bytes(20_000),
    },
];

const BROKERS: [Check; 3] = [
    Check {
        title: "redis-benchmark, 20 connections",
        run: r#"redis-benchmark -h "$TO" --csv -n 15000 -c 20 -d 100 -t set,get"#,
        ends: 0,
        shows: "cut -d, -f1 out",
        middle: Middle::Bytes(MB),
    },
    Check {
        title: "redis-cli --pipe, 150,000 commands",
        run: r#"
            seq 150000 | sed "s/.*/SET $WAY-& with-a-value-that-makes-it-some-megabytes-of-&/" |
                redis-cli -h "$TO" --pipe
            redis-cli -h "$TO" keys "$WAY-*" | wc -l
        "#,
        ends: 0,
        shows: r#"
            grep 'errors: 0, replies: 150000' out
            tail -n 1 out
            redis-cli -h "$PLAIN" flushall
        "#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "mosquitto_pub and mosquitto_sub, 3,000 messages exactly once",
        run: r#"
            mosquitto_sub -h "$TO" -i "$WAY" -c -q 2 -t "$WAY" -E
            mosquitto_sub -h "$TO" -i "$WAY" -c -q 2 -t "$WAY" -C 3000 >got & hears=$!
            seq 3000 | mosquitto_pub -h "$TO" -q 2 -t "$WAY" -l
            wait "$hears"
        "#,
        ends: 0,
        shows: "seq 3000 | cmp - got",
        middle: Middle::Bytes(100_000),
    },
];

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn psql_and_pgbench_end_as_they_do_directly() {
    run("PostgreSQL", &[&POSTGRES], &DATABASE);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn redis_and_mosquitto_clients_end_as_they_do_directly() {
    run("brokers", &[&REDIS, &MOSQUITTO], &BROKERS);
}
