//! Which tensors of a file a network is made of: the names that it needs, under whatever keys and prefixes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use candle_core::DType;

use super::{
    names::{self, SCHEMES, Statistic},
    stored::Stored,
    torch::{Contents, Named},
};

/// What a network needs.
pub(super) struct Wanted {
    /// Names and shapes.
    pub needed: Vec<(String, Vec<usize>)>,
    /// What the names of the last layer begin with.
    pub head: String,
    /// Whether the last layer's tensors are not wanted.
    pub new_head: bool,
    /// Mean and standard deviation of the pixels, by channel.
    pub normalisation: Option<[Vec<f64>; 2]>,
}

/// The tensors found, by the network's names.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub taken: BTreeMap<String, &'a Named>,
    pub prefix: String,
    pub left_out: Vec<String>,
}

/// A tensor's number, the tensor, and the parts of its name after the key.
type Keyed<'a> = (usize, &'a Named, Vec<String>);

/// A tensor among all of a file.
#[derive(Clone, Copy)]
struct Place<'a> {
    index: usize,
    named: &'a Named,
    /// Whether its name, after the key, is the network's to the letter.
    is_exact: bool,
}

/// The tensors under one prefix, by the network's names.
type Candidate<'a> = HashMap<&'a str, Vec<Place<'a>>>;

/// Finds the tensors that are wanted, before whose names `key` stands where it is given; an error says why none or more
/// than one are meant.
pub(super) fn choose<'a>(
    contents: &'a Contents,
    wanted: &'a Wanted,
    key: Option<&'a str>,
) -> Result<Choice<'a>, String> {
    let search = Search::new(contents, wanted, key);
    let candidates = search.candidates()?;
    let mut complete: Vec<&String> =
        candidates.keys().filter(|prefix| search.is_complete(&candidates[*prefix])).collect();
    complete.sort_by_key(|prefix| prefix.len());
    if key.is_some() && complete.first().is_some_and(|prefix| prefix.is_empty()) {
        complete.truncate(1);
    }
    let Some((&first, others)) = complete.split_first() else { return Err(search.misfit(&candidates)) };
    let taken = search.take(&candidates[first])?;
    let mut known: BTreeSet<usize> = BTreeSet::new();
    for &other in others {
        let second = search.take(&candidates[other])?;
        if let Some(name) =
            taken.iter().find(|(name, place)| !same(place.named, second[**name].named)).map(|(name, _)| name)
        {
            let [first, other] = [first, other].map(|prefix| search.after_key(prefix));
            return Err(format!(
                "it holds two networks, whose `{name}` differ: choose with `key = \"{first}\"` or `key = \"{other}\"`"
            ));
        }
        known.extend(second.values().map(|place| place.index));
    }
    known.extend(candidates[first].values().flatten().map(|place| place.index));
    let left_out = search.left_over(first, &taken, &known)?;
    let prefix = taken.iter().next().map(|(name, place)| raw_prefix(place.named, name)).unwrap_or_default();
    Ok(Choice { taken: taken.iter().map(|(&name, place)| (name.to_owned(), place.named)).collect(), prefix, left_out })
}

struct Search<'a> {
    contents: &'a Contents,
    wanted: &'a Wanted,
    key: Option<&'a str>,
    needed: HashMap<&'a str, &'a [usize]>,
}

impl<'a> Search<'a> {
    fn new(contents: &'a Contents, wanted: &'a Wanted, key: Option<&'a str>) -> Self {
        let head = |name: &str| wanted.new_head && name.starts_with(&wanted.head);
        let needed = wanted.needed.iter().filter(|(name, _)| !head(name));
        let needed = needed.map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        Self { contents, wanted, key, needed }
    }

