//! Completion scripts: the shells themselves complete with them, where they are installed.
#![expect(clippy::unwrap_used, reason = "a test that can't go on says why")]

mod fake;

use std::{path::Path, process::Command};

use fake::weft;

async fn script(shell: &str) -> String {
    let ran = weft(&["completion", shell]).await;
    ran.assert_code(0);
    ran.stdout.clone()
}

/// What a shell offers, or nothing where it isn't installed.
fn offered(shell: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(shell).args(arguments).output().ok()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{shell}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(text(&output.stdout))
}

fn write(directory: &Path, name: &str, script: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, script).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_shells_script_knows_every_command_and_the_flags_of_monitor() {
    for shell in ["bash", "zsh", "fish"] {
        let script = script(shell).await;
        for word in [
            "apply",
            "plan",
            "get",
            "delete",
            "watch",
            "explain",
            "fleet",
            "node",
            "endpoint",
            "monitor",
            "import",
            "schema",
            "verdicts",
            "reason",
            "namespace-label",
            "output-dir",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // Values that are known are offered.
        assert!(script.contains("tc_from_endpoint") && script.contains("policy_denied"), "{shell}");
    }
}

#[tokio::test]
async fn bash_completes_commands_and_flags() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "weft.bash", &script("bash").await);
    let complete = |line: &str| {
        let words: Vec<_> = line.split(' ').map(|word| format!("'{word}'")).collect();
        let commands = format!(
            "source {path}; COMP_WORDS=({}); COMP_CWORD={}; _weft weft '{}' ''; echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
            line.rsplit(' ').next().unwrap()
        );
        offered("bash", &["--norc", "-c", &commands])
    };
    let Some(commands) = complete("weft mon") else { return };
    assert_eq!(commands.trim(), "monitor");
    assert_eq!(complete("weft monitor --verd").unwrap().trim(), "--verdicts");
    assert_eq!(complete("weft --output json monitor --end").unwrap().trim(), "--endpoint");
}

#[tokio::test]
async fn fish_and_zsh_read_their_scripts() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "weft.fish", &script("fish").await);
    if let Some(offered) = offered("fish", &["-N", "-c", &format!("source {path}; complete -C 'weft mon'")]) {
        assert!(offered.starts_with("monitor"), "{offered}");
    }
    let path = write(directory.path(), "_weft", &script("zsh").await);
    offered("zsh", &["-f", "-n", &path]);
}
