//! The pages and the code say the same: settings, figures, codes of errors, roles.

use std::path::Path;

use freshet::control::settings::SETTINGS;
use freshet::control::{CODES, METRICS, ROLES};

/// Cells of the only table of `page` with this head.
fn table(page: &str, head: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    assert_eq!(text.lines().filter(|line| *line == head).count(), 1, "{page}: {head}");
    let rows = text.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row[1..row.len() - 1].split(" | ").map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

#[test]
fn every_setting_is_on_its_page_with_default_bounds_and_meaning() {
    let coded: Vec<Vec<String>> = SETTINGS
        .iter()
        .map(|s| {
            let default = match (s.required, s.default) {
                (true, _) => "must be set".to_owned(),
                (false, "") => "none".to_owned(),
                (false, text) => format!("`{text}`"),
            };
            vec![format!("`{}`", s.name), default, s.bounds(), s.meaning.to_owned()]
        })
        .collect();
    assert_eq!(table("docs/settings.md", "| setting | default | bounds | meaning |"), coded);
}

#[test]
fn every_figure_is_on_its_page() {
    let coded: Vec<Vec<String>> = METRICS
        .iter()
        .map(|m| {
            let labels = m.labels.join(", ");
            let kind = format!("{:?}", m.kind).to_lowercase();
            let stable = if m.stable { "stable" } else { "may change" };
            vec![format!("`{}`", m.name), kind, m.unit.to_owned(), labels, stable.to_owned(), m.meaning.to_owned()]
        })
        .collect();
    assert_eq!(table("docs/control-plane.md", "| figure | kind | unit | labels | stability | meaning |"), coded);
}

#[test]
fn every_kind_of_error_and_every_role_is_on_its_page() {
    let coded: Vec<Vec<String>> = CODES
        .iter()
        .map(|(kind, code, advice)| vec![format!("`{}`", kind.word()), format!("{code:?}"), (*advice).to_owned()])
        .collect();
    assert_eq!(table("docs/control-plane.md", "| kind | gRPC code | what to do |"), coded);
    let coded: Vec<Vec<String>> = ROLES
        .iter()
        .filter_map(|(method, role)| {
            let method = method.strip_prefix("/freshet.v1.")?;
            Some(vec![format!("`{method}`"), role.word().to_owned()])
        })
        .collect();
    assert_eq!(table("docs/control-plane.md", "| method | least role |"), coded);
}
