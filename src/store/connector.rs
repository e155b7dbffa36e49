//! The layer between `object_store` and the network: stall limits, failures with a meaning, the store's clock, counts.
//!
//! It sees every request and every piece of every body. It never retries and never looks at the bytes of an object.
//!
//! Time limits: an answer must begin within the stall limit (an upload is given its length at a minimum rate on top),
//! and each further piece within the stall limit after the last. Nothing limits the time of a whole body.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService, ReqwestConnector,
};

use super::StoreOptions;
use super::counters::{Counters, add, count};
use super::failure::{Failure, Status, shorten};
use super::figures::FailedTries;
use super::store_clock::StoreClock;
use crate::clock::{Clock, SystemClock};
use crate::ids::Time;

/// Longest body of an unsuccessful answer that is read.
const MAX_ERROR_BODY: usize = 64 << 10;

/// What the layer has seen, shared with the store that it serves.
#[derive(Debug)]
pub(super) struct Watch {
    stall: Duration,
    min_upload_rate: u64,
    /// Addresses of services that hand out credentials, `host` or `host:port`.
    credential_services: Vec<String>,
    clock: Mutex<StoreClock>,
    answered: AtomicBool,
    pub(super) counters: Counters,
    pub(super) failed_tries: FailedTries,
}

impl Watch {
    /// With the limits of `options`.
    pub(super) fn new(options: &StoreOptions) -> Arc<Watch> {
        Arc::new(Watch {
            stall: options.stall_timeout,
            min_upload_rate: options.min_upload_rate,
            credential_services: options.credential_services(),
            clock: Mutex::default(),
            answered: AtomicBool::new(false),
            counters: Counters::default(),
            failed_tries: FailedTries::default(),
        })
    }

    fn is_credential_service(&self, uri: &Uri) -> bool {
        uri.authority().is_some_and(|a| self.credential_services.iter().any(|s| s == a.as_str()))
    }

    /// Whether the store has ever answered anything.
    pub(super) fn answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// The store's time. Held against a clock that nobody sets: what this machine's is set to does not matter from the first
    /// answer on.
    pub(super) fn now(&self) -> Time {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).at(SystemClock.steady())
    }

    fn saw(&self, headers: &HeaderMap, sent: Time) {
        self.answered.store(true, Relaxed);
        if let Some(date) = headers.get(http::header::DATE).and_then(|v| parse_date(v.to_str().ok()?)) {
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            clock.observe(date, sent, SystemClock.steady());
        }
    }

    /// Counts a request; whether its body is an object's.
    fn sends(&self, request: &HttpRequest) -> bool {
        let listing = request.uri().query().is_some_and(|q| {
            q.split('&').any(|p| p.starts_with("list-type=") || p == "comp=list" || p.starts_with("prefix="))
        });
        match *request.method() {
            Method::GET if listing => count(&self.counters.lists),
            Method::GET => {
                count(&self.counters.gets);
                return true;
            }
            Method::HEAD => count(&self.counters.heads),
            Method::PUT => {
                count(&self.counters.puts);
                add(&self.counters.bytes_out, request.body().content_length() as u64);
            }
            Method::DELETE => count(&self.counters.deletes),
            _ => {}
        }
        false
    }

    /// Time until an answer must have begun.
    fn answer_limit(&self, request: &HttpRequest) -> Duration {
        let upload = request.body().content_length() as u64;
        self.stall + Duration::from_millis(upload.saturating_mul(1000) / self.min_upload_rate.max(1))
    }
}

/// Puts the layer on top of the HTTP client.
#[derive(Debug)]
pub(super) struct WatchedConnector(pub(super) Arc<Watch>);

impl HttpConnector for WatchedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(WatchedService { inner, watch: Arc::clone(&self.0) }))
    }
}

#[derive(Debug)]
struct WatchedService {
    inner: HttpClient,
    watch: Arc<Watch>,
}

#[async_trait]
impl HttpService for WatchedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if self.watch.is_credential_service(request.uri()) {
            return self.credentials(request).await;
        }
        let object = self.watch.sends(&request);
        let start = range_start(request.headers());
        let limit = self.watch.answer_limit(&request);
        let sent = SystemClock.steady();
        let response = match tokio::time::timeout(limit, self.inner.execute(request)).await {
            Err(_) => return Err(Failure::Stalled(limit).into_http()),
            Ok(Err(e)) => return Err(Failure::transport(&e, false).into_http()),
            Ok(Ok(response)) => response,
        };
        self.watch.saw(response.headers(), sent);
        if let (Some(start), Some(object_len)) = (start, object_len(response.headers()))
            && response.status().is_success()
            && start >= object_len
        {
            // Azurite answers a range that begins at the very end of an object with success and no sense.
            let status = Status { status: 416, object_len: Some(object_len), ..Status::default() };
            return Err(Failure::Status(Box::new(status)).into_http());
        }
        if response.status().is_success() {
            let watch = Arc::clone(&self.watch);
            return Ok(response.map(|body| HttpResponseBody::new(WatchedBody::new(body, watch, object))));
        }
        Err(Failure::Status(Box::new(self.status(response).await)).into_http())
    }
}

