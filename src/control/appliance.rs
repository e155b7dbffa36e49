//! The appliance: settings, catalog, stores, protections and looks of one site, and what is done with them.
//!
//! Owns the order in which things start and end, and the rules that every act keeps: one change of a domain at a time,
//! carried out though its caller goes, written down when it ended.

use std::sync::Arc;

use super::access::Caller;
use super::answers::Answers;
use super::astray::Astray;
use super::catalog::{self, Catalog, DomainRecord, EventRecord, Origin};
use super::confirm::Tokens;
use super::fault::{Done, Fault};
use super::fresh::Fresh;
use super::guests::Guests;
use super::hosting::Hosting;
use super::looks::Looks;
use super::moves::Moves;
use super::quiesce::FreezeNotes;
use super::settings::{HypervisorSettings, Settings};
use super::socket_group;
use super::stores::OpenStores;
use super::turns::Turns;
use super::watched::Watched;
use super::world::SiteWorld;
use crate::cancel::Cancel;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::failover::{Engine, EngineSettings, World};
use crate::hypervisor::{ExecDriver, GuestChange, GuestEvent, Hypervisor, LibvirtDriver, NoHypervisor, QemuDriver};
use crate::ids::{Name, Time};

/// What the appliance itself does stands under this name in the events.
pub(super) const SELF: &str = "appliance";

/// See the module.
pub struct Appliance {
    pub(crate) settings: Settings,
    pub(crate) catalog: Catalog,
    pub(crate) stores: Arc<OpenStores>,
    pub(crate) hosting: Arc<Hosting>,
    pub(crate) looks: Arc<Looks>,
    pub(super) guests: Guests,
    pub(super) astray: Astray,
    pub(super) fresh: Fresh,
    pub(super) moves: Moves,
    pub(super) watched: Watched,
    pub(crate) world: Arc<SiteWorld>,
    pub(crate) engine: Engine,
    pub(super) answers: Answers,
    pub(crate) turns: Turns,
    pub(crate) tokens: Tokens,
    pub(crate) closing: Cancel,
    pub(crate) started: Time,
    /// Who may be frozen; held by whoever freezes or thaws.
    pub(super) freeze_notes: tokio::sync::Mutex<FreezeNotes>,
    clock: Arc<dyn Clock>,
}

