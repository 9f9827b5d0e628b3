//! What the liar says, and what would be a success of it.
//!
//! Must always hold: a lie is one thing that is not so, in a connection that is right otherwise; it succeeded when the
//! other side did what it should refuse, not when it merely stayed silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use weft_io::identity::{Identity, Transport, TrustCell};
use weft_proto::ids::{Epoch, Generation, HostId, Ordinal, PoolId, Rid, SessionId, VolumeId};
use weft_proto::message::{Answer, Ask, Attach, Hole, Response, Watermark};
use weft_proto::payload::{HeapPayload, block_crcs};
use weft_proto::wire::{Hello, MAX_FRAME, Version};

use crate::peer::{Ended, Peer};

const TURN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// The copy that is lied to, and whose volume it is.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) volume: VolumeId,
    pub(crate) rid: Rid,
    pub(crate) pool: PoolId,
    /// The volume's record as it stands in the store.
    pub(crate) record: Value,
}

impl Target {
    fn epoch(&self) -> Epoch {
        self.record["epoch"].as_str().and_then(|text| text.parse().ok()).map_or(Epoch(0), Epoch)
    }

    fn owner(&self) -> Option<(HostId, SessionId)> {
        let owner = &self.record["owner"];
        Some((owner["node"].as_str()?.parse().ok()?, owner["session"].as_str()?.parse().ok()?))
    }

    /// The record with other values.
    fn record(&self, epoch: Epoch, host: HostId, session: SessionId) -> Vec<u8> {
        let mut record = self.record.clone();
        record["epoch"] = json!(epoch.to_string());
        record["owner"] = json!({ "node": host.to_string(), "session": session.to_string() });
        record["nonce"] = json!(SessionId(random()).to_string());
        record.to_string().into_bytes()
    }
}

/// Who lies, and where.
pub(crate) struct Stage {
    pub(crate) to: SocketAddr,
    pub(crate) identity: Identity,
    pub(crate) trust: Arc<TrustCell>,
    pub(crate) target: Target,
}

/// One lie.
pub(crate) struct Lie {
    pub(crate) label: &'static str,
    /// The setting under which it can be told; `None`: any.
    pub(crate) mode: Option<Transport>,
    tell: fn(&Stage) -> Result<bool, Ended>,
}

impl Lie {
    /// Whether it succeeded. A connection that was closed is a refusal.
    pub(crate) fn tell(&self, stage: &Stage) -> bool {
        (self.tell)(stage).unwrap_or(false)
    }
}

