//! The kernel programs, packet by packet, through `BPF_PROG_TEST_RUN`. Each test loads its own object, unpinned, in a
//! network namespace of its own; it needs root. Packets are built, and answers taken apart, by another implementation
//! than the programs' (etherparse).
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that can't go on says why"
)]

mod bandwidth;
mod books;
mod collect;
mod connections;
mod conntrack;
mod crowd;
mod departures;
mod drift;
mod errors;
mod forwarding;
mod fragments;
mod garbage;
mod harness;
mod hops;
mod host;
mod host_oracle;
mod live;
mod neighbours;
mod oracle;
mod overlay;
mod packets;
mod policies;
mod policy;
mod prefilter;
mod random;
mod refusals;
mod revisions;
mod runs;
mod services;
mod spoil;
mod tables;
mod telling;
mod tunnel;
mod uplink;
mod verifier;
mod world;
