//! The pages against the code: every promise names tests that exist and run, exit codes are those of the program, and
//! flags that a page names are known to it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use freshet::error::ErrorKind;

const KINDS: [ErrorKind; 13] = [
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Refused,
    ErrorKind::Fenced,
    ErrorKind::Damaged,
    ErrorKind::Incomplete,
    ErrorKind::Full,
    ErrorKind::Unreachable,
    ErrorKind::Denied,
    ErrorKind::Unsupported,
    ErrorKind::Io,
    ErrorKind::Cancelled,
    ErrorKind::Internal,
];

fn page(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Rows of the table whose first line is `head`, as cells.
fn table(page: &str, head: &str) -> Vec<Vec<String>> {
    let lines = page.lines().skip_while(|line| *line != head).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether `name` is a test of `source` that every run takes: an attribute in front of it says so, or it is in the list
/// of a macro that makes tests.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = |line: &str| ["fn ", "async fn "].iter().any(|f| line.starts_with(&format!("{f}{name}(")));
    let Some(at) = lines.iter().position(|line| head(line)) else { return false };
    let attributes: Vec<&&str> = lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).collect();
    let listed = source.contains("on_every_engine!(") && lines.iter().any(|line| line.trim_end_matches(',') == name);
    let marked = attributes.iter().any(|a| a.starts_with("#[test]") || a.starts_with("#[tokio::test"));
    (marked || listed) && !attributes.iter().any(|a| a.starts_with("#[ignore"))
}

/// What is wrong with the proofs of one promise.
fn complaints(proofs: &str, source_of: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for proof in proofs.split(';') {
        let Some((file, names)) = proof.split_once(':') else {
            wrong.push(format!("not `file`: `test`, `test`: {proof}"));
            continue;
        };
        let (file, names) = (file.trim().trim_matches('`'), code(names));
        let Some(source) = source_of(file) else {
            wrong.push(format!("no such file: {file}"));
            continue;
        };
        if names.is_empty() {
            wrong.push(format!("{file} without a test"));
        }
        let missing = names.iter().filter(|name| !is_test(&source, name));
        wrong.extend(missing.map(|name| format!("{file} has no test {name} that every run takes")));
    }
    wrong
}

#[test]
fn every_promise_names_tests_that_there_are() {
    let rows = table(&page("README.md"), "| promise | proved by |");
    assert!(rows.len() >= 10, "the table was not found: {} rows", rows.len());
    let source_of = |file: &str| {
        let there = (file.starts_with("tests/") || file.starts_with("src/")) && file.ends_with(".rs");
        there.then(|| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).ok()).flatten()
    };
    let mut wrong = Vec::new();
    for row in rows {
        let [promise, proofs] = &row[..] else { panic!("not two cells: {row:?}") };
        wrong.extend(complaints(proofs, &source_of).iter().map(|why| format!("{promise}: {why}")));
    }
    assert!(wrong.is_empty(), "README.md promises what nothing proves:\n{}", wrong.join("\n"));
}

#[test]
fn promises_without_a_test_are_noticed() {
    let source = "#[test]\n#[ignore = \"long\"]\nfn ignored() {}\n\n#[test]\nfn runs() {}\n\n\
                  #[tokio::test(flavor = \"multi_thread\")]\nasync fn waits() {}\n\nfn helper() {}\n";
    let made = "on_every_engine!(\n    listed,\n);\nfn listed(variant: Variant) {}\nfn unlisted(variant: Variant) {}\n";
    let source_of = |file: &str| match file {
        "tests/a.rs" => Some(source.to_owned()),
        "src/b.rs" => Some(made.to_owned()),
        _ => None,
    };
    let count = |proofs: &str| complaints(proofs, &source_of).len();
    assert_eq!(count("`tests/a.rs`: `runs`, `waits`; `src/b.rs`: `listed`"), 0);
    for bad in ["gone", "ignored", "helper", "run"] {
        assert_eq!(count(&format!("`tests/a.rs`: `runs`, `{bad}`")), 1, "{bad}");
    }
    assert_eq!(count("`src/b.rs`: `unlisted`"), 1);
    for bad in ["`tests/c.rs`: `runs`", "`tests/a.rs`:", "`tests/a.rs`", "the crash tests", ""] {
        assert_eq!(count(bad), 1, "{bad}");
    }
}

#[test]
fn exit_codes_are_as_the_pages_say() {
    let mut words: BTreeMap<u8, BTreeSet<&str>> = BTreeMap::from([(0, BTreeSet::new())]);
    for kind in KINDS {
        words.entry(kind.exit_code()).or_default().insert(kind.word());
    }
    let number = |cell: &str| cell.parse::<u8>().unwrap();
    let readme = table(&page("README.md"), "| code | meaning |");
    let told: Vec<u8> = readme.iter().map(|row| number(&row[0])).collect();
    assert_eq!(told, words.keys().copied().collect::<Vec<_>>(), "README.md");
    let operations = page("docs/operations.md");
    let rows = table(&operations, "| code | kind | what to do |");
    let told: BTreeMap<u8, BTreeSet<&str>> =
        rows.iter().map(|row| (number(&row[0]), code(&row[1]).into_iter().collect())).collect();
    assert_eq!(told, words, "docs/operations.md");
}

