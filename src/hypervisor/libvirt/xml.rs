//! XML as a tree that keeps what it does not know: elements and attributes in their order, prefixes as they are written,
//! comments, and white space.
//!
//! Reading and writing are `quick-xml`'s. Document types are refused, so that no entity but the five of XML itself is ever
//! expanded. Length, depth and number of nodes are bounded before they are used.

use std::fmt;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesCData, BytesEnd, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};

use crate::error::{Error, ErrorKind, Result};

/// Longest text that is read, in bytes.
pub(super) const MAX_LEN: usize = 8 << 20;
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 200_000;

/// What an element holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Element(Element),
    Text(String),
    CData(String),
    /// Text as it is between its marks.
    Comment(String),
}

/// An element.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Element {
    /// Its name with its prefix.
    pub(super) name: String,
    /// Names with their prefixes, and values.
    attributes: Vec<(String, String)>,
    pub(super) nodes: Vec<Node>,
}

fn bad(why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("this is no XML that can be used: {why}"))
}

impl Element {
    pub(super) fn new(name: &str) -> Element {
        Element { name: name.to_owned(), ..Element::default() }
    }

    /// The same with this attribute.
    pub(super) fn with(mut self, name: &str, value: &str) -> Element {
        self.set(name, value);
        self
    }

    /// The same with this child.
    pub(super) fn and(mut self, child: Element) -> Element {
        self.push(child);
        self
    }

    /// The same with this text.
    pub(super) fn saying(mut self, text: &str) -> Element {
        self.set_text(text);
        self
    }

    /// The value of an attribute; empty where it is not there.
    pub(super) fn attr(&self, name: &str) -> &str {
        self.attributes.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Its attributes, names and values, as they stand.
    pub(super) fn attributes(&self) -> &[(String, String)] {
        &self.attributes
    }

    /// Sets an attribute where it stands, or adds it.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self.attributes.iter_mut().find(|(n, _)| n == name) {
            Some((_, there)) => value.clone_into(there),
            None => self.attributes.push((name.to_owned(), value.to_owned())),
        }
    }

    pub(super) fn unset(&mut self, name: &str) {
        self.attributes.retain(|(n, _)| n != name);
    }

    /// Child elements.
    pub(super) fn elements(&self) -> impl Iterator<Item = &Element> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            _ => None,
        })
    }

    pub(super) fn elements_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.nodes.iter_mut().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            _ => None,
        })
    }

    /// Child elements of this name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.elements().filter(move |element| element.name == name)
    }

    /// The first child element of this name.
    pub(super) fn child(&self, name: &str) -> Option<&Element> {
        self.elements().find(|element| element.name == name)
    }

    pub(super) fn child_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.elements_mut().find(|element| element.name == name)
    }

    /// The first child element of this name, which is made at the end where there is none.
    pub(super) fn child_or_new(&mut self, name: &str) -> &mut Element {
        let there = self.nodes.iter().position(|node| matches!(node, Node::Element(e) if e.name == name));
        let at = there.unwrap_or_else(|| {
            self.nodes.push(Node::Element(Element::new(name)));
            self.nodes.len() - 1
        });
        match &mut self.nodes[at] {
            Node::Element(element) => element,
            _ => unreachable!("the position is that of an element"),
        }
    }

    /// The element at a path of names below this one.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// Text of a child, without white space around it; empty where there is none.
    pub(super) fn text_of(&self, name: &str) -> String {
        self.child(name).map(Element::text).unwrap_or_default()
    }

    /// Its own text, without white space around it.
    pub(super) fn text(&self) -> String {
        let parts = self.nodes.iter().filter_map(|node| match node {
            Node::Text(text) | Node::CData(text) => Some(text.as_str()),
            _ => None,
        });
        parts.collect::<String>().trim().to_owned()
    }

    /// Has this text, and nothing else.
    pub(super) fn set_text(&mut self, text: &str) {
        self.nodes = vec![Node::Text(text.to_owned())];
    }

    pub(super) fn push(&mut self, child: Element) {
        self.nodes.push(Node::Element(child));
    }

    /// Removes child elements for which `gone` says so; how many.
    pub(super) fn remove(&mut self, gone: impl Fn(&Element) -> bool) -> usize {
        let before = self.nodes.len();
        self.nodes.retain(|node| !matches!(node, Node::Element(element) if gone(element)));
        before - self.nodes.len()
    }

    /// Removes child elements of these names.
    pub(super) fn remove_all(&mut self, names: &[&str]) -> usize {
        self.remove(|element| names.contains(&element.name.as_str()))
    }

    /// Reads the one element of a document.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn parse(text: &str) -> Result<Element> {
        if text.len() > MAX_LEN {
            return Err(bad(format!("it has {} bytes, at most {MAX_LEN} are read", text.len())));
        }
        let mut reader = Reader::from_str(text);
        let mut open = Open::default();
        loop {
            let at = reader.buffer_position();
            let event = reader.read_event().map_err(|e| bad(format!("at byte {at}: {e}")))?;
            match event {
                Event::Eof => return open.end(),
                event => open.take(event).map_err(|e| e.while_doing(format!("at byte {at}")))?,
            }
        }
    }

    /// As a document, without a declaration.
    ///
    /// # Errors
    /// `Internal` where it cannot be written.
    pub(super) fn write(&self) -> Result<String> {
        let mut writer = Writer::new(Vec::new());
        self.write_into(&mut writer).map_err(|e| Error::with_source(ErrorKind::Internal, "write XML", e))?;
        String::from_utf8(writer.into_inner()).map_err(|e| Error::with_source(ErrorKind::Internal, "write XML", e))
    }

    fn write_into(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let mut start = BytesStart::new(self.name.as_str());
        for (name, value) in &self.attributes {
            start.push_attribute((name.as_bytes(), escape(value, true).as_bytes()));
        }
        if self.nodes.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        for node in &self.nodes {
            match node {
                Node::Element(element) => element.write_into(writer)?,
                Node::Text(text) => writer.write_event(Event::Text(BytesText::from_escaped(escape(text, false))))?,
                Node::CData(text) => writer.write_event(Event::CData(BytesCData::new(text.as_str())))?,
                Node::Comment(text) => writer.write_event(Event::Comment(BytesText::from_escaped(text.as_str())))?,
            }
        }
        writer.write_event(Event::End(BytesEnd::new(self.name.as_str())))
    }
}

