//! The program: its exit codes and what it says.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Output, Stdio},
};

fn controller(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-controller"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = controller(arguments).output().unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Started, and serving.
fn serving(directory: &str) -> Child {
    let arguments = ["--listen", "127.0.0.1:0", "--data-dir", directory];
    let mut child = controller(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines.map(Result::unwrap).find(|line| line.contains("serving"));
    assert!(said.is_some(), "it ended without serving");
    child
}

fn terminate(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
}

#[test]
fn a_listener_that_is_not_loopback_is_refused_without_insecure() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let (code, said) = run(&["--listen", "0.0.0.0:0", "--data-dir", data]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("0.0.0.0:0 is not a loopback address") && said.contains("--insecure"), "{said}");
    assert_eq!(directory.path().read_dir().unwrap().count(), 0, "nothing was made");
}

#[test]
fn wrong_flags_are_bad_usage_and_help_is_not() {
    assert_eq!(run(&["--no-such-flag"]).0, Some(64));
    assert_eq!(run(&["--listen", "nowhere"]).0, Some(64));
    let (code, said) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("--data-dir") && said.contains("WEFT_DATA_DIR"), "{said}");
}

#[test]
fn a_second_controller_on_the_same_data_fails_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let mut first = serving(data);
    let (code, said) = run(&["--listen", "127.0.0.1:0", "--data-dir", data]);
    terminate(&first);
    assert!(first.wait().unwrap().success(), "SIGTERM ends it well");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("weft.redb is in use by another process"), "{said}");
}

/// It tries for half a minute, in which nothing else has to wait for this test.
#[test]
fn a_store_that_cannot_be_reached_ends_the_controller_with_what_was_tried() {
    // A port that was free a moment ago, and that nobody listens on.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let (code, said) = run(&["--listen", "127.0.0.1:0", "--etcd", &url]);
    assert_eq!(code, Some(1), "{said}");
    let expected = format!("weft-controller: the store cannot be reached: {url}: ");
    assert!(said.lines().last().is_some_and(|line| line.starts_with(&expected)), "{said}");
}

#[test]
fn every_controller_command_in_the_documents_is_one() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    for name in ["README.md", "docs/operations.md"] {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        let code = text.split("```").skip(1).step_by(2).flat_map(str::lines);
        for command in code.filter_map(|line| line.strip_prefix("weft-controller ")) {
            // Flags that are not there are an error before help is.
            let arguments: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
            let (code, said) = run(&arguments);
            assert_eq!(code, Some(0), "{name}: weft-controller {command}\n{said}");
            seen += 1;
        }
    }
    assert!(seen > 0, "the documents show commands");
}

#[test]
fn a_store_that_cannot_be_reached_at_the_start_ends_it_after_a_while_and_it_says_which_and_why() {
    // Nobody listens on port 1.
    let (code, said) = run(&["--listen", "127.0.0.1:0", "--etcd", "http://127.0.0.1:1,http://[::1]:1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot be reached yet, trying again"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("weft-controller: the store cannot be reached: http://127.0.0.1:1: "), "{said}");
    assert!(last.contains("Connection refused") && last.contains("http://[::1]:1"), "{said}");
}

#[test]
fn flags_for_etcd_that_do_not_go_together_are_bad_usage() {
    for (flags, expected) in [
        (&["--etcd", "etcd:2379"][..], "is not the URL of an etcd member"),
        (&["--etcd", "https://127.0.0.1:2379"], "certificate authority"),
        (&["--etcd", "http://192.0.2.1:2379"], "--insecure"),
        (&["--etcd", "http://127.0.0.1:2379", "--etcd-user", "weft"], "--etcd-password-file"),
        (&["--etcd", "http://127.0.0.1:2379", "--etcd-cert", "some.pem"], "--etcd-key"),
        (&["move"], "--etcd"),
    ] {
        let (code, said) = run(flags);
        assert_eq!(code, Some(64), "{flags:?}: {said}");
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
}

#[test]
fn a_move_without_an_embedded_store_fails_and_makes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let (code, said) = run(&["move", "--data-dir", data, "--etcd", "http://127.0.0.1:1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("there is no embedded store in"), "{said}");
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}
