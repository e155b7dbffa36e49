//! Who may do what: certificates of every kind over TLS.

use std::os::unix::fs::PermissionsExt;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use super::appliance::{Appliance, Place, Ran, freshet};
use super::certs::Root;

/// An appliance over TLS, its root, and another root.
struct Guarded {
    place: Place,
    root: Root,
    other: Root,
    appliance: Appliance,
}

impl Guarded {
    fn new() -> Guarded {
        let (place, root, other) = (Place::new(), Root::new(), Root::new());
        root.sign("server", ServerAuth, (2020, 2100));
        ["viewer", "operator", "admin", "stranger"].iter().for_each(|name| root.client(name));
        root.sign("late", ClientAuth, (2020, 2021));
        root.sign("early", ClientAuth, (2090, 2100));
        root.sign("wrong-use", ServerAuth, (2020, 2100));
        other.client("admin");
        let file = |name: &str| root.path(name).display().to_string();
        let mut more = format!(
            "tcp = \"127.0.0.1:0\"\n[tls]\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        );
        for role in ["viewer", "operator", "admin"] {
            more += &format!("[[access]]\nsubject = \"CN={role},O=Example\"\nrole = \"{role}\"\n");
        }
        let late = "[[access]]\nsubject = \"CN=late,O=Example\"\nrole = \"admin\"\n";
        let appliance = place.serve_with("here", &(more + late));
        Guarded { place, root, other, appliance }
    }

    /// Asks with the certificate `name` of `root`.
    fn ask(&self, root: &Root, name: &str, args: &[&str]) -> Ran {
        let server = self.appliance.ready["tcp"].as_str().unwrap().replace("127.0.0.1", "localhost");
        let mut command = freshet();
        command.arg("--json").args(args).args(["--server", &server, "--ca"]).arg(self.root.path("ca.pem"));
        command.arg("--cert").arg(root.path(&format!("{name}.pem")));
        Ran::of(command.arg("--key").arg(root.path(&format!("{name}.key"))))
    }
}

#[test]
fn roles_are_kept_and_certificates_that_are_not_good_are_turned_away() {
    let guarded = Guarded::new();
    let ask = |name: &str, args: &[&str]| guarded.ask(&guarded.root, name, args);
    let url = guarded.place.store_url();
    for role in ["viewer", "operator", "admin"] {
        let site = ask(role, &["site", "show"]).good();
        assert_eq!((&site["role"], &site["caller"]), (&role.into(), &format!("CN={role},O=Example").into()));
    }
    let add = ["store", "add", "s", "--url", &url];
    for role in ["viewer", "operator"] {
        let told = ask(role, &add).bad(8);
        assert!(told.contains(&format!("CN={role},O=Example is {role}")) && told.contains("needs admin"), "{told}");
    }
    assert_eq!(guarded.appliance.ask(&["store", "list"]).good()["stores"], serde_json::json!([]), "nothing was done");
    ask("admin", &add).good();
    let create = ["domain", "create", "d", "--store", "s"];
    assert!(ask("viewer", &create).bad(8).contains("needs operator"));
    ask("operator", &create).good();
    // An operator protects images only where the settings say so.
    let image = guarded.place.image("image");
    let protect = ["vm", "protect", "d", "web", "--disk", &format!("root={}", image.display())];
    assert!(ask("operator", &protect).bad(8).contains("protect.image_dirs"));
    // Nor has it programs run at the other site.
    let remote = guarded.place.path("remote.json");
    let book = "[[scripts_before]]\ncommand = ['/bin/true']\n";
    std::fs::write(&remote, serde_json::json!({ "runbook": book }).to_string()).unwrap();
    let complete = ["failover", "complete", "d", "--planned", "--resume-remote", "/srv", "--remote-settings"];
    let complete = [&complete[..], &[remote.to_str().unwrap(), "--yes", "d"]].concat();
    let told = ask("operator", &complete).bad(8);
    assert!(told.contains("runs programs needs admin"), "{told}");
    assert!(ask("viewer", &complete).bad(8).contains("needs operator"));
    assert!(ask("admin", &complete).bad(9).contains("there is no domain d"), "an admin is asked what it is about");
    assert!(ask("viewer", &["domain", "delete", "d", "--yes", "d"]).bad(8).contains("needs admin"));
    assert!(ask("stranger", &["site", "show"]).bad(8).contains("\"CN=stranger,O=Example\" has no role"));
    for name in ["late", "early", "wrong-use"] {
        let told = ask(name, &["site", "show"]);
        assert_ne!(told.code, Some(0), "{name}: {told:?}");
    }
    assert_ne!(guarded.ask(&guarded.other, "admin", &["site", "show"]).code, Some(0), "another root");
    // Without any certificate, and without TLS at all.
    let server = guarded.appliance.ready["tcp"].as_str().unwrap();
    let mut plain = std::net::TcpStream::connect(server).unwrap();
    std::io::Write::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    plain.set_read_timeout(Some(super::appliance::PATIENCE)).unwrap();
    let mut answer = Vec::new();
    // Cut off, or an alert of TLS; never a word of HTTP/2, whose first frame would be settings.
    let _ = std::io::Read::read_to_end(&mut plain, &mut answer);
    assert!(answer.first().is_none_or(|first| *first == 0x15), "{answer:?}");
    // What was refused is written down with who tried.
    let events = guarded.appliance.ask(&["event", "list"]).good();
    let events = events["events"].as_array().unwrap();
    let denied = events.iter().filter(|e| e["outcome"] == "denied" && e["actor"] == "CN=viewer,O=Example").count();
    assert!(denied >= 2, "{events:#?}");
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let place = Place::new();
    let appliance = place.serve("here");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&appliance.socket), 0o600);
    assert_eq!(mode(&place.path("here-state/catalog/catalog.sqlite3")), 0o600);
    assert_eq!(mode(&place.path("here-state/catalog")), 0o700);
    let site = appliance.ask(&["site", "show"]).good();
    let user = rustix::process::geteuid().as_raw();
    assert_eq!((&site["role"], &site["caller"]), (&"admin".into(), &format!("unix:{user}").into()));
}
