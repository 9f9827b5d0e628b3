//! The store's thread: linearizable reads, compare-and-swap and watches on etcd, asked and answered by channels.
//!
//! Each call has 300 ms at an endpoint, then goes to the next one at once; one round of all endpoints is one try,
//! and whether to try again is the caller's choice.
//!
//! Must always hold:
//! * a swap whose outcome isn't known is answered as such, never as failed (protocol.md R14). Trying the same swap
//!   at the next endpoint is no second swap: it compares the same revision, and only one of the two can be applied;
//! * a swap compares what stood there, not its revision alone: a store that was restored counts its revisions anew, so
//!   that the compared one may be there again with another meaning (R11, R14);
//! * every read is linearizable, and is answered only if the store has not gone back behind the watermark, which
//!   is durable before the answer (R11);
//! * a watch begins with the keys' present values, also after each time it was cut: nothing is missed, though
//!   changes in between may be seen as one;
//! * with credentials nothing is said in clear, and a connection made with older ones gets no new call or watch;
//! * with credentials nothing is asked, and so nothing believed, before the agent has said that the store is the cluster's: a
//!   member that was revoked while this host was off can serve one of its own at its old address, and sign what it shows.

mod lease;

use core::fmt;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity as TlsIdentity,
    KeyValue, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use weft_control::types::Decimal;
use weft_proto::ids::{ClusterId, HostId, Nonce, Revision};
use weft_proto::message::Watermark;
use weft_proto::record::COUNTER_MAX;

use crate::errors::{Code, Failure};
use crate::mail::{Answer, Mail, Mailbox};
use crate::records::RecordChange;
use crate::state::StateDir;
use crate::trust::{IDENTITY_DIR, IdentityFiles, TRUST_FILE};

/// How long one endpoint may take for one call.
pub const CALL_DEADLINE: Duration = Duration::from_millis(300);
/// Pause before a cut watch is tried again: a store that is away must not be hammered.
const WATCH_PAUSE: Duration = Duration::from_millis(200);
/// etcd refuses clients that ping more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// An unanswered ping ends the connection, and so the watches that would hang on it.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Why a store isn't asked that may be another's.
const UNCONFIRMED: &str =
    "it is not asked before the agent has heard of the others which store is the cluster's";
/// The store's identity: `{cluster, incarnation}`.
pub const STORE_KEY: &str = "/weft/v1/store";
/// How far the store's incarnation may be above the highest that this host has seen: any host can write that key, and no
/// store is repaired so often while a host is away.
pub const INCARNATION_RISE_MAX: u64 = 1 << 16;

/// Chosen by who asks, repeated in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreToken(pub u64);

/// What the store's thread is asked.
#[derive(Debug)]
pub enum StoreRequest {
    /// Which cluster's store is expected, and where. Calls under way end at the old endpoints.
    Connect {
        /// The cluster.
        cluster: ClusterId,
        /// Client URLs.
        endpoints: Vec<String>,
    },
    /// What is shown to the store and believed of it from now on; none: it is spoken to in clear. Calls under way end
    /// on their connections, watches are opened anew.
    Credentials(Option<StoreCredentials>),
    /// Whether who believes the credentials is known to be the cluster's store: until then it is away. Calls under way end.
    Confirm(bool),
    /// The values of some keys at one revision.
    Read {
        /// Told back.
        token: StoreToken,
        /// The keys.
        keys: Vec<String>,
    },
    /// All keys that begin with a prefix, at one revision.
    List {
        /// Told back.
        token: StoreToken,
        /// The prefix.
        prefix: String,
    },
    /// Compare-and-swap of one key, and of others with it.
    Swap {
        /// Told back.
        token: StoreToken,
        /// The key.
        key: String,
        /// What must be there; none: it must not exist.
        expected: Option<Expected>,
        /// Its new value, unique among all that were ever given to this key (it holds a nonce); none deletes it.
        value: Option<Vec<u8>>,
        /// Keys that get these values, or go, in the same transaction, whatever they hold: nobody changes them without the
        /// one that is compared.
        beside: Vec<Beside>,
    },
    /// The same of several keys, in one transaction: all of them change, or none.
    SwapAll {
        /// Told back.
        token: StoreToken,
        /// Each key once.
        swaps: Vec<KeySwap>,
    },
    /// Tells of a key, or of all keys with a prefix, until [`StoreRequest::Unwatch`].
    Watch {
        /// Told back with each event.
        token: StoreToken,
        /// The key, or the prefix.
        key: String,
        /// True for a prefix.
        prefix: bool,
    },
    /// Keeps a key there until [`StoreRequest::Release`]; some seconds longer if this process ends. Told once it stands
    /// by [`StoreReply::Held`].
    Hold {
        /// Told back.
        token: StoreToken,
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Lets a key go.
    Release {
        /// Its holding's.
        token: StoreToken,
    },
    /// Ends a watch; events that are in the channel already may still come.
    Unwatch {
        /// The watch's.
        token: StoreToken,
    },
    /// This host obeys nothing below from now on: a repair has begun (R11).
    Raise(Watermark),
    /// Raises the store's incarnation after a repair: the one way past a watermark.
    SetIncarnation {
        /// Told back as a swap.
        token: StoreToken,
        /// The new incarnation, above the present one.
        incarnation: u64,
    },
    /// Replaces a file of the state directory: this thread may wait for a disk.
    KeepFile {
        /// Its name.
        name: &'static str,
        /// Its content.
        value: serde_json::Value,
    },
    /// Makes an accepted trust list durable; answered by [`StoreReply::TrustKept`].
    KeepTrust {
        /// Told back.
        generation: u64,
        /// As it was signed.
        signed: Vec<u8>,
    },
    /// Reads the identity directory; the mail is [`Mail::Identity`].
    ReadIdentity {
        /// Whose certificate it must be.
        host: HostId,
        /// Who asked, if anybody waits.
        answer: Option<Answer>,
    },
    /// A change of a record that no session is needed for.
    Change {
        /// What to change.
        change: RecordChange,
        /// Takes the answer.
        answer: Answer,
    },
}

/// What the store's members are shown, and whom this host believes to be one.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreCredentials {
    /// Certificates in PEM of the authorities that may have issued a member's.
    pub authorities: Vec<u8>,
    /// This host's certificate with its issuers, in PEM; other PEM sections, as its key's, may stand beside.
    pub certificate: Vec<u8>,
    /// Its key, in PEM; other PEM sections may stand beside.
    pub key: Vec<u8>,
}

