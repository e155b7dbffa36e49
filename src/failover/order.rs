//! Putting things in an order in which everything comes after what it names, and otherwise stays where it stood. Pure.

use std::collections::HashMap;

/// The order of `items`, as positions: each after those that `after` names for it; names that no item has do not count.
///
/// # Errors
/// The names of a cycle, in order; its last comes before its first.
pub(super) fn order<'a>(
    names: &[&'a str],
    after: impl Fn(usize) -> Vec<&'a str>,
) -> std::result::Result<Vec<usize>, Vec<&'a str>> {
    let at: HashMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let needs: Vec<Vec<usize>> =
        (0..names.len()).map(|i| after(i).iter().filter_map(|n| at.get(n).copied()).collect()).collect();
    let mut placed = vec![false; names.len()];
    let mut done = Vec::with_capacity(names.len());
    let mut waits: Vec<usize> = (0..names.len()).collect();
    while !waits.is_empty() {
        let before = waits.len();
        waits.retain(|i| {
            let ready = needs[*i].iter().all(|n| placed[*n]);
            if ready {
                placed[*i] = true;
                done.push(*i);
            }
            !ready
        });
        if waits.len() == before {
            return Err(cycle(&needs, &placed, waits[0]).into_iter().map(|i| names[i]).collect());
        }
    }
    Ok(done)
}

/// A cycle that is reached from `from` through what is not placed.
fn cycle(needs: &[Vec<usize>], placed: &[bool], from: usize) -> Vec<usize> {
    let mut path = vec![from];
    loop {
        let last = path[path.len() - 1];
        let next = needs[last].iter().copied().find(|n| !placed[*n]).unwrap_or(last);
        match path.iter().position(|i| *i == next) {
            Some(start) => return path.split_off(start),
            None => path.push(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_comes_first_and_the_rest_stays() {
        let names = ["a", "b", "c", "d"];
        let after = |i: usize| match i {
            0 => vec!["c"],
            1 => vec!["a", "nobody"],
            _ => vec![],
        };
        assert_eq!(order(&names, after), Ok(vec![2, 3, 0, 1]));
        assert_eq!(order(&names, |_| vec![]), Ok(vec![0, 1, 2, 3]));
    }

    #[test]
    fn a_cycle_is_named_without_what_only_leads_to_it() {
        let names = ["lead", "a", "b", "c"];
        let after = |i: usize| vec![["a", "b", "c", "a"][i]];
        assert_eq!(order(&names, after), Err(vec!["a", "b", "c"]));
        assert_eq!(order(&["x"], |_| vec!["x"]), Err(vec!["x"]));
    }
}
