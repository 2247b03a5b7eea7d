//! Weights: imported, or trained on clean, defended or attacked data.
//!
//! One row per epoch; the weights are safetensors files beside the table, named by digest in it. After every epoch the
//! whole state is stored in `resume/`, so a killed run goes on from its last whole epoch and ends with the same bytes.

mod adversary;
mod augment;
mod data;
mod head;
mod init;
mod params;
mod resume;
mod schedule;
mod store;
mod train;

use std::{collections::BTreeMap, path::Path};

use artifact::{FinetuneRow, SampleRow, Shard, Writer};
use game::Classifier;
use nets::{Graph, Network, Weights};
use serde_json::{Value, json};
use stage::{
    Context, Stage, Unfit, Usage,
    classes::{contradiction, numbered},
    images::{self, Images},
};

use trained::{Model, Programs};

pub use init::Understood;
pub use params::{Augment, Init, Keep, Params, Training};

use crate::{data::Data, init::Source, resume::Resume, store::Store, train::Run};
use artifact::Row as _;

/// The stage.
#[derive(Debug)]
pub struct Finetune;

impl Stage for Finetune {
    const NAME: &'static str = "finetune";
    const REVISION: u32 = 2;
    const ABOUT: &'static str = "Weights of a network: imported, or trained on clean, defended or attacked images";
    type Params = Params;
    type Row = FinetuneRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<FinetuneRow>) -> anyhow::Result<()> {
        params.check().map_err(Usage)?;
        if ctx.shard != Shard::WHOLE {
            return Err(Usage("training has no parts: leave --shard out".to_owned()).into());
        }
        let spec = match &params.model {
            Model::Graph(spec) => spec,
            Model::Candle(spec) => return candle(params, spec, ctx, out),
            Model::Program(program) => return own(params, program, ctx, out),
        };
        let graph = spec.graph().map_err(|fault| Usage(format!("model: {fault}")))?;
        let source = Source::open(&params.init, ctx)?;
        let images = ctx.of_kind(SampleRow::KIND).next().map(|_| images::read(ctx, Shard::WHOLE, None)).transpose()?;
        if let Some(images) = &images {
            agree(params, ctx, images)?;
        }
        let augment = params.training.as_ref().map(|training| training.augment).unwrap_or_default();
        out.provenance_mut().inputs.extend(source.input(&params.init));
        out.provenance_mut().facts.extend(facts(params, &source, images.as_ref(), augment));
        let metadata = metadata(params, &source);
        let mut programs = Programs::default();
        if let Some(defense) = &params.defense {
            programs.start(defense, ctx)?;
        }
        programs.record(out.provenance_mut());
        let job = Job { params, ctx, source, augment, metadata };
        match (&params.training, &images) {
            (Some(training), Some(images)) => {
                job.train(&graph, training, images, out).map_err(|error| programs.blame(error))
            }
            (Some(_), None) => Err(Unfit("no `sample` table among the inputs: name one to train on".to_owned()).into()),
            (None, images) => job.import(&graph, images.as_ref(), out),
        }
    }
}

/// A program as the network: the table records what it is, as epoch 0, and has no weights.
///
/// The program is started once, so that what cannot run is told before anything waits for it.
fn own(params: &Params, program: &game::Program, ctx: &Context, out: &mut Writer<FinetuneRow>) -> anyhow::Result<()> {
    let mut programs = Programs::default();
    let client = programs.open("model", program, ctx)?;
    let hello = client.hello();
    if hello.classes.is_none() {
        let line = program.line();
        return Err(Unfit(format!("program `{line}`: it is no network; name it as `defense`")).into());
    }
    programs.record(out.provenance_mut());
    let facts = &mut out.provenance_mut().facts;
    facts.insert("model".to_owned(), json!(params.model));
    if let Some([_, height, width]) = hello.shape {
        facts.insert("height".to_owned(), json!(height));
        facts.insert("width".to_owned(), json!(width));
    }
    Ok(out.push(&[FinetuneRow { best: true, ..store::row(0) }])?)
}

/// A network of candle's library, stored as epoch 0.
fn candle(params: &Params, spec: &zoo::Spec, ctx: &Context, out: &mut Writer<FinetuneRow>) -> anyhow::Result<()> {
    let source = Source::open(&params.init, ctx)?;
    let images = ctx.of_kind(SampleRow::KIND).next().map(|_| images::read(ctx, Shard::WHOLE, None)).transpose()?;
    if let Some(images) = &images {
        trained::sizes(spec, images).map_err(|fault| Unfit(format!("the sample: {fault}")))?;
        agree(params, ctx, images)?;
    }
    let augment = Augment::default();
    out.provenance_mut().facts.extend(facts(params, &source, images.as_ref(), augment));
    let metadata = metadata(params, &source);
    let job = Job { params, ctx, source, augment, metadata };
    let weights = job.source.candle(spec, params)?;
    job.keep(&weights, || trained::candle(spec, &weights, &ctx.device), images.as_ref(), out)
}

/// One run of the stage, its inputs opened.
struct Job<'a> {
    params: &'a Params,
    ctx: &'a Context,
    source: Source,
    augment: Augment,
    metadata: BTreeMap<String, String>,
}