impl StoreCredentials {
    fn options(&self) -> TlsOptions {
        TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&self.authorities))
            .identity(TlsIdentity::from_pem(&self.certificate, &self.key))
    }
}

/// A key is never shown.
impl fmt::Debug for StoreCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCredentials")
    }
}

/// A key that changes together with one that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The key.
    pub key: String,
    /// Its new value; none deletes it.
    pub value: Option<Vec<u8>>,
}

impl Beside {
    fn change(&self) -> TxnOp {
        match &self.value {
            Some(value) => TxnOp::put(self.key.as_str(), value.clone(), None),
            None => TxnOp::delete(self.key.as_str(), None),
        }
    }
}

/// A key's part of a swap of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySwap {
    /// The key.
    pub key: String,
    /// What must be there.
    pub expected: Expected,
    /// Its new value, as in [`StoreRequest::Swap`].
    pub value: Vec<u8>,
    /// What changes beside it.
    pub beside: Vec<Beside>,
}

/// What a swap replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The key's revision.
    pub revision: Revision,
    /// Its value.
    pub was: Was,
}

/// How the value that a swap replaces is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Was {
    /// As it was read, byte by byte.
    Value(Vec<u8>),
    /// By the `nonce` of a record, which is parsed when it is read, and no record has twice.
    Nonce(Nonce),
}

impl Expected {
    /// Is this what stands there? Else whether the store has gone on (`Ok`), or is not the one that was read.
    fn compare(&self, current: Option<&Entry>) -> Result<bool, String> {
        let Some(entry) = current else { return Ok(false) };
        if entry.revision > self.revision {
            return Ok(false);
        }
        let same = entry.revision == self.revision
            && match &self.was {
                Was::Value(value) => *value == entry.value,
                Was::Nonce(nonce) => nonce_of(&entry.value) == Some(*nonce),
            };
        if same {
            return Ok(true);
        }
        Err(format!(
            "{} is at revision {} with another value than this host has read there at revision {}",
            entry.key, entry.revision.0, self.revision.0
        ))
    }
}

impl From<&Entry> for Expected {
    fn from(entry: &Entry) -> Expected {
        Expected { revision: entry.revision, was: Was::Value(entry.value.clone()) }
    }
}

fn nonce_of(value: &[u8]) -> Option<Nonce> {
    #[derive(Deserialize)]
    struct Nonced {
        nonce: Nonce,
    }
    serde_json::from_slice::<Nonced>(value).ok().map(|n| n.nonce)
}

/// What the store's thread answers.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreReply {
    /// To `Read`: one per key, in order. To `List`: the existing keys, in order.
    Read {
        /// Told back.
        token: StoreToken,
        /// The values, or why not.
        result: Result<Snapshot, ReadError>,
    },
    /// To `Swap` and `SetIncarnation`.
    Swapped {
        /// Told back.
        token: StoreToken,
        /// How it went.
        outcome: SwapOutcome,
    },
    /// To `SwapAll`.
    SwappedAll {
        /// Told back.
        token: StoreToken,
        /// How it went with each, in order: where one has failed, what the others have been spared is `Away`.
        outcomes: Vec<SwapOutcome>,
    },
    /// To `Hold`.
    Held {
        /// Told back.
        token: StoreToken,
    },
    /// Of a watch.
    Watched {
        /// The watch's.
        token: StoreToken,
        /// What happened.
        event: WatchEvent,
    },
    /// The store was lost or came back.
    Reachable {
        /// The last call was answered.
        reachable: bool,
        /// Why not.
        error: Option<String>,
    },
    /// The watermark is durable at this value now.
    Watermark(Watermark),
    /// To `KeepTrust`.
    TrustKept {
        /// Told back.
        generation: u64,
        /// Durable, or why not.
        result: Result<(), Failure>,
    },
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The store's revision of the key's last change.
    pub revision: Revision,
}

/// Values of keys at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The moment: the store's identity and revision.
    pub watermark: Watermark,
    /// The keys; none where there is no such key.
    pub entries: Vec<Option<Entry>>,
}

