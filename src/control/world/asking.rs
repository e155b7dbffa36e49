//! What two sites tell each other about handing a domain over: who asks, with which settings, how far the owner is, and why
//! it is turned down.
//!
//! The ownership log has who asks and that it was turned down; words of a site travel beside it, as recovery settings, and
//! are a help only: where they cannot be left or read, the answer stands all the same. Invariant: the words of an answer are
//! there before the answer, so that whoever sees it can read them.

use serde::{Deserialize, Serialize};

use super::SiteWorld;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{Doing, HandOverRequest, RemoteSettings, Underway};
use crate::ids::{Name, Time};
use crate::store::{Asked, Domain, HandOver};

/// Most bytes of a reason.
const MAX_WHY: usize = 1000;

/// What a site leaves for the other one, in JSON. Beside it stands, as the bare object, [`RemoteSettings`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answered {
    /// The domain is not handed over.
    refusal: Refusal,
}

/// Why a request was turned down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    /// The site that asked.
    to: Name,
    /// When it asked, in milliseconds since 1970, as the ownership log has it.
    asked: u64,
    /// Why it is turned down, in words.
    why: String,
}

/// How far the owner is with handing a domain over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    underway: UnderwayFor,
}

/// For one request, as in [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnderwayFor {
    to: Name,
    asked: u64,
    doing: Doing,
    what: String,
}

impl Told {
    fn new(asked: &Asked, underway: &Underway) -> Told {
        let (to, what) = (asked.site.clone(), words(&underway.what));
        Told { underway: UnderwayFor { to, asked: asked.at.millis(), doing: underway.doing, what } }
    }

    /// What `text` says of this request.
    fn underway(text: &str, site: &Name, asked: Time) -> Option<Underway> {
        let Told { underway } = serde_json::from_str(text).ok()?;
        let is_it = underway.to == *site && underway.asked == asked.millis();
        is_it.then(|| Underway { doing: underway.doing, what: words(&underway.what) })
    }
}

/// Whether `text` is words about a request, and no settings.
fn is_about_a_request(text: &str) -> bool {
    serde_json::from_str::<Answered>(text).is_ok() || serde_json::from_str::<Told>(text).is_ok()
}

impl Answered {
    fn new(asked: &Asked, why: &str) -> Answered {
        Answered { refusal: Refusal { to: asked.site.clone(), asked: asked.at.millis(), why: words(why) } }
    }

    /// The reason in `text`, where it is the answer to this request.
    fn why(text: &str, site: &Name, asked: Time) -> Option<String> {
        let Answered { refusal } = serde_json::from_str(text).ok()?;
        (refusal.to == *site && refusal.asked == asked.millis()).then(|| words(&refusal.why))
    }
}

/// One line of bounded length: it comes from another site and goes into logs and onto terminals.
fn words(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(MAX_WHY));
    line
}

impl SiteWorld {
    pub(super) async fn leave_settings(&self, domain: &Name, settings: Option<&RemoteSettings>) -> Result<()> {
        let (_, view) = self.view(domain).await?;
        let text = match settings {
            Some(settings) => json(settings)?,
            None => String::new(),
        };
        if settings.is_none() && view.recovery_settings_of(&self.settings.site).await?.is_none() {
            return Ok(());
        }
        view.leave_recovery_settings(&self.settings.site, &text).await
    }

    pub(super) async fn settings_left_by(&self, domain: &Name, from: &Name) -> Result<Option<RemoteSettings>> {
        let (_, view) = self.view(domain).await?;
        let text = view.recovery_settings_of(from).await?;
        // What it answered when it was asked itself.
        let text = text.filter(|text| !is_about_a_request(text));
        let read = text.map(|text| serde_json::from_str(&text)).transpose();
        let read: Option<RemoteSettings> = read.map_err(|e| {
            let why = format!("domain {domain}: the recovery settings that site {from} left are not understood: {e}");
            Error::new(ErrorKind::Invalid, why)
        })?;
        Ok(read.map(|settings| RemoteSettings { dr: self.settings.sized(settings.dr), ..settings }))
    }

    /// Turns down this very request, and tells whether it stood; one that came after it is left alone.
    pub(crate) async fn turn_down(&self, domain: &Name, asked: &Asked, why: &str) -> Result<bool> {
        tracing::info!(%domain, site = %asked.site, "who asks for it is turned down: {why}");
        let (_, mut view) = self.view(domain).await?;
        if !view.is_asked(asked) {
            return Ok(false);
        }
        let left = match json(&Answered::new(asked, why)) {
            Ok(text) => view.leave_recovery_settings(&self.settings.site, &text).await,
            Err(error) => Err(error),
        };
        if let Err(error) = left {
            tracing::warn!(%domain, "site {} is not told why it is turned down: {error}", asked.site);
        }
        view.turn_down(&self.settings.site, asked).await.map(|_| true)
    }

