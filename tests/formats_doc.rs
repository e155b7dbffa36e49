//! `docs/formats.md` and the code say the same: every fixed layout, every magic and every limit, in both directions.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use freshet::format::{Field, Layout, layouts, limits, magic};

const PAGE: &str = include_str!("../docs/formats.md");

/// Cells of the table that begins at the line after `lines` stands at the head `head`; empty where there is none.
fn table<'a>(lines: &mut impl Iterator<Item = &'a str>, head: &str) -> Vec<Vec<&'a str>> {
    let mut lines = lines.skip_while(|line| line.is_empty());
    assert_eq!(lines.next(), Some(head));
    assert!(lines.next().unwrap().starts_with("|---"));
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The only table with this head on the page.
fn only_table(head: &str) -> Vec<Vec<&'static str>> {
    assert_eq!(PAGE.lines().filter(|line| *line == head).count(), 1, "{head}");
    table(&mut PAGE.lines().skip_while(|line| *line != head), head)
}

/// Fixed layouts of the page: a heading `#### Name: N bytes`, then the table.
fn documented() -> BTreeMap<&'static str, Layout> {
    let mut found = BTreeMap::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let Some((name, len)) = line.strip_prefix("#### ").and_then(|h| h.split_once(": ")) else { continue };
        let len = len.strip_suffix(" bytes").unwrap().parse().unwrap();
        let rows = table(&mut lines, "| offset | size | field | meaning |");
        let fields = rows.iter().map(|cells| {
            assert!(cells.len() >= 4 && !cells[3].is_empty(), "{name}: {cells:?}");
            Field { name: cells[2], offset: cells[0].parse().unwrap(), len: cells[1].parse().unwrap() }
        });
        let twice = found.insert(name, Layout { name, len, fields: fields.collect() });
        assert!(twice.is_none(), "{name} is described twice");
    }
    found
}

#[test]
fn every_fixed_layout_is_as_the_page_says_and_none_is_missing() {
    let coded: BTreeMap<&str, Layout> = layouts().into_iter().map(|l| (l.name, l)).collect();
    assert_eq!(coded.len(), layouts().len(), "two layouts of one name");
    let page = documented();
    for (name, layout) in &coded {
        assert_eq!(Some(layout), page.get(name), "docs/formats.md has another table for {name}, or none");
    }
    for name in page.keys() {
        assert!(coded.contains_key(name), "docs/formats.md describes {name}, which format::layouts() does not list");
    }
}

#[test]
fn every_magic_and_version_is_on_the_page() {
    let page = only_table("| name | magic | version |");
    let page: Vec<(String, &str)> = page.iter().map(|c| (c[1].trim_matches('`').to_owned(), c[2])).collect();
    let coded: Vec<(String, String)> =
        magic::ALL.iter().map(|m| (String::from_utf8(m.bytes.to_vec()).unwrap(), m.version.to_string())).collect();
    let coded: Vec<(String, &str)> = coded.iter().map(|(m, v)| (m.clone(), v.as_str())).collect();
    assert_eq!(page, coded);
    let unique: std::collections::HashSet<_> = magic::ALL.iter().map(|m| m.bytes).collect();
    assert_eq!(unique.len(), magic::ALL.len(), "two formats of one magic");
}

#[test]
fn magics_stand_in_the_tables_of_the_headers_they_begin() {
    let headers = layouts().into_iter().filter(|l| l.fields[0].name == "magic").count();
    let shown = PAGE.lines().filter(|line| line.starts_with("| 0 | 8 | magic | `FRSH")).count();
    assert_eq!(shown, headers);
}

#[test]
fn every_limit_is_as_the_page_says_and_none_is_missing() {
    let rows = only_table("| limit | value | of |");
    let page: BTreeMap<&str, u64> = rows.iter().map(|c| (c[0], c[1].replace(',', "").parse().unwrap())).collect();
    assert_eq!(page.len(), rows.len());
    assert_eq!(page, limits().into_iter().collect());
}
