//! Layers that are laid over other volumes, for whoever asked ([`crate::lays`]).
//!
//! Must always hold:
//! * both volumes are open here without a guest, from the beginning to the end: when one of the sessions ends, so does it;
//! * whoever asked is answered once.

use weft_control::types::{Decimal, SessionLaid, SessionLay};
use weft_io::buffer::IoBuf;
use weft_proto::guest::{GuestReply, RequestId};
use weft_proto::ids::{Instant, VolumeId};
use weft_proto::session::EndReason;

use super::{Daemon, not_open, tell};
use crate::errors::{Code, Failure};
use crate::lays::{Asked, Lay, Side};
use crate::mail::Answer;
use crate::pools::refuse;
use crate::sessions::end_failure;

/// Between two lines of the log.
const TOLD_MS: u64 = 10_000;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Lays {
    all: Vec<Laying>,
    /// The number of the next request: none is used twice, so that late answers are nobody's.
    next: u32,
}

#[derive(Debug)]
struct Laying {
    ask: SessionLay,
    machine: Lay<IoBuf>,
    told: Instant,
    answer: Answer,
}

impl Laying {
    fn is_of(&self, volume: VolumeId) -> bool {
        self.ask.from == volume || self.ask.onto == volume
    }
}

impl Daemon {
    /// What is written in one volume comes over the other. Asked again, it begins anew: who asked before is told so.
    pub(super) fn lay(&mut self, now: Instant, ask: SessionLay, answer: Answer) {
        let machine = match self.check_lay(ask) {
            Ok(machine) => machine,
            Err(failure) => return refuse(answer, failure),
        };
        for volume in [ask.from, ask.onto] {
            let message =
                format!("volume {volume} is laid over another, or another over it, by who asked later");
            self.end_lays_of(volume, &Failure::new(Code::LAY_CUT, message));
        }
        tracing::info!(from = %ask.from, onto = %ask.onto, "a layer is laid over its volume");
        self.lays.all.push(Laying { ask, machine, told: now, answer });
        self.drive_lay(now, self.lays.all.len() - 1);
    }

    fn check_lay(&self, ask: SessionLay) -> Result<Lay<IoBuf>, Failure> {
        let SessionLay { from, onto } = ask;
        if from == onto {
            return Err(Failure::new(Code::BAD_VALUE, "a volume is not laid over itself"));
        }
        let record = |volume: VolumeId| {
            let slot = self.sessions.get(&volume).filter(|slot| !slot.machine.is_ended());
            let slot = slot.filter(|slot| slot.opening.is_none()).ok_or_else(|| not_open(volume))?;
            if !slot.caretaker {
                let message =
                    format!("a guest has volume {volume} here: layers are laid while nobody uses them");
                return Err(Failure::new(Code::OPEN_ELSEWHERE, message).with("volume", volume.to_string()));
            }
            slot.machine.record().ok_or_else(|| not_open(volume))
        };
        let (layer, below) = (record(from)?, record(onto)?);
        let Some(marked) = &layer.layer else {
            let message = format!("volume {from} was not made to be laid over another");
            return Err(Failure::new(Code::NO_LAYER, message).with("volume", from.to_string()));
        };
        if layer.size > below.size {
            let message =
                format!("volume {onto} has {} bytes, the layer {from} has {}", below.size, layer.size);
            return Err(Failure::new(Code::BAD_VALUE, message));
        }
        Ok(Lay::new(marked.mark, layer.size))
    }

    /// A session's answer to a request of one of them.
    pub(super) fn handle_laid(
        &mut self,
        now: Instant,
        volume: VolumeId,
        id: RequestId,
        reply: GuestReply<IoBuf>,
    ) {
        let is_it = |of: &Laying| of.is_of(volume) && of.machine.asked(id);
        // Of one that is over: nobody's.
        let Some(at) = self.lays.all.iter().position(is_it) else { return };
        self.lays.all[at].machine.handle(id, reply);
        self.drive_lay(now, at);
    }

    fn drive_lay(&mut self, now: Instant, at: usize) {
        let Lays { all, next } = &mut self.lays;
        let of = &mut all[at];
        while let Some((side, id, asked)) = of.machine.poll(*next) {
            *next = next.wrapping_add(1);
            let volume = if side == Side::From { of.ask.from } else { of.ask.onto };
            let Some(slot) = self.sessions.get_mut(&volume) else { return };
            match asked {
                Asked::Guest(op) => slot.machine.submit(now, id, op),
                Asked::Raw { offset, len } => slot.machine.read_as_it_lies(now, id, offset, len),
            }
            self.touched.insert(volume);
        }
        let (laid, SessionLay { from, onto }) = (of.machine.laid(), of.ask);
        match of.machine.outcome() {
            Some(Ok(laid)) => {
                tracing::info!(%from, %onto, data = laid.data, zeroed = laid.zeroed, "the layer lies over its volume");
                let laid = SessionLaid { data_bytes: Decimal(laid.data), zero_bytes: Decimal(laid.zeroed) };
                tell(self.lays.all.swap_remove(at).answer, &laid);
            }
            Some(Err(cut)) => {
                let volume = if cut.side == Side::From { from } else { onto };
                let message =
                    format!("volume {from} was not laid over {onto} to the end; of {volume}: {cut}");
                let failure = Failure::new(Code::LAY_CUT, message).with("volume", volume.to_string());
                refuse(self.lays.all.swap_remove(at).answer, failure);
            }
            None if now.ms_since(of.told) >= TOLD_MS => {
                of.told = now;
                let looked = of.machine.looked();
                tracing::info!(%from, %onto, looked, data = laid.data, zeroed = laid.zeroed, "goes on");
            }
            None => {}
        }
    }

    /// The session of one of the volumes is over.
    pub(super) fn end_lays(&mut self, volume: VolumeId, reason: &EndReason) {
        let ended = end_failure(volume, reason).message;
        self.end_lays_of(volume, &Failure::new(Code::LAY_CUT, ended).with("volume", volume.to_string()));
    }

    fn end_lays_of(&mut self, volume: VolumeId, failure: &Failure) {
        while let Some(at) = self.lays.all.iter().position(|of| of.is_of(volume)) {
            refuse(self.lays.all.swap_remove(at).answer, failure.clone());
        }
    }
}
