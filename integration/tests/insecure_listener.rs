//! Promise: without certificates nothing listens beyond this machine unless the operator said so.
use std::process::Command;

use anyhow::{Context, Result};
use weft_integration::fleet::Binaries;

#[test]
fn a_listener_that_is_not_loopback_needs_insecure_and_exits_64_without() -> Result<()> {
    let binaries = Binaries::find()?;
    for address in ["0.0.0.0:0", "192.0.2.1:7443", "[::]:0"] {
        let output = Command::new(binaries.controller())
            .args(["--listen", address, "--data-dir", "/nonexistent"])
            .output()
            .context("start weft-controller")?;
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(64), "{address}: {said}");
        assert!(said.contains("--insecure"), "{said}");
    }
    Ok(())
}
