//! What the kernel programs tell, in words: names for numbers, events, dumps of the maps.

pub mod dump;
pub mod events;
pub mod fill;
pub mod filter;
pub mod made;
pub mod names;
pub mod words;
