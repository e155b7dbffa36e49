//! Addresses of network cards, handed to the guest: a small read-only disk as cloud-init's data source NoCloud reads it.
//!
//! ```text
//! FAT, label CIDATA:  meta-data       instance-id, which follows from the VM and its settings
//!                     network-config  version 2: each card by its hardware address
//!                     user-data       nothing that a new instance gets is made anew
//! ```
//!
//! A guest without cloud-init sees a disk that it does not know. Pure. Invariants: the same VM with the same settings gives
//! the same bytes, and so an instance that the guest knows; other settings give another one; every card is in it, since
//! what it says replaces all that cloud-init set up before.

use std::io::{Cursor, Write};
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{NicSpec, VmSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::format::xxh3_64;

/// Serial number of the disk in the guest, and what it is known by in definitions.
pub const SEED_SERIAL: &str = "freshet-seed";
/// Bytes of the disk.
const IMAGE_LEN: usize = 1 << 20;
/// Most bytes of what is in it.
const MAX_CONTENT: usize = 512 << 10;
/// Label by which cloud-init finds the disk, padded as FAT has it.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// What a new instance would get, and a recovered machine must not. cloud-init takes these keys before those of the guest's
/// own configuration.
const USER_DATA: &str = "\
#cloud-config
# A recovered machine, and no new one: what it has stays.
preserve_hostname: true
ssh_deletekeys: false
ssh_pwauth: unchanged
users: []
locale: \"false\"
package_update: false
package_upgrade: false
apt:
  preserve_sources_list: true
grub_dpkg:
  enabled: false
";

/// What is on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    meta_data: String,
    network_config: String,
}

/// Whether any card of the VM gets an address in the guest.
pub(super) fn wanted(spec: &VmSpec) -> bool {
    spec.nics.iter().any(|nic| !nic.address.is_empty())
}

/// The hardware address of card `n`: its own or, where it has none, one that follows from VM and card.
pub(super) fn mac_of(spec: &VmSpec, n: usize) -> String {
    match spec.nics.get(n).map_or("", |nic| nic.mac.as_str()) {
        "" => drawn_mac(spec, n, ""),
        own => own.to_ascii_lowercase(),
    }
}

/// A hardware address that follows from the VM, the card and `salt`, among those that QEMU's guests have.
pub(super) fn drawn_mac(spec: &VmSpec, n: usize, salt: &str) -> String {
    let drawn = xxh3_64(format!("{}\0{}\0{n}\0{salt}", spec.domain, spec.name).as_bytes()).to_le_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", drawn[0], drawn[1], drawn[2])
}

/// Six pairs of hexadecimal digits.
pub(super) fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.len() == 6 && parts.iter().all(hex)
}

/// Address and prefix length of a text such as `10.0.0.5/24`.
pub(crate) fn prefixed(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (length <= most).then_some((address, length))
}

impl Seed {
    /// That of a VM whose cards have these hardware addresses, in their order; `None` where none of them gets an address.
    ///
    /// # Errors
    /// `Invalid` where a card's settings cannot be, or a hardware address is missing or there twice.
    pub fn of(spec: &VmSpec, macs: &[String]) -> Result<Option<Seed>> {
        if !wanted(spec) {
            return Ok(None);
        }
        let bad = |n: usize, why: String| Error::new(ErrorKind::Invalid, format!("VM {}, card {n}: {why}", spec.name));
        let mut cards = Map::new();
        for (n, nic) in spec.nics.iter().enumerate() {
            let mac = macs.get(n).map_or("", String::as_str);
            if !is_mac(mac) {
                return Err(bad(n, format!("{mac:?} is no hardware address by which the guest could tell the card")));
            }
            if macs[..n].iter().any(|other| other.eq_ignore_ascii_case(mac)) {
                return Err(bad(
                    n,
                    format!("another card has its hardware address {mac}: no guest could tell them apart"),
                ));
            }
            cards.insert(format!("nic{n}"), card(nic, mac).map_err(|why| bad(n, why))?);
        }
        let network_config = text(&json!({"version": 2, "ethernets": cards}))?;
        if network_config.len() > MAX_CONTENT {
            let why = format!("VM {}: settings of its cards take {} bytes", spec.name, network_config.len());
            return Err(Error::new(ErrorKind::Invalid, format!("{why}; at most {MAX_CONTENT} can be handed over")));
        }
        let about = format!("{}\0{}\0{network_config}", spec.domain, spec.name);
        let meta_data = text(&json!({"instance-id": format!("freshet-{:016x}", xxh3_64(about.as_bytes()))}))?;
        Ok(Some(Seed { meta_data, network_config }))
    }

