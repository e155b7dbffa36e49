//! The handshake: fixed newstyle, from the greeting to the choice of an export.
//!
//! Owns the stream meanwhile, and what the client has asked for so far. It reads exactly what belongs to the option at
//! hand and nothing ahead of it, so that nothing sent in the clear is taken for something that came inside TLS.
//!
//! Invariants: everything a client may make us read is bounded in bytes, options and (by the caller) time; where TLS is
//! required nothing but `STARTTLS` and `ABORT` is answered before it; `STARTTLS` forgets all that was agreed before.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::buffers::Buffers;
use super::connection::{Fate, Session};
use super::export::ExportInfo;
use super::exports::{Entry, Exports};
use super::options::{self, MAX_OPTION, MAX_SKIPPED};
use super::proto::{
    ALLOCATION, ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAX_PAYLOAD, OPTION_MAGIC, Rep, greeting, info,
    option, option_reply,
};
use super::request::{Agreed, transmission_flags};
use super::stream::Stream;
use super::tls::Tls;

/// Options of one handshake; more is no negotiation.
const MAX_OPTIONS: usize = 1000;

/// Longest text of an error reply and of a description, in bytes.
const MAX_TEXT: usize = 1024;

/// What a handshake needs to know of the server.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) exports: Exports,
    pub(super) buffers: Arc<Buffers>,
    pub(super) tls: Tls,
}

/// One handshake under way.
struct Handshake<'a> {
    offer: &'a Offer,
    stream: Stream,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The name of the export whose allocation the client wants to ask for.
    allocation: Option<String>,
    is_stopping: &'a (dyn Fn() -> bool + Sync),
}

/// What comes after an option.
enum Next {
    Option,
    Transmission(Session),
    Goodbye,
    Tls,
}

type Step<T> = Result<T, Fate>;

/// Leads a client to an export. `Err` and `None` end the connection; `None` is a client that took its leave.
pub(super) async fn negotiate(
    stream: Stream,
    offer: &Offer,
    is_stopping: &(dyn Fn() -> bool + Sync),
) -> Step<Option<(Stream, Session)>> {
    let mut handshake =
        Handshake { offer, stream, fixed: false, no_zeroes: false, structured: false, allocation: None, is_stopping };
    handshake.greet().await?;
    for _ in 0..MAX_OPTIONS {
        match handshake.option().await? {
            Next::Option => {}
            Next::Transmission(session) => return Ok(Some((handshake.stream, session))),
            Next::Goodbye => {
                // Who leaves may be gone already.
                let _ = handshake.stream.shutdown().await;
                return Ok(None);
            }
            Next::Tls => handshake = handshake.start_tls().await?,
        }
    }
    Err(breach(format!("more than {MAX_OPTIONS} options")))
}

