//! Newtypes for the field's words, so that one can't be taken for another.

use std::fmt;

use crate::layout::{Class, FIRST_GLOBAL_IDENTITY, FIRST_LOCAL_IDENTITY};

/// The number that stands for a set of security labels, for a class (below 256), or on one node for a prefix (from
/// 2^24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u32);

impl Identity {
    /// Whether it stands for a label set: it means the same on every node and fits a VNI.
    pub const fn is_global(self) -> bool {
        self.0 >= FIRST_GLOBAL_IDENTITY && self.0 < FIRST_LOCAL_IDENTITY
    }
}

impl From<Class> for Identity {
    fn from(class: Class) -> Self {
        Self(class as u32)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A revision of the store. Greater is later; 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