    /// Its files, by name.
    pub fn files(&self) -> [(&'static str, &str); 3] {
        [("meta-data", &self.meta_data), ("network-config", &self.network_config), ("user-data", USER_DATA)]
    }

    /// The bytes of the disk.
    ///
    /// # Errors
    /// `Internal` where it cannot be made.
    pub fn image(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; IMAGE_LEN];
        let mut fill = || -> std::io::Result<()> {
            // A number of the volume that is drawn would make it another disk each time.
            let options = fatfs::FormatVolumeOptions::new().volume_label(LABEL).volume_id(0x4652_5348);
            fatfs::format_volume(Cursor::new(&mut bytes), options)?;
            let disk = fatfs::FileSystem::new(Cursor::new(&mut bytes), fatfs::FsOptions::new())?;
            for (name, content) in self.files() {
                let mut file = disk.root_dir().create_file(name)?;
                file.write_all(content.as_bytes())?;
                file.flush()?;
            }
            disk.unmount()
        };
        fill().map_err(|e| Error::with_source(ErrorKind::Internal, "make the disk for cloud-init", e))?;
        Ok(bytes)
    }
}

/// One card of `network-config`. Gateways stand in words that are older than lists of routes: cloud-init of Debian 12 makes
/// `::/64` of a route to `::/0`, and of one to `0.0.0.0/0` commands for `ifupdown` that Debian does not have any more.
fn card(nic: &NicSpec, mac: &str) -> std::result::Result<Value, String> {
    let found = json!({"macaddress": mac.to_ascii_lowercase()});
    if nic.address.is_empty() {
        // Not to be waited for where its cable is not there.
        return Ok(match nic.network.is_empty() {
            true => json!({"match": found, "dhcp4": true, "optional": true}),
            false => json!({"match": found, "dhcp4": true}),
        });
    }
    let Some((address, length)) = prefixed(&nic.address) else {
        return Err(format!("{:?} is no address with a prefix length, such as 10.0.0.5/24", nic.address));
    };
    let parsed = |text: &String| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is no address"));
    let mut card = json!({
        "match": found, "dhcp4": false, "dhcp6": false, "addresses": [format!("{address}/{length}")],
    });
    if !nic.gateway.is_empty() {
        let gateway = parsed(&nic.gateway)?;
        if gateway.is_ipv4() != address.is_ipv4() {
            return Err(format!("gateway {gateway} is of another kind than address {address}"));
        }
        card[if gateway.is_ipv4() { "gateway4" } else { "gateway6" }] = gateway.to_string().into();
    }
    let servers: Vec<String> =
        nic.dns.iter().map(|server| parsed(server).map(|server| server.to_string())).collect::<Result<_, _>>()?;
    if !servers.is_empty() {
        card["nameservers"] = json!({"addresses": servers});
    }
    Ok(card)
}