impl Appliance {
    /// Opens the catalog and starts the protections that were there before; serves nothing else yet.
    ///
    /// # Errors
    /// What opening the catalog says; what making the directories says.
    pub async fn start(settings: Settings, closing: Cancel) -> Result<Arc<Appliance>> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (dir, site, now) = (settings.state.join("catalog"), settings.site.clone(), clock.now());
        let (log_store, sockets, keep) =
            (settings.protect.log_store.clone(), settings.protect.socket_dir.clone(), settings.events_kept);
        let opened = tokio::task::spawn_blocking(move || {
            // Each is the appliance's own: names of VMs are nobody else's business.
            make_private(&dir)?;
            make_private(&log_store)?;
            make_private(&sockets)?;
            Catalog::open(&dir, &site, now, keep)
        });
        let catalog =
            opened.await.map_err(|e| Error::with_source(ErrorKind::Internal, "opening the catalog panicked", e))??;
        let stores = Arc::new(OpenStores::new(catalog.clone()));
        let (hosting, looks) = (Arc::<Hosting>::default(), Arc::<Looks>::default());
        if let Some(group) = settings.protect.socket_group.as_deref().map(socket_group::number_of).transpose()? {
            socket_group::admit(group, &settings.protect.socket_dir)?;
            hosting.admit(group);
        }
        let hypervisor = hypervisor(&settings)?;
        let world = Arc::new(SiteWorld::new(
            settings.clone(),
            catalog.clone(),
            Arc::clone(&stores),
            Arc::clone(&hosting),
            Arc::clone(&looks),
            hypervisor,
        ));
        let kept = EngineSettings {
            finished_kept: usize::try_from(settings.tasks_kept).unwrap_or(usize::MAX),
            ..EngineSettings::default()
        };
        let seen: Arc<dyn World> = world.clone();
        let engine = Engine::new(Arc::new(catalog.clone()), seen, Arc::clone(&clock), kept);
        let appliance = Arc::new(Appliance {
            stores,
            hosting,
            looks,
            guests: Guests::default(),
            astray: Astray::default(),
            fresh: Fresh::default(),
            moves: Moves::default(),
            watched: Watched::default(),
            world,
            engine,
            answers: Answers::default(),
            turns: Turns::default(),
            tokens: Tokens::new(settings.confirmation),
            closing,
            started: now,
            freeze_notes: tokio::sync::Mutex::new(FreezeNotes::new(&settings.state, settings.file.clone())),
            clock,
            catalog,
            settings,
        });
        appliance.serve_again().await?;
        appliance.world.follow_again().await?;
        let recovered = appliance.engine.recover().await?;
        appliance.catalog.forget_tasks(recovered.forgotten.clone(), 0).await?;
        super::moving_on::go_on(Arc::clone(&appliance)).await;
        for (task, why) in &recovered.broken {
            let domain = appliance.engine.task(*task).ok().map(|task| task.domain.to_string());
            tracing::error!(%task, domain, "{why}");
        }
        if appliance.catalog.is_new() {
            let detail = "the catalog is new: where there was one, add the storage sites, import the domains, and set their runbooks \
                          again";
            appliance.note(SELF, "catalog made", "", Ok(()), detail).await;
        }
        appliance.note(SELF, "started", "", Ok(()), env!("CARGO_PKG_VERSION")).await;
        Ok(appliance)
    }

    /// Guests come first: what was served before is opened before anything is heard.
    async fn serve_again(&self) -> Result<()> {
        let known = self.catalog.call(|db| {
            let names = catalog::protected_domains(db)?;
            let mut out = Vec::new();
            for name in names {
                if catalog::parked(db, &name)?.is_none() {
                    out.push(DomainRecord::get(db, &name)?);
                }
            }
            Ok(out)
        });
        for record in known.await? {
            // Where its disks follow the domain, it was taken from this site, or is not this site's yet.
            if let Err(error) = self.serve_domain_again(&record).await {
                // The guests of the others must not wait for it.
                let _about = crate::log_context::domain(&record.name).entered();
                tracing::error!("its disks are not served: {error}");
            }
        }
        Ok(())
    }

    async fn serve_domain_again(&self, record: &DomainRecord) -> Result<()> {
        if self.world.known().recovery(&record.name).await?.is_some_and(|recovery| recovery.follows) {
            return Ok(());
        }
        let request = self.world.protect_request(&record.name).await?;
        self.hosting.restart(&self.stores, &record.store, request)
    }

    /// Whether disks here follow a domain, or are to.
    pub(crate) async fn follows(&self, domain: &Name) -> Result<bool> {
        Ok(self.world.known().recovery(domain).await?.is_some_and(|recovery| recovery.follows))
    }

    /// Looks at imported domains, and at those that another site has taken over, until the appliance closes.
    pub(crate) async fn keep_looking(self: Arc<Appliance>) {
        while !self.closing.is_cancelled() {
            let skip = |name: &Name| self.hosting.get(name).is_some_and(|hosted| !hosted.is_fenced());
            let (looks, clock) = (self.settings.looks, &self.clock);
            let round = self.looks.round(&self.stores, &self.catalog, looks, skip, || clock.now());
            let done = tokio::select! { done = round => done, () = self.closing.cancelled() => return };
            if let Err(error) = done {
                tracing::warn!("looking at imported domains: {error}");
            }
            let pause = tokio::time::sleep(self.settings.look_every);
            tokio::select! { () = pause => {} () = self.closing.cancelled() => {} }
        }
    }

    /// Notices what becomes of protected VMs by other hands, until the appliance closes.
    pub(crate) async fn keep_hearing(self: Arc<Appliance>) {
        /// Changes that wait to be written down; more at once are not told of one by one.
        const QUEUE: usize = 256;
        let (send, mut changes) = tokio::sync::mpsc::channel(QUEUE);
        let tell = move |change: GuestChange| {
            if let Err(error) = send.try_send(change) {
                tracing::warn!("a change of a VM is not written down: {error}");
            }
        };
        let hypervisor = self.world.hypervisor_here();
        let write = async {
            while let Some(change) = changes.recv().await {
                self.noticed(change).await;
            }
        };
        tokio::select! { () = hypervisor.watch(&tell) => {} () = write => {} () = self.closing.cancelled() => {} }
    }

    async fn noticed(&self, change: GuestChange) {
        let vm = change.vm.clone();
        let domains = match self.catalog.call(move |db| catalog::domains_of(db, &vm)).await {
            Ok(domains) => domains,
            Err(error) => return tracing::error!(vm = %change.vm, "what became of it is not written down: {error}"),
        };
        if domains.is_empty() {
            return;
        }
        match change.event {
            // On which disks, is looked at.
            GuestEvent::Started => self.astray.look_soon(),
            GuestEvent::Changed => {
                self.astray.look_soon();
                // What is other, if anything, is told by whoever looks.
                return self.fresh.look_soon(&change.vm);
            }
            _ => {}
        }
        for domain in domains {
            let detail = format!("{}: {}", change.vm, change.detail);
            self.note("hypervisor", change.event.words(), domain.as_str(), Ok(()), &detail).await;
        }
    }

    /// Ends all protections, as far as the settings' time to drain allows.
    pub(crate) async fn stop(&self) {
        self.engine.stop().await;
        self.thaw_what_is_left().await;
        self.world.followers().stop_all().await;
        // How each ended, it has said itself.
        self.hosting.end_all().await;
        self.note(SELF, "stopped", "", Ok(()), "").await;
    }

    /// Wall time.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Name of this site.
    pub(crate) fn site(&self) -> &Name {
        &self.settings.site
    }

    /// Writes an event down. That it cannot be is logged, and stops nothing.
    pub(crate) async fn note(
        &self,
        actor: &str,
        action: &str,
        subject: &str,
        outcome: std::result::Result<(), &str>,
        detail: &str,
    ) {
        let event = EventRecord {
            number: 0,
            at: self.now(),
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            outcome: outcome.err().unwrap_or("ok").to_owned(),
            detail: detail.to_owned(),
        };
        if let Err(error) = self.catalog.note(event).await {
            tracing::error!(actor, action, subject, "an event is lost: {error}");
        }
    }

    /// Does what changes something: to its end though the caller goes, and written down.
    pub(crate) async fn act<T: Send + 'static>(
        self: &Arc<Appliance>,
        caller: &Caller,
        action: &'static str,
        subject: &str,
        work: impl Future<Output = Done<T>> + Send + 'static,
    ) -> Done<T> {
        let (appliance, caller, subject) = (Arc::clone(self), caller.clone(), subject.to_owned());
        // What is done about a store, or about all domains of one, is about no domain.
        let domain = Some(subject.as_str()).filter(|name| !name.is_empty() && !action.starts_with("StoreService/"));
        let domain = domain.filter(|_| action != "DomainService/ImportAllDomains");
        let about = crate::log_context::call(&caller.name, action, domain);
        let work = async move {
            appliance.closing.check()?;
            let done = work.await;
            let told = done.as_ref().err().map(Fault::shown);
            let (outcome, detail) = match &told {
                Some((kind, text)) => (Err(*kind), text.as_str()),
                None => (Ok(()), ""),
            };
            appliance.note(&caller.name, action, &subject, outcome, detail).await;
            tracing::info!(%subject, outcome = outcome.err().unwrap_or("ok"), "{detail}");
            done.map_err(|fault| if subject.is_empty() { fault } else { fault.about(&subject) })
        };
        match tokio::spawn(tracing::Instrument::instrument(work, about)).await {
            Ok(done) => done,
            Err(e) => Err(Error::with_source(ErrorKind::Internal, format!("{action} panicked"), e).into()),
        }
    }

    /// Refuses while a task works on a domain.
    ///
    /// # Errors
    /// `Refused`, naming the task.
    pub(crate) fn must_have_no_task(&self, domain: &Name) -> Result<()> {
        match self.engine.running(domain) {
            None => Ok(()),
            Some(task) => {
                let why = format!("task {} ({}, {}) works on domain {domain}", task.id, task.kind, task.state.word());
                Err(Error::new(ErrorKind::Refused, format!("{why}; wait for its end, or cancel it")))
            }
        }
    }

    /// The record of a domain.
    pub(crate) async fn domain(&self, name: &Name) -> Result<DomainRecord> {
        let which = name.clone();
        self.catalog.call(move |db| DomainRecord::get(db, &which)).await
    }

    /// Notes the identity of a domain that this site has claimed for the first time.
    pub(crate) async fn learn_identity(&self, record: &DomainRecord) -> Result<()> {
        if record.id.is_some() {
            return Ok(());
        }
        let site = self.stores.open(&record.store).await?;
        let id = crate::store::Domain::open(&site, &record.name).await?.id();
        let which = record.name.clone();
        self.catalog.call(move |db| DomainRecord::set_id(db, &which, id)).await
    }

    /// How a record came here, in the word of a refusal.
    pub(crate) fn known_as(&self, record: &DomainRecord) -> &'static str {
        match record.origin {
            Origin::Protected => "Protected",
            Origin::Imported => "Imported",
        }
    }
}

/// Makes a directory for the appliance's own user only, with those above it.
fn make_private(dir: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.io_context(|| format!("make {}", dir.display()))
}

/// What the settings name, or one that says that they name none. Nothing is run or looked for: see [`Hypervisor::ready`].
///
/// # Errors
/// `Invalid` for settings that are wrong in themselves.
/// The driver that the settings name.
pub(super) fn hypervisor(settings: &Settings) -> Result<Arc<dyn Hypervisor>> {
    Ok(match &settings.hypervisor {
        HypervisorSettings::Exec(exec) => Arc::new(ExecDriver::new(exec.clone())?),
        HypervisorSettings::Qemu(qemu) => Arc::new(QemuDriver::new(qemu.clone())),
        HypervisorSettings::Libvirt(libvirt) => Arc::new(LibvirtDriver::new(libvirt.clone())?),
        HypervisorSettings::None => Arc::new(NoHypervisor),
    })
}
