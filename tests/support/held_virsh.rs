//! A `virsh` before the real one, seen by one test alone: it slows copies of disks down, and holds or fails their changing
//! over, or the writing of a definition (`define`), so that a test can look, or kill, at a moment that otherwise is over in no
//! time; it keeps events from who would hear of them; and it is an agent that takes the order to shut its guest down.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::mount_bind;

use super::real_images::find;

/// Longest wait for a call that is held.
const PATIENCE: Duration = Duration::from_secs(60);

const SCRIPT: &str = r#"#!/bin/sh
case " $* " in
*" blockcopy "*)
    if [ -e "$DIR/slow" ]; then exec "$DIR/real" "$@" --bandwidth 1; fi ;;
*" shutdown "*" --mode agent "*)
    if [ -e "$DIR/sham" ]; then exit 0; fi ;;
*" event "*)
    if [ -e "$DIR/deaf" ]; then exit 1; fi ;;
*" --pivot "*|*" define "*)
    for disk in vda vdb define; do
        case " $* " in *" $disk "*) ;; *) continue ;; esac
        while [ "$(cat "$DIR/$disk" 2> /dev/null)" = hold ]; do
            touch "$DIR/held-$disk"
            sleep 0.05
        done
        if [ "$(cat "$DIR/$disk" 2> /dev/null)" = fail ]; then
            echo "error: operation failed: it was not to be" >&2
            exit 1
        fi
    done ;;
esac
exec "$DIR/real" "$@"
"#;

/// See the module.
pub(crate) struct HeldVirsh {
    dir: PathBuf,
}

impl HeldVirsh {
    /// Puts it before the real one, for this thread and what it starts. The thread must have mounts of its own.
    pub(crate) fn install(dir: &Path) -> HeldVirsh {
        use std::os::unix::fs::PermissionsExt;
        let real = find("virsh").unwrap();
        std::fs::create_dir(dir).unwrap();
        std::fs::copy(&real, dir.join("real")).unwrap();
        let script = dir.join("virsh");
        std::fs::write(&script, SCRIPT.replace("$DIR", &dir.display().to_string())).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        mount_bind(&script, &real).unwrap();
        HeldVirsh { dir: dir.to_owned() }
    }

    /// Whether copies that begin from now on get on by 1 MiB a second only.
    pub(crate) fn slow(&self, slow: bool) {
        let mark = self.dir.join("slow");
        match slow {
            true => std::fs::write(mark, "").unwrap(),
            false => std::fs::remove_file(mark).unwrap(),
        }
    }

    /// Whether nobody who begins to hear of events from now on hears of any.
    pub(crate) fn deaf(&self, deaf: bool) {
        let mark = self.dir.join("deaf");
        match deaf {
            true => std::fs::write(mark, "").unwrap(),
            false => std::fs::remove_file(mark).unwrap(),
        }
    }

    /// An agent takes the order to shut its guest down from now on, and does nothing.
    pub(crate) fn have_an_agent_that_does_nothing(&self) {
        std::fs::write(self.dir.join("sham"), "").unwrap();
    }

    /// Changing a disk over waits.
    pub(crate) fn hold(&self, disk: &str) {
        let _ = std::fs::remove_file(self.dir.join(format!("held-{disk}")));
        std::fs::write(self.dir.join(disk), "hold").unwrap();
    }

    /// Changing a disk over fails, also where it waits.
    pub(crate) fn fail(&self, disk: &str) {
        std::fs::write(self.dir.join(disk), "fail").unwrap();
    }

    /// Changing a disk over goes on.
    pub(crate) fn release(&self, disk: &str) {
        std::fs::remove_file(self.dir.join(disk)).unwrap();
    }

    /// Waits until changing a disk over is held.
    pub(crate) fn until_held(&self, disk: &str) {
        let began = Instant::now();
        while !self.dir.join(format!("held-{disk}")).exists() {
            assert!(began.elapsed() < PATIENCE, "{disk} is never about to change over");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
