//! Classes by name: lists that the field knows, and where the names of one list stand in another.
//!
//! A class of ImageNet has many names: its synset id, WordNet's lemmas, what torchvision calls it. Two names are the same
//! class where they are equal, or where a known list says so (`data/`, written by `scripts/classes/make.py`).

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::LazyLock,
};

use serde::{Deserialize, Serialize};

/// The lists known by name.
pub const LISTS: [&str; 3] = ["cifar10", "imagenet", "imagenette"];

static KNOWN: LazyLock<[List; 3]> = LazyLock::new(|| {
    [
        List::read(include_str!("../data/cifar10.tsv")),
        List::read(include_str!("../data/imagenet.tsv")),
        List::read(include_str!("../data/imagenette.tsv")),
    ]
});

/// Classes in order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Classes {
    /// Their names.
    Names(Vec<String>),
    /// Only how many there are: they are named by number.
    Count(NonZeroU32),
    /// The name of a list: one of [`LISTS`].
    List(String),
}

impl Classes {
    /// Finds what cannot be a list of classes.
    ///
    /// # Errors
    /// With a sentence that names the mend.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Names(names) if names.is_empty() => Err("no class is named: leave it out, or name them".to_owned()),
            Self::Names(names) => {
                let mut seen = HashSet::new();
                match names.iter().find(|name| !seen.insert(*name)) {
                    Some(twice) => Err(format!("`{twice}` is named twice: give each class a name of its own")),
                    None => Ok(()),
                }
            }
            Self::List(list) if !LISTS.contains(&list.as_str()) => {
                Err(format!("no list of classes is called `{list}`: name one of {}, or all classes", LISTS.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// The names in order; of a list that is not known, none.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Names(names) => names.clone(),
            Self::Count(count) => numbered(count.get() as usize),
            Self::List(list) => {
                let known = LISTS.iter().position(|name| name == list).map(|at| &KNOWN[at]);
                known.map(|known| known.names.clone()).unwrap_or_default()
            }
        }
    }

    /// Whether only their number is stated.
    #[must_use]
    pub const fn is_count(&self) -> bool {
        matches!(self, Self::Count(_))
    }
}

/// The names of so many classes that have none: their numbers.
#[must_use]
pub fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|class| class.to_string()).collect()
}

/// The numbers that the names are, where every one of them is a number.
#[must_use]
pub fn numbers(names: &[String]) -> Option<Vec<u32>> {
    let number = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok()).flatten();
    names.iter().map(number).collect::<Option<Vec<u32>>>().filter(|numbers| !numbers.is_empty())
}

/// Why names have no places in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Names that the list has not.
    Others(Vec<String>),
    /// A name that several classes of the list have: the name, and these.
    Ambiguous(String, Vec<String>),
    /// Two names of one class: the second, and the class.
    Twice(String, String),
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Others(names) => write!(f, "{} named among them", few(names, "is not", "are not")),
            Self::Ambiguous(name, classes) => {
                write!(
                    f,
                    "`{name}` may be {}",
                    classes.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(" or ")
                )
            }
            Self::Twice(name, class) => write!(f, "`{name}` is `{class}`, which another class is already"),
        }
    }
}

/// The first names of a list and how many more there are, with the verb that goes with them.
#[must_use]
pub fn few(names: &[String], one: &str, many: &str) -> String {
    let quoted: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
    match names.len() {
        1 => format!("{} {one}", quoted[0]),
        all if all <= 3 => format!("{} {many}", quoted.join(", ")),
        all => format!("{} and {} more {many}", quoted.join(", "), all - 3),
    }
}

/// Where each of `names` stands in `classes`.
///
/// # Errors
/// If a name is none of them, may be several, or is one that another name is already.
pub fn place(names: &[String], classes: &[String]) -> Result<Vec<u32>, Misfit> {
    let places = Places::of(classes);
    let candidates: Vec<Vec<u32>> = names.iter().map(|name| places.candidates(name)).collect();
    if names.len() == classes.len() && (0..).zip(&candidates).all(|(at, found)| found.contains(&at)) {
        return Ok((0..names.len() as u32).collect());
    }
    let others: Vec<String> =
        names.iter().zip(&candidates).filter(|(_, found)| found.is_empty()).map(|(name, _)| name.clone()).collect();
    if !others.is_empty() {
        return Err(Misfit::Others(others));
    }
    // What only one name can be, no other is.
    let mut found: Vec<Option<u32>> = vec![None; names.len()];
    let mut taken = HashSet::new();
    loop {
        let before = taken.len();
        for (at, name) in names.iter().enumerate().filter(|(at, _)| candidates[*at].len() == 1 || before > 0) {
            let left: Vec<u32> = candidates[at].iter().copied().filter(|class| !taken.contains(class)).collect();
            match left[..] {
                _ if found[at].is_some() => {}
                [] => return Err(Misfit::Twice(name.clone(), classes[candidates[at][0] as usize].clone())),
                [class] => {
                    taken.insert(class);
                    found[at] = Some(class);
                }
                _ => {}
            }
        }
        if taken.len() == before {
            break;
        }
    }
    let place = |(at, found): (usize, Option<u32>)| {
        let classes = || candidates[at].iter().map(|&class| classes[class as usize].clone()).collect();
        found.ok_or_else(|| Misfit::Ambiguous(names[at].clone(), classes()))
    };
    found.into_iter().enumerate().map(place).collect()
}