impl WatchedService {
    /// Asks a service for credentials. It is not the store: its answers teach and count nothing.
    async fn credentials(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let refused = |why: String| Failure::NoCredentials(format!("none are set, and {host} {why}")).into_http();
        let response = match tokio::time::timeout(self.watch.stall, self.inner.execute(request)).await {
            Err(_) => return Err(refused("does not answer".into())),
            Ok(Err(e)) => return Err(refused(format!("gives none: {}", Failure::transport(&e, false)))),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            // The client has a meaning of its own for 403: an older form of the service.
            status if status.is_success() || status == StatusCode::FORBIDDEN => Ok(response),
            status => Err(refused(format!("answers {status}"))),
        }
    }

    /// Reads an unsuccessful answer. What cannot be read of its body is left out: the status alone has a meaning.
    async fn status(&self, response: HttpResponse) -> Status {
        let (head, body) = response.into_parts();
        let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).map(shorten);
        let read = tokio::time::timeout(self.watch.stall, start_of(body)).await;
        let body = String::from_utf8_lossy(&read.unwrap_or_default()).into_owned();
        Status {
            status: head.status.as_u16(),
            code: text("x-ms-error-code").or_else(|| element(&body, "Code")).unwrap_or_default(),
            message: element(&body, "Message").unwrap_or_default(),
            retry_after: text("retry-after").and_then(|t| t.parse().ok()).map(Duration::from_secs),
            object_len: object_len(&head.headers),
            region: text("x-amz-bucket-region"),
        }
    }
}

/// First byte of the range that a request asks for, `bytes=10-19`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    // Azure has a header of its own for it.
    let range = headers.get(http::header::RANGE).or_else(|| headers.get("x-ms-range"))?;
    range.to_str().ok()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

/// Length of the whole object in the answer to a range request, `bytes 10-19/100` or `bytes */100`.
fn object_len(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(http::header::CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit_once('/')?.1.trim().parse().ok()
}

async fn start_of(mut body: HttpResponseBody) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < MAX_ERROR_BODY {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let Some(Ok(frame)) = frame else { break };
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data[..data.len().min(MAX_ERROR_BODY - read.len())]);
        }
    }
    read
}

/// Text of the first element `name` of an XML error document. It is shown and compared, never trusted.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(shorten(text))
}

/// `Date` of an HTTP answer, RFC 9110 section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_date(text: &str) -> Option<Time> {
    let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
    u64::try_from(zoned.timestamp().as_millisecond()).ok().map(Time::from_millis)
}

/// A body that breaks off with [`Failure::Stalled`] when nothing comes for too long.
#[derive(Debug)]
struct WatchedBody {
    inner: HttpResponseBody,
    watch: Arc<Watch>,
    /// Whether the bytes count as an object's.
    object: bool,
    /// Set while waiting for a piece.
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl WatchedBody {
    fn new(inner: HttpResponseBody, watch: Arc<Watch>, object: bool) -> WatchedBody {
        WatchedBody { inner, watch, object, deadline: None }
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.deadline = None;
            return Poll::Ready(match frame {
                Some(Ok(frame)) => {
                    if let (true, Some(data)) = (this.object, frame.data_ref()) {
                        add(&this.watch.counters.bytes_in, data.remaining() as u64);
                    }
                    Some(Ok(frame))
                }
                Some(Err(e)) => Some(Err(Failure::transport(&e, true).into_http())),
                None => None,
            });
        }
        let stall = this.watch.stall;
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        std::task::ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err(Failure::Stalled(stall).into_http())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Time::from_millis(784_111_777_000)));
        for bad in ["", "yesterday", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn elements_of_an_error_document_are_found() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please\n wait</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("SlowDown"));
        assert_eq!(element(xml, "Message").as_deref(), Some("Please wait"));
        assert_eq!(element("<Code>x", "Code"), None);
        assert_eq!(element("", "Code"), None);
    }
}