    /// Leaves for the site that asks for the domain how far this one is.
    pub(super) async fn leave_underway(&self, domain: &Name, underway: &Underway) -> Result<()> {
        let (_, view) = self.view(domain).await?;
        let asked = match view.ownership().hand_over() {
            HandOver::Asked(asked) | HandOver::Released(_, Some(asked)) => asked,
            // Nobody waits for it any more.
            HandOver::None | HandOver::Released(_, None) | HandOver::TurnedDown(..) => return Ok(()),
        };
        view.leave_a_word(&self.settings.site, &json(&Told::new(&asked, underway))?).await.map(drop)
    }

    /// Adds to a request of this site what the site that owns the domain told about it: how far it is, or why it turned it
    /// down.
    pub(super) async fn with_words(&self, request: HandOverRequest, view: &Domain, owner: &Name) -> HandOverRequest {
        if request.site != self.settings.site || *owner == self.settings.site || request.withdrawn {
            return request;
        }
        let Some(refused) = &request.refused else {
            let text = view.recovery_settings_of(owner).await.ok().flatten();
            let underway = text.and_then(|text| Told::underway(&text, &request.site, request.at));
            return HandOverRequest { underway, ..request };
        };
        let known = |of: &(HandOverRequest, Option<String>)| of.0 == request;
        let before = self.lock_reasons().get(view.name()).filter(|of| known(of)).cloned();
        let why = match before {
            Some((_, why)) => why,
            None => {
                let read = view.recovery_settings_of(owner).await;
                // Without an answer it is asked again at the next look.
                let Ok(text) = read else { return request };
                let why = text.and_then(|text| Answered::why(&text, &request.site, request.at));
                self.lock_reasons().insert(view.name().clone(), (request.clone(), why.clone()));
                why
            }
        };
        match why {
            Some(why) => HandOverRequest { refused: Some(format!("{refused}: {why}")), ..request },
            None => request,
        }
    }
}

fn json(what: &impl Serialize) -> Result<String> {
    serde_json::to_string(what)
        .map_err(|e| Error::with_source(ErrorKind::Internal, "put words for the other site into JSON", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(site: &str, at: u64) -> Asked {
        Asked { site: Name::new(site).unwrap(), at: Time::from_millis(at) }
    }

    #[test]
    fn an_answer_is_for_one_request_and_is_one_bounded_line() {
        let text = json(&Answered::new(&asked("second", 7), "VM web\ndoes not\u{1b}[31m shut down")).unwrap();
        assert_eq!(text, r#"{"refusal":{"to":"second","asked":7,"why":"VM web does not [31m shut down"}}"#);
        let why = |site, at| Answered::why(&text, &asked(site, at).site, Time::from_millis(at));
        assert_eq!(why("second", 7).as_deref(), Some("VM web does not [31m shut down"));
        assert_eq!((why("second", 8), why("third", 7)), (None, None));
        let long = json(&Answered::new(&asked("second", 7), &"ü".repeat(5000))).unwrap();
        assert!(Answered::why(&long, &asked("second", 7).site, Time::from_millis(7)).unwrap().len() <= MAX_WHY);
        let hostile = r#"{"refusal":{"to":"second","asked":7,"why":"a\u001bb"}}"#;
        assert_eq!(Answered::why(hostile, &asked("second", 7).site, Time::from_millis(7)).as_deref(), Some("a b"));
        assert_eq!(Answered::why("{}", &asked("second", 7).site, Time::from_millis(7)), None);
    }

    #[test]
    fn how_far_the_owner_is_is_for_one_request_and_is_no_settings() {
        let underway = Underway { doing: Doing::ShutDown, what: "VM web\nis asked".into() };
        let text = json(&Told::new(&asked("second", 7), &underway)).unwrap();
        let written = r#"{"underway":{"to":"second","asked":7,"doing":"shut-down","what":"VM web is asked"}}"#;
        assert_eq!(text, written);
        let read = |site, at| Told::underway(&text, &asked(site, at).site, Time::from_millis(at));
        assert_eq!(read("second", 7), Some(Underway { what: "VM web is asked".into(), ..underway }));
        assert_eq!((read("second", 8), read("third", 7)), (None, None));
        let refusal = json(&Answered::new(&asked("second", 7), "no")).unwrap();
        assert!(is_about_a_request(&text) && is_about_a_request(&refusal) && !is_about_a_request("{}"));
    }
}
