//! Every bound of the command, with its unit in the name.
use std::time::Duration;

/// One `Apply` is one transaction of at most so many objects (the server refuses more).
pub const APPLY_OBJECTS_MAX: usize = 50;
/// The size of an encoded `Apply` that the server takes.
pub const APPLY_BYTES_MAX: usize = 1 << 20;
/// A manifest file, or standard input; far above what one `Apply` may carry.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Levels of a manifest; the schema needs less than a dozen.
pub const MANIFEST_DEPTH_MAX: usize = 64;
/// Problems that are shown; more help nobody.
pub const PROBLEMS_SHOWN_MAX: usize = 20;
/// A line that is longer is not shown beside its problem: it would hide it.
pub const SNIPPET_LINE_BYTES_MAX: usize = 500;
/// What a message repeats of a manifest's text.
pub const QUOTED_CHARACTERS_MAX: usize = 80;
/// Messages from the server: a page of large objects.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// A refusal with all that is wrong: it travels in a header, and those are bounded at 16 KiB by default.
pub const STATUS_BYTES_MAX: u32 = 2 << 20;
/// Objects asked for in one page of a listing.
pub const PAGE_OBJECTS: u32 = 500;
/// To the server's listening socket.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a call that does not wait for the fleet.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What the server or daemon may take beyond a deadline that it was told, to say itself what it was waiting for.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(2);