/// Values and text come back as they are; in values line ends and tabs would come back as blanks.
fn escape(text: &str, is_value: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' if is_value => out.push_str("&#9;"),
            '\n' if is_value => out.push_str("&#10;"),
            c => out.push(c),
        }
    }
    out
}

/// Elements that are open while a document is read.
#[derive(Default)]
struct Open {
    stack: Vec<Element>,
    root: Option<Element>,
    nodes: usize,
}

impl Open {
    fn end(self) -> Result<Element> {
        match (self.stack.last(), self.root) {
            (Some(open), _) => Err(bad(format!("<{}> has no end", open.name))),
            (None, None) => Err(bad("there is no element")),
            (None, Some(root)) => Ok(root),
        }
    }

    fn take(&mut self, event: Event<'_>) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(bad(format!("more than {MAX_NODES} parts")));
        }
        match event {
            Event::Start(start) => {
                if self.stack.len() >= MAX_DEPTH {
                    return Err(bad(format!("deeper than {MAX_DEPTH}")));
                }
                self.stack.push(element(&start)?);
                Ok(())
            }
            Event::Empty(start) => self.close(element(&start)?),
            Event::End(_) => match self.stack.pop() {
                Some(done) => self.close(done),
                None => Err(bad("an end without a beginning")),
            },
            Event::Text(text) => self.text(&text.xml10_content().map_err(bad)?),
            Event::GeneralRef(entity) => {
                let known = match entity.resolve_char_ref().map_err(bad)? {
                    Some(c) => c.to_string(),
                    None => {
                        let name = entity.decode().map_err(bad)?;
                        let known = quick_xml::escape::resolve_predefined_entity(&name);
                        known.ok_or_else(|| bad(format!("&{name}; is not known")))?.to_owned()
                    }
                };
                self.text(&known)
            }
            Event::CData(text) => {
                let text = text.decode().map_err(bad)?.into_owned();
                self.node(Node::CData(text))
            }
            Event::Comment(text) => {
                let text = text.decode().map_err(bad)?.into_owned();
                // Those outside of the root say nothing of it.
                if self.stack.is_empty() { Ok(()) } else { self.node(Node::Comment(text)) }
            }
            Event::DocType(_) => Err(bad("it has a document type")),
            Event::Decl(_) | Event::PI(_) | Event::Eof => Ok(()),
        }
    }

    fn close(&mut self, done: Element) -> Result<()> {
        match (self.stack.last_mut(), &self.root) {
            (Some(parent), _) => {
                parent.nodes.push(Node::Element(done));
                Ok(())
            }
            (None, None) => {
                self.root = Some(done);
                Ok(())
            }
            (None, Some(_)) => Err(bad("there is more than one element")),
        }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if let Some(Node::Text(before)) = self.stack.last_mut().and_then(|parent| parent.nodes.last_mut()) {
            before.push_str(text);
            return Ok(());
        }
        match self.stack.is_empty() && text.trim().is_empty() {
            true => Ok(()),
            false => self.node(Node::Text(text.to_owned())),
        }
    }

    fn node(&mut self, node: Node) -> Result<()> {
        let parent = self.stack.last_mut().ok_or_else(|| bad("text outside of the element"))?;
        parent.nodes.push(node);
        Ok(())
    }
}

