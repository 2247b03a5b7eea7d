//! Attack tables by folder, and the images of a cell joined with its companions'.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::Result;
use artifact::AttackRow;
use game::{Fraction, Norm};
use serde_json::Value;
use stage::{Context, Input, Unfit};

use crate::{Cell, Rule, decide::decide, outcome::Outcome};

/// One attack table: its parts and their rows.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub parts: Vec<Input>,
    pub rows: Vec<AttackRow>,
}

/// Every attack table among the inputs by the folder it is in.
#[derive(Debug)]
pub(crate) struct Store {
    folders: BTreeMap<PathBuf, Folder>,
}

impl Store {
    pub(crate) fn read(ctx: &Context) -> Result<Self> {
        let mut folders: BTreeMap<PathBuf, Folder> = BTreeMap::new();
        for (input, mut rows) in ctx.read::<AttackRow>()? {
            let folder = folders.entry(parent(&input.path)).or_default();
            if let Some(first) = folder.parts.first()
                && first.provenance.parameters != input.provenance.parameters
            {
                let (one, other) = (first.path.display(), input.path.display());
                return Err(Unfit(format!("{one} and {other} have other parameters; delete the stale one")).into());
            }
            folder.parts.push(input);
            folder.rows.append(&mut rows);
        }
        Ok(Self { folders })
    }

    pub(crate) fn folder(&self, name: &str) -> Result<&Folder, Unfit> {
        self.folders.get(Path::new(name)).ok_or_else(|| {
            Unfit(format!("{name}: no part of this attack is among the inputs; make it and name its parts"))
        })
    }

    /// The snapshots a cell shows: the step it names, or every step its attack wrote.
    pub(crate) fn steps(&self, cell: &Cell) -> Result<Vec<u32>, Unfit> {
        let after = self.folder(&cell.attack)?.rows.iter().filter(|row| row.phase == "after");
        let steps: BTreeSet<u32> = after.map(|row| row.step).collect();
        match cell.step {
            Some(step) if steps.contains(&step) => Ok(vec![step]),
            Some(step) => Err(Unfit(format!("{}: no snapshot at step {step}, only at {steps:?}", cell.attack))),
            None if steps.is_empty() => Err(Unfit(format!("{}: no votes after the attack", cell.attack))),
            None => Ok(steps.into_iter().collect()),
        }
    }

    /// How many votes of a cell a rule reduces.
    pub(crate) fn votes(&self, cell: &Cell, rule: &Rule) -> Result<u32, Unfit> {
        rule.n.map_or_else(|| self.folder(&cell.attack)?.draws(&cell.attack), Ok)
    }

