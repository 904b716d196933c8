//! What the datapath needs of the kernel, asked for before anything is touched: a kernel without it is refused with the
//! names of what is missing, instead of with the verifier's or a system call's word.

use std::fmt;

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::KernelError;

/// One thing that kernels may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `bpf(2)` at all, and programs of tc.
    TcPrograms,
    LruHash,
    LongestPrefixMatch,
    MapsOfMaps,
    PerCpuArrays,
    RingBuffers,
    TunnelKeys,
    PeerDelivery,
    CoarseClock,
}

impl Feature {
    /// All of them; the object's programs use every one.
    pub const NEEDED: [Self; 9] = [
        Self::TcPrograms,
        Self::LruHash,
        Self::LongestPrefixMatch,
        Self::MapsOfMaps,
        Self::PerCpuArrays,
        Self::RingBuffers,
        Self::TunnelKeys,
        Self::PeerDelivery,
        Self::CoarseClock,
    ];

    /// What it is called, and the kernel that brought it.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::TcPrograms => ("BPF programs of tc (CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT)", "4.1"),
            Self::LruHash => ("LRU hash maps", "4.10"),
            Self::LongestPrefixMatch => ("longest-prefix-match maps", "4.11"),
            Self::MapsOfMaps => ("maps of maps", "4.12"),
            Self::PerCpuArrays => ("arrays for each CPU", "4.6"),
            Self::RingBuffers => ("BPF ring buffers", "5.8"),
            Self::TunnelKeys => ("tunnel keys (bpf_skb_set_tunnel_key)", "4.3"),
            Self::PeerDelivery => ("delivery to a veth's peer (bpf_redirect_peer)", "5.10"),
            Self::CoarseClock => ("the coarse clock (bpf_ktime_get_coarse_ns)", "5.11"),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, since) = self.words();
        write!(formatter, "{name}, since kernel {since}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    #[error(
        "this kernel ({release}) lacks what the datapath needs: {}. Weft needs kernel 6.1 or later; nothing was changed",
        missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Missing { release: String, missing: Vec<Feature> },
    /// It may be for lack of rights.
    #[error(transparent)]
    Unanswered(#[from] KernelError),
}

/// Who can be asked.
pub trait Probe {
    fn has(&self, feature: Feature) -> Result<bool, KernelError>;
}

/// The kernel that runs.
#[derive(Clone, Copy, Debug)]
pub struct Running;

impl Probe for Running {
    fn has(&self, feature: Feature) -> Result<bool, KernelError> {
        let map = |kind| is_map_supported(kind).map_err(|error| failed(feature, error));
        let helper = |helper| {
            is_helper_supported(ProgramType::SchedClassifier, helper).map_err(|error| failed(feature, error))
        };
        match feature {
            Feature::TcPrograms => {
                is_program_supported(ProgramType::SchedClassifier).map_err(|error| failed(feature, error))
            }
            Feature::LruHash => map(MapType::LruHash),
            Feature::LongestPrefixMatch => map(MapType::LpmTrie),
            Feature::MapsOfMaps => map(MapType::ArrayOfMaps),
            Feature::PerCpuArrays => map(MapType::PerCpuArray),
            Feature::RingBuffers => map(MapType::RingBuf),
            Feature::TunnelKeys => helper(BpfHelper::BPF_FUNC_skb_set_tunnel_key),
            Feature::PeerDelivery => helper(BpfHelper::BPF_FUNC_redirect_peer),
            Feature::CoarseClock => helper(BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
        }
    }
}

fn failed(feature: Feature, error: impl std::error::Error + Send + Sync + 'static) -> KernelError {
    KernelError::new(format!("ask the kernel for {}", feature.words().0), error)
}

/// Fails where something is missing.
pub fn check(probe: &impl Probe, release: &str) -> Result<(), FeatureError> {
    let mut missing = Vec::new();
    for feature in Feature::NEEDED {
        if !probe.has(feature)? {
            missing.push(feature);
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(FeatureError::Missing { release: release.to_owned(), missing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel without these.
    struct Without(Vec<Feature>);

    impl Probe for Without {
        fn has(&self, feature: Feature) -> Result<bool, KernelError> {
            Ok(!self.0.contains(&feature))
        }
    }

    #[test]
    fn every_feature_that_is_missing_is_named_with_the_kernel_that_has_it() {
        for feature in Feature::NEEDED {
            let error = check(&Without(vec![feature]), "4.0.1").unwrap_err().to_string();
            let (name, since) = feature.words();
            assert!(error.contains(name) && error.contains(since) && error.contains("4.0.1"), "{error}");
        }
        let error = check(&Without(vec![Feature::RingBuffers, Feature::CoarseClock]), "5.4").unwrap_err();
        let error = error.to_string();
        assert!(error.contains("5.8") && error.contains("5.11"), "{error}");
    }

    #[test]
    fn the_kernel_that_runs_these_tests_has_all() {
        check(&Running, "this one").unwrap();
    }
}