/// `freshet SUBCOMMAND... --help`.
fn help(subcommand: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_freshet")).args(subcommand).arg("--help").output().unwrap();
    assert!(output.status.success(), "freshet {subcommand:?} --help");
    String::from_utf8(output.stdout).unwrap()
}

const SUBCOMMANDS: &[&[&str]] = &[
    &["replicate"],
    &["protect"],
    &["scan"],
    &["points"],
    &["rehydrate"],
    &["verify"],
    &["inspect"],
    &["store", "probe"],
    &["hand-over"],
    &["export"],
    &["demo"],
    &["serve"],
    &["config", "check"],
    &["config", "example"],
    &["site", "show"],
    &["store", "add"],
    &["store", "list"],
    &["store", "remove"],
    &["store", "scan"],
    &["domain", "list"],
    &["domain", "show"],
    &["domain", "watch"],
    &["domain", "create"],
    &["domain", "import"],
    &["domain", "forget"],
    &["domain", "delete"],
    &["domain", "point"],
    &["vm", "protect"],
    &["vm", "unprotect"],
    &["vm", "add-disk"],
    &["vm", "remove-disk"],
    &["vm", "open"],
    &["runbook", "show"],
    &["runbook", "set"],
    &["event", "list"],
    &["task", "list"],
    &["task", "show"],
    &["task", "watch"],
    &["task", "answer"],
    &["failover", "plan"],
    &["failover", "start"],
    &["failover", "continuous"],
    &["failover", "complete"],
    &["failover", "cancel"],
    &["failover", "pause"],
    &["failover", "resume"],
    &["failback", "start"],
    &["failback", "continuous"],
    &["failback", "withdraw"],
];

/// Whether a row of commands, such as `store add/list`, is about this one.
fn covers(row: &str, name: &str) -> bool {
    let verbs =
        |rest: &str, verb: &str| rest.split(' ').next().is_some_and(|words| words.split('/').any(|w| w == verb));
    match (row.split_once(' '), name.split_once(' ')) {
        _ if row.starts_with(name) => true,
        (Some((row, rest)), Some((noun, verb))) => row == noun && verbs(rest, verb),
        _ => false,
    }
}

fn flags(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).collect()
}

/// Flags of code in `page` that no subcommand has, or not the one that is named beside them.
fn unknown_flags(page: &str, helps: &[(String, String)]) -> Vec<String> {
    let mut unknown = Vec::new();
    for text in code(page) {
        // Commands of others have flags of their own.
        if !text.starts_with("freshet ") && !text.starts_with("--") && !helps.iter().any(|h| text.starts_with(&h.0)) {
            continue;
        }
        let text = text.strip_prefix("freshet ").unwrap_or(text);
        let own: Vec<&(String, String)> = helps.iter().filter(|(name, _)| text.starts_with(name.as_str())).collect();
        let own = if own.is_empty() { helps.iter().collect() } else { own };
        let known: BTreeSet<&str> = own.iter().flat_map(|(_, help)| flags(help)).collect();
        unknown
            .extend(flags(text).into_iter().filter(|flag| !known.contains(flag)).map(|f| format!("{f} in `{text}`")));
    }
    unknown
}

#[test]
fn flags_that_the_pages_name_are_known() {
    let helps: Vec<(String, String)> = SUBCOMMANDS.iter().map(|s| (s.join(" "), help(s))).collect();
    let pages = [
        "README.md",
        "docs/operations.md",
        "docs/storage-sites.md",
        "docs/byte-flow.md",
        "docs/performance.md",
        "docs/nbd.md",
        "docs/protection.md",
        "docs/hand-over.md",
        "docs/following.md",
        "docs/control.md",
        "docs/control-plane.md",
        "docs/settings.md",
    ];
    let mut seen = 0;
    for path in pages {
        let page = page(path);
        assert_eq!(unknown_flags(&page, &helps), Vec::<String>::new(), "{path}");
        seen += flags(&code(&page).join(" ")).len();
    }
    assert!(seen > 20, "only {seen} flags were found");
    let bad = "`freshet scan --point P` and `--no-such-flag` and `cargo bench --bench x` and `freshet verify --quick`";
    assert_eq!(unknown_flags(bad, &helps).len(), 2);
    // The table has a row for every subcommand.
    let rows = table(&page("README.md"), "| command | what it does |");
    let told: BTreeSet<String> = rows.iter().map(|row| code(&row[0])[0].replace("freshet ", "")).collect();
    for (name, _) in &helps {
        assert!(told.iter().any(|row| covers(row, name)), "README.md has no row for {name}");
    }
}
