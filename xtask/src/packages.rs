//! The system packages that Weft is built and tested with, and what each is for.

/// A Debian package and the reason it is needed, which people on other systems are told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) purpose: &'static str,
}

const fn package(name: &'static str, purpose: &'static str) -> Package {
    Package { name, purpose }
}

/// For every build and test.
pub(crate) const BASE: [Package; 8] = [
    package("gcc", "linking, and the C parts of crates"),
    package("libc6-dev", "linking"),
    package("iproute2", "network namespaces of fleets"),
    package("ethtool", "packets of fleets with whole checksums"),
    package("nftables", "`bench lb` compares services with its rules"),
    package("etcd-server", "the store of fleets with several controllers, in tests"),
    package("protobuf-compiler", "etcd-client generates its messages with protoc"),
    package("libprotobuf-dev", "the well-known messages that protoc reads"),
];

/// The services that these packages bring. A machine that only builds and tests Weft should not start running them.
pub(crate) const SERVICES: [(&str, &str); 1] = [("etcd-server", "etcd.service")];

/// Debian's compiler with a ready `core` for the BPF targets; a nightly with rust-src replaces the first two.
pub(crate) const BPF_COMPILER: [Package; 2] = [
    package("rustc-web", "compiles the kernel programs (Rust 1.96, LLVM 22)"),
    package("libstd-rust-web-dev-bpf", "`core` for the BPF targets"),
];

/// To build bpf-linker.
pub(crate) const BPF_LINKER: [Package; 7] = [
    package("llvm-22", "bpf-linker links against it"),
    package("llvm-22-dev", "bpf-linker links against it"),
    package("libpolly-22-dev", "bpf-linker links against it"),
    package("g++", "bpf-linker links against LLVM's C++ library"),
    package("libzstd-dev", "a dependency of LLVM"),
    package("libxml2-dev", "a dependency of LLVM"),
    package("zlib1g-dev", "a dependency of LLVM"),
];
