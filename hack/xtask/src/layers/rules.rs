//! The rules about who may name whom, and where a file breaks them.
//! Pure: no I/O, no clock, no randomness.

use crate::source::{Named, Source};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The words by which a file declares itself pure.
const PURE: &str = "Pure: no I/O, no clock, no randomness.";

/// `hack/layers.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    /// Folders whose files are looked at.
    folders: Vec<String>,
    /// What a pure file must not name outside its tests.
    #[serde(default)]
    pure_forbids: Vec<String>,
    /// Crates whose modules lie in rows.
    #[serde(default, rename = "crate")]
    crates: Vec<Crate>,
    /// Names that belong to a few places.
    #[serde(default)]
    only: Vec<Only>,
}

/// The rows of one crate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Crate {
    /// Its source folder.
    folder: String,
    /// Its name in a path.
    library: String,
    /// Top-level modules, from the top down. A module may name those in rows below its own.
    rows: Vec<Vec<String>>,
    /// Arrows within a row, as `from -> to`.
    #[serde(default)]
    sideways: Vec<String>,
}

/// A name that only some files may use.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Only {
    /// The path, or the keyword `unsafe`.
    name: String,
    /// Files and folders that may use it.
    at: Vec<String>,
    /// Why.
    why: String,
}

/// A source file.
#[derive(Debug)]
pub(super) struct File {
    /// Its path below the root, with `/`.
    pub(super) name: String,
    /// What it says.
    pub(super) source: Source,
}

/// Why `hack/layers.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RulesError {
    /// It is not TOML of the right form.
    #[error("parse the rules")]
    Parse(#[from] toml::de::Error),
    /// An entry of `sideways` is not `from -> to` within one row.
    #[error("{folder}: {arrow:?} is not an arrow between two modules of one row")]
    Sideways {
        /// The crate's folder.
        folder: String,
        /// The entry.
        arrow: String,
    },
    /// Entries of `sideways` lead back to where they began.
    #[error("{folder}: the sideways arrows from {module} lead back to it")]
    Circle {
        /// The crate's folder.
        folder: String,
        /// A module on the circle.
        module: String,
    },
    /// A module is in two rows.
    #[error("{folder}: {module} is in two rows")]
    Twice {
        /// The crate's folder.
        folder: String,
        /// The module.
        module: String,
    },
}

impl Rules {
    /// Reads and checks the text of `hack/layers.toml`.
    pub(super) fn parse(text: &str) -> Result<Self, RulesError> {
        let rules: Self = toml::from_str(text)?;
        for part in &rules.crates {
            part.check_rows()?;
        }
        Ok(rules)
    }

    /// The folders to look at.
    pub(super) fn folders(&self) -> &[String] {
        &self.folders
    }

    /// Every breach, as `file:line: what`, in order of file and line.
    pub(super) fn check(&self, files: &[File]) -> Vec<String> {
        let mut faults = Vec::new();
        let tests = test_places(files);
        for file in files {
            if tests.iter().any(|place| lies_in(&file.name, place)) {
                continue;
            }
            self.check_header(file, &mut faults);
            for named in file.source.named.iter().filter(|named| !named.in_test) {
                self.check_pure(file, named, &mut faults);
                self.check_only(file, named, &mut faults);
            }
            for part in &self.crates {
                part.check(file, &mut faults);
            }
        }
        faults.sort();
        faults.dedup();
        faults.into_iter().map(|(file, line, what)| format!("{file}:{line}: {what}")).collect()
    }

    fn check_header(&self, file: &File, faults: &mut Vec<Fault>) {
        if file.source.header.trim().is_empty() {
            faults.push((file.name.clone(), 1, "the file has no `//!` header that says what it is for".to_owned()));
        }
    }

