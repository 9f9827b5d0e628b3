//! Volumes that are opened again for a guest whose requests somebody holds (docs/model.md, R32; docs/adr/0026).
//!
//! Must always hold: what is answered with a session is of the ownership that was asked for, so that whoever repeats
//! requests repeats none that somebody else has written over.

use weft_control::types::SessionContinue;
use weft_proto::ids::Instant;

use super::{Caller, Daemon, StoreRequest, changing, not_configured, record_key, tell};
use crate::mail::Answer;
use crate::pools::refuse;
use crate::sessions::{Asked, Opening, taken};

impl Daemon {
    /// As an open, for somebody who has requests that an earlier session did not answer.
    pub(super) fn continue_session(&mut self, now: Instant, wanted: SessionContinue, answer: Answer) {
        let SessionContinue { volume, session, export } = wanted;
        if self.identity.is_none() {
            return refuse(answer, not_configured());
        }
        let export = match self.socket_path(&export, &volume.to_string()) {
            Ok(path) => path,
            Err(failure) => return refuse(answer, failure),
        };
        if self.opening.contains(&volume) {
            return refuse(answer, changing(volume));
        }
        match self.sessions.get_mut(&volume) {
            None => {}
            Some(slot) if slot.machine.is_ended() => {
                // Whoever waits for its end is told of it first.
                self.drain_session(now, volume);
                self.sessions.remove(&volume);
            }
            Some(slot) if slot.caretaker || slot.opening.is_some() || !slot.closing.is_empty() => {
                return refuse(answer, changing(volume));
            }
            Some(slot) if slot.is_of(session) => {
                slot.held = true;
                return tell(answer, &slot.opened());
            }
            Some(slot) => {
                let owner = slot.machine.record().and_then(|record| record.owner);
                return refuse(answer, taken(volume, session, owner));
            }
        }
        self.opening.insert(volume);
        let token = self.call(Caller::Open(Opening {
            volume,
            mode: Asked::Continue(session),
            export: Some(export),
            caretaker: false,
            old_stopped: false,
            limits: None,
            answer,
        }));
        self.store.send(StoreRequest::Read { token, keys: vec![record_key(volume)] });
    }
}