impl Job<'_> {
    fn train(
        &self,
        graph: &Graph,
        training: &Training,
        images: &Images,
        out: &mut Writer<FinetuneRow>,
    ) -> anyhow::Result<()> {
        if let Some(attack) = &training.adversarial {
            let (height, width) = self.augment.size(images.height, images.width);
            let checked = attack.check_size(3 * height * width);
            checked.map_err(|fault| Usage(format!("training.adversarial: {fault}")))?;
        }
        let data = self.data(images);
        train::check(training, &data).map_err(Usage)?;
        let mut inputs: Vec<&str> = self.ctx.inputs.iter().map(|input| input.sha256.as_str()).collect();
        inputs.sort_unstable();
        let identity = json!([Finetune::NAME, Finetune::REVISION, self.params, inputs, self.source.facts()]);
        let run = Run {
            ctx: self.ctx,
            graph,
            training,
            data,
            resume: Resume::new(self.folder(), &identity),
            store: self.store(),
        };
        out.push(&run.train(|| self.weights(graph))?)?;
        run.resume.remove();
        Ok(())
    }

    /// Stores the initial weights as epoch 0; a sample, where there is one, serves as validation images.
    fn import(&self, graph: &Graph, images: Option<&Images>, out: &mut Writer<FinetuneRow>) -> anyhow::Result<()> {
        let weights = self.weights(graph)?;
        self.keep(&weights, || Ok(Box::new(Network::new(graph, &weights, &self.ctx.device)?)), images, out)
    }

    /// Stores weights as epoch 0.
    fn keep(
        &self,
        weights: &Weights,
        network: impl FnOnce() -> candle_core::Result<Box<dyn Classifier>>,
        images: Option<&Images>,
        out: &mut Writer<FinetuneRow>,
    ) -> anyhow::Result<()> {
        let (file, sha256) = self.store().save(0, weights)?;
        let mut row = FinetuneRow { weights: Some(file), sha256: Some(sha256), best: true, ..store::row(0) };
        if let Some(images) = images {
            self.ctx.announce(&format!("evaluating the imported network on {} images", images.len()));
            let data = self.data(images);
            let positions: Vec<usize> = (0..images.len()).collect();
            let clean = |batch: &[usize]| data.validation(0, batch, false);
            let right = train::evaluate(self.ctx, network()?.as_ref(), &data, &positions, clean)?;
            row.validation_correct = Some(right);
            row.validation_images = Some(images.len() as u32);
        }
        Ok(out.push(&[row])?)
    }

    /// The initial weights, of the classes that are kept.
    fn weights(&self, graph: &Graph) -> anyhow::Result<Weights> {
        match (&self.params.model, &self.params.classes, self.params.rows().map_err(Usage)?) {
            (Model::Graph(spec), Some(all), Some(rows)) => {
                let whole = head::with_classes(spec, all.names().len()).map_err(Usage)?;
                Ok(head::keep(&whole, self.source.weights(&whole, self.params, self.ctx)?, &rows)?)
            }
            _ => self.source.weights(graph, self.params, self.ctx),
        }
    }

    fn data<'a>(&'a self, images: &'a Images) -> Data<'a> {
        let defense = self.params.defense.as_ref().map(defenses::Spec::build);
        Data { images, augment: self.augment, defense, seed: self.params.seed }
    }

    fn folder(&self) -> &Path {
        self.ctx.out.parent().unwrap_or(Path::new(""))
    }

    fn store(&self) -> Store<'_> {
        Store { folder: self.folder().to_owned(), metadata: &self.metadata }
    }
}

/// Fails where the images' classes are not those of the network, by number and, where both have names, by name.
fn agree(params: &Params, ctx: &Context, images: &Images) -> anyhow::Result<()> {
    let sample = images.classes.len();
    // A program says how many it has when it is started.
    let Some(network) = params.model.classes() else { return Ok(()) };
    if sample != network {
        let text = format!("model.classes: the sample has {sample} classes, the network {network}");
        let mend = "name all of the network's in the sample's `classes`, or give the network as many";
        return Err(Usage(format!("{text}; {mend}")).into());
    }
    let mut known = params.named();
    if let (None, Init::Finetuned { new_head: false, .. }) = (&known, &params.init) {
        let base = ctx.table::<FinetuneRow>()?;
        let names = base.provenance().facts.get("classes").cloned();
        known = names.and_then(|names| serde_json::from_value(names).ok());
    }
    let known = known.filter(|known| known.len() == network).unwrap_or_else(|| numbered(network));
    match contradiction(&images.classes, &known) {
        Some(fault) => {
            let mend = "place the sample in the network's classes (`classes` of the sample), or take a `new_head`";
            Err(Unfit(format!("the sample's classes are not the network's: {fault}: {mend}")).into())
        }
        None => Ok(()),
    }
}

/// What later stages need: the network, where its weights came from, and the images it was trained on.
fn facts(params: &Params, source: &Source, images: Option<&Images>, augment: Augment) -> BTreeMap<String, Value> {
    let mut facts = BTreeMap::from([("model".to_owned(), json!(params.model)), ("source".to_owned(), source.facts())]);
    if let Some(names) = params.named() {
        facts.insert("classes".to_owned(), json!(names));
    }
    if let Some(images) = images {
        let (height, width) = augment.size(images.height, images.width);
        facts.entry("classes".to_owned()).or_insert_with(|| json!(images.classes));
        facts.insert("height".to_owned(), json!(height));
        facts.insert("width".to_owned(), json!(width));
    }
    facts
}

/// What every file of weights says of itself.
fn metadata(params: &Params, source: &Source) -> BTreeMap<String, String> {
    let entries = [
        ("stage", Finetune::NAME.to_owned()),
        ("revision", Finetune::REVISION.to_string()),
        ("parameters", json!(params).to_string()),
        ("source", source.facts().to_string()),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}
