//! Copies of programs, for tests that start them as somebody else.

use std::{io, path::Path, process::Command};

/// Copies a program so that it can be started at once, whatever other threads of this process do.
///
/// `std::fs::copy` has the copy open for writing. A child that another thread forks meanwhile inherits that until it
/// starts its own program, and as long as any process has a file open for writing, no process can execute it
/// (`ETXTBSY`). Here a process of its own writes the copy and is gone afterwards.
///
/// # Errors
/// When `cp` cannot be started or fails; the message has its standard error.
pub fn copy_program(from: &Path, to: &Path) -> io::Result<()> {
    let output = Command::new("cp").arg("--").args([from, to]).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("copying {} to {} failed: {}", from.display(), to.display(), said.trim())))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn a_copy_can_be_started_while_other_threads_start_programs() {
        let directory = tempfile::tempdir().unwrap();
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !ends.load(Ordering::Relaxed) {
                        Command::new("true").status().unwrap();
                    }
                });
            }
            for n in 0..50 {
                let program = directory.path().join(n.to_string());
                copy_program(Path::new("/bin/true"), &program).unwrap();
                let status = Command::new(&program).status();
                if !status.as_ref().is_ok_and(|status| status.success()) {
                    ends.store(true, Ordering::Relaxed);
                    panic!("copy {n}: {status:?}");
                }
            }
            ends.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = copy_program(Path::new("/nonexistent/program"), Path::new("/tmp/x")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/program"), "{error}");
    }
}
