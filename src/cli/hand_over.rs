//! `freshet hand-over`: how a hand-over of a domain stands, and the words by which a site asks for it or takes that back.

use clap::Args;
use serde_json::{Value, json};

use super::context::Context;
use super::replicate::host_name;
use super::report::Report;
use super::store_args::DomainArgs;
use super::values::parse_name;
use crate::error::Result;
use crate::ids::Name;
use crate::store::{Asked, Domain, HandOver as State};

/// Show how the hand-over of a domain stands, ask for it, or take that back
#[derive(Debug, Args)]
pub(super) struct HandOver {
    #[command(flatten)]
    domain: DomainArgs,
    /// Name of this site [default: the host's name]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    site: Option<Name>,
    #[command(flatten)]
    wish: Wish,
}

/// What is wanted; nothing but to see how it stands unless one is given.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Wish {
    /// Ask the owner to hand the domain over to this site
    #[arg(long)]
    request: bool,
    /// This site does not ask for it any more
    #[arg(long)]
    withdraw: bool,
    /// This site, which owns the domain, goes on with it: it takes its release back, or turns down who asks
    #[arg(long)]
    resume: bool,
}

impl HandOver {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let store = self.domain.site.open().await?;
        let mut domain = Domain::open(&store, &self.domain.domain).await?;
        let Wish { request, withdraw, resume } = self.wish;
        let here = match self.site {
            Some(name) => name,
            None => host_name()?,
        };
        let state = match (request, withdraw, resume) {
            (true, ..) => domain.request_hand_over(&here).await?,
            (_, true, _) => domain.withdraw_request(&here).await?,
            (_, _, true) => domain.resume(&here).await?,
            _ => domain.ownership().hand_over(),
        };
        let newest = domain.ownership().newest();
        let owner = newest.map(|newest| newest.author.site.to_string()).unwrap_or_default();
        let generation = domain.ownership().newest_generation().get();
        let mut json = json_of(&state);
        json["domain"] = self.domain.domain.as_str().into();
        (json["owner"], json["generation"]) = (owner.clone().into(), generation.into());
        let text =
            format!("{} is owned by site {owner} (generation {generation}); {}", self.domain.domain, text_of(&state));
        Report::new(&json, text)
    }
}

fn json_of(state: &State) -> Value {
    let asked = |asked: &Asked| json!({ "site": asked.site.as_str(), "at": asked.at.to_string() });
    match state {
        State::None => json!({ "hand_over": "none" }),
        State::Asked(by) => json!({ "hand_over": "asked", "asked": asked(by) }),
        State::TurnedDown(by, at) => {
            json!({ "hand_over": "turned-down", "asked": asked(by), "turned_down": at.to_string() })
        }
        State::Released(at, by) => {
            json!({ "hand_over": "released", "asked": by.as_ref().map(asked), "released": at.to_string() })
        }
    }
}

fn text_of(state: &State) -> String {
    match state {
        State::None => "nobody asks for it".to_owned(),
        State::Asked(by) => format!("site {} asks for it since {}", by.site, by.at),
        State::TurnedDown(by, at) => format!("site {} asked for it at {}, and was turned down at {at}", by.site, by.at),
        State::Released(at, None) => format!("it was released at {at}, and nobody has claimed it yet"),
        State::Released(at, Some(by)) => {
            format!("it was released at {at}, for site {}, and nobody has claimed it yet", by.site)
        }
    }
}
