//! What the benches measure, and how they tell it. A bench measures beside a reference in the same run, because machines
//! differ; it is no test.

pub mod control;
pub mod datapath;
pub mod lb;
pub mod policy;
pub mod report;

pub use report::{Figure, Report};