/// Why a read was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// No endpoint answered.
    Away(String),
    /// It answered, but is behind what this host has seen, has no identity, or is another cluster's (R11, R15).
    RolledBack(String),
    /// The watermark can't be made durable.
    Watermark(String),
}

/// How a swap went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// It is in the store.
    Done {
        /// The key's revision now.
        revision: Revision,
    },
    /// It is not and never will be; this is what is there instead.
    Failed {
        /// The present value.
        current: Option<Entry>,
    },
    /// It may have been applied, or may still be.
    Unknown(String),
    /// It was not sent: no endpoint answered.
    Away(String),
    /// It was not sent: the store is not the one that this host has followed (R11).
    RolledBack(String),
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The present values: at first, and again after the watch was cut.
    Now(Vec<Entry>),
    /// A key has a new value.
    Put(Entry),
    /// A key was deleted.
    Deleted(String),
    /// The watch is cut; it goes on by itself with `Now`.
    Cut,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct StoreHandle(UnboundedSender<StoreRequest>);

impl StoreHandle {
    /// Asks; the answer comes by mail. The thread lives as long as the process.
    pub fn send(&self, request: StoreRequest) {
        if self.0.send(request).is_err() {
            tracing::error!("the store's thread has ended");
        }
    }
}

/// Starts the store's thread.
pub fn spawn(state: Arc<StateDir>, mailbox: Mailbox) -> Result<StoreHandle, Failure> {
    let kept = state.read_watermark()?;
    let (sender, receiver) = unbounded_channel();
    let shared_parts = (state, mailbox, kept);
    let run = move || {
        let (state, mailbox, kept) = shared_parts;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime without threads needs only an epoll descriptor");
        let store = Store(Rc::new(RefCell::new(Shared {
            cluster: ClusterId::default(),
            endpoints: Vec::new(),
            credentials: None,
            confirmed: false,
            renewed: Rc::new(Notify::new()),
            clients: Vec::new(),
            preferred: 0,
            generation: 0,
            kept,
            reachable: None,
            state,
            mailbox,
        })));
        LocalSet::new().block_on(&runtime, store.run(receiver));
    };
    let thread = std::thread::Builder::new().name("store".to_owned()).spawn(run);
    thread.map_err(|e| Failure::new(Code::PROCESS_LIMIT, format!("can't start a thread: {e}")))?;
    Ok(StoreHandle(sender))
}

/// The identity's value.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Identity {
    cluster: ClusterId,
    incarnation: Decimal,
}

struct Shared {
    cluster: ClusterId,
    endpoints: Vec<String>,
    credentials: Option<StoreCredentials>,
    /// With credentials: the store may be asked.
    confirmed: bool,
    /// Wakes the watches when the credentials have changed.
    renewed: Rc<Notify>,
    /// One client per endpoint: a client of several balances over them, and would wait for one that is gone.
    clients: Vec<Option<Client>>,
    /// The endpoint that answered last.
    preferred: usize,
    /// Raised with each change of endpoints or credentials.
    generation: u64,
    kept: Option<Watermark>,
    reachable: Option<bool>,
    state: Arc<StateDir>,
    mailbox: Mailbox,
}

/// The store, as the tasks of its thread see it.
#[derive(Clone)]
pub(crate) struct Store(Rc<RefCell<Shared>>);

impl Store {
    async fn run(self, mut requests: UnboundedReceiver<StoreRequest>) {
        let mut watches: BTreeMap<StoreToken, AbortHandle> = BTreeMap::new();
        let mut holds: BTreeMap<StoreToken, Rc<Notify>> = BTreeMap::new();
        while let Some(request) = requests.recv().await {
            let store = self.clone();
            match request {
                StoreRequest::KeepFile { name, value } => {
                    let written = store.0.borrow().state.write_json(name, &value);
                    if let Err(error) = written {
                        tracing::error!(%error, "not kept");
                    }
                }
                StoreRequest::KeepTrust { generation, signed } => {
                    let path = Path::new(IDENTITY_DIR).join(TRUST_FILE);
                    let result = store.0.borrow().state.replace(&path, &signed, 0o600);
                    store.tell(StoreReply::TrustKept { generation, result });
                }
                StoreRequest::ReadIdentity { host, answer } => {
                    let shared = store.0.borrow();
                    let files = IdentityFiles::read(&shared.state, shared.cluster, host);
                    shared.mailbox.send(Mail::Identity(Box::new(files), answer));
                }
                StoreRequest::Change { change, answer } => {
                    spawn_local(async move {
                        let result = store.change(change).await;
                        // Nobody may want to know any more.
                        let _ = answer.send(result.map_err(Failure::into_body));
                    });
                }
                StoreRequest::Connect { cluster, endpoints } => store.connect(cluster, endpoints),
                StoreRequest::Credentials(credentials) => store.renew(credentials),
                StoreRequest::Confirm(confirmed) => store.confirm(confirmed),
                StoreRequest::Read { token, keys } => {
                    spawn_local(async move {
                        let result = store.read(keys).await;
                        store.tell(StoreReply::Read { token, result });
                    });
                }
                StoreRequest::List { token, prefix } => {
                    spawn_local(async move {
                        let result = store.list(&prefix).await;
                        store.tell(StoreReply::Read { token, result });
                    });
                }
                StoreRequest::Hold { token, key, value } => {
                    let released = Rc::new(Notify::new());
                    holds.insert(token, released.clone());
                    spawn_local(store.hold(token, key, value, released));
                }
                StoreRequest::Release { token } => {
                    if let Some(released) = holds.remove(&token) {
                        released.notify_one();
                    }
                }
                StoreRequest::Swap { token, key, expected, value, beside } => {
                    spawn_local(async move {
                        let outcome = store.swap(key, expected, value, &beside).await;
                        store.tell(StoreReply::Swapped { token, outcome });
                    });
                }
                StoreRequest::SwapAll { token, swaps } => {
                    spawn_local(async move {
                        let outcomes = store.swap_all(&swaps).await;
                        store.tell(StoreReply::SwappedAll { token, outcomes });
                    });
                }
                StoreRequest::Watch { token, key, prefix } => {
                    let task = spawn_local(async move { store.watch(token, key, prefix).await });
                    if let Some(before) = watches.insert(token, task.abort_handle()) {
                        before.abort();
                    }
                }
                StoreRequest::Unwatch { token } => {
                    if let Some(task) = watches.remove(&token) {
                        task.abort();
                    }
                }
                StoreRequest::Raise(watermark) => {
                    if let Err(error) = store.keep(watermark) {
                        tracing::error!(%error, "the watermark can't be kept");
                    }
                }
                StoreRequest::SetIncarnation { token, incarnation } => {
                    spawn_local(async move {
                        let outcome = store.set_incarnation(incarnation).await;
                        store.tell(StoreReply::Swapped { token, outcome });
                    });
                }
            }
        }
    }