impl Handshake<'_> {
    async fn greet(&mut self) -> Step<()> {
        self.send(&greeting()).await?;
        let flags = self.stream.read_u32().await.map_err(Fate::Broken)?;
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(breach(format!("client flags {flags:#x}, some of which are unknown")));
        }
        self.fixed = flags & u32::from(FLAG_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// Reads and answers one option.
    async fn option(&mut self) -> Step<Next> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).await.map_err(Fate::Broken)?;
        let (magic, rest) = header.split_at(8);
        let word = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let (code, len) = (word(0), word(4));
        if magic != OPTION_MAGIC.to_be_bytes() {
            return Err(breach("an option that does not begin as one"));
        }
        if len > MAX_OPTION {
            return self.too_long(code, len).await;
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).await.map_err(Fate::Broken)?;
        self.answer(code, &data).await
    }

    async fn too_long(&mut self, code: u32, len: u32) -> Step<Next> {
        if len > MAX_SKIPPED || code == option::EXPORT_NAME {
            return Err(breach(format!("option {code} with {len} bytes of data")));
        }
        let skipped = (&mut self.stream).take(u64::from(len));
        let skipped = tokio::io::copy(&mut { skipped }, &mut tokio::io::sink()).await.map_err(Fate::Broken)?;
        if skipped < u64::from(len) {
            return Err(Fate::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        if code == option::ABORT {
            return self.abort().await;
        }
        self.refuse(code, Rep::ErrTooBig, "the option has too much data").await
    }

    async fn answer(&mut self, code: u32, data: &[u8]) -> Step<Next> {
        let is_tls = matches!(self.stream, Stream::Tls(_));
        if code == option::ABORT {
            return self.abort().await;
        }
        if (self.is_stopping)() && code != option::EXPORT_NAME {
            return self.refuse(code, Rep::ErrShutdown, "the server is stopping").await;
        }
        if code == option::STARTTLS {
            return self.offer_tls(data, is_tls).await;
        }
        let tls_missing = self.offer.tls.is_required() && !is_tls;
        match code {
            option::EXPORT_NAME if tls_missing => Err(breach("an export asked for without TLS, which is required")),
            option::EXPORT_NAME => self.export_name(data).await,
            _ if tls_missing => self.refuse(code, Rep::ErrTlsReqd, "TLS is required: STARTTLS first").await,
            option::LIST => self.list(data).await,
            option::INFO | option::GO => self.info(code, data).await,
            option::STRUCTURED_REPLY => {
                if !data.is_empty() {
                    return self.refuse(code, Rep::ErrInvalid, "the option has no data").await;
                }
                self.structured = true;
                self.reply(code, Rep::Ack, &[]).await
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(code, data).await,
            _ => self.refuse(code, Rep::ErrUnsup, "this option is not known here").await,
        }
    }

    async fn abort(&mut self) -> Step<Next> {
        // The client may be gone before it takes the answer.
        let _ = self.reply(option::ABORT, Rep::Ack, &[]).await;
        Ok(Next::Goodbye)
    }

    async fn offer_tls(&mut self, data: &[u8], is_tls: bool) -> Step<Next> {
        let code = option::STARTTLS;
        if self.offer.tls.identity().is_none() || !self.fixed {
            return self.refuse(code, Rep::ErrPolicy, "TLS is not offered here").await;
        }
        if is_tls || !data.is_empty() {
            let why = if is_tls { "there is TLS already" } else { "the option has no data" };
            return self.refuse(code, Rep::ErrInvalid, why).await;
        }
        self.reply(code, Rep::Ack, &[]).await?;
        Ok(Next::Tls)
    }

    /// Goes on inside TLS, with nothing of what was agreed on outside.
    async fn start_tls(self) -> Step<Self> {
        let (Some(identity), Stream::Plain(plain)) = (self.offer.tls.identity(), self.stream) else {
            return Err(breach("TLS within TLS"));
        };
        let secure = identity.acceptor().accept(plain).await.map_err(Fate::Broken)?;
        Ok(Handshake { stream: Stream::Tls(Box::new(secure)), structured: false, allocation: None, ..self })
    }

    async fn export_name(&mut self, data: &[u8]) -> Step<Next> {
        let name = options::export_name(data).map_err(breach)?;
        let Some((entry, info)) = self.find(name) else {
            return Err(breach(format!("export {name:?} asked for, which there is not")));
        };
        let mut reply = Vec::with_capacity(134);
        reply.extend_from_slice(&info.size.to_be_bytes());
        reply.extend_from_slice(&transmission_flags(&info, self.structured).to_be_bytes());
        if !self.no_zeroes {
            reply.resize(reply.len() + 124, 0);
        }
        let Some(session) = self.session(entry, info) else {
            return Err(breach("one connection too many"));
        };
        self.send(&reply).await?;
        Ok(Next::Transmission(session))
    }

    async fn list(&mut self, data: &[u8]) -> Step<Next> {
        if !data.is_empty() {
            return self.refuse(option::LIST, Rep::ErrInvalid, "the option has no data").await;
        }
        let mut out = Vec::new();
        for entry in self.offer.exports.all() {
            let name = entry.name().as_bytes();
            let Some(info) = entry.info() else { continue };
            let description = short(&info.description).as_bytes();
            let len = (name.len() as u32).to_be_bytes();
            option_reply(&mut out, option::LIST, Rep::Server, &[&len, name, description]);
        }
        option_reply(&mut out, option::LIST, Rep::Ack, &[]);
        self.send(&out).await?;
        Ok(Next::Option)
    }

    async fn info(&mut self, code: u32, data: &[u8]) -> Step<Next> {
        let request = match options::info_request(data) {
            Ok(request) => request,
            Err(why) => return self.refuse(code, Rep::ErrInvalid, why).await,
        };
        let Some((entry, info)) = self.find(request.name) else {
            return self.refuse(code, Rep::ErrUnknown, "there is no such export").await;
        };
        let mut out = Vec::new();
        let mut tell = |kind: u16, data: &[&[u8]]| {
            let mut parts: Vec<&[u8]> = Vec::with_capacity(4);
            let kind = kind.to_be_bytes();
            parts.push(&kind);
            parts.extend_from_slice(data);
            option_reply(&mut out, code, Rep::Info, &parts);
        };
        let flags = transmission_flags(&info, self.structured).to_be_bytes();
        tell(info::EXPORT, &[&info.size.to_be_bytes(), &flags]);
        if request.wants(info::NAME) {
            tell(info::NAME, &[entry.name().as_bytes()]);
        }
        if request.wants(info::DESCRIPTION) && !info.description.is_empty() {
            tell(info::DESCRIPTION, &[short(&info.description).as_bytes()]);
        }
        if request.wants(info::BLOCK_SIZE) || info.min_block > 1 {
            let preferred = info.preferred_block.max(info.min_block).max(512);
            tell(
                info::BLOCK_SIZE,
                &[&info.min_block.to_be_bytes(), &preferred.to_be_bytes(), &MAX_PAYLOAD.to_be_bytes()],
            );
        }
        if code == option::INFO {
            option_reply(&mut out, code, Rep::Ack, &[]);
            self.send(&out).await?;
            return Ok(Next::Option);
        }
        let Some(session) = self.session(entry, info) else {
            return self.refuse(code, Rep::ErrPolicy, "too many connections: close one first").await;
        };
        option_reply(&mut out, code, Rep::Ack, &[]);
        self.send(&out).await?;
        Ok(Next::Transmission(session))
    }

    async fn meta_context(&mut self, code: u32, data: &[u8]) -> Step<Next> {
        let is_set = code == option::SET_META_CONTEXT;
        if is_set {
            // Also where it fails: what was set before is gone.
            self.allocation = None;
        }
        let request = match options::meta_request(data) {
            Ok(_) if !self.structured => {
                return self.refuse(code, Rep::ErrInvalid, "structured replies must be agreed on first").await;
            }
            Ok(request) => request,
            Err(why) => return self.refuse(code, Rep::ErrInvalid, why).await,
        };
        let Some(entry) = self.offer.exports.find(request.name) else {
            return self.refuse(code, Rep::ErrUnknown, "there is no such export").await;
        };
        let matches = |query: &&str| *query == ALLOCATION || (!is_set && *query == "base:");
        let found = request.queries.iter().any(matches) || (!is_set && request.queries.is_empty());
        let mut out = Vec::new();
        if found {
            let id = if is_set { ALLOCATION_ID } else { 0 };
            option_reply(&mut out, code, Rep::MetaContext, &[&id.to_be_bytes(), ALLOCATION.as_bytes()]);
        }
        option_reply(&mut out, code, Rep::Ack, &[]);
        self.send(&out).await?;
        if is_set && found {
            self.allocation = Some(entry.name().to_owned());
        }
        Ok(Next::Option)
    }

    fn find(&self, name: &str) -> Option<(Arc<Entry>, ExportInfo)> {
        let entry = self.offer.exports.find(name)?;
        let info = entry.info()?;
        Some((entry, info))
    }

    /// What is taken into the transmission phase; `None` when there are as many connections as there may be.
    fn session(&self, entry: Arc<Entry>, info: ExportInfo) -> Option<Session> {
        let share = self.offer.buffers.share()?;
        let allocation = self.allocation.as_deref() == Some(entry.name());
        Some(Session { agreed: Agreed { structured: self.structured, allocation }, entry, info, share })
    }

    async fn refuse(&mut self, code: u32, reply: Rep, why: &str) -> Step<Next> {
        self.reply(code, reply, why.as_bytes()).await
    }

    async fn reply(&mut self, code: u32, reply: Rep, data: &[u8]) -> Step<Next> {
        let mut out = Vec::with_capacity(20 + data.len());
        option_reply(&mut out, code, reply, &[data]);
        self.send(&out).await?;
        Ok(Next::Option)
    }

    async fn send(&mut self, bytes: &[u8]) -> Step<()> {
        self.stream.write_all(bytes).await.map_err(Fate::Broken)?;
        self.stream.flush().await.map_err(Fate::Broken)
    }
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

fn breach(what: impl Into<String>) -> Fate {
    Fate::Breach(what.into())
}
