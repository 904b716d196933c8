//! The socket programs, by real sockets of a process in a cgroup: programs on socket addresses can't be tried by
//! `BPF_PROG_TEST_RUN`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that can't go on says why"
)]

mod calls;
mod changes;
mod conformance;
mod pacing;
mod probes;
mod servers;
mod sources;
mod world;