    /// What happened to every image of a cell at one step under one rule, in order of the images' ids.
    pub(crate) fn outcomes(&self, cell: &Cell, step: u32, rule: &Rule) -> Result<Vec<Outcome>, Unfit> {
        let named = |folder, name: &str| self.companion(folder, name, &cell.attack);
        let (attack, none) = (self.folder(&cell.attack)?, named(&cell.none, "none")?);
        let noise = named(&cell.noise, "uniform-noise")?;
        let before = View::new(none, &cell.none, "before", None)?;
        let after = View::new(attack, &cell.attack, "after", Some(step))?;
        let zero = View::new(none, &cell.none, "after", None)?;
        let noise = View::new(noise, &cell.noise, "after", None)?;
        for view in [&before, &zero, &noise] {
            after.same_images(view)?;
        }
        let undefended = cell.undefended.as_deref().map(|name| self.undefended(name, cell)).transpose()?;
        let compared = none.certain(before.draws).min(rule.n.unwrap_or(u32::MAX)) as usize;
        let budget = attack.budget();
        let join = |(id, row): (&u32, &&AttackRow)| {
            let ballot = |view: &View<'_>| {
                decide(view.rows[id], row.target, rule, view.draws).map_err(|why| view.refuse(*id, &why))
            };
            let attacked = ballot(&after)?;
            let attacked = if budget.is_some_and(|budget| budget.exceeded(row)) { attacked.failed() } else { attacked };
            let alike = undefended.as_ref().map(|classes| {
                let votes = before.rows[id].votes.get(..compared);
                let votes = votes.ok_or_else(|| before.refuse(*id, "fewer votes than its parameters ask for"))?;
                let class = classes.get(id).ok_or_else(|| before.refuse(*id, "not answered without the defense"))?;
                Ok((votes.iter().filter(|vote| *vote == class).count() as u64, compared as u64))
            });
            let after = [attacked, ballot(&zero)?, ballot(&noise)?];
            Ok(Outcome::new(row, ballot(&before)?, after, alike.transpose()?))
        };
        after.rows.iter().map(join).collect()
    }

    /// The images that do not satisfy a cell's objective before the attack, and are not of its target's class: those that its
    /// success rate counts.
    pub(crate) fn counted(&self, cell: &Cell, rule: &Rule) -> Result<BTreeSet<u32>, Unfit> {
        let none = self.companion(&cell.none, "none", &cell.attack)?;
        let before = View::new(none, &cell.none, "before", None)?;
        let after = View::new(self.folder(&cell.attack)?, &cell.attack, "after", None)?;
        after.same_images(&before)?;
        let mut counted = BTreeSet::new();
        for (&id, row) in &before.rows {
            let target = after.rows[&id].target;
            let is_own = target.is_some_and(|target| target == row.label);
            if !is_own && !decide(row, target, rule, before.draws).map_err(|why| before.refuse(id, &why))?.reached {
                counted.insert(id);
            }
        }
        Ok(counted)
    }

    /// The class of every image by the network of a cell without its defense.
    fn undefended(&self, name: &str, cell: &Cell) -> Result<BTreeMap<u32, u16>, Unfit> {
        let (found, attack) = (self.folder(name)?, self.folder(&cell.attack)?);
        let (theirs, ours) = (found.parameters(), attack.parameters());
        let is_none = |of: &str| theirs.pointer(of).and_then(Value::as_str) == Some("none");
        if !is_none("/attack/name") || !is_none("/defense/name") || theirs.get("inside").is_some() {
            return Err(Unfit(format!("{name}: must hold the attack `none` on the network without a defense")));
        }
        if theirs.get("epoch") != ours.get("epoch") || !found.sources().is_subset(&attack.sources()) {
            let text = format!("{name} and {} are of other images or other weights", cell.attack);
            return Err(Unfit(format!("{text}; delete the older one and make it again")));
        }
        let view = View::new(found, name, "before", None)?;
        let class = |(id, row): (&u32, &&AttackRow)| match row.votes.first() {
            Some(&class) => Ok((*id, class)),
            None => Err(view.refuse(*id, "no vote")),
        };
        view.rows.iter().map(class).collect()
    }

    /// A companion's folder; it must hold the attack it is to be, under the votes of the cell's own attack. What it does
    /// depends on no goal: it may have another one than the cell's, whose targets are what its votes are held against.
    fn companion(&self, folder: &str, name: &str, attack: &str) -> Result<&Folder, Unfit> {
        let found = self.folder(folder)?;
        let (theirs, ours) = (found.parameters(), self.folder(attack)?.parameters());
        let held = theirs.pointer("/attack/name").and_then(Value::as_str).unwrap_or_default();
        if held != name {
            return Err(Unfit(format!("{folder}: holds the attack `{held}`, the companion must be `{name}`")));
        }
        for key in ["votes", "defense", "inside", "detector"] {
            if theirs.get(key) != ours.get(key) {
                return Err(Unfit(format!("{folder}: its `{key}` is not that of {attack}; plan both again")));
            }
        }
        if found.sources() != self.folder(attack)?.sources() {
            return Err(Unfit(format!(
                "{folder} and {attack} were made from other images or another network; delete the older one and make it \
                 again"
            )));
        }
        Ok(found)
    }
}

impl Folder {
    /// The attack's ball; none for an attack that has none.
    pub(crate) fn budget(&self) -> Option<Budget> {
        let attack = self.parameters().get("attack")?;
        let eps: Fraction = serde_json::from_value(attack.get("eps")?.clone()).ok()?;
        let norm = attack.get("norm").cloned().and_then(|norm| serde_json::from_value(norm).ok()).unwrap_or_default();
        Some(Budget { norm, eps: eps.value() })
    }

    fn parameters(&self) -> &Value {
        &self.parts[0].provenance.parameters
    }

    /// How many of the `asked` draws every vote has, however it went: all of them, or as many as the fewest that can
    /// settle a majority. The first so many are no choice of the votes, as those at which a vote stopped are.
    fn certain(&self, asked: u32) -> u32 {
        let parameters = self.parameters();
        let full = parameters.pointer("/votes/stop").and_then(Value::as_str) == Some("never")
            || parameters.get("keep_logits").and_then(Value::as_bool) == Some(true)
            || parameters.get("detector").is_some();
        if full { asked } else { asked.div_ceil(2) }
    }

    /// The digests of the images and the network it was made from.
    fn sources(&self) -> BTreeSet<&str> {
        self.parts.iter().flat_map(|part| part.provenance.inputs.values()).map(String::as_str).collect()
    }

