//! What both sides of Weft must agree on: the layout of the kernel's maps ([`layout`], which the kernel programs build
//! too, so it is `no_std`), the newtypes of the field's words, and the pure policy model.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
pub mod balance;
#[cfg(feature = "std")]
pub mod digest;
#[cfg(feature = "std")]
pub mod features;
pub mod layout;
#[cfg(feature = "std")]
pub mod names;
#[cfg(feature = "std")]
pub mod policy;
#[cfg(feature = "std")]
pub mod service;
#[cfg(feature = "std")]
pub mod version;