/// How the classes of a sample contradict those of a network, if they do. Classes named by their numbers contradict none.
#[must_use]
pub fn contradiction(sample: &[String], network: &[String]) -> Option<String> {
    if sample.len() != network.len() {
        return Some(format!("the sample has {} classes and the network {}", sample.len(), network.len()));
    }
    let plain = |names: &[String]| names == numbered(names.len());
    if plain(sample) || plain(network) {
        return None;
    }
    let places = Places::of(network);
    let other = |at: &usize| !places.candidates(&sample[*at]).contains(&(*at as u32));
    let at = (0..sample.len()).find(other)?;
    Some(format!("class {at} is `{}` in the sample and `{}` in the network", sample[at], network[at]))
}

/// A list of classes, and all their names.
struct List {
    names: Vec<String>,
    exact: HashMap<String, Vec<u32>>,
    plain: HashMap<String, Vec<u32>>,
}

impl List {
    /// Reads lines of synset, name, and other names.
    fn read(text: &str) -> Self {
        let mut list = Self { names: Vec::new(), exact: HashMap::new(), plain: HashMap::new() };
        for (class, line) in (0..).zip(text.lines()) {
            let mut columns = line.split('\t');
            let (synset, name) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
            let others = columns.next().unwrap_or_default().split('|');
            list.names.push(name.to_owned());
            for name in [synset, name].into_iter().chain(others).filter(|name| !name.is_empty()) {
                insert(&mut list.exact, name.to_owned(), class);
                insert(&mut list.plain, plain(name), class);
            }
        }
        list
    }

    /// The classes that may be called so.
    fn candidates(&self, name: &str) -> &[u32] {
        self.exact.get(name).or_else(|| self.plain.get(&plain(name))).map(Vec::as_slice).unwrap_or_default()
    }
}

/// The classes of a list by all their names.
struct Places {
    exact: HashMap<String, Vec<u32>>,
    plain: HashMap<String, Vec<u32>>,
    /// By the class of each known list.
    known: [HashMap<u32, Vec<u32>>; LISTS.len()],
}

impl Places {
    fn of(classes: &[String]) -> Self {
        let mut places = Self { exact: HashMap::new(), plain: HashMap::new(), known: Default::default() };
        for (at, name) in (0..).zip(classes) {
            insert(&mut places.exact, name.clone(), at);
            insert(&mut places.plain, plain(name), at);
        }
        for (known, list) in places.known.iter_mut().zip(KNOWN.iter()) {
            let itself = classes == list.names;
            for (at, name) in (0..).zip(classes) {
                let same = if itself { &[at][..] } else { list.candidates(name) };
                same.iter().for_each(|&class| insert(known, class, at));
            }
        }
        places
    }

