//! `weft`, see the library.
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(weft_cli::main())
}