    fn tell(&self, reply: StoreReply) {
        self.0.borrow().mailbox.send(Mail::Store(reply));
    }

    fn connect(&self, cluster: ClusterId, endpoints: Vec<String>) {
        let mut shared = self.0.borrow_mut();
        shared.cluster = cluster;
        if shared.endpoints != endpoints {
            shared.clients = endpoints.iter().map(|_| None).collect();
            shared.endpoints = endpoints;
            shared.preferred = 0;
            shared.generation += 1;
        }
    }

    fn renew(&self, credentials: Option<StoreCredentials>) {
        let mut shared = self.0.borrow_mut();
        if shared.credentials != credentials {
            shared.credentials = credentials;
            shared.clients.fill(None);
            shared.generation += 1;
            shared.renewed.notify_waiters();
        }
    }

    fn confirm(&self, confirmed: bool) {
        let mut shared = self.0.borrow_mut();
        if shared.confirmed == confirmed {
            return;
        }
        tracing::info!(confirmed, "whether the store is the cluster's");
        shared.confirmed = confirmed;
        if !confirmed {
            shared.clients.fill(None);
            shared.generation += 1;
            shared.renewed.notify_waiters();
        }
    }

    // ---- calls

    pub(crate) async fn read(&self, keys: Vec<String>) -> Result<Snapshot, ReadError> {
        let mut ops: Vec<TxnOp> = vec![TxnOp::get(STORE_KEY, None)];
        ops.extend(keys.iter().map(|key| TxnOp::get(key.as_str(), None)));
        let (watermark, answers) = self.checked_read(ops).await?;
        let entries = answers.into_iter().map(|kvs| kvs.into_iter().next()).collect();
        Ok(Snapshot { watermark, entries })
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, ReadError> {
        let options = Some(GetOptions::new().with_prefix());
        let ops = vec![TxnOp::get(STORE_KEY, None), TxnOp::get(prefix, options)];
        let (watermark, answers) = self.checked_read(ops).await?;
        let entries = answers.into_iter().flatten().map(Some).collect();
        Ok(Snapshot { watermark, entries })
    }

    /// Runs reads in one transaction, the first of which is the store's identity. (A transaction of reads is
    /// linearizable in etcd unless each of them says that it need not be.)
    async fn checked_read(&self, ops: Vec<TxnOp>) -> Result<(Watermark, Vec<Vec<Entry>>), ReadError> {
        // A read can't be older than what was known when it was *sent*; others that are answered meanwhile may
        // well be newer.
        let (before, cluster) = {
            let shared = self.0.borrow();
            (shared.kept, shared.cluster)
        };
        let txn = Txn::new().and_then(ops);
        let response = self.call(async |mut client: Client| client.txn(txn.clone()).await).await;
        let response = response.map_err(ReadError::Away)?;
        let revision = response.header().map_or(0, |h| positive(h.revision()));
        let mut answers = Vec::new();
        for answer in response.op_responses() {
            let TxnOpResponse::Get(mut get) = answer else {
                return Err(ReadError::Away("a read was not answered as one".to_owned()));
            };
            answers.push(get.take_kvs().into_iter().filter_map(entry_of).collect::<Vec<_>>());
        }
        if answers.is_empty() {
            return Err(ReadError::Away("an empty answer".to_owned()));
        }
        let identity = answers.remove(0).into_iter().next();
        let watermark = check(cluster, before, identity.as_ref(), revision).map_err(ReadError::RolledBack)?;
        self.keep(watermark).map_err(|e| ReadError::Watermark(e.message))?;
        Ok((watermark, answers))
    }

    /// Looks first: whether the store may be believed, and whether what is to be replaced is there. The transaction
    /// then compares both with what was seen, so that it can't be applied to another history that has the same
    /// revisions. The look also tells "surely not applied" from "unknown" whenever the store was away already.
    pub(crate) async fn swap(
        &self,
        key: String,
        expected: Option<Expected>,
        value: Option<Vec<u8>>,
        beside: &[Beside],
    ) -> SwapOutcome {
        let look =
            vec![TxnOp::get(STORE_KEY, None), TxnOp::get(STORE_KEY, None), TxnOp::get(key.as_str(), None)];
        let (identity, current) = match self.checked_read(look).await {
            Ok((_, answers)) => {
                let mut seen = answers.into_iter().map(|kvs| kvs.into_iter().next());
                (seen.next().flatten(), seen.next().flatten())
            }
            Err(ReadError::RolledBack(why)) => return SwapOutcome::RolledBack(why),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => return SwapOutcome::Away(why),
        };
        let there = match &expected {
            None => current.is_none(),
            Some(expected) => match expected.compare(current.as_ref()) {
                Ok(there) => there,
                Err(why) => return SwapOutcome::RolledBack(why),
            },
        };
        if !there {
            return not_there(current, value.as_deref());
        }
        let identity = identity.map(|entry| Compare::value(STORE_KEY, CompareOp::Equal, entry.value));
        self.compare_and_swap(&key, current, value, beside, identity.into_iter().collect()).await
    }

    /// As [`Store::swap`], of several keys in one transaction.
    async fn swap_all(&self, swaps: &[KeySwap]) -> Vec<SwapOutcome> {
        let all = |outcome: SwapOutcome| vec![outcome; swaps.len()];
        let keys = swaps.iter().map(|swap| TxnOp::get(swap.key.as_str(), None));
        let look = [STORE_KEY, STORE_KEY].map(|key| TxnOp::get(key, None)).into_iter().chain(keys).collect();
        let mut seen = match self.checked_read(look).await {
            Ok((_, answers)) => answers.into_iter().map(|kvs| kvs.into_iter().next()),
            Err(ReadError::RolledBack(why)) => return all(SwapOutcome::RolledBack(why)),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => return all(SwapOutcome::Away(why)),
        };
        let identity = seen.next().flatten();
        let there: Vec<Option<Entry>> = seen.collect();
        let spared = || SwapOutcome::Away("another volume has changed, so that none was".to_owned());
        let look = |(swap, there): (&KeySwap, &Option<Entry>)| match swap.expected.compare(there.as_ref()) {
            Ok(true) => None,
            Ok(false) => Some(not_there(there.clone(), Some(&swap.value))),
            Err(why) => Some(SwapOutcome::RolledBack(why)),
        };
        let failed: Vec<Option<SwapOutcome>> = swaps.iter().zip(&there).map(look).collect();
        if failed.iter().any(Option::is_some) {
            return failed.into_iter().map(|outcome| outcome.unwrap_or_else(spared)).collect();
        }
        let mut compares: Vec<Compare> = identity
            .map(|entry| Compare::value(STORE_KEY, CompareOp::Equal, entry.value))
            .into_iter()
            .collect();
        let (mut changes, mut looks) = (Vec::new(), Vec::new());
        for (swap, there) in swaps.iter().zip(&there) {
            compares.extend(unchanged(&swap.key, there.as_ref()));
            changes.push(TxnOp::put(swap.key.as_str(), swap.value.clone(), None));
            changes.extend(swap.beside.iter().map(Beside::change));
            looks.push(TxnOp::get(swap.key.as_str(), None));
        }
        let txn = Txn::new().when(compares).and_then(changes).or_else(looks);
        let response = match self.call(async |mut client: Client| client.txn(txn.clone()).await).await {
            Ok(response) => response,
            Err(why) => return all(SwapOutcome::Unknown(why)),
        };
        if response.succeeded() {
            let revision = response.header().map_or(0, |h| positive(h.revision()));
            return all(SwapOutcome::Done { revision: Revision(revision) });
        }
        let mut current = Vec::new();
        for answer in response.op_responses() {
            let TxnOpResponse::Get(mut get) = answer else {
                return all(SwapOutcome::Unknown("a swap was not answered as one".to_owned()));
            };
            current.push(get.take_kvs().into_iter().next().and_then(entry_of));
        }
        if current == there {
            return all(SwapOutcome::Unknown("the store was repaired or replaced meanwhile".to_owned()));
        }
        if current.len() != swaps.len() {
            return all(SwapOutcome::Unknown("a swap was not answered as one".to_owned()));
        }
        let judge = |((swap, there), current): ((&KeySwap, &Option<Entry>), Option<Entry>)| {
            // One of them is another one for good: so this one never goes with it.
            if current == *there { spared() } else { not_there(current, Some(&swap.value)) }
        };
        swaps.iter().zip(&there).zip(current).map(judge).collect()
    }

    /// Replaces exactly `there`, as it was just read, whatever the store's identity is: for a repair alone.
    pub(crate) async fn swap_unchecked(
        &self,
        key: &str,
        there: Option<Entry>,
        value: Option<Vec<u8>>,
        beside: &[Beside],
    ) -> SwapOutcome {
        self.compare_and_swap(key, there, value, beside, Vec::new()).await
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        there: Option<Entry>,
        value: Option<Vec<u8>>,
        beside: &[Beside],
        mut compares: Vec<Compare>,
    ) -> SwapOutcome {
        compares.extend(unchanged(key, there.as_ref()));
        let change = match &value {
            Some(value) => TxnOp::put(key, value.clone(), None),
            None => TxnOp::delete(key, None),
        };
        let changes: Vec<TxnOp> = std::iter::once(change).chain(beside.iter().map(Beside::change)).collect();
        let txn = Txn::new().when(compares).and_then(changes).or_else(vec![TxnOp::get(key, None)]);
        let response = match self.call(async |mut client: Client| client.txn(txn.clone()).await).await {
            Ok(response) => response,
            Err(why) => return SwapOutcome::Unknown(why),
        };
        if response.succeeded() {
            let revision = response.header().map_or(0, |h| positive(h.revision()));
            return SwapOutcome::Done { revision: Revision(revision) };
        }
        let current = match response.op_responses().into_iter().next() {
            Some(TxnOpResponse::Get(mut get)) => get.take_kvs().into_iter().next().and_then(entry_of),
            _ => return SwapOutcome::Unknown("a swap was not answered as one".to_owned()),
        };
        if current == there {
            // The store's identity has changed since the look; the next one decides.
            return SwapOutcome::Unknown("the store was repaired or replaced meanwhile".to_owned());
        }
        not_there(current, value.as_deref())
    }

    pub(crate) async fn set_incarnation(&self, incarnation: u64) -> SwapOutcome {
        let current = match self.read_unchecked(STORE_KEY).await {
            Ok(current) => current,
            Err(why) => return SwapOutcome::Away(why),
        };
        let cluster = self.0.borrow().cluster;
        let present = current.as_ref().and_then(|e| serde_json::from_slice::<Identity>(&e.value).ok());
        // What nobody believes is written over.
        let before = self.0.borrow().kept;
        if let Some(present) = present.filter(|present| is_reachable(before, present.incarnation.0)) {
            if present.cluster != cluster || present.incarnation.0 > incarnation {
                return SwapOutcome::Failed { current };
            }
            if present.incarnation.0 == incarnation {
                let revision = current.map_or(Revision(0), |e| e.revision);
                return SwapOutcome::Done { revision };
            }
        }
        let identity = Identity { cluster, incarnation: Decimal(incarnation) };
        let value = serde_json::to_vec(&identity).expect("an identity is always JSON");
        self.swap_unchecked(STORE_KEY, current, Some(value), &[]).await
    }

    /// A key's present value, whatever the store's identity is.
    pub(crate) async fn read_unchecked(&self, key: &str) -> Result<Option<Entry>, String> {
        let mut response = self.call(async |mut client: Client| client.get(key, None).await).await?;
        Ok(response.take_kvs().into_iter().next().and_then(entry_of))
    }

    /// All present keys with a prefix, whatever the store's identity is.
    pub(crate) async fn list_unchecked(&self, prefix: &str) -> Result<Vec<Entry>, String> {
        let list = async |mut client: Client| client.get(prefix, Some(GetOptions::new().with_prefix())).await;
        let mut response = self.call(list).await?;
        Ok(response.take_kvs().into_iter().filter_map(entry_of).collect())
    }

    /// Writes keys whatever is there, whatever the store's identity is: for a repair alone.
    pub(crate) async fn put_unchecked(&self, keys: &[Beside]) -> Result<(), String> {
        let txn = Txn::new().and_then(keys.iter().map(Beside::change).collect::<Vec<_>>());
        self.call(async |mut client: Client| client.txn(txn.clone()).await).await.map(drop)
    }

    /// Tries one endpoint after the other, the one that answered last first.
    async fn call<T>(&self, f: impl AsyncFn(Client) -> Result<T, etcd_client::Error>) -> Result<T, String> {
        let (count, first, generation, forbidden) = {
            let shared = self.0.borrow();
            let forbidden = shared.credentials.is_some() && !shared.confirmed;
            (shared.endpoints.len(), shared.preferred, shared.generation, forbidden)
        };
        if forbidden {
            let why = UNCONFIRMED.to_owned();
            self.note_reachable(false, Some(why.clone()));
            return Err(why);
        }
        let mut why = "the store's endpoints are not known yet".to_owned();
        for i in 0..count {
            let index = (first + i) % count;
            let attempt = async {
                let client = self.client(index, generation).await?;
                f(client).await
            };
            let result = timeout(CALL_DEADLINE, attempt).await;
            let mut shared = self.0.borrow_mut();
            let same = shared.generation == generation;
            match result {
                Ok(Ok(value)) => {
                    if same {
                        shared.preferred = index;
                    }
                    drop(shared);
                    self.note_reachable(true, None);
                    return Ok(value);
                }
                Ok(Err(e)) => why = e.to_string(),
                Err(_) => why = format!("no answer within {} ms", CALL_DEADLINE.as_millis()),
            }
            if !same {
                return Err(why);
            }
            // A connection that failed is not trusted with the next call.
            shared.clients[index] = None;
            why = format!("{}: {why}", shared.endpoints[index]);
        }
        self.note_reachable(false, Some(why.clone()));
        Err(why)
    }

    async fn client(&self, index: usize, generation: u64) -> Result<Client, etcd_client::Error> {
        let (endpoint, tls) = {
            let shared = self.0.borrow();
            if shared.generation != generation {
                return Err(etcd_client::Error::InvalidArgs("the endpoints have changed".to_owned()));
            }
            if let Some(client) = &shared.clients[index] {
                return Ok(client.clone());
            }
            (shared.endpoints[index].clone(), shared.credentials.as_ref().map(StoreCredentials::options))
        };
        // The client would take either: who has an identity to show says nothing in clear.
        let scheme = if tls.is_some() { "https://" } else { "http://" };
        if !endpoint.starts_with(scheme) {
            return Err(etcd_client::Error::InvalidArgs(format!("not an address that begins with {scheme}")));
        }
        let options = ConnectOptions::new()
            .with_connect_timeout(CALL_DEADLINE)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_require_leader(true);
        let options = match tls {
            Some(tls) => options.with_tls(tls),
            None => options,
        };
        let client = Client::connect([endpoint], Some(options)).await?;
        let mut shared = self.0.borrow_mut();
        if shared.generation == generation {
            shared.clients[index] = Some(client.clone());
        }
        Ok(client)
    }

    fn note_reachable(&self, reachable: bool, error: Option<String>) {
        let mut shared = self.0.borrow_mut();
        if shared.reachable != Some(reachable) {
            shared.reachable = Some(reachable);
            drop(shared);
            self.tell(StoreReply::Reachable { reachable, error });
        }
    }

    /// Makes a higher watermark durable.
    fn keep(&self, seen: Watermark) -> Result<(), Failure> {
        let mut shared = self.0.borrow_mut();
        let higher = match shared.kept {
            None => true,
            Some(kept) => {
                kept.cluster == seen.cluster
                    && (kept.incarnation, kept.revision) < (seen.incarnation, seen.revision)
            }
        };
        if higher {
            shared.state.write_watermark(seen)?;
            shared.kept = Some(seen);
            drop(shared);
            self.tell(StoreReply::Watermark(seen));
        }
        Ok(())
    }

    // ---- watches

    async fn watch(self, token: StoreToken, key: String, prefix: bool) {
        loop {
            let why = match self.watch_once(token, &key, prefix).await {
                Ok(Ended::Renewed) => continue,
                Ok(Ended::Closed) => "the stream ended".to_owned(),
                Err(why) => why,
            };
            tracing::debug!(key, why, "watch cut");
            self.tell(StoreReply::Watched { token, event: WatchEvent::Cut });
            sleep(WATCH_PAUSE).await;
        }
    }

    async fn watch_once(&self, token: StoreToken, key: &str, prefix: bool) -> Result<Ended, String> {
        // Before the first connection is made: no renewal is missed.
        let renewed = self.0.borrow().renewed.clone();
        let renewed = renewed.notified();
        let mut renewed = pin!(renewed);
        let snapshot = if prefix { self.list(key).await } else { self.read(vec![key.to_owned()]).await };
        let snapshot = snapshot.map_err(|e| format!("{e:?}"))?;
        let from = i64::try_from(snapshot.watermark.revision).unwrap_or(i64::MAX - 1) + 1;
        let entries = snapshot.entries.into_iter().flatten().collect();
        self.tell(StoreReply::Watched { token, event: WatchEvent::Now(entries) });
        let open = async |mut client: Client| {
            let mut options = WatchOptions::new().with_start_revision(from);
            if prefix {
                options = options.with_prefix();
            }
            client.watch(key, Some(options)).await
        };
        let generation = self.0.borrow().generation;
        let mut stream = self.call(open).await?;
        loop {
            let message = tokio::select! {
                biased;
                () = &mut renewed => return Ok(Ended::Renewed),
                message = stream.message() => message.map_err(|e| e.to_string())?,
            };
            let Some(response) = message else { return Ok(Ended::Closed) };
            if response.canceled() {
                return Err(response.cancel_reason().to_owned());
            }
            for event in response.events() {
                let Some(entry) = event.kv().cloned().and_then(entry_of) else { continue };
                let event = match event.event_type() {
                    EventType::Put => WatchEvent::Put(entry),
                    EventType::Delete => WatchEvent::Deleted(entry.key),
                };
                self.tell(StoreReply::Watched { token, event });
            }
            if self.0.borrow().generation != generation {
                return Err("the endpoints have changed".to_owned());
            }
        }
    }
}

/// How a watch's stream ended without failing.
enum Ended {
    /// The member closed it.
    Closed,
    /// The credentials are others now: opened anew, which is no cut.
    Renewed,
}

/// Decides whether a store that shows `identity` at `revision` may be believed by a host that had seen `before`.
fn check(
    cluster: ClusterId,
    before: Option<Watermark>,
    identity: Option<&Entry>,
    revision: u64,
) -> Result<Watermark, String> {
    let Some(identity) = identity else {
        return Err("the store has no identity: its data is lost, or no cluster was made in it".to_owned());
    };
    let identity: Identity = serde_json::from_slice(&identity.value)
        .map_err(|e| format!("the store's identity can't be understood: {e}"))?;
    if identity.cluster != cluster {
        return Err(format!("the store is cluster {}'s, this host is in {cluster}", identity.cluster));
    }
    let seen = Watermark { cluster, incarnation: identity.incarnation.0, revision };
    if seen.incarnation == 0 {
        // Below every watermark, also that of a host which has none yet.
        return Err("the store was restored from a backup and has not been repaired yet".to_owned());
    }
    if !is_reachable(before, seen.incarnation) {
        return Err(format!(
            "the store is at incarnation {}, this host has seen {}: no repairs have led there, somebody has written it",
            seen.incarnation,
            before.map_or(0, |kept| kept.incarnation)
        ));
    }
    match before {
        Some(kept) if kept.cluster != cluster => Err(format!(
            "this host has followed cluster {}'s store, it is asked for {cluster}'s",
            kept.cluster
        )),
        Some(kept) if (seen.incarnation, seen.revision) < (kept.incarnation, kept.revision) => Err(format!(
            "the store is at incarnation {} revision {revision}, this host has seen incarnation {} revision {}",
            seen.incarnation, kept.incarnation, kept.revision
        )),
        _ => Ok(seen),
    }
}

/// Can repairs have brought the store there, since this host has seen `before`? A host that has seen nothing yet believes
/// all that leaves room for repairs.
fn is_reachable(before: Option<Watermark>, incarnation: u64) -> bool {
    let highest = before.map_or(COUNTER_MAX, |kept| kept.incarnation.saturating_add(INCARNATION_RISE_MAX));
    incarnation <= highest.min(COUNTER_MAX)
}

/// Is this key still what was just read?
fn unchanged(key: &str, there: Option<&Entry>) -> impl Iterator<Item = Compare> {
    let revision = there.map_or(0, |entry| entry.revision.0);
    let compared = i64::try_from(revision).unwrap_or(i64::MAX);
    let value = there.map(|entry| Compare::value(key, CompareOp::Equal, entry.value.clone()));
    std::iter::once(Compare::mod_revision(key, CompareOp::Equal, compared)).chain(value)
}

/// The outcome of a swap that found `current` instead of what it was to replace.
fn not_there(current: Option<Entry>, value: Option<&[u8]>) -> SwapOutcome {
    match (current, value) {
        // Our own swap, applied by a try whose answer was lost (R14).
        (Some(entry), Some(value)) if entry.value == value => SwapOutcome::Done { revision: entry.revision },
        (None, None) => SwapOutcome::Done { revision: Revision(0) },
        (current, _) => SwapOutcome::Failed { current },
    }
}

/// A key that isn't text is none of ours.
fn entry_of(kv: KeyValue) -> Option<Entry> {
    let revision = Revision(positive(kv.mod_revision()));
    let (key, value) = kv.into_key_value();
    Some(Entry { key: String::from_utf8(key).ok()?, value, revision })
}

fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn identity(cluster: u128, incarnation: u64) -> Entry {
        let identity = Identity { cluster: ClusterId(cluster), incarnation: Decimal(incarnation) };
        let value = serde_json::to_vec(&identity).expect("JSON");
        Entry { key: STORE_KEY.to_owned(), value, revision: Revision(1) }
    }

