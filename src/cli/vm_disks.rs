//! `--vm V --disk NAME=PATH ...`: each disk belongs to the VM named last before it.
//!
//! The derive of the argument parser loses the order between two arguments, so that this takes the positions from the
//! parser's matches.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::served_disks::{ServedDisk, parse_served_disk};
use super::values::parse_name;
use crate::capture::{DiskSource, VmSource};
use crate::ids::Name;

/// The VMs of a command line, in its order.
#[derive(Debug, Clone)]
pub(super) struct VmDisks {
    pub(super) vms: Vec<VmSource>,
}

impl Args for VmDisks {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("vm")
                    .long("vm")
                    .value_name("V")
                    .help("A VM; the disks that follow are its disks. Can be repeated")
                    .action(ArgAction::Append)
                    .required(true)
                    .value_parser(parse_name),
            )
            .arg(
                Arg::new("disk")
                    .long("disk")
                    .value_name("NAME=PATH[,size=SIZE]")
                    .help("A disk of that VM: a raw image file or a block device, and perhaps the size it must have. Can be repeated")
                    .action(ArgAction::Append)
                    .required(true)
                    .value_parser(parse_disk),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for VmDisks {
    fn from_arg_matches(matches: &ArgMatches) -> Result<VmDisks, clap::Error> {
        let mut vms = placed::<Name>(matches, "vm");
        let mut out: Vec<VmSource> = Vec::new();
        for (at, disk) in placed::<DiskSource>(matches, "disk") {
            let later = vms.iter().position(|(vm_at, _)| *vm_at > at).unwrap_or(vms.len());
            out.extend(vms.drain(..later).map(|(_, name)| VmSource { name, disks: Vec::new(), definition: None }));
            match out.last_mut() {
                Some(vm) => vm.disks.push(disk),
                None => return Err(refuse(format!("--disk {}: put --vm in front of it", disk.name))),
            }
        }
        out.extend(vms.into_iter().map(|(_, name)| VmSource { name, disks: Vec::new(), definition: None }));
        check(&out)?;
        Ok(VmDisks { vms: out })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = VmDisks::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The same where a command also has a form without any VM.
#[derive(Debug, Clone)]
pub(super) struct MaybeVmDisks {
    /// Empty where none is named.
    pub(super) vms: Vec<VmSource>,
}

impl Args for MaybeVmDisks {
    fn augment_args(command: Command) -> Command {
        let optional = |arg: Arg| arg.required(false);
        VmDisks::augment_args(command).mut_arg("vm", optional).mut_arg("disk", optional)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MaybeVmDisks {
    fn from_arg_matches(matches: &ArgMatches) -> Result<MaybeVmDisks, clap::Error> {
        VmDisks::from_arg_matches(matches).map(|named| MaybeVmDisks { vms: named.vms })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = MaybeVmDisks::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The values of an argument with their positions on the command line.
fn placed<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Vec<(usize, T)> {
    let indices = matches.indices_of(id).into_iter().flatten();
    indices.zip(matches.get_many::<T>(id).into_iter().flatten().cloned()).collect()
}

fn check(vms: &[VmSource]) -> Result<(), clap::Error> {
    for (i, vm) in vms.iter().enumerate() {
        if vm.disks.is_empty() {
            return Err(refuse(format!("--vm {}: no --disk follows it", vm.name)));
        }
        if vms[..i].iter().any(|v| v.name == vm.name) {
            return Err(refuse(format!("--vm {}: is there twice; put all its disks behind one", vm.name)));
        }
        for (k, disk) in vm.disks.iter().enumerate() {
            if vm.disks[..k].iter().any(|d| d.name == disk.name) {
                return Err(refuse(format!("--disk {}: VM {} has two disks of that name", disk.name, vm.name)));
            }
        }
    }
    Ok(())
}

fn refuse(why: String) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, why + "\n")
}

fn parse_disk(text: &str) -> Result<DiskSource, String> {
    let ServedDisk { name, path, size, grow } = parse_served_disk(text)?;
    match grow {
        true => Err("a disk that is replicated or protected is never extended: leave out `grow`".to_owned()),
        false => Ok(DiskSource { name, path, size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<VmDisks, clap::Error> {
        let command = VmDisks::augment_args(Command::new("x").no_binary_name(true));
        VmDisks::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn each_disk_goes_to_the_vm_before_it() {
        let args = ["--vm", "db", "--disk", "a=/a", "--disk=b=/b=c", "--vm", "web", "--disk", "a=/w"];
        let found = parse(&args).unwrap().vms;
        let shown: Vec<String> = found
            .iter()
            .map(|v| {
                let disks = v.disks.iter().map(|d| format!("{}={}", d.name, d.path.display()));
                format!("{}: {}", v.name, disks.collect::<Vec<_>>().join(" "))
            })
            .collect();
        assert_eq!(shown, ["db: a=/a b=/b=c", "web: a=/w"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (args, why) in [
            (&["--disk", "a=/a", "--vm", "db"][..], "in front"),
            (&["--vm", "db", "--vm", "web", "--disk", "a=/a"], "no --disk"),
            (&["--vm", "db", "--disk", "a=/a", "--vm", "web"], "no --disk"),
            (&["--vm", "db", "--disk", "a=/a", "--vm", "db", "--disk", "b=/b"], "twice"),
            (&["--vm", "db", "--disk", "a=/a", "--disk", "a=/b"], "two disks"),
            (&["--vm", "db", "--disk", "a"], "NAME=PATH"),
            (&["--vm", "db", "--disk", "a="], "path is missing"),
            (&["--vm", "", "--disk", "a=/a"], "1 to 255"),
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(why), "{args:?}: {error}");
        }
    }
}
