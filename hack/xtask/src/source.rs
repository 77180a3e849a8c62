//! Reads Rust source just far enough to know which paths it names and which modules it declares.
//! Pure: no I/O, no clock, no randomness.
//!
//! Not a parser: comments and literals are left out, `use` trees are spread out, and everything else is a run of
//! `name::name`. What a macro builds from pieces is not seen. That is enough for rules about who may name whom, and
//! takes milliseconds for the whole tree.

/// A path that a source file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its segments, `*` for everything below.
    pub segments: Vec<String>,
    /// The line it is on, counted from 1.
    pub line: usize,
    /// The inline modules around it, outermost first.
    pub inside: Vec<String>,
    /// Whether an inline module around it is compiled for tests alone.
    pub in_test: bool,
    /// Whether it is part of a `use`.
    pub imported: bool,
}

/// A `mod name;`: a module in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The module's name.
    pub name: String,
    /// The inline modules around the declaration, outermost first.
    pub inside: Vec<String>,
    /// The file of a `#[path = ".."]`.
    pub path: Option<String>,
    /// Whether it is compiled for tests alone.
    pub in_test: bool,
}

/// What one file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Source {
    /// The text of its `//!` lines.
    pub header: String,
    /// Every path it names, in order.
    pub named: Vec<Named>,
    /// Every module it declares in another file.
    pub declared: Vec<Declared>,
}

impl Source {
    /// Reads a file's text.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let header = text.lines().filter_map(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("\n");
        let mut reader = Reader { tokens: tokens(text), ..Reader::default() };
        reader.read();
        Self { header, named: reader.named, declared: reader.declared }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    /// `::`
    Below,
    Sign(char),
}

/// Walks over the tokens of a file.
#[derive(Debug, Default)]
struct Reader {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Inline modules: name, depth of braces outside, for tests alone.
    around: Vec<(String, usize, bool)>,
    /// Attributes seen since the last item: `cfg(test)`, and a `path`.
    test_ahead: bool,
    path_ahead: Option<String>,
    named: Vec<Named>,
    declared: Vec<Declared>,
}

impl Reader {
    fn read(&mut self) {
        while let Some((token, line)) = self.tokens.get(self.at).cloned() {
            match token {
                Token::Name(name) if name == "use" => self.import(line),
                Token::Name(name) if name == "mod" => self.module(),
                Token::Name(_) => self.path(line),
                Token::Sign('#') => self.attribute(),
                Token::Sign('{') => self.step_into(),
                Token::Sign('}') => self.step_out(),
                Token::Sign(';') => {
                    self.forget_attributes();
                    self.at += 1;
                }
                Token::Sign(_) | Token::Text(_) | Token::Below => self.at += 1,
            }
        }
    }

    fn step_into(&mut self) {
        self.depth += 1;
        self.forget_attributes();
        self.at += 1;
    }

    fn step_out(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if self.around.last().is_some_and(|(_, depth, _)| *depth == self.depth) {
            self.around.pop();
        }
        self.at += 1;
    }