    fn mark(incarnation: u64, revision: u64) -> Watermark {
        Watermark { cluster: CLUSTER, incarnation, revision }
    }

    #[test]
    fn a_store_that_goes_on_is_believed_and_one_that_went_back_is_not() {
        let same = identity(7, 1);
        assert_eq!(check(CLUSTER, None, Some(&same), 5), Ok(mark(1, 5)));
        assert_eq!(check(CLUSTER, Some(mark(1, 5)), Some(&same), 5), Ok(mark(1, 5)));
        assert!(check(CLUSTER, Some(mark(1, 6)), Some(&same), 5).is_err(), "an old backup");
        assert!(check(CLUSTER, Some(mark(2, 1)), Some(&same), 9).is_err(), "from before a repair");
        assert!(
            check(CLUSTER, None, Some(&identity(7, 0)), 9).is_err(),
            "restored, not repaired, and nothing seen"
        );
    }

    #[test]
    fn a_repaired_store_is_believed_although_its_revisions_are_lower() {
        assert_eq!(check(CLUSTER, Some(mark(1, 900)), Some(&identity(7, 2)), 3), Ok(mark(2, 3)));
    }

    /// Any host can write the store's key: near the end of its range, each weftd that believed it would have nothing above
    /// it to be repaired to.
    #[test]
    fn an_incarnation_that_no_repairs_lead_to_is_not_believed_and_a_host_that_was_away_follows() {
        let at = |incarnation| check(CLUSTER, Some(mark(3, 900)), Some(&identity(7, incarnation)), 5);
        assert_eq!(at(3 + INCARNATION_RISE_MAX), Ok(mark(3 + INCARNATION_RISE_MAX, 5)));
        for liars in [4 + INCARNATION_RISE_MAX, COUNTER_MAX, u64::MAX - 1, u64::MAX] {
            assert!(at(liars).is_err(), "{liars}");
        }
        assert!(check(CLUSTER, Some(mark(u64::MAX, 5)), Some(&identity(7, u64::MAX)), 5).is_err());
        assert!(check(CLUSTER, None, Some(&identity(7, COUNTER_MAX)), 5).is_ok(), "its first look");
        assert!(check(CLUSTER, None, Some(&identity(7, COUNTER_MAX + 1)), 5).is_err());
    }

    #[test]
    fn an_empty_store_and_another_clusters_are_refused() {
        assert!(check(CLUSTER, Some(mark(1, 1)), None, 9).is_err());
        assert!(check(CLUSTER, None, None, 9).is_err());
        assert!(check(CLUSTER, None, Some(&identity(8, 1)), 9).is_err());
        let mut broken = identity(7, 1);
        broken.value = b"{".to_vec();
        assert!(check(CLUSTER, None, Some(&broken), 9).is_err());
    }
}