    fn check_pure(&self, file: &File, named: &Named, faults: &mut Vec<Fault>) {
        if !file.source.header.contains(PURE) {
            return;
        }
        for forbidden in &self.pure_forbids {
            if names(named, forbidden) {
                let what = format!("a pure file names {}", named.segments.join("::"));
                faults.push((file.name.clone(), named.line, what));
            }
        }
    }

    fn check_only(&self, file: &File, named: &Named, faults: &mut Vec<Fault>) {
        for rule in &self.only {
            if names(named, &rule.name) && !rule.at.iter().any(|place| lies_in(&file.name, place)) {
                let what = format!("{} is named; it belongs to {}: {}", rule.name, rule.at.join(", "), rule.why);
                faults.push((file.name.clone(), named.line, what));
            }
        }
    }
}

/// Where modules lie that are declared for tests alone: they are free, with everything below them.
fn test_places(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for file in files {
        let stem = file.name.trim_end_matches(".rs");
        let (folder, last) = stem.rsplit_once('/').unwrap_or(("", stem));
        let below = if matches!(last, "lib" | "main" | "mod") { folder } else { stem };
        for declared in file.source.declared.iter().filter(|declared| declared.in_test) {
            let inside = declared.inside.iter().chain([&declared.name]).map(String::as_str);
            places.push([below].into_iter().chain(inside).collect::<Vec<_>>().join("/"));
        }
    }
    places
}

/// File, line and what is wrong.
type Fault = (String, usize, String);

impl Crate {
    fn check_rows(&self) -> Result<(), RulesError> {
        let folder = || self.folder.clone();
        let mut rows = BTreeMap::new();
        for (row, modules) in self.rows.iter().enumerate() {
            for module in modules {
                if rows.insert(module.as_str(), row).is_some() {
                    return Err(RulesError::Twice { folder: folder(), module: module.clone() });
                }
            }
        }
        for arrow in &self.sideways {
            let ends = arrow.split_once(" -> ").map(|(from, to)| (rows.get(from), rows.get(to)));
            if !matches!(ends, Some((Some(from), Some(to))) if from == to) {
                return Err(RulesError::Sideways { folder: folder(), arrow: arrow.clone() });
            }
        }
        match rows.keys().find(|module| self.reaches_sideways(module, module, self.sideways.len())) {
            Some(module) => Err(RulesError::Circle { folder: folder(), module: (*module).to_owned() }),
            None => Ok(()),
        }
    }

    fn reaches_sideways(&self, from: &str, to: &str, steps: usize) -> bool {
        steps > 0
            && self
                .sideways
                .iter()
                .filter_map(|arrow| arrow.split_once(" -> "))
                .any(|(start, end)| start == from && (end == to || self.reaches_sideways(end, to, steps - 1)))
    }

    fn check(&self, file: &File, faults: &mut Vec<Fault>) {
        let Some(here) = self.module_of(&file.name) else { return };
        let Some(from) = here.first() else { return };
        let Some(from_row) = self.row_of(from) else {
            faults.push((file.name.clone(), 1, format!("module {from} is in no row of hack/layers.toml")));
            return;
        };
        for named in file.source.named.iter().filter(|named| !named.in_test) {
            let Some(to) = self.target(&here, named) else { continue };
            let Some(to_row) = self.row_of(&to) else { continue };
            let sideways = to_row == from_row && self.sideways.contains(&format!("{from} -> {to}"));
            if to != *from && to_row <= from_row && !sideways {
                let what = format!("{from} names {}, which does not lie below it", named.segments.join("::"));
                faults.push((file.name.clone(), named.line, what));
            }
        }
    }

