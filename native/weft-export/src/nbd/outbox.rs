//! What is to be sent to the client: heads and payloads in order, handed out as gather lists.
//!
//! Must always hold: bytes count as held until the gather list that carries them is given back, so a client
//! that doesn't read its replies can't make the server hold more than its budget.

use std::collections::VecDeque;
use std::io::IoSlice;

use weft_proto::payload::Payload;

/// Heads are gathered in one buffer up to about this size, then a new one is begun.
const HEAD_BUFFER: usize = 4096;
/// Head buffers kept for reuse.
const SPARE_BUFFERS: usize = 16;

/// One piece of a [`Gather`].
#[derive(Debug, Clone)]
pub enum Part<P> {
    /// Protocol bytes made by the server.
    Head(Vec<u8>),
    /// Data of the volume, shared with whoever read it.
    Data(P),
}

impl<P: Payload> Part<P> {
    /// The bytes to send.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Part::Head(bytes) => bytes,
            Part::Data(payload) => payload.bytes(),
        }
    }
}

/// Bytes to send, in order. Owns them, so that they may be given to the kernel; goes back through
/// `Connection::handle_transmitted` when all were sent.
#[derive(Debug)]
pub struct Gather<P> {
    parts: Vec<Part<P>>,
    len: usize,
}

impl<P: Payload> Gather<P> {
    /// The pieces, in order.
    #[must_use]
    pub fn parts(&self) -> &[Part<P>] {
        &self.parts
    }
    /// Total bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Never true of a list that was handed out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// What is left to send when `sent` bytes were sent: for a vectored write.
    pub fn slices_from(&self, sent: usize) -> impl Iterator<Item = IoSlice<'_>> {
        let mut skip = sent;
        self.parts.iter().filter_map(move |part| {
            let bytes = part.bytes();
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            (skipped < bytes.len()).then(|| IoSlice::new(&bytes[skipped..]))
        })
    }
}

/// The queue of one connection.
#[derive(Debug)]
pub(super) struct Outbox<P> {
    parts: VecDeque<Part<P>>,
    queued: usize,
    handed_out: usize,
    spare_heads: Vec<Vec<u8>>,
    spare_parts: Vec<Part<P>>,
}

impl<P: Payload> Outbox<P> {
    pub(super) fn new() -> Self {
        Outbox {
            parts: VecDeque::new(),
            queued: 0,
            handed_out: 0,
            spare_heads: Vec::new(),
            spare_parts: Vec::new(),
        }
    }

    /// Bytes not known to be sent.
    pub(super) fn held(&self) -> usize {
        self.queued + self.handed_out
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.queued = 0;
    }

    pub(super) fn push_head(&mut self, bytes: &[u8]) {
        self.queued += bytes.len();
        if let Some(Part::Head(head)) = self.parts.back_mut()
            && head.len() + bytes.len() <= HEAD_BUFFER
        {
            head.extend_from_slice(bytes);
            return;
        }
        let mut head = self.spare_heads.pop().unwrap_or_default();
        head.extend_from_slice(bytes);
        self.parts.push_back(Part::Head(head));
    }

    pub(super) fn push_data(&mut self, data: P) {
        if !data.is_empty() {
            self.queued += data.len();
            self.parts.push_back(Part::Data(data));
        }
    }

    pub(super) fn poll(&mut self, max_parts: usize) -> Option<Gather<P>> {
        if self.parts.is_empty() {
            return None;
        }
        let mut parts = core::mem::take(&mut self.spare_parts);
        parts.extend(self.parts.drain(..max_parts.max(1).min(self.parts.len())));
        let len = parts.iter().map(|part| part.bytes().len()).sum();
        self.queued -= len;
        self.handed_out += len;
        Some(Gather { parts, len })
    }

    pub(super) fn give_back(&mut self, mut gather: Gather<P>) {
        assert!(gather.len <= self.handed_out, "{} of {} bytes given back", gather.len, self.handed_out);
        self.handed_out -= gather.len;
        for part in gather.parts.drain(..) {
            if let Part::Head(mut head) = part
                && self.spare_heads.len() < SPARE_BUFFERS
                && head.capacity() <= 2 * HEAD_BUFFER
            {
                head.clear();
                self.spare_heads.push(head);
            }
        }
        self.spare_parts = gather.parts;
    }
}
