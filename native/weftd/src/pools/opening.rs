//! How a pool comes to be served: made or found, its lock, and its start as the store and the superblock agree on it.
//!
//! Must always hold: what the store says is handed to [`PoolStart`], which alone decides whether the pool serves (R10).

use super::*;

impl Pools {
    /// Makes a pool at `path`, or takes up one of this host that is there. A known one that could not be opened is tried again.
    pub fn create(&mut self, path: PathBuf, answer: Answer) {
        let Some(owner) = self.owner else { return refuse(answer, not_configured()) };
        let length = path.as_os_str().len();
        if !path.is_absolute() || length > PATH_MAX {
            let start: String = path.display().to_string().chars().take(64).collect();
            let message =
                format!("{start:?} ({length} bytes) is no absolute path of at most {PATH_MAX} bytes");
            return refuse(answer, Failure::new(Code::BAD_VALUE, message));
        }
        if let Some(pool) = self.pools.values_mut().find(|p| p.path == path) {
            if !pool.is_missing() {
                let _ = answer.send(Ok(json!(pool.info())));
                return;
            }
            // What belongs there may be mounted by now. It is opened, never made anew.
            pool.phase = Phase::Opening;
            self.out.push_back(PoolsOut::Changed(pool.id));
            self.creating.entry(path.clone()).or_default().push(answer);
            return open_in_background(path, self.mailbox.clone());
        }
        if self.next_space > 200 {
            return refuse(
                answer,
                Failure::new(Code::POOL_PATH, "this host has opened 200 pools since weftd started"),
            );
        }
        let asked = self.creating.entry(path.clone()).or_default();
        asked.push(answer);
        if asked.len() == 1 {
            create_in_background(path, owner, self.mailbox.clone());
        }
    }

    /// The blocking open or creation of a pool has ended.
    pub fn handle_opened(&mut self, driver: &mut impl Driver, now: Instant, opened: OpenedPool) {
        let OpenedPool { path, result } = opened;
        let Some(owner) = self.owner else { return };
        let asked = self.creating.remove(&path).unwrap_or_default();
        let known = self.pools.values().find(|p| p.path == path).map(|p| p.id);
        match result {
            Ok(dir) => {
                let superblock = read_superblock(dir.superblock());
                let id = match (&superblock, known) {
                    (Ok(s), None) => s.pool,
                    (_, Some(id)) => id,
                    (Err(why), None) => {
                        let failure = Failure::new(Code::POOL_PATH, format!("{}: {why}", path.display()));
                        return refuse_all(asked, &failure);
                    }
                };
                if known.is_none() {
                    if self.pools.contains_key(&id) {
                        let message =
                            format!("{} holds pool {id}, which is served elsewhere here", path.display());
                        return refuse_all(asked, &Failure::new(Code::POOL_NOT_EMPTY, message));
                    }
                    self.add(id, path.clone(), Phase::Opening);
                    self.saved.push(KnownPool { pool: id, path: path.clone() });
                    if let Err(failure) = self.state.write_json(POOLS_FILE, &self.saved) {
                        self.pools.remove(&id);
                        self.saved.pop();
                        return refuse_all(asked, &failure);
                    }
                }
                let Some(pool) = self.pools.get_mut(&id) else { return };
                pool.begin(driver, now, dir, superblock, owner);
                let info = json!(pool.info());
                for answer in asked {
                    let _ = answer.send(Ok(info.clone()));
                }
                self.out.push_back(PoolsOut::Changed(id));
                self.drive_start(id);
            }
            Err(error) => {
                let code = match error {
                    OpenError::NotEmpty(_) => Code::POOL_NOT_EMPTY,
                    _ => Code::POOL_PATH,
                };
                let failure = Failure::new(code, format!("{}: {error}", path.display()))
                    .with("path", path.display().to_string());
                refuse_all(asked, &failure);
                if let Some(pool) = known.and_then(|id| self.pools.get_mut(&id)) {
                    pool.phase = match error {
                        OpenError::Locked => Phase::WaitingLock,
                        OpenError::BadSuperblock => Phase::Quarantined(error.to_string()),
                        _ => Phase::Failed(error.to_string()),
                    };
                    tracing::warn!(pool = %pool.id, path = %path.display(), %error, "pool does not serve");
                    self.out.push_back(PoolsOut::Changed(pool.id));
                }
            }
        }
    }

    pub(super) fn drive_start(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let Some(start) = &pool.start else { return };
        let action = start.action();
        if pool.store_behind && !matches!(action, PoolAction::ReadStore | PoolAction::Quarantine(_)) {
            tracing::info!(pool = %id, "the store knows the pool again");
            pool.store_behind = false;
            pool.phase = Phase::Starting;
            self.out.push_back(PoolsOut::Changed(id));
        }
        match action {
            PoolAction::ReadStore => self.out.push_back(PoolsOut::Call(PoolsCall::ReadPool(id))),
            PoolAction::WriteSuperblock(superblock) => {
                let mut content = superblock.encode();
                content.truncate(SUPERBLOCK_CONTENT);
                pool.submit(Purpose::Superblock, PoolOp::WriteSuperblock { content });
            }
            PoolAction::Swap { inc, intent } => {
                let value = pool.store_value(inc, intent, self.owner.as_ref());
                let expected = pool.stored.clone();
                pool.swapping = Some(value.clone());
                self.out.push_back(PoolsOut::Call(PoolsCall::SwapPool {
                    pool: id,
                    expected,
                    value: Some(value),
                }));
            }
            PoolAction::Serve(inc) => {
                pool.inc = inc;
                pool.start = None;
                pool.look = None;
                self.kept_starts.insert(id, inc);
                self.out.push_back(PoolsOut::Keep(STARTS_FILE, json!(self.kept_starts)));
                pool.phase = Phase::Recovering;
                pool.submit(Purpose::ReadLog, PoolOp::ReadLog);
            }
            PoolAction::Quarantine(reason) => {
                pool.disk = Some(*start.superblock());
                pool.start = None;
                if !matches!(
                    reason,
                    PoolRefusal::Unknown { .. }
                        | PoolRefusal::StoreBehind { .. }
                        | PoolRefusal::Unreachable { .. }
                ) {
                    pool.store_behind = false;
                    pool.quarantine(reason.to_string());
                    self.out.push_back(PoolsOut::Changed(id));
                } else if pool.quarantine_behind(reason.to_string()) {
                    self.out.push_back(PoolsOut::Changed(id));
                }
            }
        }
    }