    fn row_of(&self, module: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.iter().any(|name| name == module))
    }

    /// The module that a file of this crate is, as a path; empty for the crate's root. `None`: not of this crate.
    fn module_of(&self, file: &str) -> Option<Vec<String>> {
        let below = file.strip_prefix(&self.folder)?.strip_prefix('/')?.strip_suffix(".rs")?;
        let segments: Vec<String> = below.split('/').map(str::to_owned).collect();
        match segments.as_slice() {
            [root] if root == "lib" || root == "main" => Some(Vec::new()),
            _ => Some(segments),
        }
    }

    /// The top-level module that a path leads to, if it leads into this crate.
    fn target(&self, here: &[String], named: &Named) -> Option<String> {
        let mut at: Vec<String> = here.iter().chain(&named.inside).cloned().collect();
        let mut segments = named.segments.iter().peekable();
        match segments.next()?.as_str() {
            "crate" => at.clear(),
            library if library == self.library && (named.segments.len() > 1 || named.imported) => at.clear(),
            "self" if named.segments.len() > 1 => {}
            "super" => {
                at.pop();
                while segments.next_if(|segment| *segment == "super").is_some() {
                    at.pop();
                }
            }
            _ => return None,
        }
        at.extend(segments.cloned());
        at.into_iter().next()
    }
}

/// Whether `named` is `rule` or something below it. A rule that begins with a type (`Instant::now`) is met after any
/// path; any other from a path's beginning on. A single word is a name only in a `use`, unless the rule is a keyword.
fn names(named: &Named, rule: &str) -> bool {
    let rule: Vec<&str> = rule.split("::").collect();
    let path: Vec<&str> = named.segments.iter().map(String::as_str).collect();
    if rule == ["unsafe"] {
        return path == rule;
    }
    if path.len() < 2 && !named.imported {
        return false;
    }
    let of_type = rule.first().is_some_and(|first| first.starts_with(char::is_uppercase));
    if of_type { path.windows(rule.len()).any(|window| window == rule) } else { path.starts_with(&rule) }
}

