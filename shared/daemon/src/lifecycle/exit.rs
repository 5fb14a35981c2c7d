//! Exit codes, and the one place where an error becomes one.

use std::io::{self, Write};
use std::process::ExitCode;

use super::MissingPrivilege;
use crate::config::Mistakes;

/// How a program ends; the numbers are part of the public interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked.
    Ok = 0,
    /// It did not, for a reason that it told.
    Failed = 1,
    /// It was called wrongly.
    Usage = 2,
    /// It lacks a privilege (`EX_NOPERM`).
    Privilege = 77,
    /// Its configuration is wrong (`EX_CONFIG`).
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Privilege => 77,
            Exit::Configuration => 78,
        })
    }
}

/// A command line that the argument parser takes and that makes no sense all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Somebody else's rights are needed: the program ends with 77.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PermissionDenied(pub String);

/// The exit code that an error stands for: [`Mistakes`], [`MissingPrivilege`],
/// [`PermissionDenied`] and [`UsageError`] anywhere in its chain have their own, everything else is [`Exit::Failed`].
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let known = error.chain().find_map(|cause| {
        if cause.is::<Mistakes>() {
            Some(Exit::Configuration)
        } else if cause.is::<MissingPrivilege>() || cause.is::<PermissionDenied>() {
            Some(Exit::Privilege)
        } else if cause.is::<UsageError>() {
            Some(Exit::Usage)
        } else {
            None
        }
    });
    known.unwrap_or(Exit::Failed)
}

/// Ends `main`: an error is written to stderr behind the program's name, and becomes its code.
///
/// A reader of our output that went away, as in `tund-client flows | head`, is no error.
pub fn conclude(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return Exit::Ok.into();
    };
    let is_closed_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_closed_pipe) {
        return Exit::Ok.into();
    }
    let exit = exit_of(&error);
    let told = match exit {
        // Each mistake begins with its file, as compilers write them: editors can jump there.
        Exit::Configuration => writeln!(io::stderr(), "{error:#}"),
        Exit::Ok | Exit::Failed | Exit::Usage | Exit::Privilege => {
            writeln!(io::stderr(), "{program}: {error:#}")
        }
    };
    // Where stderr is closed too, the code is all that is left to say.
    drop(told);
    exit.into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::lifecycle::Capability;

    #[test]
    fn the_kind_of_an_error_survives_its_context() {
        let privilege = MissingPrivilege::new(Capability::NetAdmin, "to open the TUN device");

        let wrapped = Err::<(), _>(privilege)
            .context("start")
            .context("run")
            .expect_err("is one");

        assert_eq!(exit_of(&wrapped), Exit::Privilege);
        assert_eq!(exit_of(&Mistakes(Vec::new()).into()), Exit::Configuration);
        assert_eq!(exit_of(&UsageError("x".to_owned()).into()), Exit::Usage);
        assert_eq!(exit_of(&anyhow::anyhow!("something else")), Exit::Failed);
    }
}