    /// The store answered [`PoolsCall::ReadPool`].
    pub fn handle_pool_read(&mut self, now: Instant, id: PoolId, result: Result<Option<Entry>, ReadError>) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        if pool.start.is_none() {
            return;
        }
        match result {
            Ok(entry) => {
                let stored = match entry.as_ref().map(stored_pool).transpose() {
                    Ok(stored) => stored,
                    Err(why) => {
                        pool.disk = pool.start.take().map(|start| *start.superblock());
                        let why = format!("the store's entry of the pool can't be understood: {why}");
                        if pool.quarantine_behind(why) {
                            self.out.push_back(PoolsOut::Changed(id));
                        }
                        pool.retry_due = Some(now.after_ms(STORE_BEHIND_MS));
                        return;
                    }
                };
                pool.stored = entry;
                if let Some(start) = &mut pool.start {
                    start.handle_store(stored);
                }
                self.drive_start(id);
                // The store may be repaired, or corrected.
                if let Some(pool) = self.pools.get_mut(&id).filter(|p| p.store_behind) {
                    pool.retry_due = Some(now.after_ms(STORE_BEHIND_MS));
                }
            }
            // A store that went back decides nothing; it may be repaired.
            Err(error) => {
                tracing::debug!(pool = %id, ?error, "the pool waits for the store");
                pool.retry_due = Some(now.after_ms(RETRY_MS));
            }
        }
    }

    /// The store answered [`PoolsCall::SwapPool`].
    pub fn handle_pool_swap(&mut self, now: Instant, id: PoolId, outcome: SwapOutcome) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        if let Some(answer) = pool.removing.take() {
            return self.finish_remove(id, &outcome, answer);
        }
        let Some(start) = &mut pool.start else { return };
        match outcome {
            SwapOutcome::Done { revision } => {
                let value = pool.swapping.take().unwrap_or_default();
                pool.stored = Some(Entry { key: pool_key(id), value, revision });
                start.handle_swap(StartSwap::Done);
            }
            SwapOutcome::Failed { .. } => start.handle_swap(StartSwap::Lost),
            SwapOutcome::Unknown(_) => {
                start.handle_swap(StartSwap::Unknown);
                pool.retry_due = Some(now.after_ms(RETRY_MS));
                return;
            }
            // Not sent: the same swap is still to be made.
            SwapOutcome::Away(_) | SwapOutcome::RolledBack(_) => {
                pool.retry_due = Some(now.after_ms(RETRY_MS));
                return;
            }
        }
        self.drive_start(id);
    }
}

/// Opens a pool on a thread of its own, waiting for its lock for as long as it takes (R13).
pub(super) fn open_in_background(path: PathBuf, mailbox: Mailbox) {
    spawn_opening(path, mailbox, |path, told| {
        told(PoolDir::open_when_free(path, || told(Err(OpenError::Locked))));
    });
}

fn create_in_background(path: PathBuf, owner: PoolOwner, mailbox: Mailbox) {
    spawn_opening(path, mailbox, move |path, told| {
        let superblock = Superblock {
            pool: PoolId(random_uuid()),
            cluster: owner.cluster,
            host: owner.host,
            inc: PoolInc(0),
            intent: None,
            segment_bytes: SEGMENT_BYTES,
            log_blocks: LOG_BLOCKS,
            created: unix_seconds(),
            counter: 1,
        };
        let mut content = superblock.encode();
        content.truncate(SUPERBLOCK_CONTENT);
        let made = PoolDir::create(path, LOG_BLOCKS * LOG_BLOCK as u64, &content);
        match made {
            // A pool of this host that weftd does not know any more is taken up again.
            Err(OpenError::NotEmpty(name)) => match PoolDir::open(path) {
                Ok(dir) if read_superblock(dir.superblock()).is_ok_and(|s| s.host == owner.host) => {
                    told(Ok(dir))
                }
                _ => told(Err(OpenError::NotEmpty(name))),
            },
            made => told(made),
        }
    });
}

fn spawn_opening(
    path: PathBuf,
    mailbox: Mailbox,
    job: impl FnOnce(&Path, &dyn Fn(Result<PoolDir, OpenError>)) + Send + 'static,
) {
    let failed = mailbox.clone();
    let at = path.clone();
    let thread = std::thread::Builder::new().name("pool-open".to_owned()).spawn(move || {
        job(&path, &|result| mailbox.send(Mail::Pool(OpenedPool { path: path.clone(), result })));
    });
    if let Err(error) = thread {
        tracing::error!(%error, path = %at.display(), "no thread to open the pool");
        failed.send(Mail::Pool(OpenedPool {
            path: at,
            result: Err(OpenError::Unsupported("thread left to open it")),
        }));
    }
}