fn element(start: &BytesStart<'_>) -> Result<Element> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(bad);
    let mut out = Element::new(&text(start.name().as_ref())?);
    for attribute in start.attributes() {
        let attribute = attribute.map_err(bad)?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(bad)?;
        out.attributes.push((text(attribute.key.as_ref())?, value.into_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_known_comes_back_as_it_was() {
        let text = "<domain xmlns:q=\"http://x/\" type=\"kvm\">\n  <!-- a & b -->\n  <q:commandline><q:arg value=\"-x &lt;&amp;&quot;\"/>\
                    </q:commandline>\n  <name>a &amp; b</name><t><![CDATA[<raw>]]></t>\n</domain>";
        let tree = Element::parse(text).unwrap();
        assert_eq!(tree.write().unwrap(), text);
        assert_eq!(tree.text_of("name"), "a & b");
        assert_eq!(tree.at(&["q:commandline", "q:arg"]).unwrap().attr("value"), "-x <&\"");
        let single = Element::parse("<?xml version='1.0'?><!-- x --><a b='it&#39;s'>&#x41;</a>\n").unwrap();
        assert_eq!((single.attr("b"), single.text().as_str()), ("it's", "A"));
    }

    #[test]
    fn what_is_no_xml_is_told() {
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        let many = format!("<a>{}</a>", "<b/>".repeat(MAX_NODES));
        for (text, why) in [
            ("", "no element"),
            ("x", "outside"),
            ("<a>", "has no end"),
            ("<a></b>", "expected `</a>`"),
            ("<a/><b/>", "more than one"),
            ("<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>", "document type"),
            ("<a>&x;</a>", "&x; is not known"),
            ("<a b=\"1\" b=\"2\"/>", "duplicate"),
            (deep.as_str(), "deeper"),
            (many.as_str(), "more than 200000"),
        ] {
            let error = Element::parse(text).unwrap_err();
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "[<>/a-c &;'\"=!\\[\\]\\-?\\PC]{0,80}") {
            if let Ok(tree) = Element::parse(&text) {
                let written = tree.write().unwrap();
                prop_assert_eq!(Element::parse(&written).unwrap(), tree);
            }
        }

        #[test]
        fn values_and_text_come_back(value in "\\PC{0,20}", text in "\\PC{1,20}") {
            let tree = Element::new("a").with("b", &value).saying(&text);
            prop_assert_eq!(Element::parse(&tree.write().unwrap()).unwrap(), tree);
        }
    }
}