    /// The places of the classes that may be called so, in order.
    fn candidates(&self, name: &str) -> Vec<u32> {
        let mut found = self.exact.get(name).cloned().unwrap_or_default();
        for (known, list) in self.known.iter().zip(KNOWN.iter()) {
            found.extend(list.candidates(name).iter().filter_map(|class| known.get(class)).flatten());
        }
        if found.is_empty() {
            found = self.plain.get(&plain(name)).cloned().unwrap_or_default();
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn insert<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Vec<u32>>, key: K, class: u32) {
    let classes = map.entry(key).or_default();
    if classes.last() != Some(&class) {
        classes.push(class);
    }
}

/// A name without what spellings differ in.
fn plain(name: &str) -> String {
    let word = |c: char| if matches!(c, '_' | '-') { ' ' } else { c };
    name.trim().chars().flat_map(char::to_lowercase).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn list(name: &str) -> Vec<String> {
        Classes::List(name.to_owned()).names()
    }

    #[test]
    fn the_known_lists_are_whole() {
        for (name, count, third) in [("imagenet", 1000, "great white shark"), ("imagenette", 10, "cassette player")] {
            assert_eq!((list(name).len(), list(name)[2].as_str()), (count, third));
        }
        assert_eq!(list("cifar10")[9], "truck");
        let text = Classes::List("imagenet1k".to_owned()).check().unwrap_err();
        assert!(text.contains("imagenet, imagenette"), "{text}");
        let text = Classes::Names(names(&["a", "b", "a"])).check().unwrap_err();
        assert!(text.contains("`a` is named twice"), "{text}");
    }

    #[test]
    fn imagenette_stands_at_its_numbers_in_imagenet() {
        // As the field's programs number them.
        let expected = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701];
        assert_eq!(place(&list("imagenette"), &list("imagenet")).unwrap(), expected);
        assert_eq!(place(&names(&["n03888257", "n01440764"]), &list("imagenet")).unwrap(), [701, 0]);
        assert_eq!(place(&names(&["n03888257", "chain_saw"]), &list("imagenette")).unwrap(), [9, 3]);
        let keras = names(&["English_springer", "great_white_shark"]);
        assert_eq!(place(&keras, &list("imagenet")).unwrap(), [217, 2]);
    }

    #[test]
    fn names_are_placed_by_name_whatever_their_order() {
        let mut cifar = list("cifar10");
        cifar.reverse();
        assert_eq!(place(&cifar, &list("cifar10")).unwrap(), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        let own = names(&["zebra fish", "ape"]);
        assert_eq!(place(&names(&["Ape"]), &own).unwrap(), [1]);
        assert_eq!(place(&names(&["ape", "cow"]), &own), Err(Misfit::Others(names(&["cow"]))));
        assert_eq!(
            place(&names(&["car", "automobile"]), &list("cifar10")),
            Err(Misfit::Twice("automobile".to_owned(), "automobile".to_owned()))
        );
    }

    #[test]
    fn a_name_of_two_classes_is_placed_only_where_the_other_names_leave_one() {
        let imagenet = list("imagenet");
        let cranes = Misfit::Ambiguous("crane".to_owned(), names(&["crane bird", "crane"]));
        assert_eq!(place(&names(&["crane", "tench"]), &imagenet), Err(cranes));
        assert_eq!(place(&names(&["crane", "crane bird"]), &imagenet).unwrap(), [517, 134]);
        assert_eq!(place(&names(&["Cardigan", "cardigan"]), &imagenet).unwrap(), [264, 474]);
        assert_eq!(place(&imagenet, &imagenet).unwrap(), (0..1000).collect::<Vec<_>>());
        // All lemmas, as the hub's copy names the classes; two of them twice.
        let text = include_str!("../data/imagenet.tsv");
        let lemmas = |line: &str| line.split('\t').nth(2).unwrap().split('|').next().unwrap().to_owned();
        let name = |line: &str| line.split('\t').nth(1).unwrap().to_owned();
        let all: Vec<String> =
            text.lines().map(|line| Some(lemmas(line)).filter(|all| !all.is_empty()).unwrap_or(name(line))).collect();
        assert_eq!(place(&all, &imagenet).unwrap(), (0..1000).collect::<Vec<_>>());
        let synsets: Vec<String> = text.lines().rev().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
        assert_eq!(place(&synsets, &imagenet).unwrap(), (0..1000).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_sample_contradicts_a_network_of_other_classes() {
        let cifar = list("cifar10");
        let synsets = names(&["n01440764", "n02102040"]);
        assert_eq!(contradiction(&cifar, &cifar), None);
        assert_eq!(contradiction(&synsets, &names(&["tench", "English springer"])), None);
        assert_eq!(contradiction(&numbered(10), &cifar), None);
        let text = contradiction(&synsets, &cifar).unwrap();
        assert_eq!(text, "the sample has 2 classes and the network 10");
        let text = contradiction(&list("imagenette"), &cifar).unwrap();
        assert_eq!(text, "class 0 is `tench` in the sample and `airplane` in the network");
        let turned = names(&["dog", "cat"]);
        assert!(contradiction(&turned, &names(&["cat", "dog"])).unwrap().contains("class 0 is `dog`"));
    }

    #[test]
    fn names_that_are_all_numbers_are_numbers() {
        assert_eq!(numbers(&names(&["0", "10", "007"])), Some(vec![0, 10, 7]));
        assert_eq!(numbers(&names(&["0", "n1"])), None);
        assert_eq!(numbers(&[]), None);
        assert_eq!(numbers(&names(&["", "1"])), None);
    }
}