/// Whether a file is `place` or below it: `a/b` covers `a/b.rs` and everything in `a/b/`.
fn lies_in(file: &str, place: &str) -> bool {
    let Some(rest) = file.strip_prefix(place) else { return false };
    rest.is_empty() || rest == ".rs" || rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_ROWS: &str = r#"
        folders = ["a"]
        pure_forbids = ["tokio", "Instant::now", "rand"]
        [[crate]]
        folder = "a/src"
        library = "larder_a"
        rows = [["app"], ["image", "store"], ["host"]]
        sideways = ["image -> store"]
        [[only]]
        name = "larder_proto"
        at = ["a/src/grpc"]
        why = "wire types stop at the edge"
        [[only]]
        name = "unsafe"
        at = ["a/src/host"]
        why = "one place to look"
    "#;

    fn faults(name: &str, text: &str) -> Vec<String> {
        let source = Source::read(&format!("//! It.\n{text}"));
        Rules::parse(TWO_ROWS).unwrap().check(&[File { name: name.to_owned(), source }])
    }

    #[test]
    fn arrows_go_down() {
        for (name, text, wanted) in [
            ("a/src/app.rs", "use crate::{image, host::Mount};", 0),
            ("a/src/image.rs", "use crate::app::App;", 1),
            ("a/src/image/pull.rs", "fn f() { crate::app::g() }", 1),
            ("a/src/image/pull.rs", "use super::super::app;", 1),
            ("a/src/image/pull.rs", "use super::app;", 0),
            ("a/src/image/pull.rs", "mod inner { use super::super::app; }", 0),
            ("a/src/image/pull.rs", "mod inner { use super::super::super::app; }", 1),
            ("a/src/image.rs", "use crate::store;", 0),
            ("a/src/store.rs", "use crate::image;", 1),
            ("a/src/store.rs", "use larder_a::image::X;", 1),
            ("a/src/store.rs", "#[cfg(test)] mod tests { use crate::app; }", 0),
            ("a/src/main.rs", "use larder_a::app;", 0),
            ("a/src/stray.rs", "", 1),
            ("b/src/stray.rs", "use crate::app;", 0),
        ] {
            assert_eq!(faults(name, text).len(), wanted, "{name}: {text}: {:?}", faults(name, text));
        }
    }

    #[test]
    fn modules_for_tests_alone_are_free() {
        let file =
            |name: &str, text: &str| File { name: name.to_owned(), source: Source::read(&format!("//! It.\n{text}")) };
        let files = [
            file("a/src/lib.rs", "#[cfg(test)] mod image;"),
            file("a/src/image/deep/er.rs", "use crate::app; fn f() { unsafe { g() } }"),
            file("a/src/store.rs", "#[cfg(test)]\nmod suite;\nmod suite_of_rooms;"),
            file("a/src/store/suite.rs", "use crate::app;"),
            file("a/src/store/suite_of_rooms.rs", "use crate::app;"),
        ];
        let faults = Rules::parse(TWO_ROWS).unwrap().check(&files);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("a/src/store/suite_of_rooms.rs"), "{faults:?}");
    }

    #[test]
    fn some_names_belong_to_one_place() {
        for (name, text, wanted) in [
            ("a/src/grpc.rs", "use larder_proto::v1::Pod;", 0),
            ("a/src/grpc/convert.rs", "larder_proto::v1::Pod::default();", 0),
            ("a/src/grpc_other.rs", "use larder_proto::v1::Pod;", 1),
            ("a/src/host.rs", "fn f() { unsafe { g() } }", 0),
            ("a/src/image.rs", "fn f() { unsafe { g() } }", 1),
            ("a/src/image.rs", "#[expect(unsafe_code)] fn f() { let larder_proto = 1; }", 0),
        ] {
            let about_names: Vec<_> =
                faults(name, text).into_iter().filter(|fault| fault.contains("belongs to")).collect();
            assert_eq!(about_names.len(), wanted, "{name}: {text}: {about_names:?}");
        }
    }

    #[test]
    fn a_pure_file_does_no_io() {
        for (text, wanted) in [
            ("use std::time::Duration; fn f(rand: u8) -> u8 { rand }", 0),
            ("fn f() { Instant::now(); }", 1),
            ("fn f() { std::time::Instant::now(); }", 1),
            ("use tokio::sync::mpsc;", 1),
            ("fn f() { rand::random() }", 1),
            ("#[cfg(test)] mod tests { use tokio::time; }", 0),
        ] {
            let found = faults("x/pure.rs", &format!("//! Pure: no I/O, no clock, no randomness.\n{text}"));
            assert_eq!(found.len(), wanted, "{text}: {found:?}");
        }
        assert!(faults("x/other.rs", "use tokio::sync::mpsc;").is_empty());
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        let file = File { name: "x.rs".to_owned(), source: Source::read("fn f() {}") };
        assert_eq!(Rules::parse(TWO_ROWS).unwrap().check(&[file]).len(), 1);
    }

    #[test]
    fn rules_that_contradict_themselves_are_refused() {
        let with = |rows: &str, sideways: &str| {
            let text = format!(
                "folders = []\n[[crate]]\nfolder = \"a\"\nlibrary = \"a\"\nrows = {rows}\nsideways = {sideways}\n"
            );
            Rules::parse(&text)
        };
        assert!(with(r#"[["x", "y"]]"#, r#"["x -> y"]"#).is_ok());
        assert!(matches!(with(r#"[["x"], ["y"]]"#, r#"["x -> y"]"#), Err(RulesError::Sideways { .. })));
        assert!(matches!(with(r#"[["x", "y"]]"#, r#"["x to y"]"#), Err(RulesError::Sideways { .. })));
        assert!(matches!(with(r#"[["x", "y"]]"#, r#"["x -> y", "y -> x"]"#), Err(RulesError::Circle { .. })));
        assert!(matches!(with(r#"[["x"], ["x"]]"#, "[]"), Err(RulesError::Twice { .. })));
    }

    #[test]
    fn the_rules_of_this_tree_can_be_read() {
        Rules::parse(include_str!("../../../layers.toml")).unwrap();
    }
}
