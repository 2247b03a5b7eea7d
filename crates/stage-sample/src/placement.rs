//! Which class of the sample each label of a source is.

use std::collections::{BTreeMap, HashMap};

use stage::{
    Unfit,
    classes::{self, Misfit, few, numbered, numbers, place},
};

use crate::{Params, params::Place};

/// The most classes that names which are numbers may ask for.
const MOST: u32 = 1 << 20;

/// How a source's labels are to be read.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// The classes of the sample, in order of their labels.
    pub classes: Vec<String>,
    /// Classes of the source that the sample does not have.
    pub left_out: Vec<String>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    /// The class of each of the source's own classes; none for those left out.
    Each(Vec<Option<u32>>),
    /// The number less that of the first class.
    Number(i64),
    /// As the parameters say for each number.
    Stated(HashMap<i64, u32>),
}

impl Placement {
    /// Places the classes that the source names, if it names them, in those that the parameters ask for. A source that
    /// `selects` may have others, too: a folder of more class folders than asked for.
    pub fn new(told: Option<&[String]>, params: &Params, selects: bool) -> Result<Self, Unfit> {
        match told {
            Some(told) => named(told, params, selects),
            None => unnamed(params),
        }
    }

    /// The class of a label, `None` where it is left out.
    ///
    /// # Errors
    /// With what is wrong with the label, and the mend.
    pub fn label(&self, label: i64) -> Result<Option<u32>, String> {
        let known = match &self.rule {
            Rule::Each(to) => usize::try_from(label).ok().and_then(|at| to.get(at)).copied(),
            Rule::Number(first) => {
                let class = label.checked_sub(*first).and_then(|class| u32::try_from(class).ok());
                class.filter(|&class| (class as usize) < self.classes.len()).map(Some)
            }
            Rule::Stated(to) => to.get(&label).copied().map(Some),
        };
        known.ok_or_else(|| {
            let count = self.classes.len() as i64;
            let mend = match self.rule {
                _ if label == -1 => "`datasets` marks images without a label so: name a split that has labels",
                Rule::Number(0) if label == count => "if the first class has the number 1, set `first_label` to 1",
                Rule::Stated(_) => "say in `labels` which class it is",
                _ => "name all classes in `classes`, or correct the label",
            };
            format!("label {label} is outside the classes (there are {count}): {mend}")
        })
    }

    /// The class of a number that is a label in itself.
    pub const fn is_by_number(&self) -> bool {
        matches!(self.rule, Rule::Number(_))
    }
}

/// Labels that are numbers, in a source that names no classes.
fn unnamed(params: &Params) -> Result<Placement, Unfit> {
    let Some(classes) = params.classes.as_ref().map(classes::Classes::names) else {
        let text = "the source names no classes: set `classes` to their names, to a list (imagenet, imagenette, cifar10), or to how many there are";
        return Err(Unfit(text.to_owned()));
    };
    let rule = match &params.labels {
        None => Rule::Number(params.first_label),
        Some(labels) => {
            let number = |name: &String| {
                name.parse().map_err(|_| {
                    Unfit(format!(
                        "`labels`: the source has numbers for labels and no names, so not `{name}`: name numbers"
                    ))
                })
            };
            let entry = |(name, to)| Ok((number(name)?, stated(to, &classes)?));
            Rule::Stated(labels.iter().map(entry).collect::<Result<_, Unfit>>()?)
        }
    };
    Ok(Placement { classes, left_out: Vec::new(), rule })
}

/// Classes that the source names.
fn named(told: &[String], params: &Params, selects: bool) -> Result<Placement, Unfit> {
    let given = params.classes.as_ref().map(classes::Classes::names);
    let by_count = params.classes.as_ref().is_some_and(classes::Classes::is_count);
    if let Some(labels) = &params.labels {
        return mapped(told, labels, given, params, selects);
    }
    let meant = given.as_ref().is_some_and(|given| !by_count && told.iter().all(|name| given.contains(name)));
    if let Some(numbers) = numbers(told).filter(|_| !meant) {
        return by_number(told, &numbers, given, params.first_label);
    }
    if params.first_label != 0 {
        let text = "`first_label`: the source names its classes, so its labels need no first number: leave it out";
        return Err(Unfit(text.to_owned()));
    }
    let identity = || (0..told.len() as u32).map(Some).collect();
    let Some(given) = given else {
        return Ok(Placement { classes: told.to_vec(), left_out: Vec::new(), rule: Rule::Each(identity()) });
    };
    if by_count {
        if told.len() == given.len() {
            return Ok(Placement { classes: told.to_vec(), left_out: Vec::new(), rule: Rule::Each(identity()) });
        }
        let text = format!(
            "the source has {} classes ({}) and `classes` says {}",
            told.len(),
            few(told, "", "").trim(),
            given.len()
        );
        let mend = "name all classes in order or a list (`classes = \"imagenet\"`), or say in `labels` which each is";
        return Err(Unfit(format!("{text}: a number does not say which they are: {mend}")));
    }
    let (to, left_out) = chosen(told, &given, selects)?;
    Ok(Placement { classes: given, left_out, rule: Rule::Each(to) })
}