pub(crate) const LIES: &[Lie] = &[
    Lie {
        label: "HELLO in another host's name",
        mode: None,
        tell: |s| {
            let mut peer = s.call()?;
            let hello = Hello { host: s.owner().0, ..s.hello() };
            peer.greet(&hello)?;
            s.is_heard(&mut peer)
        },
    },
    Lie {
        label: "HELLO of another cluster",
        mode: None,
        tell: |s| {
            let mut peer = s.call()?;
            let mut hello = s.hello();
            hello.cluster.0 ^= 1;
            peer.greet(&hello)?;
            s.is_heard(&mut peer)
        },
    },
    Lie {
        label: "HELLO twice",
        mode: None,
        tell: |s| {
            let mut peer = s.greeted()?;
            peer.greet_again(&s.hello())?;
            s.is_heard(&mut peer)
        },
    },
    Lie {
        label: "a ninth connection beside eight",
        mode: None,
        tell: |s| {
            let mut peers = (0..9).map(|_| s.greeted()).collect::<Result<Vec<_>, _>>()?;
            s.is_heard(&mut peers[0])
        },
    },
    Lie {
        label: "the end of an attachment that can't be followed",
        mode: None,
        tell: |s| {
            let mut peer = s.greeted()?;
            let last = Attach { ordinal: Ordinal(u64::MAX), ..s.attach() };
            peer.ask(1, Epoch(0), Ask::Attach(last))?;
            // It is a success when nobody is there any more.
            Ok(peer.ask(2, Epoch(0), Ask::Detach).is_err() || s.truth().is_err())
        },
    },
    Lie {
        label: "ATTACH in the owner's name",
        mode: None,
        tell: |s| {
            let (host, session) = s.owner();
            s.attaches(Attach { host, session, ordinal: Ordinal(u64::MAX), ..s.attach() })
        },
    },
    Lie {
        label: "ATTACH to the owner's session",
        mode: None,
        tell: |s| s.attaches(Attach { session: s.owner().1, ordinal: Ordinal(u64::MAX), ..s.attach() }),
    },
    Lie { label: "a read in the owner's session", mode: None, tell: |s| s.does(Some(s.owner().1), read()) },
    Lie {
        label: "a write in the owner's session",
        mode: None,
        tell: |s| s.does(Some(s.owner().1), write(s.epoch(), 0x5a)),
    },
    Lie { label: "a read without a promise", mode: None, tell: |s| s.does(None, read()) },
    Lie { label: "a write without a promise", mode: None, tell: |s| s.does(None, write(s.epoch(), 0x5b)) },
    Lie {
        label: "a zeroing without a promise",
        mode: None,
        tell: |s| {
            s.does(
                None,
                Ask::Zero {
                    generation: Generation::NEVER,
                    offset: 0,
                    len: 4096,
                    kind: Hole::Zero,
                    keep_space: false,
                    copy: false,
                },
            )
        },
    },
    Lie {
        label: "a seal without a promise",
        mode: None,
        tell: |s| s.does(None, Ask::Seal { generation: Generation(u64::MAX) }),
    },
    Lie {
        label: "a growth without a promise",
        mode: None,
        tell: |s| s.does(None, Ask::Grow { generation: Generation(1), from: 1 << 30, to: 1 << 40 }),
    },
    Lie {
        label: "a write of the epoch after",
        mode: None,
        tell: |s| {
            let epoch = Epoch(s.epoch().0 + 1);
            s.does_at(None, epoch, write(epoch, 0x5c))
        },
    },
    Lie { label: "a promise of the same epoch", mode: None, tell: |s| s.promises(s.epoch().0) },
    Lie {
        label: "a promise of an older epoch",
        mode: None,
        tell: |s| s.promises(s.epoch().0.saturating_sub(1)),
    },
    Lie { label: "a promise one epoch on", mode: None, tell: |s| s.promises(s.epoch().0 + 1) },
    Lie { label: "a promise 2 epochs on", mode: None, tell: |s| s.promises(s.epoch().0 + 2) },
    Lie { label: "a promise 16 epochs on", mode: None, tell: |s| s.promises(s.epoch().0 + 16) },
    Lie { label: "a promise 17 epochs on", mode: None, tell: |s| s.promises(s.epoch().0 + 17) },
    Lie { label: "a promise far in the future", mode: None, tell: |s| s.promises(1 << 39) },
    Lie { label: "a promise at the end of all epochs", mode: None, tell: |s| s.promises(Epoch::MAX.0) },
    Lie {
        label: "a promise with the owner's session",
        mode: None,
        tell: |s| {
            let (host, session) = s.owner();
            let epoch = Epoch(s.epoch().0 + 1);
            let mut peer = s.ready(session)?;
            let record = s.target.record(epoch, host, session);
            Ok(granted(&peer.ask(2, epoch, Ask::Promise { record, watermark: Watermark::default() })?))
        },
    },
    Lie {
        label: "a promise with another volume's record",
        mode: None,
        tell: |s| {
            let epoch = Epoch(s.epoch().0 + 1);
            let session = SessionId(random());
            let mut peer = s.ready(session)?;
            let text =
                String::from_utf8_lossy(&s.target.record(epoch, s.identity.host(), session)).into_owned();
            let other = VolumeId(random()).to_string();
            let record = text.replace(&s.target.volume.to_string(), &other).into_bytes();
            Ok(granted(&peer.ask(2, epoch, Ask::Promise { record, watermark: Watermark::default() })?))
        },
    },
    Lie {
        label: "a promise with a record that is none",
        mode: None,
        tell: |s| {
            let epoch = Epoch(s.epoch().0 + 1);
            let mut peer = s.ready(SessionId(random()))?;
            let record = b"{\"epoch\":".to_vec();
            Ok(granted(&peer.ask(2, epoch, Ask::Promise { record, watermark: Watermark::default() })?))
        },
    },
    Lie {
        label: "a read of a volume that isn't there",
        mode: None,
        tell: |s| {
            let mut peer = s.greeted()?;
            let attach = Attach { volume: VolumeId(random()), ..s.attach() };
            peer.ask(1, Epoch(0), Ask::Attach(attach))?;
            Ok(granted(&peer.ask(2, s.epoch(), read())?))
        },
    },
    Lie {
        label: "a frame sent again",
        mode: Some(Transport::Auth),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            let sealed = peer.seal(head);
            peer.send_raw(&sealed)?;
            peer.response()?;
            peer.send_raw(&sealed)?;
            peer.response().map(|_| true)
        },
    },
    Lie {
        label: "a frame left out",
        mode: Some(Transport::Auth),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            peer.seal(head.clone());
            let second = peer.seal(head);
            peer.send_raw(&second)?;
            peer.response().map(|_| true)
        },
    },
    Lie {
        label: "two frames in the other order",
        mode: Some(Transport::Auth),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            let (first, second) = (peer.seal(head.clone()), peer.seal(head));
            peer.send_raw(&[second, first].concat())?;
            peer.response().map(|_| true)
        },
    },
    Lie { label: "a bit of the header turned", mode: Some(Transport::Auth), tell: |s| s.turned(20) },
    Lie { label: "a bit of the tag turned", mode: Some(Transport::Auth), tell: |s| s.turned(64 + 3) },
    Lie { label: "a bit of the meta turned", mode: Some(Transport::Auth), tell: |s| s.turned(64 + 16 + 4) },
    Lie {
        label: "a frame without its tag",
        mode: Some(Transport::Auth),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            peer.send_raw(&head)?;
            peer.response().map(|_| true)
        },
    },
    Lie { label: "a record with a bit turned", mode: Some(Transport::Tls), tell: |s| s.turned(17) },
    Lie {
        label: "a record sent again",
        mode: Some(Transport::Tls),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            let record = peer.wire(&head, &[]);
            peer.send_raw(&record)?;
            peer.response()?;
            peer.send_raw(&record)?;
            peer.response().map(|_| true)
        },
    },
    Lie {
        label: "a record left out",
        mode: Some(Transport::Tls),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            peer.wire(&head, &[]);
            let second = peer.wire(&head, &[]);
            peer.send_raw(&second)?;
            peer.response().map(|_| true)
        },
    },
    Lie {
        label: "clear frames after the handshake",
        mode: Some(Transport::Tls),
        tell: |s| {
            let mut peer = s.greeted()?;
            let (head, _) = peer.request(1, Epoch(0), Ask::Attach(s.attach()));
            peer.send_raw(&head)?;
            peer.response().map(|_| true)
        },
    },
];