    /// The network's name for a tensor, if it has one.
    fn name_of(&self, rest: &str) -> Option<&'a str> {
        let known = |name: &str| self.needed.get_key_value(name).map(|(name, _)| *name);
        known(rest)
            .or_else(|| SCHEMES.iter().find_map(|scheme| known(&scheme(rest)?)))
            .or_else(|| known(&crate::spec::names::known(rest, &|name| self.needed.contains_key(name))?))
    }

    /// The tensors after the key, and the parts of their names there.
    fn keyed(&self) -> Result<Vec<Keyed<'a>>, String> {
        let all = self.contents.tensors.iter().enumerate();
        let owned = |name: &str| names::parts(name).into_iter().map(str::to_owned).collect::<Vec<String>>();
        let Some(key) = self.key.filter(|key| !key.is_empty()) else {
            return Ok(all.map(|(index, named)| (index, named, owned(&full(named)))).collect());
        };
        let key = key.trim_end_matches('.');
        let plain = |(index, named): (usize, &'a Named)| {
            let rest = full(named).strip_prefix(key)?.strip_prefix('.').map(owned)?;
            Some((index, named, rest))
        };
        let mut found: Vec<_> = all.clone().filter_map(plain).collect();
        let key = owned(key);
        if found.is_empty() && !key.is_empty() {
            let unwrapped = |(index, named): (usize, &'a Named)| {
                let rest = owned(&full(named)).strip_prefix(key.as_slice())?.to_vec();
                Some((index, named, rest))
            };
            found = all.filter_map(unwrapped).collect();
        }
        if found.is_empty() {
            let firsts: BTreeSet<&str> = self.contents.tensors.iter().map(full_first).collect::<BTreeSet<_>>();
            let firsts: Vec<String> = firsts.into_iter().take(5).map(|first| format!("`{first}`")).collect();
            return Err(format!(
                "`key = \"{}\"` is before no name; names begin with {}",
                key.join("."),
                firsts.join(", ")
            ));
        }
        Ok(found)
    }

    /// All prefixes before names that the network needs.
    fn candidates(&self) -> Result<BTreeMap<String, Candidate<'a>>, String> {
        let mut candidates: BTreeMap<String, Candidate<'a>> = BTreeMap::new();
        for (index, named, parts) in self.keyed()? {
            // With an empty key names are taken as they are.
            let deepest = if self.key == Some("") { 0 } else { parts.len().saturating_sub(1) };
            for split in 0..=deepest {
                let rest = parts[split..].join(".");
                if let Some(name) = self.name_of(&rest) {
                    let is_exact = full(named).len()
                        == rest.len() + self.key.map_or(0, |key| key.len() + usize::from(!key.is_empty()));
                    let candidate = candidates.entry(parts[..split].join(".")).or_default();
                    candidate.entry(name).or_default().push(Place { index, named, is_exact });
                }
            }
        }
        Ok(candidates)
    }

    fn is_right(&self, name: &str, stored: &Stored) -> bool {
        stored.kind.is_float() && stored.shape == self.needed[name]
    }

    fn is_complete(&self, candidate: &Candidate<'a>) -> bool {
        self.needed.keys().all(|name| {
            candidate
                .get(name)
                .is_some_and(|places| places.iter().any(|place| self.is_right(name, &place.named.stored)))
        })
    }

    /// One tensor for each name of a complete candidate; of several, one that all others equal.
    fn take(&self, candidate: &Candidate<'a>) -> Result<BTreeMap<&'a str, Place<'a>>, String> {
        let one = |name: &'a str| {
            let places = &candidate[name];
            let right = |place: &&Place<'a>| self.is_right(name, &place.named.stored);
            let exact = places.iter().filter(right).find(|place| place.is_exact && self.key.is_some());
            let first = *exact.or_else(|| places.iter().find(right)).expect("a complete candidate");
            let other = places.iter().find(|place| exact.is_none() && !same(first.named, place.named));
            match other {
                None => Ok((name, first)),
                Some(other) => Err(format!(
                    "two tensors are meant for `{name}`, and differ: `{}` and `{}`; choose with `key = \"{}\"` or `key = \"{}\"`",
                    full(first.named),
                    full(other.named),
                    raw_prefix(first.named, name).trim_end_matches('.'),
                    raw_prefix(other.named, name).trim_end_matches('.'),
                )),
            }
        };
        self.needed.keys().map(|name| one(name)).collect()
    }

    /// A prefix with the key before it.
    fn after_key(&self, prefix: &str) -> String {
        let parts = [self.key.unwrap_or_default().trim_end_matches('.'), prefix];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
    }

    /// The names of what is left out; an error where that may not be.
    fn left_over(
        &self,
        prefix: &str,
        taken: &BTreeMap<&'a str, Place<'a>>,
        known: &BTreeSet<usize>,
    ) -> Result<Vec<String>, String> {
        let nests: BTreeSet<&str> = taken.values().map(|place| place.named.nest.as_str()).collect();
        let used: BTreeSet<usize> = taken.values().map(|place| place.index).collect();
        let prefix = self.after_key(prefix);
        let prefix: Vec<&str> = names::parts(&prefix);
        let (mut left_out, mut own, mut second) = (vec![], vec![], None);
        for (index, named) in self.contents.tensors.iter().enumerate().filter(|(index, _)| !used.contains(index)) {
            let name = full(named);
            let parts = names::parts(&name);
            let rest = parts.strip_prefix(prefix.as_slice()).map(|rest| rest.join("."));
            if nests.contains(named.nest.as_str()) {
                self.check_statistic(named)?;
            }
            let is_known = known.contains(&index)
                || !nests.contains(named.nest.as_str())
                || !named.stored.kind.is_float()
                || names::is_idle(&name)
                || self.is_statistic(named)
                || (self.key.is_some() && rest.is_none())
                || (self.wanted.new_head && rest.as_deref().is_some_and(|rest| self.is_of_head(rest)));
            // Another tensor for a name that has one.
            let rival = (0..parts.len()).find_map(|split| {
                let name = self.name_of(&parts[split..].join("."))?;
                (taken[name].named.stored.shape == named.stored.shape).then_some((split, name))
            });
            let is_equal = rival.is_some_and(|(_, name)| same(taken[name].named, named));
            if !is_known && !is_equal {
                match rival {
                    Some(_) if self.key.is_some() => {}
                    Some((split, rival)) => {
                        second = second.or_else(|| Some((name.clone(), rival, parts[..split].join("."))));
                        own.push(named);
                        continue;
                    }
                    None => {
                        own.push(named);
                        continue;
                    }
                }
            }
            left_out.push(name);
        }
        if own.is_empty() {
            return Ok(left_out);
        }
        let mut text = own_tensors(&own);
        if let Some((name, rival, other)) = second {
            text += &format!(
                "; `{name}` may be meant for `{rival}`, and differs: choose with `key = \"{}\"` or `key = \"{other}\"`",
                prefix.join(".")
            );
        } else if !prefix.is_empty() && self.key.is_none() {
            text += &format!("; if what is beside it does not matter, `key = \"{}\"` leaves it out", prefix.join("."));
        }
        Err(text)
    }

    fn is_of_head(&self, rest: &str) -> bool {
        let of_head = |name: &str| name.starts_with(&self.wanted.head);
        of_head(rest) || SCHEMES.iter().any(|scheme| scheme(rest).is_some_and(|name| of_head(&name)))
    }

    fn is_statistic(&self, named: &Named) -> bool {
        let channels = self.wanted.normalisation.as_ref().map(|[mean, _]| mean.len());
        let len = named.stored.len();
        names::statistic(&named.name).is_some() && channels.is_some() && (len == Some(1) || len == channels)
    }

    /// Fails where the file normalises pixels otherwise than the network.
    fn check_statistic(&self, named: &Named) -> Result<(), String> {
        let (Some(statistic), Some([mean, std])) = (names::statistic(&named.name), &self.wanted.normalisation) else {
            return Ok(());
        };
        if !self.is_statistic(named) || !named.stored.kind.is_float() {
            return Ok(());
        }
        let (what, ours) = if statistic == Statistic::Mean { ("mean", mean) } else { ("std", std) };
        let theirs = numbers(&named.stored).ok_or_else(|| format!("`{}` cannot be read", full(named)))?;
        let near = |(i, ours): (usize, &f64)| (theirs[i % theirs.len()] - ours).abs() <= 1e-4;
        if ours.iter().enumerate().all(near) {
            return Ok(());
        }
        let short = |values: &[f64]| {
            values.iter().map(|v| ((v * 1e6).round() / 1e6).to_string()).collect::<Vec<_>>().join(", ")
        };
        let (theirs, ours) = (short(&theirs), short(ours));
        let name = full(named);
        Err(format!(
            "it normalises pixels by `{name}` = [{theirs}], but the model's `{what}` is [{ours}]: set `{what}` = [{theirs}], in \
             units of pixels in [0, 1]"
        ))
    }

    /// Both sides of a network and a file that do not fit.
    fn misfit(&self, candidates: &BTreeMap<String, Candidate<'a>>) -> String {
        let right = |candidate: &Candidate<'a>| {
            let is_right = |(name, places): &(&&str, &Vec<Place<'a>>)| {
                places.iter().any(|place| self.is_right(name, &place.named.stored))
            };
            candidate.iter().filter(is_right).count()
        };
        let best = candidates
            .iter()
            .max_by_key(|(prefix, candidate)| (right(candidate), candidate.len(), std::cmp::Reverse(prefix.len())));
        let none = Candidate::new();
        let (prefix, candidate) = best.map_or(("", &none), |(prefix, candidate)| (prefix.as_str(), candidate));
        let (mut wrong, mut missing, mut reshaped) = (vec![], vec![], vec![]);
        for (name, shape) in self.wanted.needed.iter().filter(|(name, _)| self.needed.contains_key(name.as_str())) {
            match candidate.get(name.as_str()).and_then(|places| places.first()) {
                None => missing.push(format!("`{name}` {shape:?} is missing")),
                Some(place) if !place.named.stored.kind.is_float() => {
                    let kind = place.named.stored.kind.name();
                    wrong.push(format!("`{name}` holds {kind}, not floating-point numbers"));
                }
                Some(place) if place.named.stored.shape != *shape => {
                    wrong.push(format!("`{name}` is {:?}, not {shape:?}", place.named.stored.shape));
                    reshaped.push((name, shape, &place.named.stored.shape));
                }
                Some(_) => {}
            }
        }
        let hint = self.hint(&reshaped, wrong.len() == reshaped.len() && missing.is_empty());
        let mut said: Vec<String> = [few(&wrong), few(&missing)].into_iter().flatten().collect();
        let taken: BTreeSet<usize> = candidate.values().flatten().map(|place| place.index).collect();
        let nests: BTreeSet<&str> = candidate.values().flatten().map(|place| place.named.nest.as_str()).collect();
        let tensors = self.contents.tensors.iter().enumerate();
        let own: Vec<&Named> = tensors
            .filter(|(index, named)| {
                let beside = !nests.is_empty() && !nests.contains(named.nest.as_str());
                !taken.contains(index) && !beside && !names::is_idle(&named.name) && named.stored.kind.is_float()
            })
            .map(|(_, named)| named)
            .collect();
        if !own.is_empty() {
            said.push(own_tensors(&own));
        }
        if !prefix.is_empty() {
            said.push(format!("under the prefix `{prefix}.` {} of {} fit", right(candidate), self.needed.len()));
        }
        if let ([], [class, ..]) = (said.as_slice(), self.contents.modules.as_slice()) {
            said.push(format!("beside it is a whole module, pickled, of the class {class}"));
        }
        said.extend(hint);
        said.join("; ")
    }

    /// The mend of shapes that differ in a usual way.
    fn hint(&self, reshaped: &[(&String, &Vec<usize>, &Vec<usize>)], nothing_else: bool) -> Option<String> {
        let is_head = |name: &str| name.starts_with(&self.wanted.head);
        let (_, _, theirs) = reshaped.first()?;
        if nothing_else && reshaped.iter().all(|(name, ours, theirs)| is_head(name) && ours.get(1..) == theirs.get(1..))
        {
            let classes = theirs[0];
            return Some(format!(
                "the file's network has {classes} classes: say `classes = {classes}` in its `model`, or train a last layer of \
                 your own with `new_head = true`"
            ));
        }
        let sorted = |shape: &[usize]| {
            let mut shape = shape.to_vec();
            shape.sort_unstable();
            shape
        };
        let turned = reshaped.iter().any(|(_, ours, theirs)| ours.len() > 1 && sorted(ours) == sorted(theirs));
        turned.then(|| "axes are in another order: PyTorch's is outputs, inputs, rows, columns".to_owned())
    }
}

