//! Cells to jobs: what each stage is given, checked against the stages' own parameter types.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use defenses::Detector;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use stage::{Epoch, Stage, classes::Classes};
use stage_attack::Attack;
use stage_finetune::{Finetune, Keep, Training};
use stage_fit::Fit;
use stage_report::{Cell, Claim, Protocol, Reading, RuleName, TheoryTable};
use stage_sample::Sample;
use stage_theory::Theory;
use trained::Model;

use crate::{
    Bill, Cost, Error, Jobs, Load, Net, Options, Result, Sources, Work, figures,
    file::{Kind, Pipeline, Table},
    jobs::Wanted,
    programs, sources,
};

/// What a cell may set. The tables are typed by the stages they go to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    sample: Table,
    #[serde(default)]
    model: Option<Table>,
    #[serde(default)]
    weights: Option<UsedWeights>,
    #[serde(default)]
    training: Option<Table>,
    #[serde(default)]
    finetuned: bool,
    #[serde(default)]
    finetuning: Option<Table>,
    #[serde(default)]
    inside: Option<Value>,
    #[serde(default)]
    precision: Option<Value>,
    defense: Table,
    attack: Table,
    goal: Table,
    #[serde(default)]
    votes: Option<Table>,
    #[serde(default)]
    detector: Option<UsedDetector>,
    /// The snapshot to report, where the attack takes several; the last one otherwise.
    #[serde(default)]
    step: Option<u32>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    epoch: Option<Value>,
    #[serde(default)]
    seed: Option<Value>,
    #[serde(default)]
    limit: Option<Value>,
    #[serde(default)]
    keep_logits: Option<Value>,
    #[serde(default)]
    keep_delta: Option<Value>,
}

/// A detector, how it is fitted, and how it is used.
#[derive(Debug, Deserialize)]
struct UsedDetector {
    sample: Table,
    #[serde(default)]
    limit: Option<Value>,
    #[serde(default)]
    seed: Option<Value>,
    #[serde(default)]
    false_positive_rate: Option<Value>,
    /// What is left is the detector's.
    #[serde(flatten)]
    detector: Table,
}

/// Weights by name, and what to do where no place has them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsedWeights {
    source: String,
    #[serde(default)]
    otherwise: Otherwise,
    /// Whether the cell's recipe trains the network from these weights, with a fresh last layer for its own classes.
    #[serde(default)]
    new_head: bool,
    /// The classes that the network keeps, of those that the weights have.
    #[serde(default)]
    classes: Option<Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Otherwise {
    /// Say what is missing.
    #[default]
    Fail,
    /// Train by the cell's recipe.
    Train,
}

/// Why a cell has no jobs.
enum Trouble {
    /// It can run nowhere.
    Wrong(String),
    /// It cannot run on this machine as things stand.
    Missing(String),
    /// The plan as a whole is broken.
    Plan(Error),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Wrong(reason)
    }
}

