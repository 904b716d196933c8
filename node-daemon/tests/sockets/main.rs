//! The socket programs, by real sockets of a process in a cgroup: programs on socket addresses can't be tried by
//! `BPF_PROG_TEST_RUN`.

mod calls;
mod changes;
mod conformance;
mod servers;
mod world;
