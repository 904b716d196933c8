//! A grace period of the kernel's: when it is over, every program that ran at its beginning has come to its end.

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError, of_maps::ArrayOfMaps},
};
use weft_shared::layout::maps::GRACE;

use super::{KernelError, maps::take};

type Inner = Array<MapData, u32>;

/// An array of maps that no program looks into.
pub(super) struct Grace {
    outer: ArrayOfMaps<MapData, Inner>,
    inner: Inner,
}

impl Grace {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        Ok(Self { outer: take(ebpf, GRACE)?, inner: Inner::create(1, 0).map_err(failed)? })
    }

    /// Waits for one, some milliseconds: a change of an array of maps returns when no program can have the former map in
    /// hand any more (kernel 4.20, commit 1ae80cf31938).
    pub(super) fn wait(&mut self) -> Result<(), KernelError> {
        self.outer.set(0, &self.inner, 0).map_err(failed)
    }
}

fn failed(error: MapError) -> KernelError {
    KernelError::new("wait for the programs that run", error)
}
