//! Every bound of the controller in one place, with its unit in its name.
use std::time::Duration;

/// Largest message a client or a node may send.
pub const REQUEST_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Objects of one Apply. With their claims they stay below etcd's 128 operations a transaction.
pub const APPLY_MAX_OBJECTS: usize = 50;
/// Encoded size of one Apply; etcd takes requests of up to 1.5 MiB.
pub const APPLY_MAX_BYTES: usize = 1024 * 1024;
/// Services of a fleet: nodes number them in 16 bits.
pub const SERVICES_MAX: usize = 65_536;
/// Nodes that are named as rejecting a service.
pub const SERVICE_REJECTIONS_SHOWN: usize = 10;
/// How often a transaction is tried again when the store changed underneath.
pub const TRANSACTION_ATTEMPTS: usize = 16;

/// Unary calls of operators in progress at once; more are refused with `RESOURCE_EXHAUSTED`.
pub const OPERATOR_CALLS_MAX: usize = 256;
/// Watches and waits of operators at once.
pub const OPERATOR_STREAMS_MAX: usize = 256;
/// Streams of nodes at once.
pub const NODE_STREAMS_MAX: usize = 10_000;
/// A unary call of an operator that takes longer is ended with `DEADLINE_EXCEEDED`.
pub const OPERATOR_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// `WaitRealised` without a timeout of its own, and the most it may ask for.
pub const WAIT_REALISED_DEFAULT: Duration = Duration::from_mins(1);
pub const WAIT_REALISED_MAX: Duration = Duration::from_hours(1);

pub const LIST_PAGE_DEFAULT_OBJECTS: usize = 500;
pub const LIST_PAGE_MAX_OBJECTS: usize = 1000;
/// A page ends early here, so that an answer stays below a client's usual limit of 4 MiB.
pub const LIST_PAGE_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Objects read from the store at once while a page is filled.
pub const LIST_CHUNK_OBJECTS: usize = 256;
/// Messages that wait for a slow watcher; behind them the watch itself waits in the store's history.
pub const WATCH_QUEUE_MESSAGES: usize = 16;

/// Operations in one store transaction, as in etcd.
pub const TRANSACTION_MAX_OPERATIONS: usize = 128;
/// Transactions that wait for the embedded store's writer.
pub const STORE_QUEUE_TRANSACTIONS: usize = 1024;
/// Transactions that share one durable commit.
pub const STORE_GROUP_TRANSACTIONS: usize = 64;
/// Page cache of the embedded store.
pub const STORE_CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Revisions of history the embedded store keeps for watches and reads at a revision...
pub const STORE_HISTORY_REVISIONS: u64 = 10_000;
/// ...and how many more it lets gather before it compacts.
pub const STORE_COMPACTION_SLACK_REVISIONS: u64 = 1_000;
/// What a watch reads from history at once.
pub const WATCH_READ_REVISIONS: u64 = 256;
pub const WATCH_READ_BYTES: usize = 1024 * 1024;
/// Batches that wait between the store and its watcher.
pub const WATCH_QUEUE_BATCHES: usize = 16;

/// A member of etcd that has not answered by then is left for the next one...
pub const ETCD_ATTEMPT: Duration = Duration::from_secs(2);
/// ...and the call fails when none has by then. The connection itself gets less, so that a second member has its turn.
pub const ETCD_CALL: Duration = Duration::from_secs(6);
pub const ETCD_CONNECT: Duration = Duration::from_secs(1);
/// After all members failed, before they are asked again.
pub const ETCD_PAUSE: Duration = Duration::from_millis(100);
/// To which the pauses of a watch grow while it finds no member.
pub const ETCD_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a controller tries to reach its store before it gives up starting.
pub const ETCD_START: Duration = Duration::from_secs(15);
/// HTTP/2 keepalive of watches: a member that hangs is noticed after the sum. etcd ends connections that ask more often than
/// every 5 s (`--grpc-keepalive-min-time`), or while nothing is under way.
pub const ETCD_KEEPALIVE: Duration = Duration::from_secs(6);
pub const ETCD_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer taken from etcd. Pages that would be larger are asked for in parts.
pub const ETCD_ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;
/// A watch that heard nothing for this long asks whether it is still served...
pub const ETCD_WATCH_QUIET: Duration = Duration::from_secs(5);
/// ...and goes to another member when it is not told within this.
pub const ETCD_WATCH_ANSWER: Duration = Duration::from_secs(5);
/// How often etcd's history is looked at, and cut to [`STORE_HISTORY_REVISIONS`].
pub const ETCD_COMPACTION_INTERVAL: Duration = Duration::from_mins(1);
/// When data is moved to another store: keys read at once, which is also the most of one transaction; ...
pub const MOVE_PAGE_KEYS: usize = 100;
/// ...bytes of one transaction, unless one key alone has more; ...
pub const MOVE_GROUP_BYTES: usize = 512 * 1024;
/// ...and how often a write is tried while the target cannot be reached.
pub const MOVE_ATTEMPTS: usize = 10;

