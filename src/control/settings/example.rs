//! A settings file with everything in it: what must be set is, the rest stands there as it is unless told.

use super::table::{Kind, SETTINGS, Setting};
use crate::quantity::{show_size, show_time_span};

/// Values shown for what has no default.
const SHOWN: [(&str, &str); 13] = [
    ("listen.tcp", "\"192.0.2.1:7443\""),
    ("listen.metrics", "\"127.0.0.1:9464\""),
    ("tls.certificate", "\"/etc/freshet/server.pem\""),
    ("tls.key", "\"/etc/freshet/server.key\""),
    ("tls.client_ca", "\"/etc/freshet/clients.pem\""),
    ("protect.socket_group", "\"kvm\""),
    ("protect.log_store", "\"/var/lib/freshet/domains\""),
    ("protect.new_images", "\"/var/lib/freshet/images\""),
    ("protect.sync_rate", "\"100MiB\""),
    ("hypervisor.kind", "\"exec\""),
    ("hypervisor.seed_dir", "\"/var/lib/freshet-seeds\""),
    ("qemu.dir", "\"/var/lib/freshet/qemu\""),
    ("hypervisor.command", "\"/usr/local/lib/freshet/hypervisor\""),
];

/// Text that [`Settings::parse`](super::Settings::parse) takes.
pub fn example() -> String {
    let mut out = "# Settings of a Freshet appliance. What is commented out is so unless told.\n".to_owned();
    let mut section = "";
    for setting in SETTINGS {
        let (table, name) = setting.name.split_once('.').unwrap_or(("", setting.name));
        if table != section {
            out += &format!("\n[{table}]\n");
            section = table;
        }
        let bounds = bounds(setting.kind);
        let bounds = if bounds.is_empty() { String::new() } else { format!(" ({bounds})") };
        out += &format!("# {}{bounds}\n", setting.meaning.replace('`', ""));
        out += &match setting.required {
            true => format!("{name} = \"first-site\"\n"),
            false => format!("# {name} = {}\n", value(setting)),
        };
    }
    out += "\n# Networks of the driver qemu stand in the list network, see docs/settings.md.\n";
    out += "\n# Who may do what over TLS: viewer, operator or admin, by the subject of the certificate.\n";
    out + "# [[access]]\n# subject = \"CN=alice,O=Example\"\n# role = \"operator\"\n"
}

fn value(setting: &Setting) -> String {
    let shown = SHOWN.iter().find(|(name, _)| *name == setting.name);
    match (shown, setting.kind) {
        (Some((_, value)), _) => (*value).to_owned(),
        (None, Kind::Count { .. } | Kind::Switch | Kind::Paths) => setting.default.to_owned(),
        (None, _) => format!("{:?}", setting.default),
    }
}

/// The bounds in words; empty where there are none.
pub(super) fn bounds(kind: Kind) -> String {
    match kind {
        Kind::Size { least, most } => format!("{} to {}", show_size(least), show_size(most)),
        Kind::Time { least, most } => format!("{} to {}", show_time_span(least), show_time_span(most)),
        Kind::Count { least, most } => format!("{least} to {most}"),
        Kind::Word(words) => words.join(", "),
        _ => String::new(),
    }
}

impl Setting {
    /// Its bounds in words; empty where there are none.
    pub fn bounds(&self) -> String {
        bounds(self.kind)
    }
}