impl From<victim::FileFault> for Trouble {
    fn from(fault: victim::FileFault) -> Self {
        match fault {
            victim::FileFault::Missing(reason) => Self::Missing(reason),
            victim::FileFault::Wrong(reason) => Self::Wrong(reason),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Plan(error)
    }
}

/// Adds a pipeline's jobs to the plan; the report made from them, or what this machine lacks.
///
/// # Errors
/// If a cell can run nowhere: an unknown name, or parameters that do not fit each other.
pub fn plan(
    pipeline: &Pipeline,
    sources: &Sources,
    options: &Options,
    jobs: &mut Jobs,
) -> Result<Result<Work, String>> {
    let params = stage_report::Params {
        pipeline: pipeline.name.clone(),
        scale: options.scale.name().to_owned(),
        title: pipeline.title.clone(),
        analysis: pipeline.analysis.clone(),
        layout: pipeline.layout.clone(),
        cells: Vec::new(),
        compare: pipeline.compare.clone(),
        equal_strength: pipeline.equal_strength.clone(),
        figures: pipeline.figures.clone(),
        paper: pipeline.paper.clone(),
        notes: pipeline.notes.clone(),
        theory: None,
    };
    let work = match pipeline.kind {
        Kind::Theory => theory(pipeline, params, jobs).map(Ok),
        Kind::Attack => attacks(pipeline, params, sources, options, jobs),
        Kind::Collection => collection(pipeline, params, sources, options, jobs),
    }?;
    let cells = work.as_ref().map(|work| work.params.cells.as_slice()).unwrap_or_default();
    let wrong = |reason| Error::File { path: pipeline.path.clone(), reason };
    figures::check_cells(&pipeline.figures, cells).map_err(wrong)?;
    Ok(work)
}

fn theory(pipeline: &Pipeline, mut params: stage_report::Params, jobs: &mut Jobs) -> Result<Work> {
    let wrong = |reason| Error::File { path: pipeline.path.clone(), reason };
    if !pipeline.base.is_empty() || !pipeline.axes.is_empty() {
        return Err(wrong("a pipeline of kind `theory` has a table [theory], no [base] and no [[axis]]".to_owned()));
    }
    let typed: (stage_theory::Params, Value) =
        typed(Value::Object(pipeline.theory.clone())).map_err(|reason| wrong(format!("theory.{reason}")))?;
    typed.0.validate().map_err(|error| wrong(format!("theory: {error:#}")))?;
    let address = jobs.add(Wanted {
        stage: Theory::NAME,
        revision: Theory::REVISION,
        slug: pipeline.name.clone(),
        params: typed.1,
        inputs: vec![],
        files: vec![],
        parts: 1,
        cost: Cost::default(),
        load: None,
    })?;
    params.theory = Some(TheoryTable { table: folder(&address) });
    Ok(Work { params, inputs: vec![address], apart: BTreeMap::new() })
}

fn attacks(
    pipeline: &Pipeline,
    mut params: stage_report::Params,
    sources: &Sources,
    options: &Options,
    jobs: &mut Jobs,
) -> Result<Result<Work, String>> {
    // Jobs of a pipeline that turns out to lack something must not stay in the plan.
    let mut tried = jobs.clone();
    let mut inputs = Vec::new();
    let mut apart = Vec::new();
    let mut missing = None;
    for (at, base) in pipeline.cells() {
        let mut planner = Planner { sources, options, jobs: &mut tried };
        match planner.cell(&base, pipeline) {
            Ok((cell, read, alone)) => {
                apart.push(alone);
                for address in read {
                    if !inputs.contains(&address) {
                        inputs.push(address);
                    }
                }
                params.cells.push(Cell { at, ..cell });
            }
            Err(Trouble::Wrong(reason)) => {
                let cell = at.iter().map(|(axis, label)| format!("{axis}={label:?}")).collect::<Vec<_>>().join(" ");
                let cell = if cell.is_empty() { "[base]".to_owned() } else { cell };
                return Err(Error::Cell { path: pipeline.path.clone(), cell, reason });
            }
            Err(Trouble::Missing(reason)) => missing = missing.or(Some(reason)),
            Err(Trouble::Plan(error)) => return Err(error),
        }
    }
    if let Some(reason) = missing {
        return Ok(Err(reason));
    }
    *jobs = tried;
    let protocols: BTreeSet<Protocol> = params.cells.iter().map(|cell| cell.protocol).collect();
    let changes = protocols.into_iter().filter_map(|protocol| pipeline.readings.note(protocol));
    params.notes = changes.chain(params.notes).collect();
    Ok(Ok(Work { params, inputs, apart: [(pipeline.name.clone(), apart)].into() }))
}

/// The cells, claims and notes of all parts as one report; it lacks what any of them lacks.
fn collection(
    pipeline: &Pipeline,
    mut params: stage_report::Params,
    sources: &Sources,
    options: &Options,
    jobs: &mut Jobs,
) -> Result<Result<Work, String>> {
    let mut tried = jobs.clone();
    let mut inputs: Vec<String> = Vec::new();
    let mut apart = BTreeMap::new();
    let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
    for part in &pipeline.parts {
        let label = |at: BTreeMap<String, String>| {
            at.into_iter().chain([(pipeline.part_axis.clone(), part.label.clone())]).collect()
        };
        let work = match plan(&part.pipeline, sources, options, &mut tried)? {
            Ok(work) => work,
            Err(reason) => return Ok(Err(format!("its part {}: {reason}", part.pipeline.name))),
        };
        params.cells.extend(work.params.cells.into_iter().map(|cell| Cell { at: label(cell.at), ..cell }));
        params.paper.extend(work.params.paper.into_iter().map(|claim| Claim { at: label(claim.at), ..claim }));
        apart.extend(work.apart);
        for address in work.inputs {
            if !inputs.contains(&address) {
                inputs.push(address);
            }
        }
        for note in work.params.notes {
            match notes.iter_mut().find(|(known, _)| *known == note) {
                Some((_, parts)) => parts.push(&part.label),
                None => notes.push((note, vec![&part.label])),
            }
        }
    }
    *jobs = tried;
    // What all parts say need not name them.
    params.notes.extend(notes.into_iter().map(|(note, parts)| match parts.len() {
        all if all == pipeline.parts.len() => note,
        _ => format!("{}: {note}", parts.join(", ")),
    }));
    Ok(Ok(Work { params, inputs, apart }))
}

/// What the attacks of a cell rest on.
#[derive(Clone, Copy)]
struct Planned<'a> {
    inputs: &'a [String],
    count: Option<u64>,
    detector: Option<&'a Detector>,
    bare: &'a Load,
    /// Local files that the network reads.
    files: &'a [PathBuf],
}

