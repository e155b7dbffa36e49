//! TLS: offered, demanded, with certificates of clients, and everything that can be wrong with it.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::client::*;
use super::rig::{Healthy, Rig};
use super::support::pki::Pki;
use super::support::skipped;
use freshet::error::ErrorKind;
use freshet::nbd::{CacheMode, ServerOptions, Tls, TlsIdentity};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const ERR_TLS_REQD: u32 = (1 << 31) | 5;

fn identity(pki: &Pki, clients: Option<&Path>) -> TlsIdentity {
    TlsIdentity::load(&pki.path("server-cert.pem"), &pki.path("server-key.pem"), clients).unwrap()
}

/// What a client knows: the root, and its own certificate if it shows one.
fn client_of(pki: &Pki, own: Option<&Pki>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.path("ca-cert.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(pki) => {
            let chain = vec![CertificateDer::from_pem_file(pki.path("client-cert.pem")).unwrap()];
            let key = PrivateKeyDer::from_pem_file(pki.path("client-key.pem")).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

fn rig(tls: Tls) -> Rig {
    Rig::new(CacheMode::WriteBack, ServerOptions { tls, ..Default::default() })
}

/// Goes on inside TLS after the server agreed to it.
fn secure(mut client: Client, config: Arc<ClientConfig>) -> Client {
    assert_eq!(client.verdict(OPT_STARTTLS, &[]), REP_ACK);
    client.forget_agreements();
    let connection = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
    client.map_socket(|socket| Box::new(StreamOwned::new(connection, socket)))
}

#[test]
fn a_server_that_demands_tls_answers_nothing_before() {
    let pki = Pki::new();
    let rig = rig(Tls::Required(identity(&pki, None)));
    let mut client = Client::greet(&rig.tcp);
    for (option, data) in [
        (OPT_LIST, vec![]),
        (OPT_LIST, vec![1]),
        (OPT_INFO, info_data("disk", &[])),
        (OPT_GO, info_data("none", &[])),
        (OPT_STRUCTURED, vec![]),
        (OPT_SET_META, meta_data("disk", &[])),
        (99, vec![]),
    ] {
        assert_eq!(client.verdict(option, &data), ERR_TLS_REQD, "{option}");
    }
    assert_eq!(client.verdict(OPT_STARTTLS, b"x"), ERR_INVALID);
    let mut client = secure(client, client_of(&pki, None));
    assert_eq!(client.verdict(OPT_STARTTLS, &[]), ERR_INVALID, "TLS within TLS");
    client.structured();
    client.set_meta("disk", &["base:allocation"]);
    client.go("disk");
    let data: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
    assert_eq!(client.write(777, &data), 0);
    assert!(client.read(777, data.len()).unwrap() == data);
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
    assert!(std::fs::read(rig.image()).unwrap()[777..777 + data.len()] == data);
    let mut client = Client::greet(&rig.unix);
    client.send_option(OPT_EXPORT_NAME, b"disk").unwrap();
    assert!(client.is_closed());
    let mut client = Client::greet(&rig.unix);
    assert_eq!(client.verdict(OPT_ABORT, &[]), REP_ACK);
    // Without fixed newstyle there is no TLS, and so nothing at all.
    let mut client = Client::greet_on(connect(&rig.unix), 0).unwrap();
    assert_eq!(client.verdict(OPT_STARTTLS, &[]), ERR_POLICY);
    rig.stop();
}

#[test]
fn starttls_forgets_what_was_agreed_on_in_the_clear() {
    let pki = Pki::new();
    let rig = rig(Tls::Allowed(identity(&pki, None)));
    let mut client = Client::greet(&rig.unix);
    client.structured();
    assert_eq!(client.set_meta("disk", &["base:allocation"]).len(), 2);
    let mut client = secure(client, client_of(&pki, None));
    assert_eq!(client.verdict(OPT_LIST_META, &meta_data("disk", &[])), ERR_INVALID, "no structured replies any more");
    client.go("disk");
    client.send(READ, 0, 0, 4096, &[]);
    assert_eq!(client.chunk(4096).unwrap().kind, SIMPLE);
    assert_eq!(client.ask(STATUS, 0, 0, 4096, &[]), EINVAL);
    let mut plain = Client::open(&rig.unix, "disk");
    assert_eq!(plain.write(0, &[1; 512]), 0, "who wants no TLS is served here");
    rig.stop();
}

#[test]
fn clients_without_the_right_certificate_get_nowhere() {
    let (pki, other) = (Pki::new(), Pki::new());
    let rig = rig(Tls::Required(identity(&pki, Some(&pki.path("ca-cert.pem")))));
    let mut client = secure(Client::greet(&rig.tcp), client_of(&pki, Some(&pki)));
    client.structured();
    client.set_meta("disk", &["base:allocation"]);
    client.go("disk");
    assert_eq!(client.write(0, &[1; 4096]), 0);
    for own in [None, Some(&other)] {
        let mut client = secure(Client::greet(&rig.tcp), client_of(&pki, own));
        // TLS 1.3 lets a client speak before it learns that it was refused.
        let refused = client.send_option(OPT_LIST, &[]).is_err() || client.option_replies(OPT_LIST).is_err();
        assert!(refused, "served without a certificate");
    }
    rig.stop();
}

#[test]
fn what_is_no_tls_ends_the_connection_and_nothing_in_the_clear_is_answered() {
    let pki = Pki::new();
    let rig = rig(Tls::Allowed(identity(&pki, None)));
    let healthy = Healthy::start(&rig);
    let mut client = Client::greet(&rig.tcp);
    assert_eq!(client.verdict(OPT_STARTTLS, &[]), REP_ACK);
    client.socket.write_all(&[0x5a; 1000]).unwrap();
    let mut answer = Vec::new();
    let _ = client.socket.read_to_end(&mut answer);
    assert!(answer.first().is_none_or(|&kind| kind == 21), "only a TLS alert may come: {answer:?}");
    // An option smuggled in behind STARTTLS, as somebody in the middle would.
    let mut client = Client::greet(&rig.tcp);
    let option = |code: u32| [&IHAVEOPT.to_be_bytes()[..], &code.to_be_bytes(), &[0; 4]].concat();
    client.socket.write_all(&[option(OPT_STARTTLS), option(OPT_LIST)].concat()).unwrap();
    assert_eq!(client.option_replies(OPT_STARTTLS).unwrap()[0].0, REP_ACK);
    let mut answer = Vec::new();
    let _ = client.socket.read_to_end(&mut answer);
    assert!(answer.first().is_none_or(|&kind| kind == 21), "the smuggled option was answered: {answer:?}");
    // Half of a handshake, then gone.
    let mut client = Client::greet(&rig.tcp);
    assert_eq!(client.verdict(OPT_STARTTLS, &[]), REP_ACK);
    client.socket.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    drop(client);
    healthy.finish();
    rig.stop();
}

#[test]
fn files_that_are_no_identity_are_named() {
    let (pki, other) = (Pki::new(), Pki::new());
    let load = |certificate: &Path, key: &Path, roots: Option<&Path>| {
        let error = TlsIdentity::load(certificate, key, roots).err().unwrap();
        (error.kind(), error.to_string())
    };
    let (certificate, key) = (pki.path("server-cert.pem"), pki.path("server-key.pem"));
    let (kind, text) = load(&pki.path("none"), &key, None);
    assert!(kind == ErrorKind::NotFound && text.contains("none"), "{text}");
    let (kind, text) = load(&certificate, &certificate, None);
    assert!(kind == ErrorKind::Invalid && text.contains("server-cert.pem"), "{text}");
    let (kind, text) = load(&certificate, &other.path("server-key.pem"), None);
    assert!(kind == ErrorKind::Invalid, "a key of another certificate: {text}");
    let (kind, text) = load(&certificate, &key, Some(&key));
    assert!(kind == ErrorKind::Invalid && text.contains("server-key.pem"), "{text}");
    assert!(!text.contains("BEGIN"), "a key in a message: {text}");
}

#[test]
fn other_clients_come_in_with_certificates() {
    let test = "other_clients_come_in_with_certificates";
    let run =
        |program: &str, args: &[&str]| std::process::Command::new("timeout").arg("60").arg(program).args(args).output();
    for program in ["nbdinfo", "qemu-io"] {
        if !run(program, &["--version"]).is_ok_and(|out| out.status.success()) {
            return skipped(test, &format!("{program} is not installed"));
        }
    }
    let pki = Pki::new();
    let rig = rig(Tls::Required(identity(&pki, Some(&pki.path("ca-cert.pem")))));
    let dir = pki.dir.path().display();
    let freshet::nbd::Address::Tcp(address) = rig.tcp.clone() else { panic!("TCP") };
    let uri = format!("nbds://localhost:{}/disk?tls-certificates={dir}", address.port());
    let out = run("nbdinfo", &["--json", &uri]).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&told["TLS"], &told["exports"][0]["export-size"]), (&true.into(), &(16 << 20).into()));
    let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={dir}");
    let image = format!("driver=nbd,host=localhost,port={},export=disk,tls-creds=tls", address.port());
    let script = ["-c", "write -P 7 4k 2M", "-c", "read -P 7 4k 2M", "-c", "flush"];
    let out = run("qemu-io", &[&["--object", &object, "--image-opts", &image][..], &script].concat()).unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && !told.contains("verification failed"),
        "{told}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(std::fs::read(rig.image()).unwrap()[4096..4096 + (2 << 20)].iter().all(|&b| b == 7));
    let plain = rig.tcp.uri("disk", false);
    assert!(!run("nbdinfo", &[&plain]).unwrap().status.success());
    rig.stop();
}
