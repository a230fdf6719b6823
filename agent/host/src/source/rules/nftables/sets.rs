//! Short sets in words.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use headroom_core::observe::RuleFamily;

use super::{Bound, elements};
use crate::netlink::nftables::rule::SetInWords;
use crate::netlink::nftables::set::{Key, SetHead, set};
use crate::netlink::nftables::{self as nft, Place, Request};
use crate::netlink::query::{Query, QueryError};

/// Sets whose elements are told at most, and elements of each.
const SETS_LIMIT: usize = 64;
const SET_ELEMENTS_SHOWN: usize = 16;
/// Sets of a table whose types are kept at most.
const HEADS_LIMIT: usize = 65_536;

/// The sets of a table.
pub(super) struct Sets<'a> {
    family: RuleFamily,
    table: &'a str,
    deadline: Instant,
    /// What each is, once somebody asks for one.
    heads: Option<BTreeMap<String, SetHead>>,
    known: BTreeMap<String, SetInWords>,
}

impl<'a> Sets<'a> {
    pub(super) fn new(family: RuleFamily, table: &'a str, deadline: Instant) -> Self {
        Self { family, table, deadline, heads: None, known: BTreeMap::new() }
    }

    /// A set in words: its elements if it is a short one of a type that has words, its name otherwise.
    pub(super) fn shown(&mut self, name: &str) -> SetInWords {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        // Sets whose types could not be read are told by their names.
        let heads = self.heads.take().unwrap_or_else(|| self.heads().unwrap_or_default());
        let shown = match heads.get(name) {
            Some(head) => {
                let keys = self.elements(head);
                let nothing = keys.as_ref().is_some_and(Vec::is_empty);
                let words = keys.as_ref().filter(|_| !nothing);
                let words = words.and_then(|keys| head.in_words(keys.clone(), SET_ELEMENTS_SHOWN));
                let empty = nothing && !head.filled;
                let numbers = keys.as_ref().and_then(|keys| head.numbers(keys.clone()));
                let protocols = keys.and_then(|keys| head.protocols(keys));
                SetInWords { words, protocols, numbers, empty, fixed: head.fixed, registers: head.registers() }
            }
            None => SetInWords::default(),
        };
        self.heads = Some(heads);
        self.known.insert(name.to_owned(), shown.clone());
        shown
    }

    fn heads(&self) -> Result<BTreeMap<String, SetHead>, QueryError> {
        let mut heads = BTreeMap::new();
        let mut query = Query::open()?;
        let place = Place { family: self.family, table: self.table, within: None };
        let request = nft::request(&Request::Sets(place), query.next_sequence());
        let mut bound = Bound::new("sets", HEADS_LIMIT);
        query.list("sets", &request, self.deadline, |message| {
            let Some(head) = set(message)? else { return Ok(ControlFlow::Continue(())) };
            let more = bound.one_more();
            if more.is_continue() {
                heads.insert(head.name.clone(), head);
            }
            Ok(more)
        })?;
        Ok(heads)
    }

    /// The elements of a set that is short enough to be told.
    fn elements(&self, head: &SetHead) -> Option<Vec<Key>> {
        if head.fields.is_empty() || self.known.len() >= SETS_LIMIT {
            return None;
        }
        let mut keys: Vec<Key> = Vec::new();
        let place = Place { family: self.family, table: self.table, within: Some(&head.name) };
        let more = elements(&place, SET_ELEMENTS_SHOWN * 2 + 1, self.deadline, |element| keys.push(Key::of(&element)));
        (!more.ok()?).then_some(keys)
    }
}
