//! How the other threads reach the reactor: a channel, and a wake-up after each message.
//!
//! Must always hold: a message is in the channel before the reactor is woken for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;
use tokio::sync::oneshot;
use weft_control::methods::Command;
use weft_control::types::ErrorBody;

use crate::errors::Failure;
use crate::pools::OpenedPool;
use crate::store::StoreReply;
use crate::trust::IdentityFiles;

/// Wakes the reactor; cheap, and callable from every thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// A message to the reactor.
#[derive(Debug)]
pub enum Mail {
    /// Something of the store.
    Store(StoreReply),
    /// A client's command.
    Control(ControlRequest),
    /// A pool's directory was opened, or can't be.
    Pool(OpenedPool),
    /// What the identity directory holds, read because somebody asked.
    Identity(Box<Result<Option<IdentityFiles>, Failure>>, Option<Answer>),
    /// SIGTERM or SIGINT: drain, seal, end.
    Stop,
}

/// A command and where its answer goes.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked.
    pub command: Command,
    /// Takes the answer; a client that has gone away is not an error.
    pub answer: Answer,
}

/// Takes the answer to one command.
pub type Answer = oneshot::Sender<Result<Value, ErrorBody>>;

/// The sending end.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<Mail>,
    waker: Waker,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mailbox")
    }
}

impl Mailbox {
    /// A mailbox whose messages come out of the receiver.
    #[must_use]
    pub fn new(waker: Waker) -> (Mailbox, Receiver<Mail>) {
        let (sender, receiver) = channel();
        (Mailbox { sender, waker }, receiver)
    }

    /// Sends a message. After the reactor's end there is nobody to tell, and nothing to do about it.
    pub fn send(&self, mail: Mail) {
        if self.sender.send(mail).is_ok() {
            (self.waker)();
        }
    }
}