/// First number of a global identity; below are the reserved classes.
pub const IDENTITY_FIRST: u32 = 256;
/// Last one: identities travel in a VXLAN VNI of 24 bits.
pub const IDENTITY_LAST: u32 = (1 << 24) - 1;

/// An identity that nobody has borne for so long is removed: the only workload of its kind keeps its number across a
/// restart.
pub const IDENTITY_UNUSED: Duration = Duration::from_mins(10);
/// Between two looks at which identities nobody bears...
pub const IDENTITY_INTERVAL: Duration = Duration::from_secs(30);
/// ...and the most that are removed after one of them.
pub const IDENTITIES_COLLECTED_AT_ONCE: usize = 256;

/// Pairs by class of ports that a plan judges, before and after: a few seconds.
pub const PLAN_PAIRS_COMPARED_MAX: usize = 500_000;
/// Pairs that a plan lists; it counts all.
pub const PLAN_PAIRS_LISTED_MAX: usize = 1000;
/// Plans that are worked out at once; more wait.
pub const PLANS_AT_ONCE: usize = 2;

/// Deltas a node may have unacknowledged.
pub const UNACKNOWLEDGED_DELTAS_MAX: usize = 4;
/// Payload of one message of a delta; the next part follows with `more`. A stream's buffer keeps room for the longest that it
/// has sent, for as long as it lives: with thousands of streams that counts more than the 40 bytes of another message.
pub const DELTA_CHUNK_BYTES: usize = 8 * 1024;
/// A node without other news is told of new identities at most this often.
pub const IDENTITIES_THROUGH_INTERVAL: Duration = Duration::from_millis(100);
/// Resources that a node may name in a resume; one that holds more of the types that differ is sent everything.
pub const RESUME_ITEMS_MAX: usize = 500_000;
/// How long a node may take to answer what it holds.
pub const RESUME_TIMEOUT: Duration = Duration::from_secs(10);
/// A controller writes at most this often what its nodes have realised...
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// ...and at least this often, also that nothing has changed...
pub const PROGRESS_HEARTBEAT: Duration = Duration::from_secs(10);
/// ...or it counts as gone.
pub const PROGRESS_STALE: Duration = Duration::from_secs(35);
/// Rejections of one node that other controllers are told of.
pub const PROGRESS_REJECTIONS: usize = 5;
/// Between two words to one who waits for a revision to be realised.
pub const WAIT_TOLD_INTERVAL: Duration = Duration::from_millis(50);
/// Nodes that a controller remembers to wait for adoption.
pub const ADOPTION_WAITING_MAX: usize = 10_000;
/// For how long. They come again within 15 s.
pub const ADOPTION_HEARD: Duration = Duration::from_mins(1);
/// How far above its own numbers a store goes to stay clear of those of a node that it adopts.
pub const ADOPTION_IDENTITIES_SKIPPED_MAX: u32 = 1 << 22;
/// A stream that has not sent its Hello by then is ended.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 keepalive on streams.
pub const KEEPALIVE: Duration = Duration::from_secs(2);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// An endpoint opens at the latest after this, also when a node has not acknowledged it.
pub const OPEN_HOLD: Duration = Duration::from_secs(5);
/// Underlay addresses of a node.
pub const NODE_ADDRESSES_MAX: usize = 16;
/// A Hello, and what a report says of one endpoint.
pub const REPORT_MAX_BYTES: usize = 64 * 1024;
/// Why a probe failed, as a node says it.
pub const PROBE_ERROR_MAX_BYTES: usize = 200;
/// Words about backends that one transaction takes back.
pub const HEALTH_FORGOTTEN_AT_ONCE: usize = 100;
/// Names in one inventory.
pub const INVENTORY_MAX_NAMES: usize = 10_000;
/// Answers that wait for a slow node; meanwhile its reports are not read.
pub const ANSWERS_WAITING_MAX: usize = 64;
/// Rejections kept for a node.
pub const REJECTIONS_KEPT: usize = 100;
/// How long open calls may take to end once the controller was told to stop.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

const _: () = assert!(MOVE_PAGE_KEYS <= TRANSACTION_MAX_OPERATIONS);

/// For so long a node is away before others probe backends outside of the fleet in its place.
pub const PROBER_AWAY: Duration = Duration::from_secs(30);
/// Between two looks at which nodes are away.
pub const ABSENCE_INTERVAL: Duration = Duration::from_secs(5);
