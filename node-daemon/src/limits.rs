//! Every bound of the daemon, with its unit in its name.

/// Largest message of the stream.
pub const STREAM_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// Resources staged of one delta that says `more`, beyond which the stream is ended.
pub const STAGED_RESOURCES_MAX: usize = 2_000_000;
/// HTTP/2 keepalive of the stream, in both directions.
pub const KEEPALIVE_SECONDS: u64 = 2;
/// Without an answer to a keepalive for this long, the stream is dead.
pub const KEEPALIVE_TIMEOUT_SECONDS: u64 = 4;
/// To open a connection to a controller.
pub const CONNECT_TIMEOUT_SECONDS: u64 = 5;
/// First step of the reconnect's back-off.
pub const BACKOFF_BASE_MILLISECONDS: u64 = 100;
/// Last step of the reconnect's back-off.
pub const BACKOFF_MAX_MILLISECONDS: u64 = 15_000;
/// A stream that lived this long starts the back-off afresh.
pub const STREAM_STABLE_SECONDS: u64 = 30;

/// Requests that wait for the actor that owns the kernel.
pub const COMMANDS_QUEUED_MAX: usize = 64;
/// Reports that wait for the stream: after a reconnect all endpoints are reported at once, and reading must not wait for
/// writing, or both ends might wait for each other.
pub const REPORTS_QUEUED_MAX: usize = 4 * ENDPOINTS_MAX;
/// Tables of services that one call of the kernel swaps: each has a descriptor open until then, of the 1024 that a process has
/// by default.
pub const TABLES_IN_ONE_WRITE_MAX: usize = 256;
/// Probes of backends at once, each with a descriptor open; more wait.
pub const PROBES_AT_ONCE_MAX: usize = 256;
/// Where many backends are new at once, their first probes begin so far apart on average; each within its interval.
pub const PROBES_BEGIN_MILLISECONDS: u64 = 10;
/// Between two words of the prober about what has changed.
pub const HEALTH_TOLD_MILLISECONDS: u64 = 1_000;
/// Between two words to operators that a node lacks what it needs to probe.
pub const LACK_TOLD_SECONDS: u64 = 30;
/// One report of what probes say.
pub const HEALTH_REPORT_BYTES: usize = 256 * 1024;
/// Why a probe failed; controllers take no longer text.
pub const PROBE_ERROR_BYTES_MAX: usize = 200;
/// Head of an HTTP answer to a probe.
pub const PROBE_ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Between looks whether programs are still on their interfaces: the kernel tells nobody when they are taken off.
pub const DOORS_CHECK_SECONDS: u64 = 5;
/// A burst of changes of the node's network is looked at once, after this.
pub const NETWORK_SETTLES_MILLISECONDS: u64 = 100;
/// Between comparisons of the kernel's state with the desired.
pub const DRIFT_CHECK_SECONDS: u64 = 30;
/// Between counts of the flow table's entries.
pub const FLOWS_PASS_SECONDS: u64 = 30;
/// Between slices of a count.
pub const FLOWS_SLICE_MILLISECONDS: u64 = 100;
/// Rows that a slice looks at: some milliseconds, in which no policy is written.
pub const FLOWS_SLICE_ROWS: u32 = 8 * 1024;
/// Before a failed write of the kernel or the disk is tried again.
pub const RETRY_MILLISECONDS: u64 = 1_000;

/// An attachment that waits to be opened, where the caller set no deadline.
pub const ATTACH_WAIT_SECONDS: u64 = 30;
/// Endpoints of a node.
pub const ENDPOINTS_MAX: usize = weft_shared::layout::maps::ENDPOINTS_MAX;
/// Labels of an endpoint.
pub const LABELS_MAX: usize = 64;

/// Largest request on the local socket.
pub const LOCAL_MESSAGE_BYTES: usize = 1024 * 1024;
/// Requests in work on one connection of the local socket.
pub const LOCAL_CONCURRENCY_MAX: usize = 64;
/// Events that a slow monitor may be behind before it loses some.
pub const MONITOR_QUEUED_MAX: usize = 4096;
/// Between two looks at how many events the kernel has lost, while somebody monitors.
pub const MONITOR_LOSSES_SECONDS: u64 = 1;
/// Rows in flight of a map dump.
pub const DUMP_QUEUED_MAX: usize = 256;

/// Largest file of the desired state.
pub const DESIRED_FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// A journal of its changes may be as large as the file, and so large where the file is smaller.
pub const JOURNAL_BYTES_MIN: u64 = 64 * 1024;

/// Smallest MTU an endpoint may get: IPv6's (RFC 8200 §5).
pub const MTU_BYTES_MIN: u32 = 1280;
/// VXLAN over IPv4: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348).
pub const OVERLAY_BYTES_V4: u32 = 50;
/// VXLAN over IPv6.
pub const OVERLAY_BYTES_V6: u32 = 70;

/// Attempts at loading a kernel program whose verification is interrupted; libbpf makes as many.
pub const LOAD_ATTEMPTS_MAX: u32 = 5;