/// JSON, which is YAML as well, and in which no name or address can be taken for anything else.
fn text(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|e| Error::with_source(ErrorKind::Internal, "put settings of cards into JSON", e))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::failover::samples;

    fn nic(mac: &str, address: &str) -> NicSpec {
        NicSpec { mac: mac.into(), address: address.into(), network: "lan".into(), ..NicSpec::default() }
    }

    fn vm() -> VmSpec {
        let mut vm = samples::spec("shop", "web");
        let first = NicSpec {
            gateway: "10.9.0.1".into(),
            dns: vec!["10.9.0.1".into(), "fd00::53".into()],
            ..nic("52:54:00:AA:BB:01", "10.9.0.5/24")
        };
        let third = NicSpec { gateway: "fd00::1".into(), ..nic("", "fd00::5/64") };
        vm.nics = vec![first, nic("52:54:00:aa:bb:02", ""), third, NicSpec::default()];
        vm
    }

    fn macs(vm: &VmSpec) -> Vec<String> {
        (0..vm.nics.len()).map(|n| mac_of(vm, n)).collect()
    }

    fn seed(vm: &VmSpec) -> Seed {
        Seed::of(vm, &macs(vm)).unwrap().unwrap()
    }

    #[test]
    fn a_disk_has_what_cloud_init_looks_for() {
        let vm = vm();
        let image = seed(&vm).image().unwrap();
        assert_eq!(image.len() % 512, 0);
        let disk = fatfs::FileSystem::new(Cursor::new(image.clone()), fatfs::FsOptions::new()).unwrap();
        assert_eq!(disk.volume_label(), "CIDATA");
        assert_eq!(disk.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let read = |name: &str| {
            let mut text = String::new();
            disk.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        for (name, content) in seed(&vm).files() {
            assert_eq!(read(name), content);
        }
        let network: Value = serde_json::from_str(&read("network-config")).unwrap();
        let cards = &network["ethernets"];
        assert_eq!(network["version"], 2);
        assert_eq!(
            cards["nic0"],
            json!({"match": {"macaddress": "52:54:00:aa:bb:01"}, "dhcp4": false, "dhcp6": false,
                "addresses": ["10.9.0.5/24"], "gateway4": "10.9.0.1", "nameservers": {"addresses": ["10.9.0.1", "fd00::53"]}})
        );
        assert_eq!(cards["nic1"], json!({"match": {"macaddress": "52:54:00:aa:bb:02"}, "dhcp4": true}));
        assert_eq!((&cards["nic2"]["gateway6"], &cards["nic2"]["gateway4"]), (&"fd00::1".into(), &Value::Null));
        assert_eq!((&cards["nic3"]["dhcp4"], &cards["nic3"]["optional"]), (&true.into(), &true.into()));
        assert!(read("user-data").starts_with("#cloud-config\n"));
    }

    #[test]
    fn the_same_settings_are_the_same_instance_and_others_are_another() {
        let id = |vm: &VmSpec| {
            let meta: Value = serde_json::from_str(&seed(vm).meta_data).unwrap();
            meta["instance-id"].as_str().unwrap().to_owned()
        };
        let one = vm();
        assert_eq!(id(&one), id(&vm()));
        assert_eq!(seed(&one).image().unwrap(), seed(&vm()).image().unwrap());
        let changed = |change: &dyn Fn(&mut VmSpec)| {
            let mut vm = vm();
            change(&mut vm);
            id(&vm)
        };
        let others = [
            changed(&|vm| vm.nics[0].address = "10.9.0.6/24".into()),
            changed(&|vm| vm.nics[0].mac = "52:54:00:aa:bb:09".into()),
            changed(&|vm| vm.nics[1].address = "10.9.0.7/24".into()),
            changed(&|vm| vm.name = samples::name("db")),
            changed(&|vm| vm.domain = samples::name("other")),
        ];
        assert!(others.iter().all(|other| *other != id(&one)), "{others:?}");
        let mut none = vm();
        none.nics.iter_mut().for_each(|nic| nic.address.clear());
        assert_eq!(Seed::of(&none, &macs(&none)).unwrap(), None);
    }

    #[test]
    fn cards_without_a_hardware_address_have_one_that_stays() {
        let vm = vm();
        let drawn = mac_of(&vm, 3);
        assert!(is_mac(&drawn) && drawn.starts_with("52:54:00:") && drawn == mac_of(&vm, 3));
        assert_ne!(drawn, mac_of(&vm, 2));
        assert_ne!(drawn, drawn_mac(&vm, 3, "renew"));
        assert_eq!(mac_of(&vm, 0), "52:54:00:aa:bb:01");
    }

    #[test]
    fn what_cannot_be_handed_over_is_refused_by_card() {
        let told = |change: &dyn Fn(&mut VmSpec)| {
            let mut vm = vm();
            change(&mut vm);
            let error = Seed::of(&vm, &macs(&vm)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            error.to_string()
        };
        assert!(
            told(&|vm| vm.nics[1].address = "10.9.0.5".into()).contains("VM web, card 1: \"10.9.0.5\" is no address")
        );
        assert!(told(&|vm| vm.nics[0].gateway = "fd00::1".into()).contains("another kind"));
        assert!(told(&|vm| vm.nics[0].gateway = "router".into()).contains("\"router\" is no address"));
        assert!(told(&|vm| vm.nics[0].dns = vec!["x\": [".into()]).contains("is no address"));
        assert!(told(&|vm| vm.nics[1].mac = "52:54:00:AA:BB:01".into()).contains("tell them apart"));
        assert!(told(&|vm| vm.nics[1].mac = "eth0".into()).contains("no hardware address"));
        assert!(told(&|vm| vm.nics[0].dns = vec!["10.9.0.1".into(); 60_000]).contains("at most 524288"));
        let vm = vm();
        assert!(Seed::of(&vm, &macs(&vm)[..2]).is_err());
    }
}
