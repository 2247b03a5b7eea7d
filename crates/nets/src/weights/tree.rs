//! What a pickle holds: a tree of plain values, and of the names of what Python would have called.

/// The place of an item in its [`Tree`].
pub(super) type Id = usize;

/// What a pickle holds at one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// `None`, and numbers beyond 128 bits, which nothing here needs.
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    /// Python 2's texts too.
    Bytes(Vec<u8>),
    /// Lists and sets.
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function by its whole name.
    Global(String),
    /// What a call would have made, with what was then put into it.
    Made {
        by: Id,
        arguments: Id,
        state: Option<Id>,
        items: Vec<(Id, Id)>,
        list: Vec<Id>,
    },
    /// What only the surrounding file can tell, by its identity.
    Persistent(Id),
}

/// Everything that one pickle holds; places may be shared, and hold themselves.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) items: Vec<Item>,
}

impl Tree {
    pub fn get(&self, id: Id) -> &Item {
        &self.items[id]
    }

    /// Every item.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// A text, Python 2's too.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Item::Text(text) => Some(text),
            Item::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// A whole number of at least 0.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Item::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple or a list.
    pub fn elements(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Item::Tuple(items) | Item::List(items) => Some(items),
            _ => None,
        }
    }

    /// The name of a class or a function.
    pub fn name(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Item::Global(name) => Some(name),
            // Old torch marks the classes of modules: ("module", class, file, source).
            Item::Persistent(pid) => match self.elements(*pid)? {
                [what, class, ..] if self.text(*what) == Some("module") => self.name(*class),
                _ => None,
            },
            _ => None,
        }
    }

    /// What was called and its arguments.
    pub fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        match self.get(id) {
            Item::Made { by, arguments, .. } => Some((self.name(*by)?, self.elements(*arguments).unwrap_or_default())),
            _ => None,
        }
    }

    /// The entries of a dictionary of any class.
    pub fn entries(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        match self.get(id) {
            Item::Dict(entries) => Some(entries.clone()),
            Item::Made { by, arguments, items, .. } => {
                let is_dict = matches!(
                    self.name(*by),
                    Some("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict" | "__builtin__.dict")
                );
                if !is_dict && items.is_empty() {
                    return None;
                }
                // Python 2 gives the entries as an argument: a list of pairs.
                let given = self.elements(*arguments).and_then(|arguments| self.elements(*arguments.first()?));
                let pair = |&id: &Id| match self.elements(id) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let given = given.unwrap_or_default().iter().filter_map(pair);
                Some(given.chain(items.iter().copied()).collect())
            }
            _ => None,
        }
    }

    /// Adds an item; its place.
    pub fn push(&mut self, item: Item) -> Id {
        self.items.push(item);
        self.items.len() - 1
    }
}