/// A connection in one's own name that is kept until the other side cuts it.
pub(crate) fn hold(to: SocketAddr, identity: &Identity, trust: &Arc<TrustCell>) -> Result<(), Ended> {
    let mut peer = Peer::call(to, identity, trust)?;
    peer.greet(&hello_of(identity))?;
    println!("ready");
    peer.until_cut();
    Ok(())
}

fn hello_of(identity: &Identity) -> Hello {
    Hello {
        wire_min: Version::OLDEST.number(),
        wire_max: Version::NEWEST.number(),
        cluster: identity.cluster(),
        host: identity.host(),
        process: 1,
        features: 0,
        max_frame: u32::try_from(MAX_FRAME).unwrap_or(u32::MAX),
        slots: 64,
        heartbeat_ms: 100,
        trailer_len: 0,
        watermark: Watermark::default(),
        pools: Vec::new(),
    }
}

impl Stage {
    /// What a host in its own name may do: without it a lie that fails proves nothing.
    pub(crate) fn truth(&self) -> Result<(), Ended> {
        let mut peer = self.greeted()?;
        if self.is_heard(&mut peer)? { Ok(()) } else { Err(Ended("a true host was not heard".to_owned())) }
    }

    /// Its identity is right: where it isn't let in at once, so many handshakes came from here that it has to wait its turn,
    /// and a lie that was not told proves nothing.
    fn call(&self) -> Result<Peer, Ended> {
        let end = Instant::now() + TURN;
        loop {
            match Peer::call(self.to, &self.identity, &self.trust) {
                Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }

    fn greeted(&self) -> Result<Peer, Ended> {
        let mut peer = self.call()?;
        peer.greet(&self.hello())?;
        Ok(peer)
    }

    /// Attached in a session's name; also where that was refused.
    fn ready(&self, session: SessionId) -> Result<Peer, Ended> {
        let mut peer = self.greeted()?;
        peer.ask(1, Epoch(0), Ask::Attach(Attach { session, ..self.attach() }))?;
        Ok(peer)
    }

    /// Whether it gets any answer to an ATTACH in its own name.
    fn is_heard(&self, peer: &mut Peer) -> Result<bool, Ended> {
        peer.ask(1, Epoch(0), Ask::Attach(self.attach())).map(|_| true)
    }

    fn attaches(&self, attach: Attach) -> Result<bool, Ended> {
        let mut peer = self.greeted()?;
        Ok(granted(&peer.ask(1, Epoch(0), Ask::Attach(attach))?))
    }

    fn does(&self, session: Option<SessionId>, ask: Ask<HeapPayload>) -> Result<bool, Ended> {
        self.does_at(session, self.epoch(), ask)
    }

    fn does_at(
        &self,
        session: Option<SessionId>,
        epoch: Epoch,
        ask: Ask<HeapPayload>,
    ) -> Result<bool, Ended> {
        let mut peer = self.ready(session.unwrap_or(SessionId(random())))?;
        Ok(granted(&peer.ask(2, epoch, ask)?))
    }

    fn promises(&self, epoch: u64) -> Result<bool, Ended> {
        let (epoch, session) = (Epoch(epoch), SessionId(random()));
        let mut peer = self.ready(session)?;
        let record = self.target.record(epoch, self.identity.host(), session);
        Ok(granted(&peer.ask(2, epoch, Ask::Promise { record, watermark: Watermark::default() })?))
    }

    /// The first request, with one bit of what goes onto the wire turned.
    fn turned(&self, at: usize) -> Result<bool, Ended> {
        let mut peer = self.greeted()?;
        let (head, _) = peer.request(1, Epoch(0), Ask::Attach(self.attach()));
        let head = peer.seal(head);
        let mut bytes = peer.wire(&head, &[]);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << (random() % 8);
        }
        peer.send_raw(&bytes)?;
        peer.response().map(|_| true)
    }

    fn epoch(&self) -> Epoch {
        self.target.epoch()
    }

    fn owner(&self) -> (HostId, SessionId) {
        self.target.owner().unwrap_or((HostId(random()), SessionId(random())))
    }

    fn attach(&self) -> Attach {
        Attach {
            volume: self.target.volume,
            rid: self.target.rid,
            pool: self.target.pool,
            host: self.identity.host(),
            session: SessionId(random()),
            ordinal: Ordinal(1),
            watermark: Watermark::default(),
        }
    }

    fn hello(&self) -> Hello {
        hello_of(&self.identity)
    }
}

fn read() -> Ask<HeapPayload> {
    Ask::Read { offset: 0, len: 4096 }
}

fn write(epoch: Epoch, byte: u8) -> Ask<HeapPayload> {
    let data = vec![byte; 4096];
    Ask::Write {
        generation: Generation::new(epoch, 1),
        offset: 0,
        crcs: block_crcs(&data),
        data: data.into(),
        copy: false,
    }
}

fn granted(response: &Response<HeapPayload>) -> bool {
    !matches!(response.outcome, Err(_) | Ok(Answer::Alive { .. }))
}

fn random() -> u128 {
    let mut bytes = [0; 16];
    // What is random here need not be secret: the kernel gives so few bytes at once.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u128::from_le_bytes(bytes)
}
