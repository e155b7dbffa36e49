//! Between the connection and the S3 service: counts every request, asks the faults, and carries out what they say.

use super::body::Shaped;
use super::connection::Fate;
use super::counters::{Direction, Tally, Verb};
use super::faults::{Faults, Plan};
use super::rule::Fault;
use futures::future::BoxFuture;
use hyper::body::{Body, Incoming};
use hyper::header::{DATE, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::service::S3Service;
use s3s::{S3Error, S3ErrorCode};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

/// One connection's entrance to the service.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) service: S3Service,
    pub(super) faults: Faults,
    pub(super) tally: Tally,
    pub(super) fate: Fate,
}

/// The request ends without a response.
#[derive(Debug)]
pub(super) struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ends without a response")
    }
}

impl std::error::Error for Aborted {}

type Answer = Response<Shaped<s3s::Body>>;

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Answer;
    type Error = Aborted;
    type Future = BoxFuture<'static, Result<Answer, Aborted>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let front = self.clone();
        Box::pin(async move { front.handle(request).await })
    }
}

impl Front {
    async fn handle(&self, request: Request<Incoming>) -> Result<Answer, Aborted> {
        let verb = verb(request.method(), request.uri());
        self.tally.request(verb);
        let plan = self.faults.plan(verb, &target(request.uri()));
        plan.count_delays(&self.tally);
        if !plan.latency.is_zero() {
            tokio::time::sleep(plan.latency).await;
        }
        let shape = |body| Shaped::new(body, self.tally.clone(), Direction::In, plan.pacers.clone());
        let request = request.map(shape);
        let response = match plan.end {
            Some(Fault::Reset) => return Err(self.reset(Fault::Reset)),
            Some(fault) if refusal(fault).is_some() => self.refuse(fault, request).await?,
            _ => self.service.call(request.map(s3s::Body::http_body_unsync)).await.map_err(|_| Aborted)?,
        };
        if plan.end == Some(Fault::LostResponse) {
            return Err(self.reset(Fault::LostResponse));
        }
        Ok(self.finish(response, plan))
    }

    /// Answers with an error, after the body: a client that is still sending might not look at the response.
    async fn refuse(&self, fault: Fault, request: Request<Shaped<Incoming>>) -> Result<Response<s3s::Body>, Aborted> {
        self.tally.fault(fault.name());
        let mut body = request.into_body();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            frame.map_err(|_| Aborted)?;
        }
        let code = refusal(fault).ok_or(Aborted)?;
        S3Error::with_message(code, "injected fault").to_http_response().map_err(|_| Aborted)
    }

    fn finish(&self, mut response: Response<s3s::Body>, plan: Plan) -> Answer {
        if let Some(date) = skewed_date(self.faults.clock_skew()) {
            response.headers_mut().insert(DATE, date);
        }
        let success = response.status().is_success();
        response.map(|body| {
            let mut body = Shaped::new(body, self.tally.clone(), Direction::Out, plan.pacers);
            let struck = match plan.end {
                Some(Fault::Truncate) if success => body.cut(),
                Some(Fault::Flip) if success => body.flip(),
                _ => false,
            };
            if let Some(fault) = plan.end.filter(|_| struck) {
                self.tally.fault(fault.name());
            }
            body
        })
    }

    fn reset(&self, fault: Fault) -> Aborted {
        self.tally.fault(fault.name());
        self.fate.reset();
        Aborted
    }
}

/// The error a fault is answered with, for those that are.
fn refusal(fault: Fault) -> Option<S3ErrorCode> {
    match fault {
        Fault::Unavailable => Some(S3ErrorCode::ServiceUnavailable),
        Fault::SlowDown => Some(S3ErrorCode::SlowDown),
        Fault::InternalError => Some(S3ErrorCode::InternalError),
        Fault::Deny => Some(S3ErrorCode::AccessDenied),
        _ => None,
    }
}

fn verb(method: &Method, uri: &Uri) -> Verb {
    // `/bucket/key`: what has nothing behind the bucket is about the bucket itself.
    let is_object = uri.path().trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
    match *method {
        Method::HEAD => Verb::Head,
        Method::PUT => Verb::Put,
        Method::POST => Verb::Post,
        Method::DELETE => Verb::Delete,
        _ if is_object => Verb::Get,
        _ => Verb::List,
    }
}

/// Path and query, percent-decoded; bytes that are no text become replacement characters.
fn target(uri: &Uri) -> String {
    let raw = uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes();
    let mut plain = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let digits = raw.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| raw[at] == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(raw[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// A `Date` that is off by so many seconds; `None` leaves the header to the HTTP layer.
fn skewed_date(seconds: i64) -> Option<HeaderValue> {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    let date = match seconds {
        0 => None,
        1.. => now.checked_add(by),
        _ => now.checked_sub(by),
    }?;
    let mut text = Vec::new();
    Timestamp::from(date).format(TimestampFormat::HttpDate, &mut text).ok()?;
    HeaderValue::from_bytes(&text).ok()
}