    /// The draws each vote was asked to have.
    pub(crate) fn draws(&self, name: &str) -> Result<u32, Unfit> {
        let draws = self.parameters().pointer("/votes/draws").and_then(Value::as_u64);
        draws
            .and_then(|draws| u32::try_from(draws).ok())
            .ok_or_else(|| Unfit(format!("{name}: its provenance does not say how many votes were asked for")))
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// The rows of one phase and step of a folder by image.
struct View<'a> {
    folder: &'a str,
    /// The draws each vote was made for.
    draws: u32,
    rows: BTreeMap<u32, &'a AttackRow>,
}

impl<'a> View<'a> {
    /// The rows of `phase` at `step`, or at the last step there is.
    fn new(folder: &'a Folder, name: &'a str, phase: &str, step: Option<u32>) -> Result<Self, Unfit> {
        let of_phase = || folder.rows.iter().filter(|row| row.phase == phase);
        let Some(step) = step.or_else(|| of_phase().map(|row| row.step).max()) else {
            return Err(Unfit(format!("{name}: no votes `{phase}` the attack; delete the folder and make it again")));
        };
        let mut rows = BTreeMap::new();
        for row in of_phase().filter(|row| row.step == step) {
            if rows.insert(row.id, row).is_some() {
                return Err(Unfit(format!("{name}: image {} stands there twice ({phase}, step {step})", row.id)));
            }
        }
        Ok(Self { folder: name, draws: folder.draws(name)?, rows })
    }

    fn same_images(&self, other: &Self) -> Result<(), Unfit> {
        let (one, two) = (self.folder, other.folder);
        let only = |a: &Self, b: &Self| a.rows.keys().find(|id| !b.rows.contains_key(id)).copied();
        if let Some(id) = only(self, other).or_else(|| only(other, self)) {
            return Err(Unfit(format!("{one} and {two} hold different images: {id} is in one of them only")));
        }
        for (id, row) in &self.rows {
            let match_ = other.rows[id];
            // Companions of a targeted attack need not know the target.
            if row.label != match_.label || match_.target.is_some_and(|target| row.target != Some(target)) {
                return Err(Unfit(format!("{one} and {two} disagree about the label or the target of image {id}")));
            }
        }
        Ok(())
    }

    fn refuse(&self, id: u32, why: &str) -> Unfit {
        Unfit(format!("{}: image {id}: {why}", self.folder))
    }
}

/// What a perturbation may measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub norm: Norm,
    pub eps: f64,
}

impl Budget {
    /// Whether an attack left its ball, beyond rounding: some attacks may, and then have failed, as robustml counts it.
    fn exceeded(self, row: &AttackRow) -> bool {
        let size = match self.norm {
            Norm::Linf => row.linf,
            Norm::L2 => row.l2,
        };
        size > self.eps * (1.0 + 1e-5) + 1e-6
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decide::Decision;

    #[test]
    fn a_perturbation_outside_its_ball_is_a_failure_however_it_is_measured() {
        let row = AttackRow { linf: 0.04, l2: 2.0, ..crate::tests::row(0, 1, "after", &[]) };
        let exceeded = |norm, eps| Budget { norm, eps }.exceeded(&row);
        assert!(exceeded(Norm::Linf, 8.0 / 255.0) && !exceeded(Norm::Linf, 0.04));
        assert!(exceeded(Norm::L2, 1.9) && !exceeded(Norm::L2, 2.0));
        let inside = Decision { correct: false, reached: true, flagged: false, draws: Some((3, 4)) };
        assert_eq!(inside.failed(), Decision { correct: true, reached: false, flagged: false, draws: Some((0, 4)) });
    }

    #[test]
    fn the_budget_is_read_from_the_attacks_own_parameters() {
        let folder = |attack: Value| {
            let text = json!({
                "kind": "attack", "stage": "attack", "revision": 1, "parameters": { "attack": attack },
                "shard": { "index": 0, "count": 1 }, "inputs": {}, "facts": {}, "environment": {},
            });
            let provenance = serde_json::from_value(text).unwrap();
            Folder { parts: vec![Input { path: PathBuf::new(), provenance, sha256: String::new() }], rows: Vec::new() }
        };
        let budget = folder(json!({"name": "pgd", "norm": "l2", "eps": "1/2"})).budget().unwrap();
        assert_eq!((budget.norm, budget.eps), (Norm::L2, 0.5));
        assert!(folder(json!({"name": "none"})).budget().is_none());
    }
}
