//! Keys that stand for as long as this process says so.
//!
//! Must always hold: such a key is a hint and nothing more; while the store is away nobody here waits for it.

use std::cell::Cell;
use std::rc::Rc;

use etcd_client::{Client, PutOptions};
use tokio::sync::Notify;
use tokio::time::{Duration, sleep};

use super::{Store, StoreReply, StoreToken, WATCH_PAUSE};

/// How long such a key outlives the process that put it, in seconds.
const LEASE_S: i64 = 10;
/// Between two words that it is still wanted.
const REFRESH: Duration = Duration::from_secs(3);

impl Store {
    /// Keeps a key there until `released`; tells once that it is.
    pub(super) async fn hold(self, token: StoreToken, key: String, value: Vec<u8>, released: Rc<Notify>) {
        let (lease, told) = (Cell::new(None), Cell::new(false));
        let keep = async {
            loop {
                let why = self.hold_once(token, &key, &value, &lease, &told).await;
                tracing::debug!(key, why, "not held");
                sleep(WATCH_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = released.notified() => {}
            () = keep => {}
        }
        if let Some(lease) = lease.get() {
            // Else it ends by itself.
            let _ = self.call(async |mut client: Client| client.lease_revoke(lease).await).await;
        }
    }

    /// Until the lease is lost or the store doesn't answer; why.
    async fn hold_once(
        &self,
        token: StoreToken,
        key: &str,
        value: &[u8],
        lease: &Cell<Option<i64>>,
        told: &Cell<bool>,
    ) -> String {
        let granted = self.call(async |mut client: Client| client.lease_grant(LEASE_S, None).await).await;
        let id = match granted {
            Ok(granted) => granted.id(),
            Err(why) => return why,
        };
        lease.set(Some(id));
        let put = async |mut client: Client| {
            client.put(key, value.to_vec(), Some(PutOptions::new().with_lease(id))).await
        };
        if let Err(why) = self.call(put).await {
            return why;
        }
        if !told.replace(true) {
            self.tell(StoreReply::Held { token });
        }
        loop {
            sleep(REFRESH).await;
            // It fails also when the lease is no more.
            if let Err(why) =
                self.call(async |mut client: Client| client.lease_keep_alive(id).await.map(drop)).await
            {
                return why;
            }
        }
    }
}