/// Names that are numbers are the numbers of their classes.
fn by_number(told: &[String], numbers: &[u32], given: Option<Vec<String>>, first: i64) -> Result<Placement, Unfit> {
    let class = |(name, &number): (&String, &u32)| {
        let class = u32::try_from(i64::from(number) - first).ok().filter(|&class| class < MOST);
        class.ok_or_else(|| Unfit(format!("class `{name}`: no number of a class: correct its name or `first_label`")))
    };
    let to: Vec<u32> = told.iter().zip(numbers).map(class).collect::<Result<_, _>>()?;
    let count = to.iter().max().map_or(0, |most| *most as usize + 1);
    let classes = given.unwrap_or_else(|| numbered(count));
    if let Some(at) = to.iter().position(|&class| class as usize >= classes.len()) {
        let mend = if numbers[at] as usize == classes.len() && first == 0 && !numbers.contains(&0) {
            "if the first class has the number 1, set `first_label` to 1"
        } else {
            "name all classes in `classes`, or correct the name"
        };
        let text =
            format!("class `{}` is a number outside the classes (there are {}): {mend}", told[at], classes.len());
        return Err(Unfit(text));
    }
    let mut seen = HashMap::new();
    for (name, class) in told.iter().zip(&to) {
        if let Some(other) = seen.insert(*class, name) {
            return Err(Unfit(format!("`{other}` and `{name}` are the same number: join them, or rename one")));
        }
    }
    Ok(Placement { classes, left_out: Vec::new(), rule: Rule::Each(to.into_iter().map(Some).collect()) })
}

/// Classes that the parameters place, and the others by name.
fn mapped(
    told: &[String],
    labels: &BTreeMap<String, Place>,
    given: Option<Vec<String>>,
    params: &Params,
    selects: bool,
) -> Result<Placement, Unfit> {
    let Some(classes) = given else {
        return Err(Unfit("`labels` places the source's classes in others: name those in `classes`".to_owned()));
    };
    if let Some(other) = labels.keys().find(|name| !told.contains(name)) {
        let has = few(told, "", "");
        return Err(Unfit(format!("`labels` names a class `{other}`, and the source has {}: correct it", has.trim())));
    }
    let rest: Vec<String> = told.iter().filter(|name| !labels.contains_key(*name)).cloned().collect();
    let by_number = numbers(&rest).filter(|_| !rest.iter().all(|name| classes.contains(name)));
    let (places, left_out) = match by_number {
        Some(numbers) => {
            let rest = self::by_number(&rest, &numbers, Some(classes.clone()), params.first_label)?;
            let Rule::Each(to) = rest.rule else { return Err(Unfit("no places".to_owned())) };
            (to, Vec::new())
        }
        None => chosen(&rest, &classes, selects)?,
    };
    let mut places = places.into_iter();
    let mut to = Vec::new();
    for name in told {
        to.push(match labels.get(name) {
            Some(place) => Some(stated(place, &classes)?),
            None => places.next().flatten(),
        });
    }
    Ok(Placement { classes, left_out, rule: Rule::Each(to) })
}

/// The places of names; where the source `selects` and every class is there, others are left out.
fn chosen(told: &[String], classes: &[String], selects: bool) -> Result<(Vec<Option<u32>>, Vec<String>), Unfit> {
    let unfit = |misfit: &Misfit| {
        let mend = "correct `classes`, or say in `labels` which class each is";
        Unfit(format!(
            "the source's classes are no classes of the sample: {misfit} ({}): {mend}",
            few(classes, "", "").trim()
        ))
    };
    match place(told, classes) {
        Ok(to) => Ok((to.into_iter().map(Some).collect(), Vec::new())),
        Err(Misfit::Others(others)) if selects => {
            let rest: Vec<String> = told.iter().filter(|name| !others.contains(name)).cloned().collect();
            let found = place(&rest, classes).map_err(|misfit| unfit(&misfit))?;
            if rest.len() < classes.len() {
                return Err(unfit(&Misfit::Others(others)));
            }
            let mut found = found.into_iter();
            let to = told.iter().map(|name| if others.contains(name) { None } else { found.next() }).collect();
            Ok((to, others))
        }
        Err(misfit) => Err(unfit(&misfit)),
    }
}

/// The class that the parameters name.
fn stated(to: &Place, classes: &[String]) -> Result<u32, Unfit> {
    match to {
        Place::Number(class) if (*class as usize) < classes.len() => Ok(*class),
        Place::Number(class) => {
            Err(Unfit(format!("`labels`: there is no class {class}: name one of 0 to {}", classes.len() - 1)))
        }
        Place::Name(name) => {
            let found = place(std::slice::from_ref(name), classes);
            Ok(found.map_err(|misfit| Unfit(format!("`labels`: {misfit}: name one of `classes`, or its number")))?[0])
        }
    }
}
