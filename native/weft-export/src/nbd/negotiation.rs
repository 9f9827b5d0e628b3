//! The option haggling of the fixed newstyle handshake: one option in, its replies out.
//!
//! Must always hold: an option with bytes that don't fit is answered `NBD_REP_ERR_INVALID` and leaves what was
//! agreed unchanged; only `NBD_OPT_EXPORT_NAME` has no way to say no and ends the connection.

use weft_proto::ids::SnapId;
use weft_proto::payload::Payload;

use super::outbox::Outbox;
use super::wire::{self, Reader, info, option, reply, transmission_flag};
use super::{Ending, ExportInfo, MAX_TRANSFER};

/// Every export's metadata context, and its number on the wire.
const ALLOCATION: &str = "base:allocation";
const ALLOCATION_ID: u32 = 1;
/// What has changed since a snapshot, under our name and under the one that qemu looks for; its id follows.
const CHANGED_SINCE: [&str; 2] = ["weft:changed-since:", "qemu:dirty-bitmap:weft-since-"];
/// A client that wants more contexts gets no more: each is another question for every range.
const CONTEXTS_MAX: usize = 16;
/// NBD: "strings ... SHOULD be no longer than 4096 bytes".
const MAX_NAME: usize = 4096;

/// What client and server agreed upon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) no_zeroes: bool,
    pub(super) structured: bool,
    pub(super) contexts: Vec<Context>,
}

/// A metadata context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    /// Its number on the wire.
    pub(super) id: u32,
    /// What has changed since that snapshot; none: what is allocated.
    pub(super) since: Option<SnapId>,
}

/// What follows an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Option,
    Transmission,
    End(Ending),
}

/// Answers one option.
pub(super) fn handle_option<P: Payload>(
    code: u32,
    data: &[u8],
    export: &ExportInfo,
    fenced: bool,
    agreed: &mut Agreed,
    out: &mut Outbox<P>,
) -> Next {
    if code == option::EXPORT_NAME {
        return handle_export_name(data, export, fenced, agreed, out);
    }
    if code == option::ABORT {
        push_reply(out, code, reply::ACK, &[]);
        return Next::End(Ending::Aborted);
    }
    if fenced {
        push_error(out, code, reply::ERR_SHUTDOWN, "this session no longer owns the volume");
        return Next::Option;
    }
    match code {
        option::LIST if data.is_empty() => {
            let name = export.name.as_bytes();
            let mut entry = length(name).to_be_bytes().to_vec();
            entry.extend_from_slice(name);
            entry.extend_from_slice(export.description.as_bytes());
            push_reply(out, code, reply::SERVER, &entry);
            push_reply(out, code, reply::ACK, &[]);
        }
        option::STRUCTURED_REPLY if data.is_empty() => {
            agreed.structured = true;
            push_reply(out, code, reply::ACK, &[]);
        }
        option::LIST | option::STRUCTURED_REPLY => {
            push_error(out, code, reply::ERR_INVALID, "this option has no data");
        }
        option::INFO | option::GO => return handle_info(code, data, export, agreed, out),
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            handle_contexts(code, data, export, agreed, out);
        }
        // STARTTLS too: "In NOTLS mode ... MUST reply with ... NBD_REP_ERR_UNSUP (if it does not support the
        // NBD_OPT_STARTTLS option at all)". EXTENDED_HEADERS and PEEK_EXPORT likewise.
        _ => push_error(out, code, reply::ERR_UNSUPPORTED, "this server doesn't know the option"),
    }
    Next::Option
}

fn handle_export_name<P: Payload>(
    data: &[u8],
    export: &ExportInfo,
    fenced: bool,
    agreed: &Agreed,
    out: &mut Outbox<P>,
) -> Next {
    if fenced {
        return Next::End(Ending::Fenced);
    }
    if !export.answers_to(data) {
        return Next::End(Ending::Violation("the client asked for an export that isn't here"));
    }
    out.push_head(&export.size.to_be_bytes());
    out.push_head(&transmission_flags(export, agreed).to_be_bytes());
    if !agreed.no_zeroes {
        out.push_head(&[0; 124]);
    }
    Next::Transmission
}

fn handle_info<P: Payload>(
    code: u32,
    data: &[u8],
    export: &ExportInfo,
    agreed: &Agreed,
    out: &mut Outbox<P>,
) -> Next {
    let Some((name, wanted)) = parse_info(data) else {
        push_error(out, code, reply::ERR_INVALID, "expected a name and a list of information types");
        return Next::Option;
    };
    if !export.answers_to(name) {
        push_error(out, code, reply::ERR_UNKNOWN, "there is no such export here");
        return Next::Option;
    }
    if wanted.contains(&info::NAME) {
        push_info(out, code, info::NAME, &[export.name.as_bytes()]);
    }
    if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
        push_info(out, code, info::DESCRIPTION, &[export.description.as_bytes()]);
    }
    // Sent unasked as well, which the protocol allows: a client that is told uses whole blocks.
    let sizes = [minimum_block(export.size), 4096, MAX_TRANSFER].map(u32::to_be_bytes);
    push_info(out, code, info::BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
    let flags = transmission_flags(export, agreed).to_be_bytes();
    push_info(out, code, info::EXPORT, &[&export.size.to_be_bytes(), &flags]);
    push_reply(out, code, reply::ACK, &[]);
    if code == option::GO { Next::Transmission } else { Next::Option }
}

fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut reader = Reader(data);
    let name = reader.string().filter(|name| name.len() <= MAX_NAME)?;
    let count = reader.u16()?;
    let wanted = (0..count).map(|_| reader.u16()).collect::<Option<Vec<u16>>>()?;
    reader.is_empty().then_some((name, wanted))
}

/// NBD: "The minimum block size ... MUST be a power of 2, and SHOULD be ... the export size ... a multiple".
fn minimum_block(size: u64) -> u32 {
    if size.is_multiple_of(512) { 512 } else { 1 }
}

fn handle_contexts<P: Payload>(
    code: u32,
    data: &[u8],
    export: &ExportInfo,
    agreed: &mut Agreed,
    out: &mut Outbox<P>,
) {
    if !agreed.structured {
        push_error(out, code, reply::ERR_INVALID, "metadata contexts need structured replies first");
        return;
    }
    let Some((name, queries)) = parse_contexts(data) else {
        push_error(out, code, reply::ERR_INVALID, "expected a name and a list of queries");
        return;
    };
    if !export.answers_to(name) {
        push_error(out, code, reply::ERR_UNKNOWN, "there is no such export here");
        return;
    }
    let listing = code == option::LIST_META_CONTEXT;
    let wanted = |name: &str| {
        // A listing without queries lists everything, and what ends in a colon is a wildcard there; a selection is exact.
        let asked = |query: &&[u8]| {
            *query == name.as_bytes()
                || listing && query.ends_with(b":") && name.as_bytes().starts_with(query)
        };
        listing && queries.is_empty() || queries.iter().any(asked)
    };
    let found = contexts_of(export).filter(|(name, _)| wanted(name));
    let found: Vec<(String, Context)> = found.take(if listing { usize::MAX } else { CONTEXTS_MAX }).collect();
    for (name, context) in &found {
        // NBD: in a listing the number has no meaning and is 0.
        let id = if listing { 0 } else { context.id };
        let mut entry = id.to_be_bytes().to_vec();
        entry.extend_from_slice(name.as_bytes());
        push_reply(out, code, reply::META_CONTEXT, &entry);
    }
    if !listing {
        agreed.contexts = found.into_iter().map(|(_, context)| context).collect();
    }
    push_reply(out, code, reply::ACK, &[]);
}

/// What an export offers, each with the number that it has on every connection.
fn contexts_of(export: &ExportInfo) -> impl Iterator<Item = (String, Context)> + '_ {
    let since = export.since.iter().flat_map(|snap| CHANGED_SINCE.map(|prefix| (prefix, *snap)));
    let since = (ALLOCATION_ID + 1..).zip(since).map(|(id, (prefix, snap))| {
        let context = Context { id, since: Some(snap) };
        (format!("{prefix}{snap}"), context)
    });
    let allocation = Context { id: ALLOCATION_ID, since: None };
    std::iter::once((ALLOCATION.to_owned(), allocation)).chain(since)
}

fn parse_contexts(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut reader = Reader(data);
    let name = reader.string().filter(|name| name.len() <= MAX_NAME)?;
    let count = reader.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(reader.string()?);
    }
    reader.is_empty().then_some((name, queries))
}

/// What is promised of the export, as NBD's transmission flags.
pub(super) fn transmission_flags(export: &ExportInfo, agreed: &Agreed) -> u16 {
    use transmission_flag as flag;
    let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA;
    if export.read_only {
        flags |= flag::READ_ONLY;
    } else {
        flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    }
    if agreed.structured {
        flags |= flag::SEND_DF;
    }
    if export.multi_conn {
        flags |= flag::CAN_MULTI_CONN;
    }
    flags
}

/// Refuses an option whose data was too long to look at.
pub(super) fn refuse_too_big<P: Payload>(code: u32, out: &mut Outbox<P>) {
    push_error(out, code, reply::ERR_TOO_BIG, "the option's data is longer than 64 KiB");
}

fn push_info<P: Payload>(out: &mut Outbox<P>, code: u32, kind: u16, fields: &[&[u8]]) {
    let mut data = kind.to_be_bytes().to_vec();
    fields.iter().for_each(|field| data.extend_from_slice(field));
    push_reply(out, code, reply::INFO, &data);
}

fn push_error<P: Payload>(out: &mut Outbox<P>, code: u32, error: u32, sentence: &str) {
    push_reply(out, code, error, sentence.as_bytes());
}

fn push_reply<P: Payload>(out: &mut Outbox<P>, code: u32, kind: u32, data: &[u8]) {
    out.push_head(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
    out.push_head(&code.to_be_bytes());
    out.push_head(&kind.to_be_bytes());
    out.push_head(&length(data).to_be_bytes());
    out.push_head(data);
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("names and sentences of ours are short")
}