struct Planner<'a> {
    sources: &'a Sources,
    options: &'a Options,
    jobs: &'a mut Jobs,
}

/// A planned sample: its address, and how many images of how many rows and columns it has, where that is known.
struct Images {
    address: String,
    count: Option<u64>,
    side: Option<u32>,
}

/// What a finetune job is made from.
struct Making {
    /// The table of the pipeline file it comes from, for messages.
    what: &'static str,
    init: Value,
    recipe: Option<Table>,
    defense: Option<Table>,
    base: Option<String>,
    files: Vec<PathBuf>,
    /// The classes of the weights, and those that are kept.
    classes: Option<Value>,
    keep_classes: Option<Value>,
}

/// A planned network.
struct Network {
    address: String,
    model: Model,
    training: Option<Training>,
    /// Local files that it reads whenever it runs: a program's.
    files: Vec<PathBuf>,
}

impl Network {
    /// Fails where the weights of this epoch will not be there.
    fn keeps(&self, epoch: Epoch) -> Result<(), String> {
        let Some(training) = &self.training else {
            return match epoch {
                Epoch::Number(epoch) if epoch > 0 => Err(format!("imported weights are epoch 0, there is no {epoch}")),
                _ => Ok(()),
            };
        };
        let last = training.epochs;
        match epoch {
            Epoch::Number(epoch) if epoch > last => Err(format!("{epoch} is after the last epoch, {last}")),
            Epoch::Number(epoch) if epoch < last && training.keep != Keep::Every => {
                Err(format!("the weights of epoch {epoch} are not kept; set `keep = \"every\"` in the recipe"))
            }
            Epoch::Best if training.validation == 0.0 => {
                Err("`best` needs validation images; set `validation` in the recipe, or take `last`".to_owned())
            }
            Epoch::Best if training.keep == Keep::Last => {
                Err("the recipe keeps the last epoch only; set `keep = \"best\"` there, or take `last`".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Planner<'_> {
    /// One cell's jobs; the cell as the report sees it, the addresses the report reads, and what it would cost by itself.
    fn cell(&mut self, base: &Table, pipeline: &Pipeline) -> Result<(Cell, Vec<String>, Bill), Trouble> {
        let mut base = Value::Object(base.clone());
        programs::digest(&mut base, self.options.data_root.as_deref())?;
        let base: Base = read(base)?;
        let reading = pipeline.readings.of(base.protocol);
        let images = self.sample("sample", &base.sample)?;
        let network = self.network(&base)?;
        let mut params = json!({"defense": base.defense, "attack": base.attack, "goal": base.goal});
        let detection = |used: &UsedDetector| match &used.false_positive_rate {
            Some(rate) => json!({"false_positive_rate": rate}),
            None => json!({}),
        };
        let optional = [
            ("inside", base.inside),
            ("precision", base.precision),
            ("detector", base.detector.as_ref().map(detection)),
            ("votes", base.votes.map(Value::Object)),
            ("epoch", base.epoch),
            ("seed", base.seed),
            ("limit", base.limit),
            ("keep_logits", base.keep_logits),
            ("keep_delta", base.keep_delta),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                params[key] = value;
            }
        }
        let (typed, params): (stage_attack::Params, Value) = typed(params)?;
        typed.defense.check().map_err(|reason| format!("defense: {reason}"))?;
        typed.attack.check().map_err(|reason| format!("attack: {reason}"))?;
        check_size(&typed.attack, images.side).map_err(|reason| format!("attack: {reason}"))?;
        network.keeps(typed.epoch).map_err(|reason| format!("epoch: {reason}"))?;
        check(&typed, &network.model, &reading)?;
        check_step(base.step, &typed)?;
        if let (Some(spec), Some(side)) = (network.model.candle(), images.side) {
            spec.fits(side as usize, side as usize).map_err(|fault| format!("sample: {fault}"))?;
        }

        let bare = Load::bare(Net::of(&network.model, images.side));
        let mut inputs = vec![images.address, network.address.clone()];
        let fitted = base.detector.map(|used| self.fit(used, &network, &typed)).transpose()?;
        inputs.extend(fitted.iter().map(|(address, _)| address.clone()));
        let detector = fitted.map(|(_, detector)| detector);
        let planned = Planned {
            inputs: &inputs,
            count: images.count,
            detector: detector.as_ref(),
            bare: &bare,
            files: &network.files,
        };
        let attack = self.attack(&typed, &planned)?;
        let mut companions = Vec::new();
        for spec in typed.attack.companions() {
            // The perturbation of a companion is no result, and what it does depends on no goal.
            let goal = stage_attack::Goal::Untargeted {};
            let companion = stage_attack::Params { attack: spec, goal, keep_delta: false, ..typed.clone() };
            companions.push(self.attack(&companion, &planned)?);
        }
        // The companions of a companion are itself and those before it.
        let none = companions.first().unwrap_or(&attack).clone();
        let noise = companions.get(1).unwrap_or(&attack).clone();
        let wanted = pipeline.readings.want_invariance(base.protocol);
        if wanted && network.model.program().is_some() {
            let text = "invariance: a program's own defense cannot be taken from it to ask the network without";
            return Err(format!("{text}; leave `invariance` out, or name the transformation as `defense`").into());
        }
        let undefended = wanted.then(|| undefended(&typed));
        let undefended = undefended
            .map(|bare| self.attack(&bare, &Planned { inputs: &inputs[..2], detector: None, ..planned }))
            .transpose()?;
        let mut parameters = BTreeMap::new();
        flatten("", &params, &mut parameters);
        flatten("model.", &json!(network.model), &mut parameters);
        if let Some(detector) = &detector {
            flatten("detector.", &json!(detector), &mut parameters);
        }
        flatten("sample.", &Value::Object(base.sample), &mut parameters);
        parameters.insert("finetuned".to_owned(), Value::Bool(base.finetuned));
        let cell = Cell {
            at: BTreeMap::new(),
            protocol: base.protocol,
            reading,
            parameters,
            attack: folder(&attack),
            step: base.step,
            none: folder(&none),
            noise: folder(&noise),
            undefended: undefended.as_deref().map(folder),
            finetune: folder(&network.address),
        };
        let single = stage_attack::Params { attack: single(&typed.attack, base.step)?, ..typed };
        let single = cost(&single, fewer(images.count, single.limit), detector.as_ref(), &bare.net);
        let read: Vec<String> = [network.address, none, noise, attack.clone()].into_iter().chain(undefended).collect();
        let mut alone = Bill::default();
        for job in self.jobs.closure(&read) {
            alone.add(job.load.as_ref(), if job.address == attack { single } else { job.cost });
        }
        Ok((cell, read, alone))
    }

    /// A sample job from `{source = "name", every = ..., ...}`.
    fn sample(&mut self, what: &str, used: &Table) -> Result<Images, Trouble> {
        let mut params = used.clone();
        let Some(Value::String(name)) = params.shift_remove("source") else {
            let names: Vec<&str> = self.sources.images.keys().map(String::as_str).collect();
            return Err(format!("{what}.source: name the images, one of {}", names.join(", ")).into());
        };
        let images = self.sources.images(&name).map_err(|reason| format!("{what}.source: {reason}"))?;
        let root = self.options.data_root.as_deref();
        let place = sources::first(&images.from, root).ok_or_else(|| {
            Trouble::Missing(format!("images `{name}` are not at hand: {}", sources::advice(&images.from, root)))
        })?;
        params.insert("source".to_owned(), Value::Object(place.source));
        for (key, value) in images.defaults() {
            if !params.contains_key(&key) {
                params.insert(key, value);
            }
        }
        let (typed, params): (stage_sample::Params, Value) =
            typed(Value::Object(params)).map_err(|reason| format!("{what}.{reason}"))?;
        typed.check().map_err(|reason| format!("{what}: images `{name}`: {reason}"))?;
        let side = typed.crop.or(typed.resize).map(std::num::NonZero::get).or(images.side);
        let count = place.count.map(|count| {
            let every = u64::from(typed.every.get());
            let kept = count.saturating_sub(u64::from(typed.offset)).div_ceil(every);
            typed.limit.map_or(kept, |limit| kept.min(limit.get().into()))
        });
        let address = self.jobs.add(Wanted {
            stage: Sample::NAME,
            revision: Sample::REVISION,
            slug: name,
            params,
            inputs: vec![],
            files: place.files,
            parts: 1,
            cost: Cost::default(),
            load: None,
        })?;
        Ok(Images { address, count, side })
    }

    /// The finetune jobs of a cell, and the network that it attacks.
    fn network(&mut self, base: &Base) -> Result<Network, Trouble> {
        if let Some(model) = base.model.as_ref().filter(|model| model.get("name") == Some(&json!("program"))) {
            return self.own(base, architecture("model", Value::Object(model.clone()))?);
        }
        let found = match &base.weights {
            Some(used) => self.find(used)?,
            None => None,
        };
        let kept = base.weights.as_ref().and_then(|used| used.classes.clone());
        let keep =
            kept.clone().map(read::<Classes>).transpose().map_err(|fault| format!("weights.classes: {fault}"))?;
        let spec = match (&base.model, &found) {
            (Some(model), _) => Value::Object(model.clone()),
            (None, Some((weights, _))) => {
                let mut model = weights.model.clone();
                if let Some(keep) = &keep {
                    model.insert("classes".to_owned(), json!(keep.names().len()));
                }
                Value::Object(model)
            }
            (None, None) => return Err("model: name an architecture, or weights that belong to one".to_owned().into()),
        };
        let model = architecture("model", spec)?;
        let new_head = base.weights.as_ref().is_some_and(|used| used.new_head);
        if kept.is_some() && new_head {
            return Err("weights.classes: a new head keeps no class; leave one of the two out".to_owned().into());
        }
        let known = found.as_ref().and_then(|(weights, _)| weights.classes.clone()).filter(|_| !new_head);
        if found.is_some() && kept.is_some() && known.is_none() {
            let text = "weights.classes: the source does not say which classes the weights have; add `classes` to it";
            return Err(text.to_owned().into());
        }
        let (init, files) = match found {
            Some((weights, mut place)) => {
                let mut theirs = weights.model;
                if new_head || kept.is_some() {
                    theirs.insert("classes".to_owned(), json!(model.classes()));
                }
                if new_head {
                    place.source.insert("new_head".to_owned(), json!(true));
                }
                let theirs = architecture("weights.model", Value::Object(theirs))?;
                if theirs != model {
                    let (theirs, model) = (json!(theirs), json!(model));
                    return Err(format!("model: the weights belong to {theirs}, not to {model}").into());
                }
                (Value::Object(place.source), place.files)
            }
            None => (json!({"name": "fresh"}), vec![]),
        };
        let recipe = if new_head || init["name"] == "fresh" {
            let missing = "training: a network without weights, or with a new head, must be trained; add [base.training] or `weights`";
            Some(base.training.clone().ok_or_else(|| missing.to_owned())?)
        } else {
            None
        };
        let kept = kept.filter(|_| known.is_some());
        let made = Making {
            what: "training",
            init,
            recipe,
            defense: None,
            base: None,
            files,
            classes: known,
            keep_classes: kept,
        };
        let network = self.finetune(model, made)?;
        if !base.finetuned {
            return Ok(network);
        }
        let mut recipe =
            base.finetuning.clone().ok_or("finetuning: `finetuned` needs the recipe [base.finetuning]".to_owned())?;
        let from = recipe.shift_remove("from").unwrap_or_else(|| json!("best"));
        let epoch: Epoch = read(from.clone()).map_err(|reason| format!("finetuning.from: {reason}"))?;
        network.keeps(epoch).map_err(|reason| format!("finetuning.from: {reason}"))?;
        let made = Making {
            what: "finetuning",
            init: json!({"name": "finetuned", "epoch": from}),
            recipe: Some(recipe),
            defense: Some(base.defense.clone()),
            base: Some(network.address),
            files: vec![],
            classes: None,
            keep_classes: None,
        };
        self.finetune(network.model, made)
    }

    /// The finetune job of a program, which brings its own weights.
    fn own(&mut self, base: &Base, model: Model) -> Result<Network, Trouble> {
        let unfit = [
            ("weights", base.weights.is_some()),
            ("finetuned", base.finetuned),
            ("inside", base.inside.is_some()),
            ("precision", base.precision.is_some()),
        ];
        if let Some((name, _)) = unfit.into_iter().find(|(_, is_there)| *is_there) {
            let text = "a program is attacked as it is, with its own weights";
            return Err(format!("{name}: {text}; leave `{name}` out where the model is one").into());
        }
        let init = json!({"name": "own"});
        let making = Making {
            what: "model",
            init,
            recipe: None,
            defense: None,
            base: None,
            files: vec![],
            classes: None,
            keep_classes: None,
        };
        self.finetune(model, making)
    }

    /// Weights by name: their architecture and the first place that has them, or nothing where they are to be trained.
    fn find(&self, used: &UsedWeights) -> Result<Option<(sources::Weights, sources::Place)>, Trouble> {
        let weights = self.sources.weights(&used.source).map_err(|reason| format!("weights.source: {reason}"))?;
        let root = self.options.data_root.as_deref();
        match sources::first(&weights.from, root) {
            Some(place) => Ok(Some((weights.clone(), place))),
            None if used.otherwise == Otherwise::Train => Ok(None),
            None => Err(Trouble::Missing(format!(
                "weights `{}` are not at hand: {}, or let `otherwise = \"train\"` train them",
                used.source,
                sources::advice(&weights.from, root)
            ))),
        }
    }

    /// One finetune job: an import without a recipe, otherwise training on the recipe's sample.
    fn finetune(&mut self, model: Model, making: Making) -> Result<Network, Trouble> {
        let Making { what, init, recipe, defense, base, mut files, classes, keep_classes } = making;
        let mut params = json!({"model": model, "init": init});
        for (key, value) in [("classes", classes), ("keep_classes", keep_classes)] {
            if let Some(value) = value {
                params[key] = value;
            }
        }
        let mut inputs: Vec<String> = base.into_iter().collect();
        let mut cost = Cost::default();
        let mut side = None;
        if let Some(mut recipe) = recipe {
            let Some(Value::Object(sample)) = recipe.shift_remove("sample") else {
                return Err(format!("{what}.sample: name the training images, as {{ source = \"...\" }}").into());
            };
            let images = self.sample(&format!("{what}.sample"), &sample)?;
            if let Some(seed) = recipe.shift_remove("seed") {
                params["seed"] = seed;
            }
            if let Some(defense) = recipe.shift_remove("defense").or(defense.map(Value::Object)) {
                params["defense"] = defense;
            }
            params["training"] = Value::Object(recipe);
            inputs.insert(0, images.address);
            side = images.side;
            cost.unknown = u64::from(images.count.is_none());
            cost.training_images = images.count.unwrap_or(0);
        }
        let named = |reason: String| reason.replace("training", what);
        let (typed, params): (stage_finetune::Params, Value) = typed(params).map_err(named)?;
        typed.check().map_err(named)?;
        cost.training_images *= typed.training.as_ref().map_or(0, |training| training.epochs.into());
        let cut = typed.training.as_ref().and_then(|training| training.augment.random_crop);
        let batch = typed.training.as_ref().map_or(0, |training| training.batch);
        let adversarial = typed.training.as_ref().and_then(|training| training.adversarial.as_ref());
        if let Some(attack) = adversarial {
            check_size(attack, cut.or(side)).map_err(|reason| format!("{what}.adversarial: {reason}"))?;
            cost.forward_queries = cost.training_images * attack.cost().forward;
            cost.gradient_queries = cost.training_images * attack.cost().backward;
            (cost.forward_at_least, cost.gradient_at_least) = (cost.forward_queries, cost.gradient_queries);
            // The network is another one at each step.
            cost.compilations = cost.training_images.div_ceil(batch.max(1) as u64);
        }
        let mut load = Load { batch, ..Load::bare(Net::of(&model, cut.or(side))) };
        load.defense = typed.defense.clone().unwrap_or(load.defense);
        let root = self.options.data_root.as_deref();
        files.extend(programs::files(&params, root)?);
        let own = if model.program().is_some() { files.clone() } else { Vec::new() };
        let address = self.jobs.add(Wanted {
            stage: Finetune::NAME,
            revision: Finetune::REVISION,
            slug: model.slug(),
            params,
            inputs,
            files,
            parts: 1,
            cost,
            load: Some(load),
        })?;
        Ok(Network { address, model, training: typed.training, files: own })
    }

    /// The fit job of a cell's detector, to the network that is attacked; its address, and the detector.
    fn fit(
        &mut self,
        used: UsedDetector,
        network: &Network,
        attack: &stage_attack::Params,
    ) -> Result<(String, Detector), Trouble> {
        let images = self.sample("detector.sample", &used.sample)?;
        let mut params = json!({"detector": used.detector, "epoch": attack.epoch});
        let optional =
            [("inside", attack.inside.as_ref().map(value).transpose()?), ("limit", used.limit), ("seed", used.seed)];
        for (key, value) in optional {
            if let Some(value) = value {
                params[key] = value;
            }
        }
        let named = |fault: String| if fault.starts_with("detector") { fault } else { format!("detector.{fault}") };
        let (typed, params): (stage_fit::Params, Value) = typed(params).map_err(named)?;
        typed.check().map_err(named)?;
        let count = fewer(images.count, typed.limit);
        let load = Load { inside: typed.inside.clone(), ..Load::bare(Net::of(&network.model, images.side)) };
        let evaluations = |images| images * (1 + u64::from(typed.detector.draws()));
        let address = self.jobs.add(Wanted {
            stage: Fit::NAME,
            revision: Fit::REVISION,
            slug: typed.detector.name().to_owned(),
            params,
            inputs: vec![images.address, network.address.clone()],
            files: network.files.clone(),
            parts: 1,
            cost: Cost {
                detector: count.map_or(0, evaluations),
                unknown: u64::from(count.is_none()),
                compilations: 1,
                ..Cost::default()
            },
            load: Some(load),
        })?;
        Ok((address, typed.detector))
    }

    fn attack(&mut self, params: &stage_attack::Params, planned: &Planned<'_>) -> Result<String, Trouble> {
        params.check()?;
        let Planned { inputs, count, detector, bare, files } = *planned;
        let json = value(params)?;
        let mut files = files.to_vec();
        files.extend(programs::files(&json, self.options.data_root.as_deref())?);
        files.sort();
        files.dedup();
        let load = Load { inside: params.inside.clone(), defense: params.defense.clone(), ..bare.clone() };
        let address = self.jobs.add(Wanted {
            stage: Attack::NAME,
            revision: Attack::REVISION,
            slug: format!("{}--{}", defended(params, detector), params.attack.slug()),
            params: json,
            inputs: inputs.to_vec(),
            files,
            parts: self.options.shards,
            cost: cost(params, fewer(count, params.limit), detector, &bare.net),
            load: Some(load),
        })?;
        Ok(address)
    }
}

/// Reads a value as `T`; an error begins with the path of the field.
fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| match error.path().to_string().as_str() {
        "." => error.into_inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })
}

/// Reads parameters as the stage will, and writes them with every default spelled out.
fn typed<T: DeserializeOwned + Serialize>(given: Value) -> Result<(T, Value), String> {
    let typed: T = read(given)?;
    let value = value(&typed)?;
    Ok((typed, value))
}

fn value<T: Serialize>(typed: &T) -> Result<Value, String> {
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

fn architecture(what: &str, spec: Value) -> Result<Model, String> {
    let (model, _): (Model, _) = typed(spec).map_err(|reason| format!("{what}: {reason}"))?;
    model.check().map_err(|reason| format!("{what}: {reason}"))?;
    Ok(model)
}

/// The network's own answer about every image, without a defense: the same for all cells with these images and weights.
fn undefended(attack: &stage_attack::Params) -> stage_attack::Params {
    stage_attack::Params {
        epoch: attack.epoch,
        inside: None,
        precision: attack.precision,
        defense: defenses::Identity {}.into(),
        attack: attacks::None {}.into(),
        goal: stage_attack::Goal::Untargeted {},
        votes: stage_attack::Votes { draws: 1, ..stage_attack::Votes::default() },
        detector: None,
        keep_logits: false,
        keep_delta: false,
        limit: attack.limit,
        seed: 0,
    }
}

/// Finds what no single stage can: parameters of different stages that do not fit each other.
fn check(attack: &stage_attack::Params, model: &Model, reading: &Reading) -> Result<(), String> {
    model.takes(attack.inside.as_ref(), attack.precision)?;
    if let (Some(class), Some(classes)) = (attack.goal.target(), model.classes())
        && class as usize >= classes
    {
        return Err(format!("goal.class: the network knows the classes 0 to {}, not {class}", classes - 1));
    }
    for rule in std::iter::once(&reading.rule).chain(&reading.more_rules) {
        if let Some(n) = rule.n.filter(|n| *n == 0 || *n > attack.votes.draws) {
            return Err(format!("votes.draws: the report's rule asks for {n} votes of {}", attack.votes.draws));
        }
        if matches!(rule.name, RuleName::MeanLogits | RuleName::MeanSoftmax) {
            let name = rule.name.name();
            if !attack.keep_logits {
                return Err(format!("keep_logits: the report's rule `{name}` needs it to be true"));
            }
            if rule.n.is_some() {
                return Err(format!("the report's rule `{name}` takes all draws; leave out its n"));
            }
        }
    }
    Ok(())
}

/// Finds budgets that no two images of this side are apart, where the side is known.
fn check_size(attack: &attacks::Spec, side: Option<u32>) -> Result<(), String> {
    side.map_or(Ok(()), |side| attack.check_size(3 * (side as usize).pow(2)))
}

fn check_step(step: Option<u32>, attack: &stage_attack::Params) -> Result<(), String> {
    let steps = attack.attack.build().steps();
    match step {
        Some(step) if !steps.contains(&(step as usize)) => {
            Err(format!("step: the attack has snapshots after {steps:?} steps, none after {step}"))
        }
        _ => Ok(()),
    }
}

/// A number of images under a limit.
fn fewer(count: Option<u64>, limit: Option<u32>) -> Option<u64> {
    limit.map_or(count, |limit| count.map(|count| count.min(limit.into())))
}

/// What an attack is up against, for eyes only: the defense, unless there is none and something else instead.
fn defended(params: &stage_attack::Params, detector: Option<&Detector>) -> String {
    let inside = params.inside.as_ref().map(nets::Inside::slug);
    let mut others: Vec<String> =
        inside.into_iter().chain(detector.map(|detector| detector.name().to_owned())).collect();
    if others.is_empty() || params.defense.name() != "none" {
        others.insert(0, params.defense.slug());
    }
    others.join("-")
}

/// Votes are taken after every snapshot, and by the attack `none` before it too; a detector looks at each.
fn cost(params: &stage_attack::Params, images: Option<u64>, detector: Option<&Detector>, net: &Net) -> Cost {
    let Some(images) = images else { return Cost { unknown: 1, ..Cost::default() } };
    let attack = params.attack.build();
    let rounds = if matches!(params.attack, attacks::Spec::None(_)) { 2 } else { attack.steps().len() as u64 };
    let (fewest, most) = draws(params, detector, net);
    let votes = images * rounds * most;
    let (all, steps) = (attack.cost(), attack.steps().last().map_or(1, |&steps| steps.max(1) as u64));
    let first = |count: u64| if stops(&params.attack) { count.div_ceil(steps) } else { count };
    Cost {
        forward_queries: images * all.forward,
        gradient_queries: images * all.backward,
        forward_at_least: images * first(all.forward),
        gradient_at_least: images * first(all.backward),
        noise: images * noise(&params.attack),
        compilations: 1,
        votes,
        votes_at_least: images * rounds * fewest,
        detector: votes * detector.map_or(0, |detector| detector.draws().into()),
        ..Cost::default()
    }
}

/// Whether an attack may leave images before its last step.
fn stops(attack: &attacks::Spec) -> bool {
    value(attack).is_ok_and(|attack| attack["stop"]["rule"].as_str().is_some_and(|rule| rule != "none"))
}

/// How often an attack draws normal noise on one image, beside the defense.
fn noise(attack: &attacks::Spec) -> u64 {
    let cost = attack.cost();
    match attack {
        // One direction for two evaluations.
        attacks::Spec::EvolutionStrategy(_) => cost.forward / 2,
        attacks::Spec::LogitMatching(_) => cost.backward,
        _ => 0,
    }
}

/// The fewest and the most evaluations of the network that one vote takes: half of the draws settle a tie in favour of the
/// first class.
fn draws(params: &stage_attack::Params, detector: Option<&Detector>, net: &Net) -> (u64, u64) {
    let asked = u64::from(params.votes.draws);
    // Whether a program is random only it can say.
    let certain = params.inside.is_none() && net.model.program().is_none();
    if params.defense.name() == "none" && certain && detector.is_none() {
        // Nothing is random: one draw stands for all.
        (1, 1)
    } else if params.votes.stop == stage_attack::Stop::Never || params.keep_logits || detector.is_some() {
        (asked, asked)
    } else {
        (asked.div_ceil(2), asked)
    }
}

/// The attack with no snapshot but that of a cell.
fn single(attack: &attacks::Spec, step: Option<u32>) -> Result<attacks::Spec, String> {
    let mut table = value(attack)?;
    if let (Some(steps), Some(step)) = (table.get_mut("steps"), step) {
        *steps = json!([step]);
    }
    read(table)
}

fn folder(address: &str) -> String {
    format!("data/{address}")
}

/// Leaves of a value by their path; a list of plain values is one leaf, its items as text.
fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    let nested = |value: &Value| value.is_object() || value.is_array();
    let children: Vec<(String, &Value)> = match value {
        Value::Object(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) if items.iter().any(nested) => {
            items.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        leaf => {
            into.insert(prefix.trim_end_matches('.').to_owned(), plain(leaf));
            return;
        }
    };
    for (key, value) in children {
        flatten(&format!("{prefix}{key}."), value, into);
    }
}

/// A leaf as a text or a number.
fn plain(leaf: &Value) -> Value {
    let text = |item: &Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
    match leaf {
        Value::Array(items) if items.len() == 1 => items[0].clone(),
        Value::Array(items) => Value::String(items.iter().map(text).collect::<Vec<_>>().join(", ")),
        other => other.clone(),
    }
}
