//! The list `[[network]]`: networks of the driver `qemu`. Finds everything that is wrong, not only the first.

use std::net::SocketAddr;

use toml::{Table, Value};

use crate::hypervisor::{Forward, NetworkKind, QemuNetwork};
use crate::ids::Name;

/// Most networks, and most forwards of one.
const MAX_LIST: usize = 1000;
/// Longest name of a network or a bridge.
const MAX_NAME: usize = 255;

/// Reads the list; what is wrong goes to `problems`.
pub(super) fn read(value: Value, problems: &mut Vec<String>) -> Vec<QemuNetwork> {
    let mut out: Vec<QemuNetwork> = Vec::new();
    for (i, table) in tables(value, "network", problems).into_iter().enumerate() {
        let here = format!("network {}", i + 1);
        let Some(network) = one(table, &here, problems) else { continue };
        if out.iter().any(|known| known.name == network.name) {
            problems.push(format!("{here}: {:?} is there already", network.name));
            continue;
        }
        out.push(network);
    }
    let mut taken: Vec<SocketAddr> = Vec::new();
    for network in &out {
        let NetworkKind::User { forwards } = &network.kind else { continue };
        for forward in forwards {
            match taken.contains(&forward.listen) {
                true => problems.push(format!("network {:?}: {} leads to two ports", network.name, forward.listen)),
                false => taken.push(forward.listen),
            }
        }
    }
    out
}

fn one(mut table: Table, here: &str, problems: &mut Vec<String>) -> Option<QemuNetwork> {
    let mut text = |name: &str| match table.remove(name) {
        Some(Value::String(text)) if (1..=MAX_NAME).contains(&text.len()) && !text.contains('\0') => Ok(Some(text)),
        None => Ok(None),
        Some(_) => Err(format!("{here}: {name} must be text of 1 to {MAX_NAME} bytes")),
    };
    let (name, bridge) = (text("name"), text("bridge"));
    let forwards = table.remove("forwards");
    problems.extend(table.keys().map(|key| format!("{here}: {key} is not known; known are name, bridge and forwards")));
    let mut keep = |read: Result<Option<String>, String>| read.map_err(|why| problems.push(why)).ok().flatten();
    let (name, bridge) = (keep(name), keep(bridge));
    if bridge.is_some() && forwards.is_some() {
        problems.push(format!("{here}: forwards are for a network without a bridge"));
    }
    let kind = match bridge {
        Some(bridge) => NetworkKind::Bridge { bridge },
        None => {
            let list = forwards.map(|list| tables(list, &format!("{here}: forwards"), problems)).unwrap_or_default();
            NetworkKind::User {
                forwards: list.into_iter().filter_map(|table| forward(table, here, problems)).collect(),
            }
        }
    };
    if name.is_none() {
        problems.push(format!("{here}: name must be there"));
    }
    name.map(|name| QemuNetwork { name, kind })
}

fn forward(mut table: Table, here: &str, problems: &mut Vec<String>) -> Option<Forward> {
    let vm = table.remove("vm").and_then(|vm| Name::new(vm.as_str()?).ok());
    let listen = table.remove("listen").and_then(|listen| listen.as_str()?.parse().ok());
    let port = table.remove("port").and_then(|port| u16::try_from(port.as_integer()?).ok()).filter(|port| *port > 0);
    let extra: Vec<&str> = table.keys().map(String::as_str).collect();
    match (vm, listen, port) {
        (Some(vm), Some(listen), Some(port)) if extra.is_empty() => Some(Forward { vm, listen, port }),
        _ => {
            let shape = "{ vm = \"web\", listen = \"127.0.0.1:8080\", port = 80 }";
            problems.push(format!("{here}: a forward must be as {shape}"));
            None
        }
    }
}

fn tables(value: Value, what: &str, problems: &mut Vec<String>) -> Vec<Table> {
    let Value::Array(list) = value else {
        problems.push(format!("{what}: must be a list of tables"));
        return Vec::new();
    };
    if list.len() > MAX_LIST {
        problems.push(format!("{what}: has {} entries, at most {MAX_LIST} are taken", list.len()));
        return Vec::new();
    }
    let mut out = Vec::new();
    for entry in list {
        match entry {
            Value::Table(table) => out.push(table),
            other => problems.push(format!("{what}: {other} is no table")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Vec<QemuNetwork>, Vec<String>) {
        let mut problems = Vec::new();
        let table: Table = text.parse().unwrap();
        let read = read(table["network"].clone(), &mut problems);
        (read, problems)
    }

    #[test]
    fn networks_are_read_and_what_is_wrong_is_told_at_once() {
        let good = "[[network]]\nname = \"a\"\nbridge = \"br0\"\n[[network]]\nname = \"b\"\n\
                    forwards = [{ vm = \"web\", listen = \"127.0.0.1:80\", port = 8 }]\n[[network]]\nname = \"c\"\n";
        let (networks, problems) = of(good);
        assert_eq!(problems, [""; 0]);
        assert_eq!(networks[0].kind, NetworkKind::Bridge { bridge: "br0".into() });
        let NetworkKind::User { forwards } = &networks[1].kind else { panic!() };
        assert_eq!((forwards[0].vm.as_str(), forwards[0].listen.port(), forwards[0].port), ("web", 80, 8));
        assert_eq!(networks[2].kind, NetworkKind::User { forwards: Vec::new() });

        let bad = "[[network]]\nname = 3\n[[network]]\nname = \"a\"\ncolour = 1\n[[network]]\nname = \"a\"\n\
                   [[network]]\nname = \"b\"\nbridge = \"x\"\nforwards = []\n[[network]]\nname = \"d\"\nforwards = \
                   [{ vm = \"v\", listen = \"[::1]:1\", port = 8 }, { vm = \"w\", listen = \"[::1]:1\", port = 8 }, \
                   { vm = \"w\", listen = \"host:1\", port = 8 }, { vm = \"w\", listen = \"[::1]:2\", port = 0 }, 7]\n";
        let told = of(bad).1.join("\n");
        for part in [
            "network 1: name must be text",
            "colour is not known",
            "\"a\" is there already",
            "forwards are for a network without",
            "[::1]:1 leads to two ports",
            "a forward must be as",
            "7 is no table",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        let mut problems = Vec::new();
        assert!(read(Value::Integer(1), &mut problems).is_empty() && problems.len() == 1);
    }
}
