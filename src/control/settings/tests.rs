//! Settings that are right, wrong, contradictory and absent.

use super::*;

const TCP: &str = "site = \"a\"\n[listen]\ntcp = \"127.0.0.1:1\"\n[tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/r\"\n[[access]]\nsubject = \"CN=x\"\nrole = \"viewer\"\n";

#[test]
fn the_example_is_taken_and_so_is_each_value_that_it_shows() {
    let plain = Settings::parse(&example()).unwrap();
    assert_eq!(plain.site.as_str(), "first-site");
    let all: String = example()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(set) if set.contains(" = ") || set == "[[access]]" => format!("{set}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let full = Settings::parse(&all).unwrap();
    assert_eq!(full.tcp.as_ref().map(|t| t.0.as_str()), Some("192.0.2.1:7443"));
    assert_eq!(full.access, [Access { subject: "CN=alice,O=Example".into(), role: Role::Operator }]);
    // What is commented out is what holds unless told.
    assert_eq!(format!("{:?}", plain.protect.memory), format!("{:?}", full.protect.memory));
    assert_eq!((plain.stop_grace, plain.looks, plain.state), (full.stop_grace, full.looks, full.state));
    for setting in SETTINGS {
        assert!(example().contains(&format!("{} = ", setting.name.rsplit('.').next().unwrap())), "{}", setting.name);
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = "site = \"\"\nstate = \"relative\"\ncolour = \"red\"\n[listen]\ntcp = \"nowhere\"\nmetrics = \"0.0.0.0:1\"\n\
                [api]\nconnections = 0\nstop_grace = 5\n[protect]\nmemory = \"1MiB\"\ncache = \"fast\"\nimage_dirs = [\"x\"]\n\
                level = \"high\"\n[[access]]\nsubject = \"CN=x\"\nrole = \"root\"\n[[access]]\nrole = \"viewer\"\nname = 1\n";
    let error = Settings::parse(text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let told = error.to_string();
    for part in [
        "site: ",
        "state: \"relative\" is not an absolute path",
        "colour: is not known",
        "listen.tcp: \"nowhere\" is not host:port",
        "listen.metrics: 0.0.0.0:1 is not a loopback",
        "api.connections: is 0, must be 1 to 10000",
        "api.stop_grace: is integer, must be text",
        "protect.memory: is 1MiB, must be 128MiB to 1TiB",
        "protect.cache: is \"fast\", must be one of direct, write-back",
        "protect.image_dirs: \"x\" is not an absolute path",
        "protect.level: is string",
        "access 1: role is \"root\"",
        "access 2: subject must be there",
        "access 2: name is not known",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert!(told.starts_with("14 problems:"), "{told}");
}

#[test]
fn what_contradicts_itself_is_told() {
    let check = |text: &str| Settings::parse(text).unwrap_err().to_string();
    assert!(Settings::parse(TCP).is_ok(), "{:?}", Settings::parse(TCP));
    assert!(check(&TCP.replace("key = \"/k\"\n", "")).contains("tls.key: must be there"));
    assert!(check(&TCP.replace("tcp = \"127.0.0.1:1\"\n", "")).contains("tls.client_ca: is there without listen.tcp"));
    assert!(check(&TCP[..TCP.find("[[").unwrap()]).contains("nobody has a role"));
    assert!(check(&format!("{TCP}[[access]]\nsubject = \"CN=x\"\nrole = \"admin\"\n")).contains("has a role already"));
    let same = TCP.replace("[tls]", "metrics = \"127.0.0.1:1\"\n[tls]");
    assert!(check(&same).contains("is the address of listen.tcp"));
    let log = "site = \"a\"\n[protect]\nlog_size = \"32MiB\"\nmemory = \"1GiB\"\n";
    assert!(check(log).contains("protect: size of the replication log"), "{}", check(log));
    let many = "site = \"a\"\n[protect]\nmemory = \"128MiB\"\nconnections = 1000\nlog_size = \"32MiB\"\n";
    let told = check(&many.replace("32MiB", "33MiB").replace("128MiB", "1GiB"));
    assert!(told.contains("too small for 1000 connections") && told.contains("replication log"), "{told}");
    assert!(told.starts_with("2 problems:"), "{told}");
    for (text, part) in [
        ("state = \"/s\"\n[protect]\nlog_store = \"/s\"\n", "protect.log_store: is /s: a domain named catalog"),
        ("state = \"/s\"\n[protect]\nlog_store = \"/s/catalog/x\"\n", "a domain named catalog"),
        ("state = \"/s\"\n[protect]\nimage_dirs = [\"/\"]\n", "/ holds state (/s), which operators"),
        ("state = \"/s\"\n[protect]\nimage_dirs = [\"/x\"]\nlog_store = \"/x/logs\"\n", "/x holds protect.log_store"),
        ("[protect]\nsocket_dir = \"/run/a\"\n[listen]\nsocket = \"/run/a/d.sock\"\n", "is in protect.socket_dir"),
        ("[hypervisor]\npoll = \"30s\"\n[failover]\nshutdown_limit = \"20s\"\n", "longer than failover.shutdown_limit"),
        ("[hypervisor]\npoll = \"30s\"\nlimit = \"2s\"\n", "longer than hypervisor.limit"),
    ] {
        let told = check(&format!("site = \"a\"\n{text}"));
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let long = format!("/{}", "x".repeat(90));
    let told =
        check(&format!("site = \"a\"\n[protect]\nsocket_dir = \"{long}\"\n[listen]\nsocket = \"{long}{long}\"\n"));
    assert!(told.contains("protect.socket_dir: has 91 bytes") && told.contains("listen.socket: has 182"), "{told}");
    let port = TCP.replace("127.0.0.1:1", "0.0.0.0:9").replace("[tls]", "metrics = \"127.0.0.1:9\"\n[tls]");
    assert!(check(&port).contains("has the port of listen.tcp"), "{}", check(&port));
    // Beside each other is no contradiction.
    let beside = "site = \"a\"\nstate = \"/s\"\n[protect]\nimage_dirs = [\"/images\"]\nlog_store = \"/s/logs\"\n";
    assert!(Settings::parse(beside).is_ok(), "{:?}", Settings::parse(beside));
    assert!(check("site = ").contains("TOML"), "{}", check("site = "));
    assert!(check("").contains("site: must be there"));
    assert!(check("site = \"a\"\n[state]\nx = 1\n").contains("is not known"));
    assert!(check("site = \"a\"\n[protect.memory]\nx = 1\n").contains("protect.memory: is table"));
}

#[test]
fn the_hypervisor_is_what_is_named_and_a_command_names_one() {
    let read = |text: &str| Settings::parse(&format!("site = \"a\"\n[hypervisor]\n{text}"));
    assert_eq!(read("").unwrap().hypervisor, HypervisorSettings::None);
    assert_eq!(read("kind = \"none\"").unwrap().hypervisor, HypervisorSettings::None);
    for text in ["command = \"/x\"", "kind = \"exec\"\ncommand = \"/x\""] {
        let HypervisorSettings::Exec(exec) = read(text).unwrap().hypervisor else { panic!("{text}") };
        assert_eq!(exec.command, ["/x"]);
    }
    let told = |text: &str| read(text).unwrap_err().to_string();
    assert!(told("kind = \"exec\"").contains("hypervisor.command: must be there"));
    assert!(told("kind = \"none\"\ncommand = \"/x\"").contains("hypervisor.kind is none"));
    let HypervisorSettings::Libvirt(libvirt) = read("kind = \"libvirt\"").unwrap().hypervisor else { panic!() };
    assert_eq!(libvirt.uri, "qemu:///system");
    assert!(told("kind = \"xen\"").contains("must be one of none, exec, qemu, libvirt"));
    let network = "[[network]]\nname = \"lan\"\n";
    assert!(told(network).contains("networks are those of qemu"));
    let HypervisorSettings::Qemu(qemu) = read(&format!("kind = \"qemu\"\n{network}")).unwrap().hypervisor else {
        panic!()
    };
    assert_eq!((qemu.dir.as_path(), qemu.networks[0].name.as_str()), (Path::new("/var/lib/freshet/qemu"), "lan"));
    assert_eq!((qemu.accel, qemu.limit.as_secs()), (crate::hypervisor::AccelChoice::Auto, 60));
}

#[test]
fn files_are_checked_where_they_are_named() {
    let error = Settings::parse(TCP).unwrap().check_files().unwrap_err();
    assert!(error.to_string().contains("TLS certificate /c"), "{error}");
    assert!(Settings::parse("site = \"a\"").unwrap().check_files().is_ok());
}

#[test]
fn sockets_of_long_names_fit_an_address_and_differ() {
    let settings = Settings::parse("site = \"a\"").unwrap();
    let socket = |text: &str| settings.export_socket(&Name::new(text).unwrap());
    assert_eq!(socket("web shop"), Path::new("/run/freshet/nbd/web%20shop.sock"));
    let (long, other) = (socket(&"x".repeat(200)), socket(&format!("{}y", "x".repeat(199))));
    assert!(long.as_os_str().len() <= 107 && long != other);
}
