//! Deadlines. Generous: they bound a hang, they measure nothing.
use std::time::Duration;

/// A daemon or controller is up, a node has joined, an endpoint is ready.
pub const READY: Duration = Duration::from_mins(1);
/// A connection attempt that has not succeeded by then is taken as dropped: three of TCP's first retransmissions.
pub const DENIED: Duration = Duration::from_secs(4);
/// A process that was told to end has ended.
pub const EXIT: Duration = Duration::from_secs(20);
/// Between two looks at a condition.
pub const POLL: Duration = Duration::from_millis(20);
/// Between two packets of a continuous stream.
pub const STREAM_INTERVAL: Duration = Duration::from_millis(5);
/// The last echoes of a stream that was stopped come back.
pub const STREAM_TAIL: Duration = Duration::from_secs(2);
/// Lines of each log that a failure prints.
pub const LOG_TAIL_LINES: usize = 40;
/// Of each of these lines; a verifier's log has some of thousands.
pub const LOG_LINE_CHARS: usize = 400;
