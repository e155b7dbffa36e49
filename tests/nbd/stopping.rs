//! The server stops, and exports go: what is in flight is finished, what comes later is refused or not read.

use std::sync::Arc;
use std::time::Duration;

use super::client::*;
use super::rig::{Healthy, MIB, Rig};
use freshet::nbd::{
    Address, Answer, BlockStatus, CacheMode, Export, ExportInfo, Farewell, Image, ImageOptions, Payload, ServerOptions,
    ZeroMode,
};
use futures::FutureExt;
use tokio::sync::Semaphore;

/// A disk whose reads wait until they are let go.
struct Gated(Arc<Semaphore>);

impl Export for Gated {
    fn info(&self) -> ExportInfo {
        ExportInfo::new(MIB)
    }
    fn read(self: Arc<Self>, _: u64, mut into: Payload) -> Answer<Payload> {
        Box::pin(async move {
            self.0.acquire().await.unwrap().forget();
            into.fill(2);
            Ok(into)
        })
    }
    fn write(self: Arc<Self>, _: u64, _: Payload, _: bool) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
    fn flush(self: Arc<Self>) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
    fn trim(self: Arc<Self>, _: u64, _: u64, _: bool) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
    fn write_zeroes(self: Arc<Self>, _: u64, _: u64, _: ZeroMode, _: bool) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
    fn extents(self: Arc<Self>, _: u64, len: u64, _: bool) -> Answer<Vec<BlockStatus>> {
        Box::pin(async move { Ok(vec![BlockStatus { len, hole: false, zero: false }]) })
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn gated(farewell: Farewell) -> (Rig, Arc<Semaphore>, Client) {
    let rig = Rig::new(CacheMode::WriteBack, ServerOptions { farewell, ..Default::default() });
    let gate = Arc::new(Semaphore::new(0));
    rig.exports.add("gated", Arc::new(Gated(gate.clone()))).unwrap();
    let client = Client::open(&rig.unix, "gated");
    (rig, gate, client)
}

/// Two reads in flight when the server is told to stop, of which one is answered afterwards: from then on the connection
/// knows that it stops. Answers with the other one.
fn stopped_in_between(
    rig: &mut Rig,
    gate: &Semaphore,
    client: &mut Client,
    runtime: &tokio::runtime::Runtime,
) -> (u64, tokio::task::JoinHandle<freshet::nbd::Drained>) {
    let mut idle = Client::open(&rig.tcp, "disk");
    let mut reads = vec![client.send(READ, 0, 0, 4096, &[]), client.send(READ, 0, 0, 4096, &[])];
    let flush = client.send(FLUSH, 0, 0, 0, &[]);
    assert_eq!(client.chunk(0).unwrap().cookie, flush, "all have arrived");
    let mut shutdown = Box::pin(rig.server.take().unwrap().shutdown(Duration::from_secs(60)));
    // Everybody has been told when its first step is done; not so when the first of them shows that it knows.
    assert!(runtime.block_on(async { shutdown.as_mut().now_or_never() }).is_none());
    let stopped = runtime.spawn(shutdown);
    assert!(idle.is_closed(), "nothing is in flight there");
    gate.add_permits(1);
    let answered = client.chunk(0).unwrap();
    assert_eq!(answered.kind, DATA);
    reads.retain(|read| *read != answered.cookie);
    let [other] = reads[..] else { panic!("none of the reads was answered") };
    (other, stopped)
}

#[test]
fn what_is_in_flight_is_answered_and_what_comes_later_gets_eshutdown() {
    let (mut rig, gate, mut client) = gated(Farewell::Refuse);
    let mut negotiating = Client::greet(&rig.unix);
    let runtime = runtime();
    let (read, stopped) = stopped_in_between(&mut rig, &gate, &mut client, &runtime);
    let later = client.send(WRITE, 0, 0, 4096, &[1; 4096]);
    let chunk = client.chunk(0).unwrap();
    assert_eq!((chunk.cookie, error_of(&[chunk])), (later, ESHUTDOWN));
    assert_eq!(negotiating.verdict(OPT_LIST, &[]), ERR_SHUTDOWN);
    gate.add_permits(1);
    let chunk = client.chunk(0).unwrap();
    assert_eq!((chunk.cookie, chunk.kind), (read, DATA));
    assert!(client.is_closed());
    assert_eq!(runtime.block_on(stopped).unwrap().cut, 0);
    assert_eq!(rig.buffers.in_use(), 0);
    let Address::Unix(path) = &rig.unix else { panic!("a Unix socket") };
    assert!(!path.exists());
}

#[test]
fn a_hypervisor_that_reconnects_sees_no_error() {
    let (mut rig, gate, mut client) = gated(Farewell::HangUp);
    let runtime = runtime();
    let (read, stopped) = stopped_in_between(&mut rig, &gate, &mut client, &runtime);
    // Not answered, so that it is sent again to the next server.
    client.send(FLUSH, 0, 0, 0, &[]);
    gate.add_permits(1);
    assert_eq!(client.chunk(0).unwrap().cookie, read);
    assert!(client.is_closed());
    assert_eq!(runtime.block_on(stopped).unwrap().cut, 0);
}

#[test]
fn what_does_not_end_is_cut_off_after_the_grace() {
    let (mut rig, _gate, mut client) = gated(Farewell::HangUp);
    client.send(READ, 0, 0, 4096, &[]);
    let flush = client.send(FLUSH, 0, 0, 0, &[]);
    assert_eq!(client.chunk(0).unwrap().cookie, flush);
    let drained = runtime().block_on(rig.server.take().unwrap().shutdown(Duration::from_millis(50)));
    assert_eq!(drained.cut, 1);
    assert!(client.is_closed());
    assert_eq!(rig.buffers.in_use(), 0);
}

#[test]
fn an_export_that_goes_finishes_its_requests_and_refuses_further_ones() {
    let (rig, gate, mut client) = gated(Farewell::HangUp);
    let healthy = Healthy::start(&rig);
    let read = client.send(READ, 0, 0, 4096, &[]);
    let flush = client.send(FLUSH, 0, 0, 0, &[]);
    assert_eq!(client.chunk(0).unwrap().cookie, flush);
    let runtime = runtime();
    let exports = rig.exports.clone();
    let removed = runtime.spawn(async move { exports.remove("gated").await.map(drop) });
    // Until it has begun the requests still succeed.
    while client.ask(WRITE, 0, 0, 512, &[0; 512]) != ESHUTDOWN {}
    assert!(!removed.is_finished());
    assert_eq!(Client::greet(&rig.unix).verdict(OPT_INFO, &info_data("gated", &[])), ERR_UNKNOWN);
    gate.add_permits(1);
    assert_eq!(client.chunk(0).unwrap().cookie, read);
    runtime.block_on(removed).unwrap().unwrap();
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), ESHUTDOWN);
    healthy.finish();
    rig.stop();
}

#[test]
fn an_export_that_is_gone_holds_its_image_no_longer_although_clients_stay() {
    let rig = Rig::plain();
    let mut client = Client::open(&rig.unix, "disk");
    assert_eq!(client.write(0, &[5; 512]), 0);
    drop(runtime().block_on(rig.exports.remove("disk")).unwrap());
    let again = Image::open(&rig.image(), ImageOptions::default()).unwrap();
    assert_eq!(client.ask(READ, 0, 0, 512, &[]), ESHUTDOWN);
    drop(again);
    rig.stop();
}