/// The whole name: the keys to the dictionary, and the name there.
fn full(named: &Named) -> String {
    if named.nest.is_empty() { named.name.clone() } else { format!("{}.{}", named.nest, named.name) }
}

fn full_first(named: &Named) -> &str {
    let name = if named.nest.is_empty() { &named.name } else { &named.nest };
    name.split('.').next().unwrap_or(name)
}

/// What stands before the part of a whole name that is the network's `name`: empty, or it ends with a dot.
fn raw_prefix(named: &Named, name: &str) -> String {
    let whole = full(named);
    let whole: Vec<&str> = whole.split('.').collect();
    let mut wanted = name.split('.').count();
    let mut at = whole.len();
    while wanted > 0 && at > 0 {
        at -= 1;
        wanted -= names::parts(whole[at]).len().min(wanted);
    }
    whole[..at].iter().map(|part| format!("{part}.")).collect()
}

/// Two of the file's own tensors, and how many more.
fn own_tensors(own: &[&Named]) -> String {
    let own: Vec<String> = own
        .iter()
        .map(|named| format!("the file's `{}` {:?} is not part of it", full(named), named.stored.shape))
        .collect();
    few(&own).unwrap_or_default()
}

/// Two of a list, and how many more.
fn few(list: &[String]) -> Option<String> {
    match list {
        [] => None,
        [first] => Some(first.clone()),
        [first, second] => Some(format!("{first}; {second}")),
        [first, second, more @ ..] => Some(format!("{first}; {second} (and {} more)", more.len())),
    }
}

/// Whether two tensors are the same numbers to the last bit, in whatever type.
fn same(one: &Named, other: &Named) -> bool {
    if one.stored.shape != other.stored.shape {
        return false;
    }
    let bits = |named: &Named| Some(numbers(&named.stored)?.into_iter().map(f64::to_bits).collect::<Vec<_>>());
    std::ptr::eq(one, other) || bits(one).is_some_and(|one| Some(one) == bits(other))
}

/// The numbers of a tensor; none if they cannot be read.
fn numbers(stored: &Stored) -> Option<Vec<f64>> {
    stored.tensor().ok()?.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1::<f64>()).ok()
}
