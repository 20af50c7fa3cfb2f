//! The program `lb`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_agent::main()
}
