//! Programs that log in by ssh, and those that move trees of files.

use super::check::{Check, Middle};
use super::servers::{GIT, SSHD};
use super::stage::run;

const MB: u64 = 1_000_000;

const SSH: [Check; 6] = [
    Check {
        title: "ssh, a command that writes now and then",
        run: r#"
            ssh -F "$DIR/ssh.conf" "$TO" \
                'for n in $(seq 30); do echo "line $n"; sleep 0.05; done; exit 7'
        "#,
        ends: 7,
        shows: "cat out",
        middle: Middle::Says("line 8\n"),
    },
    Check {
        title: "ssh, 10 MB into a command",
        run: r#"ssh -F "$DIR/ssh.conf" "$TO" sha256sum <"$DIR/data""#,
        ends: 0,
        shows: r#"sha256sum <"$DIR/data" | cmp - out"#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "scp, 10 MB down",
        run: r#"scp -q -F "$DIR/ssh.conf" "$TO:$DIR/data" data"#,
        ends: 0,
        shows: r#"cmp data "$DIR/data""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "scp -O -r, 30 files up",
        run: r#"scp -q -O -r -F "$DIR/ssh.conf" "$DIR/tree" "$TO:$DIR/copied-$WAY""#,
        ends: 0,
        shows: r#"diff -r "$DIR/tree" "$DIR/copied-$WAY""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "rsync over ssh, 30 files up",
        run: r#"rsync -a -e "ssh -F $DIR/ssh.conf" "$DIR/tree/" "$TO:$DIR/synced-$WAY/""#,
        ends: 0,
        shows: r#"diff -r "$DIR/tree" "$DIR/synced-$WAY""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "ssh -L, and a copy through it",
        run: r#"
            ssh -F "$DIR/ssh.conf" -N -L 7000:127.0.0.1:22 "$TO" & tunnel=$!
            trap 'kill "$tunnel"' EXIT
            until nc -z 127.0.0.1 7000; do sleep 0.05; done
            scp -q -F "$DIR/ssh.conf" -P 7000 "127.0.0.1:$DIR/data" data
        "#,
        ends: 0,
        shows: r#"cmp data "$DIR/data""#,
        middle: Middle::Bytes(3 * MB),
    },
];

/// What is typed when the network is gone reaches the shell when it is back.
const MOSH: [Check; 1] = [Check {
    title: "mosh, a line typed into a shell",
    run: r#"
        { until grep -q begun out; do sleep 0.05; done; sleep 1; echo hello; sleep 1; } |
            script -qec "stty rows 24 cols 80; mosh --ssh='ssh -F $DIR/ssh.conf' '$TO' -- sh -c \
                'echo begun; read -r line; echo \"heard \$line\" >$DIR/heard-$WAY'" /dev/null
    "#,
    ends: 0,
    shows: r#"cat "$DIR/heard-$WAY""#,
    middle: Middle::Says("begun"),
}];

/// Trees of files, from servers of their own.
pub(super) const FEW: [Check; 2] = [
    Check {
        title: "git clone",
        run: r#"git clone -q "git://$TO/source.git" got"#,
        ends: 0,
        shows: r#"git -C got fsck --full 2>&1; git -C got rev-parse main; diff -r -x .git got "$DIR/git/source""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "rsync, 30 files from a daemon",
        run: r#"rsync -a "rsync://$TO/module/" got/"#,
        ends: 0,
        shows: r#"diff -r "$DIR/module" got"#,
        middle: Middle::Bytes(3 * MB),
    },
];

const GITS: [Check; 3] = [
    Check {
        title: "git push",
        run: r#"git -C "$DIR/git/source" push -q "git://$TO/git-$WAY.git" main"#,
        ends: 0,
        shows: r#"git --git-dir "$DIR/git/git-$WAY.git" fsck --full 2>&1; git --git-dir "$DIR/git/git-$WAY.git" rev-parse main"#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "git clone over ssh",
        run: r#"
            export GIT_SSH_COMMAND="ssh -F $DIR/ssh.conf"
            git clone -q "ssh://$TO$DIR/git/source.git" got
        "#,
        ends: 0,
        shows: r#"git -C got fsck --full 2>&1; git -C got rev-parse main; diff -r -x .git got "$DIR/git/source""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "git push over ssh",
        run: r#"
            export GIT_SSH_COMMAND="ssh -F $DIR/ssh.conf"
            git -C "$DIR/git/source" push -q "ssh://$TO$DIR/git/ssh-$WAY.git" main
        "#,
        ends: 0,
        shows: r#"git --git-dir "$DIR/git/ssh-$WAY.git" fsck --full 2>&1; git --git-dir "$DIR/git/ssh-$WAY.git" rev-parse main"#,
        middle: Middle::Bytes(3 * MB),
    },
];

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn ssh_scp_and_rsync_end_as_they_do_directly() {
    run("ssh", &[&SSHD], &SSH);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn mosh_ends_as_it_does_directly() {
    run("mosh", &[&SSHD], &MOSH);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn git_ends_as_it_does_directly() {
    run("git", &[&GIT, &SSHD], &GITS);
}
