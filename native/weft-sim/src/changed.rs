//! What a copy says that differs between two snapshots (R29), asked of a replica that has nothing but what is durable: its
//! log's images, its disk and their files, as they are at that moment.
//!
//! Must always hold: it is asked as a reader asks, and what it wants of its disk it gets; nothing else is done.

use weft_proto::durable::Durable;
use weft_proto::ids::{HostId, Instant, Ordinal, PoolId, PoolInc, SessionId, SnapId};
use weft_proto::images::ImageForm;
use weft_proto::message::{
    Answer, Ask, Attach, CHANGED_GRAIN, CHANGED_MAX, Refusal, Request, Response, Watermark,
};
use weft_proto::mutants::Broken;
use weft_proto::payload::HeapPayload;
use weft_proto::replica::{Action, AttachmentId, DiskDone, DiskError, Replica, ReplicaConfig};

/// One bit for each grain of `of`, which has this size.
pub fn changed(
    pool: PoolId,
    durable: &Durable,
    broken: Broken,
    (of, size): (SnapId, u64),
    since: SnapId,
    mut disk: impl FnMut(&Action<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError>,
) -> Result<Vec<bool>, Refusal> {
    let (now, watermark) = (Instant(1), Watermark::default());
    let takes = ImageForm::Chained;
    let config =
        ReplicaConfig { pool, pool_inc: PoolInc(1), watermark, lossy: false, cached: false, takes, broken };
    let (volume, rid) = (durable.volume, durable.rid);
    let mut replica: Replica<HeapPayload> = Replica::new(config, durable.clone());
    let mut ask = |tag: u32, ask: Ask<HeapPayload>| {
        let request = Request { tag, epoch: weft_proto::ids::Epoch(0), ask };
        replica.handle_request(now, AttachmentId(1), request);
        while let Some(action) = replica.poll_action() {
            match &action {
                Action::Reply { response: Response { tag: of, outcome, .. }, .. } if *of == tag => {
                    return outcome.clone();
                }
                // What it would go on with by itself waits.
                Action::Log { .. } | Action::Reply { .. } | Action::ReadStore { .. } => {}
                Action::Disk { token, .. } | Action::Image { token, .. } => {
                    let (token, done) = (*token, disk(&action));
                    replica.handle_disk(now, token, done);
                }
            }
        }
        panic!("{rid} does not answer")
    };
    let (host, session, ordinal) = (HostId(1), SessionId(1), Ordinal(1));
    ask(1, Ask::Attach(Attach { volume, rid, pool, host, session, ordinal, watermark }))?;
    let mut all = Vec::new();
    for offset in (0..size).step_by(CHANGED_MAX as usize) {
        let len = CHANGED_MAX.min(size - offset);
        let Answer::Changed(bits) = ask(2, Ask::SnapChanged { id: of, since, offset, len, key: [7; 16] })?
        else {
            panic!("{rid} says something else")
        };
        let bit = |n: usize| bits[n / 8] & 0x80 >> (n % 8) != 0;
        all.extend((0..len.div_ceil(CHANGED_GRAIN) as usize).map(bit));
    }
    Ok(all)
}

/// The same from what two images are known to hold; what is past the end of `since` was never written.
pub fn expected<C: PartialEq>(of: &[C], since: &[C], zero: &C) -> Vec<bool> {
    let grain = (CHANGED_GRAIN / weft_proto::payload::BLOCK) as usize;
    let differs = |n: usize, content: &C| since.get(n).unwrap_or(zero) != content;
    let grains = of.chunks(grain).enumerate();
    grains.map(|(n, blocks)| (0..).zip(blocks).any(|(at, block)| differs(n * grain + at, block))).collect()
}