    fn forget_attributes(&mut self) {
        self.test_ahead = false;
        self.path_ahead = None;
    }

    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|(token, _)| token)
    }

    fn inside(&self) -> Vec<String> {
        self.around.iter().map(|(name, _, _)| name.clone()).collect()
    }

    fn in_test(&self) -> bool {
        self.around.iter().any(|(_, _, test)| *test)
    }

    fn record(&mut self, segments: Vec<String>, line: usize, imported: bool) {
        // A `use` under `#[cfg(test)]` is the tests' own.
        let in_test = self.in_test() || (imported && self.test_ahead);
        self.named.push(Named { segments, line, inside: self.inside(), in_test, imported });
    }

    /// `#[cfg(test)]` and `#[path = ".."]` matter; whatever else an attribute names is read as any other code.
    fn attribute(&mut self) {
        let is_name = |token: Option<&Token>, wanted: &str| matches!(token, Some(Token::Name(name)) if name == wanted);
        if is_name(self.peek(2), "cfg") && is_name(self.peek(4), "test") && self.peek(5) == Some(&Token::Sign(')')) {
            self.test_ahead = true;
        }
        if let (true, Some(Token::Text(path))) = (is_name(self.peek(2), "path"), self.peek(4)) {
            self.path_ahead = Some(path.clone());
        }
        self.at += 1;
    }

    fn module(&mut self) {
        let (name, next) = (self.peek(1).cloned(), self.peek(2).cloned());
        self.at += 1;
        let Some(Token::Name(name)) = name else { return };
        if next == Some(Token::Sign('{')) {
            self.around.push((name, self.depth, self.test_ahead));
            self.at += 1;
        } else if next == Some(Token::Sign(';')) {
            let in_test = self.test_ahead || self.in_test();
            self.declared.push(Declared { name, inside: self.inside(), path: self.path_ahead.clone(), in_test });
            self.at += 1;
        }
    }

    /// A run of `name::name` outside a `use`.
    fn path(&mut self, line: usize) {
        let mut segments = Vec::new();
        while let Some(Token::Name(name)) = self.peek(0) {
            segments.push(name.clone());
            self.at += 1;
            if self.peek(0) != Some(&Token::Below) {
                break;
            }
            self.at += 1;
        }
        self.record(segments, line, false);
    }

    /// The whole tree of a `use`, up to its semicolon.
    fn import(&mut self, line: usize) {
        self.at += 1;
        // `use<'a>` is a bound, not an import.
        if self.peek(0) == Some(&Token::Sign('<')) {
            return;
        }
        let mut stack: Vec<Vec<String>> = Vec::new();
        let mut path: Vec<String> = Vec::new();
        let mut renamed = false;
        while let Some(token) = self.peek(0).cloned() {
            let ends = matches!(token, Token::Sign(',' | '}' | ';'));
            if ends {
                let base = stack.last().map_or(0, Vec::len);
                if path.len() > base {
                    let whole = path.clone();
                    self.record(strip_self(whole), line, true);
                }
                path.truncate(base);
                renamed = false;
            }
            match token {
                Token::Sign(';') => break,
                Token::Sign('{') => stack.push(path.clone()),
                Token::Sign('}') => {
                    stack.pop();
                    // What was inside is recorded; the comma that follows must not record the part before it.
                    path.truncate(stack.last().map_or(0, Vec::len));
                }
                Token::Sign('*') => path.push("*".to_owned()),
                Token::Name(name) if name == "as" => renamed = true,
                Token::Name(name) if !renamed => path.push(name),
                Token::Name(_) | Token::Sign(_) | Token::Text(_) | Token::Below => {}
            }
            self.at += 1;
        }
    }
}

/// `a::b::self` in a tree is `a::b`.
fn strip_self(mut path: Vec<String>) -> Vec<String> {
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    path
}

