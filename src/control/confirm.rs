//! Tokens that confirm a destructive act: drawn when somebody was told what it would destroy, good once, for a while, for
//! that caller, that act, and as long as no more would be lost than was told.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::told::Told;
use crate::error::{Error, ErrorKind, Result};

/// Most tokens at once; the oldest goes first.
const MOST: usize = 1000;

#[derive(Debug)]
struct Drawn {
    token: String,
    caller: String,
    act: String,
    told: Told,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tokens {
    life: Duration,
    drawn: Mutex<Vec<Drawn>>,
}

impl Tokens {
    pub(crate) fn new(life: Duration) -> Tokens {
        Tokens { life, drawn: Mutex::default() }
    }

    /// How long a token is good.
    pub(crate) fn life(&self) -> Duration {
        self.life
    }

    /// A token for `act`, of which `told` was told.
    pub(crate) fn draw(&self, caller: &str, act: &str, told: Told) -> String {
        let token = uuid::Uuid::new_v4().to_string();
        let now = Instant::now();
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        drawn.retain(|one| one.until > now);
        if drawn.len() == MOST {
            drawn.remove(0);
        }
        let (caller, act) = (caller.to_owned(), act.to_owned());
        drawn.push(Drawn { token: token.clone(), caller, act, told, until: now + self.life });
        token
    }

    /// Uses a token up, where `would` is what the act would come to now.
    ///
    /// # Errors
    /// `Refused` where it is not good, saying why; a token for another caller or act stays good for that.
    pub(crate) fn redeem(&self, token: &str, caller: &str, act: &str, would: &Told) -> Result<()> {
        let refused = |why: &str| {
            let advice = "ask again what it would destroy, and confirm that";
            Err(Error::new(ErrorKind::Refused, format!("the confirmation token {why}; {advice}")))
        };
        let now = Instant::now();
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = drawn.iter().position(|one| one.token == token) else {
            return refused("is not known: it was used, is too old, or another appliance drew it");
        };
        if drawn[at].caller != caller || drawn[at].act != act {
            return refused("was drawn for another caller or another act");
        }
        let one = drawn.remove(at);
        if one.until <= now {
            return refused("is too old");
        }
        match one.told.exceeded_by(would) {
            None => Ok(()),
            Some(why) => refused(&format!("does not cover what it would come to now: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_for_one_caller_act_and_state() {
        let tokens = Tokens::new(Duration::from_secs(60));
        let state = |text: &str| Told::exactly(text);
        let token = tokens.draw("alice", "delete d", state("10 objects"));
        let why = |token: &str, caller: &str, act: &str, state: &str| {
            tokens.redeem(token, caller, act, &Told::exactly(state)).unwrap_err().to_string()
        };
        assert!(why("made up", "alice", "delete d", "10 objects").contains("not known"));
        assert!(why(&token, "bob", "delete d", "10 objects").contains("another caller"));
        assert!(why(&token, "alice", "delete e", "10 objects").contains("another act"));
        tokens.redeem(&token, "alice", "delete d", &state("10 objects")).unwrap();
        assert!(why(&token, "alice", "delete d", "10 objects").contains("not known"));
        let changed = tokens.draw("alice", "delete d", state("10 objects"));
        assert!(why(&changed, "alice", "delete d", "11 objects").contains("something changed"));
        let old = Tokens::new(Duration::ZERO);
        let token = old.draw("a", "b", state("c"));
        assert!(old.redeem(&token, "a", "b", &state("c")).is_err());
        let first = tokens.draw("a", "b", state("c"));
        (0..MOST).for_each(|_| drop(tokens.draw("a", "b", state("c"))));
        assert!(why(&first, "a", "b", "c").contains("not known"), "bounded");
    }
}
