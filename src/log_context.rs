//! What a log line is about: the spans that carry domain, task and generation, and the way they take to other threads.
//!
//! ```text
//! {"level":"WARN","target":"freshet::protect::health","message":"...","spans":[{"domain":"shop","generation":3}]}
//! ```
//!
//! Whoever works on one domain works within [`domain`] or [`task`]; whatever it starts elsewhere is started by [`spawn`], or
//! wrapped by [`here`], and its lines say the same. Spans are of the level of errors, so that a filter that shows a line
//! shows what it is about. Owns the names of the fields; it logs nothing by itself.

use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use crate::ids::{Generation, Name};

/// Work on a domain; its generation is told by [`generation`] once it is known.
pub(crate) fn domain(name: &Name) -> Span {
    tracing::error_span!(parent: None, "domain", domain = %name, generation = tracing::field::Empty)
}

/// A step of a task, or the task itself between two steps.
pub(crate) fn task(
    id: &dyn std::fmt::Display,
    domain: &Name,
    step: Option<&'static str>,
    generation: Option<Generation>,
) -> Span {
    let generation = generation.map(Generation::get);
    tracing::error_span!(parent: None, "task", task = %id, domain = %domain, generation, step)
}

/// A call of the API that is about a domain, if it is about one.
pub(crate) fn call(caller: &str, action: &str, domain: Option<&str>) -> Span {
    tracing::error_span!(parent: None, "call", caller, action, domain)
}

/// The work that goes on here writes in this generation. Told once within each [`domain`].
pub(crate) fn generation(generation: Generation) {
    Span::current().record("generation", generation.get());
}

/// As [`tokio::spawn`]; lines of the new task say what those of the caller say.
pub(crate) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(work.in_current_span())
}

/// The same work, for another thread: its lines say what those of the caller say.
pub(crate) fn here<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let span = Span::current();
    move || span.in_scope(work)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_say_what_they_are_about_on_other_threads_and_whatever_the_filter_shows() {
        let lines = Lines::default();
        let to = lines.clone();
        let shown = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || to.clone());
        let dispatch = tracing::Dispatch::new(shown.with_ansi(false).finish());
        let also = dispatch.clone();
        tracing::dispatcher::with_default(&dispatch, || {
            domain(&Name::new("shop").unwrap()).in_scope(|| {
                tracing::warn!("before");
                generation(Generation::new(7));
                let work = here(|| tracing::warn!("elsewhere"));
                let thread = move || tracing::dispatcher::with_default(&also, work);
                std::thread::spawn(thread).join().unwrap();
            });
            task(&5, &Name::new("shop").unwrap(), Some("claim"), None).in_scope(|| tracing::warn!("step"));
            tracing::warn!("nobody's");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line = |what: &str| text.lines().find(|line| line.ends_with(what)).unwrap().to_owned();
        assert!(line("before").contains("domain=shop") && !line("before").contains("generation"), "{text}");
        assert!(line("elsewhere").contains("domain=shop generation=7"), "{text}");
        let step = line("step");
        assert!(step.contains("task=5 domain=shop") && step.contains("step=\"claim\""), "{text}");
        assert!(!line("nobody's").contains("domain"), "{text}");
    }
}