fn tokens(text: &str) -> Vec<(Token, usize)> {
    let mut lexer = Lexer { chars: text.chars().collect(), at: 0, line: 1, tokens: Vec::new() };
    while lexer.at < lexer.chars.len() {
        lexer.next();
    }
    lexer.tokens
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<(Token, usize)>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn advance(&mut self) {
        if self.peek(0) == '\n' {
            self.line += 1;
        }
        self.at += 1;
    }

    fn advance_while(&mut self, goes_on: impl Fn(&Self) -> bool) {
        while self.at < self.chars.len() && goes_on(self) {
            self.advance();
        }
    }

    fn next(&mut self) {
        let line = self.line;
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => self.advance_while(|lexer| lexer.peek(0) != '\n'),
            ('/', '*') => self.block_comment(),
            ('"', _) => self.text(line),
            ('\'', _) => self.quote(),
            (':', ':') => {
                self.at += 2;
                self.tokens.push((Token::Below, line));
            }
            (first, _) if first.is_alphabetic() || first == '_' => self.name(line),
            (first, _) if first.is_ascii_digit() => {
                self.advance_while(|lexer| lexer.peek(0).is_alphanumeric() || lexer.peek(0) == '_');
            }
            (first, _) => {
                self.advance();
                if !first.is_whitespace() {
                    self.tokens.push((Token::Sign(first), line));
                }
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.advance();
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    fn text(&mut self, line: usize) {
        self.advance();
        let start = self.at;
        while self.at < self.chars.len() && self.peek(0) != '"' {
            if self.peek(0) == '\\' {
                self.advance();
            }
            self.advance();
        }
        let end = self.at.min(self.chars.len());
        let content = self.chars[start.min(end)..end].iter().collect();
        self.tokens.push((Token::Text(content), line));
        self.advance();
    }

    /// A character literal or a lifetime. Neither is a name.
    fn quote(&mut self) {
        self.advance();
        if self.peek(0) == '\\' {
            self.advance();
            self.advance();
            self.advance_while(|lexer| lexer.peek(0) != '\'');
            self.advance();
        } else if self.peek(1) == '\'' {
            self.advance();
            self.advance();
        } else {
            self.advance_while(|lexer| lexer.peek(0).is_alphanumeric() || lexer.peek(0) == '_');
        }
    }

    fn name(&mut self, line: usize) {
        let start = self.at;
        self.advance_while(|lexer| lexer.peek(0).is_alphanumeric() || lexer.peek(0) == '_');
        let name: String = self.chars[start..self.at].iter().collect();
        let prefixes_text = matches!(name.as_str(), "r" | "b" | "br" | "c" | "cr");
        match (prefixes_text, self.peek(0), self.peek(1)) {
            (true, '"', _) if !name.contains('r') => self.text(line),
            (true, '"', _) | (true, '#', '"' | '#') if name.contains('r') => self.raw_text(),
            (true, '\'', _) if name == "b" => self.quote(),
            // A raw name: `r#type`.
            (true, '#', _) if name == "r" => self.advance(),
            _ => self.tokens.push((Token::Name(name), line)),
        }
    }

    fn raw_text(&mut self) {
        let mut hashes = 0;
        while self.peek(0) == '#' {
            hashes += 1;
            self.advance();
        }
        self.advance();
        while self.at < self.chars.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == '#');
            self.advance();
            if closes {
                self.at += hashes;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paths(text: &str) -> Vec<String> {
        Source::read(text).named.iter().map(|named| named.segments.join("::")).collect()
    }

    #[test]
    fn a_use_tree_is_spread_out() {
        let text = "use crate::{image::{self, Pull as P}, pod, host::*};\nuse std::io;";
        assert_eq!(paths(text), ["crate::image", "crate::image::Pull", "crate::pod", "crate::host::*", "std::io"]);
    }

    #[test]
    fn nested_groups_name_no_more_than_they_hold() {
        assert_eq!(paths("use a::{b::{c, d}, e};"), ["a::b::c", "a::b::d", "a::e"]);
        assert_eq!(paths("use a::{b::{c, d}};"), ["a::b::c", "a::b::d"]);
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        let text = r##"
            // crate::a
            /* crate::b /* crate::c */ crate::d */
            const A: &str = "crate::e"; const B: &str = r#"crate::f " crate::g"#;
            const C: char = '"'; const D: u8 = b'\''; const E: &[u8] = b"crate::h";
            fn f<'crate_>(x: &'crate_ str) { crate::seen() }
        "##;
        let seen: Vec<String> = paths(text).into_iter().filter(|path| path.contains("crate::")).collect();
        assert_eq!(seen, ["crate::seen"]);
    }

    #[test]
    fn lines_and_inline_modules_are_known() {
        let source = Source::read(
            "mod a {\n    use super::x::Y;\n}\n#[cfg(test)]\nmod tests {\n    use crate::z;\n}\nuse b::c;\n",
        );
        let found: Vec<_> = source
            .named
            .iter()
            .map(|named| (named.segments.join("::"), named.line, named.inside.join("::"), named.in_test))
            .collect();
        let wanted = [("super::x::Y", 2, "a", false), ("crate::z", 6, "tests", true), ("b::c", 8, "", false)]
            .map(|(path, line, inside, in_test)| (path.to_owned(), line, inside.to_owned(), in_test));
        let found: Vec<_> = found.into_iter().filter(|(path, ..)| path.contains("::")).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_test_attribute_ends_with_its_item() {
        let source =
            Source::read("#[cfg(test)]\nuse a::b;\nmod m { use c::d; }\n#[cfg(test)] fn f() { } mod n { use e::f; }");
        let in_test: Vec<bool> =
            source.named.iter().filter(|named| named.imported).map(|named| named.in_test).collect();
        assert_eq!(in_test, [true, false, false]);
    }

    #[test]
    fn modules_in_other_files_are_declared() {
        let source =
            Source::read("pub mod a;\nmod b { mod c; }\n#[path = \"x/y.rs\"]\nmod d;\n#[cfg(test)]\nmod tests;\n");
        let declared: Vec<_> = source
            .declared
            .iter()
            .map(|module| (module.name.as_str(), module.inside.join("::"), module.path.as_deref(), module.in_test))
            .collect();
        let none = String::new;
        assert_eq!(
            declared,
            [
                ("a", none(), None, false),
                ("c", "b".to_owned(), None, false),
                ("d", none(), Some("x/y.rs"), false),
                ("tests", none(), None, true)
            ]
        );
    }

    #[test]
    fn the_header_is_kept() {
        assert_eq!(Source::read("//! One.\n//! Two.\nfn f() {}").header, " One.\n Two.");
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "\\PC{0,200}") {
            let _ = Source::read(&text);
        }

        #[test]
        fn any_run_of_signs_is_read_to_its_end(text in "[a-c:{}();,'\"/*#!\\\\r\n ]{0,120}") {
            let _ = Source::read(&text);
        }
    }
}
