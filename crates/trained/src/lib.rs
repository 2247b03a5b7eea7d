//! The network of a finetune table, rebuilt and ready to run: what the stages share that ask trained networks.
//!
//! A network is an architecture of ours or of candle's library with weights, or a program that is started ([`Model`]). Programs among the defenses
//! are started here, too ([`Programs`]).

mod model;
mod programs;

use std::{ops::Range, path::Path, sync::Arc};

use artifact::FinetuneRow;
use candle_core::{DType, Device, Tensor};
use engine::DevicePlan;
use game::Classifier;
use gpu::Halving;
use nets::{Graph, Inside, Network, Precision, Weights, weights};
use serde_json::Value;
use stage::{
    Context, Epoch, Invalid, Table, Unfit, Usage,
    classes::{contradiction, numbered},
    images::Images,
};

pub use model::Model;
pub use programs::Programs;

/// Pixels that one evaluation of the network may hold; bounds memory, changes no number.
const PIXELS: usize = 400_000;

/// Bytes for each number of an image's pixels, around a gradient query: the image, the defended one, both gradients and
/// their sum in f64, and as much again in between.
const COPIES: usize = 48;

/// A trained network, and the table it is from.
pub struct Trained {
    /// What runs it on the context's device.
    pub network: Box<dyn Classifier>,
    /// Whether its logits depend on keys.
    pub is_stochastic: bool,
    /// The finetune table.
    pub table: Table<FinetuneRow>,
    /// The program that is the network, where it is one.
    pub programs: Programs,
    ours: Option<Ours>,
    candle: Option<zoo::Spec>,
}

/// A network of ours.
struct Ours {
    /// The network again, where it is planned for a GPU.
    plan: Option<Arc<DevicePlan>>,
    graph: Graph,
}

impl std::fmt::Debug for Trained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { network, is_stochastic, table, .. } = self;
        let mut debug = f.debug_struct("Trained");
        debug.field("classes", &network.classes()).field("is_stochastic", is_stochastic).field("table", table).finish()
    }
}

impl Trained {
    /// Rebuilds the network of one epoch of the finetune table among the inputs, with `inside` put into it, multiplying in
    /// `precision`.
    ///
    /// # Errors
    /// [`Usage`] if the device has no such precision, or a program is asked for one, or for something inside it; [`Unfit`] if
    /// there is no such table or epoch, the table does not name its network, the weights are not those it describes, or a
    /// program is not the one it describes; [`Invalid`] if weights are no numbers.
    pub fn open(epoch: Epoch, inside: Option<&Inside>, precision: Precision, ctx: &Context) -> anyhow::Result<Self> {
        if !gpu::offers(&ctx.device, precision) {
            let text = format!("precision: {} needs a GPU, and a program built with `make cuda`", precision.name());
            return Err(Usage(format!("{text}; leave it out for f32, which every device has")).into());
        }
        let table = ctx.table::<FinetuneRow>()?;
        let name = table.parts[0].path.display();
        let model = table.provenance().facts.get("model").cloned().unwrap_or(Value::Null);
        let foreign = |fault: String| Unfit(format!("{name}: does not name its network ({fault}); run finetune again"));
        let spec = match serde_json::from_value::<Model>(model).map_err(|fault| foreign(fault.to_string()))? {
            Model::Graph(spec) => spec,
            Model::Candle(spec) => {
                let path = epoch.weights(&table)?;
                return Self::candle(spec, &path, table.clone(), inside, precision, ctx);
            }
            Model::Program(program) => {
                epoch.choose(&table.rows).map_err(|fault| Unfit(format!("{name}: {fault}")))?;
                return Self::program(&program, table.clone(), inside, precision, ctx);
            }
        };
        let graph = spec.graph().map_err(|fault| foreign(fault.to_string()))?;
        let path = epoch.weights(&table)?;
        let mut weights = weights::open(&path).and_then(|file| file.fit(&graph, None, false)).map_err(fault)?.weights;
        for tensor in weights.values_mut() {
            *tensor = tensor.to_dtype(DType::F32)?;
        }
        let graph = inside.map_or(graph.clone(), |inside| inside.apply(&graph));
        let (network, plan) = executor_in(&graph, &weights, &ctx.device, precision)?;
        let (is_stochastic, programs) = (graph.is_stochastic(), Programs::default());
        Ok(Self { network, is_stochastic, table, programs, ours: Some(Ours { plan, graph }), candle: None })
    }

    /// Rebuilds a network of candle's library.
    fn candle(
        spec: zoo::Spec,
        path: &Path,
        table: Table<FinetuneRow>,
        inside: Option<&Inside>,
        precision: Precision,
        ctx: &Context,
    ) -> anyhow::Result<Self> {
        Model::Candle(spec.clone()).takes(inside, precision).map_err(Usage)?;
        let weights = weights::load(path).and_then(|found| zoo::prepare(&spec, found, path)).map_err(fault)?;
        let network = candle(&spec, &weights, &ctx.device)?;
        let programs = Programs::default();
        Ok(Self { network, is_stochastic: false, table, programs, ours: None, candle: Some(spec) })
    }

    /// Starts the program that a finetune table names.
    fn program(
        program: &game::Program,
        table: Table<FinetuneRow>,
        inside: Option<&Inside>,
        precision: Precision,
        ctx: &Context,
    ) -> anyhow::Result<Self> {
        Model::Program(program.clone()).takes(inside, precision).map_err(Usage)?;
        let mut programs = Programs::default();
        let client = programs.open("model", program, ctx)?;
        let is_stochastic = client.hello().random;
        let network = victim::Network::new(client).map_err(|fault| Unfit(fault.to_string()))?;
        Ok(Self { network: Box::new(network), is_stochastic, table, programs, ours: None, candle: None })
    }

    /// How many images of this size to evaluate together: on a GPU as many as its free memory is likely to hold.
    ///
    /// # Errors
    /// If the device fails.
    pub fn batch(&self, images: &Images) -> candle_core::Result<usize> {
        let usual = batch_of(images.height * images.width);
        let Some(Ours { plan, graph }) = &self.ours else { return Ok(self.programs.batch().min(usual)) };
        let Some(free) = gpu::free(self.network.device())? else { return Ok(usual) };
        let bytes = match plan {
            // And what the defense and the attack keep of each image, some copies of it.
            Some(plan) => plan.bytes(images.height, images.width)? + (COPIES * 3 * images.height * images.width) as u64,
            // Of each number, the value and a gradient or a copy that waits for it, in f32.
            None => 8 * graph.numbers(images.height, images.width) as u64,
        };
        let batch = gpu::batch(free, bytes);
        tracing::info!("{batch} images at a time: {} MiB free, about {} MiB each", free >> 20, bytes.div_ceil(1 << 20));
        Ok(batch)
    }

    /// Checks that the sample's classes are those of the network, by number and, where both have names, by name.
    ///
    /// # Errors
    /// [`Unfit`] if they are not.
    pub fn fits(&self, images: &Images) -> Result<(), Unfit> {
        let (name, classes) = (self.table.parts[0].path.display(), self.network.classes());
        if let Some(spec) = &self.candle {
            sizes(spec, images).map_err(|fault| Unfit(format!("{name}: {fault}")))?;
        }
        let names = self.table.provenance().facts.get("classes").cloned();
        let known: Option<Vec<String>> = names.and_then(|names| serde_json::from_value(names).ok());
        let known = known.filter(|known| known.len() == classes).unwrap_or_else(|| numbered(classes));
        let Some(fault) = contradiction(&images.classes, &known) else { return Ok(()) };
        let mend = "place the sample in the network's classes (`classes` of the sample), or keep only the sample's (`classes` of the weights)";
        Err(Unfit(format!("{name}: other classes than the sample's: {fault}: {mend}")))
    }
}

/// Checks that a network of candle's library takes images of this size; warns where it was trained on others.
///
/// # Errors
/// One sentence with the mend.
pub fn sizes(spec: &zoo::Spec, images: &Images) -> Result<(), String> {
    let (height, width, side) = (images.height, images.width, spec.side);
    spec.fits(height, width).map_err(|fault| fault.to_string())?;
    if (height, width) != (side, side) {
        let name = &spec.architecture;
        tracing::warn!("`{name}` was trained on images of {side}x{side} pixels, and is asked about {height}x{width}");
    }
    Ok(())
}

/// What runs a network of candle's library: autograd, on every device.
///
/// # Errors
/// If a tensor is missing or does not fit, or cannot be moved to the device.
pub fn candle(spec: &zoo::Spec, weights: &Weights, device: &Device) -> candle_core::Result<Box<dyn Classifier>> {
    let network = zoo::Zoo::new(spec, &single(weights)?, device)?;
    Ok(if device.is_cpu() { Box::new(network) } else { Box::new(Halving::new(network)) })
}

/// The weights in single precision.
fn single(weights: &Weights) -> candle_core::Result<Weights> {
    let single = |tensor: &Tensor| tensor.to_dtype(DType::F32);
    weights.iter().map(|(name, tensor)| single(tensor).map(|tensor| (name.clone(), tensor))).collect()
}

/// How many images of so many pixels to evaluate together, on any device.
#[must_use]
pub fn batch_of(pixels: usize) -> usize {
    (PIXELS / pixels.max(1)).clamp(4, 128)
}

/// What runs frozen networks: a compiled plan on the CPU or, with cuDNN, on a GPU; elsewhere autograd. Where a device's memory
/// asks for it, batches are halved.
///
/// # Errors
/// If a tensor is missing or does not fit, or cannot be moved to the device.
pub fn executor(graph: &Graph, weights: &Weights, device: &Device) -> candle_core::Result<Box<dyn Classifier>> {
    Ok(executor_in(graph, weights, device, Precision::F32)?.0)
}

type Executor = (Box<dyn Classifier>, Option<Arc<DevicePlan>>);

fn executor_in(
    graph: &Graph,
    weights: &Weights,
    device: &Device,
    precision: Precision,
) -> candle_core::Result<Executor> {
    Ok(match device {
        Device::Cpu => (Box::new(engine::Plan::new(graph, weights)?), None),
        device if gpu::plans(device) => {
            let plan = Arc::new(DevicePlan::new(graph, weights, device, precision)?);
            (Box::new(Halving::new(plan.clone())), Some(plan))
        }
        device => (Box::new(Halving::new(Network::in_precision(graph, weights, device, precision)?)), None),
    })
}

/// Does `run(images, batch)` for all of `0..n`, at most `batch` images at a time, and joins what it gives. Where the device has
/// no memory for it, both are halved, from then on, and the images are run again.
///
/// # Errors
/// Those of `run`, but for memory that a smaller batch does not need.
pub fn in_parts<T>(
    n: usize,
    batch: &mut usize,
    mut run: impl FnMut(Range<usize>, usize) -> anyhow::Result<Vec<T>>,
) -> anyhow::Result<Vec<T>> {
    let (mut done, mut all) = (0, Vec::new());
    while done < n {
        let end = n.min(done + *batch);
        match run(done..end, *batch) {
            Ok(some) => {
                all.extend(some);
                done = end;
            }
            Err(error) if *batch > 1 && is_out_of_memory(&error) => {
                *batch /= 2;
                tracing::info!("the device has no memory for that: {batch} images at a time from here on");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<candle_core::Error>()).any(gpu::is_out_of_memory)
}

/// Gives an error about weights its exit code.
fn fault(error: weights::Error) -> anyhow::Error {
    let text = error.to_string();
    if error.is_invalid_numbers() { Invalid(text).into() } else { Unfit(text).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_run_again_in_smaller_parts() {
        let full = || anyhow::Error::from(candle_core::Error::msg("CUDA_ERROR_OUT_OF_MEMORY")).context("an attack");
        let mut batch = 16;
        let mut asked = Vec::new();
        let found = in_parts(11, &mut batch, |range, batch| {
            asked.push((range.clone(), batch));
            if batch > 5 { Err(full()) } else { Ok(range.collect()) }
        });
        assert_eq!(found.unwrap(), Vec::from_iter(0..11));
        assert_eq!(asked, [(0..11, 16), (0..8, 8), (0..4, 4), (4..8, 4), (8..11, 4)]);
        assert_eq!(batch, 4, "the size that went is kept");
        let mut batch = 4;
        assert!(in_parts(2, &mut batch, |_, _| Err::<Vec<()>, _>(full())).is_err());
        assert_eq!(batch, 1);
        let mut batch = 4;
        let other = in_parts(2, &mut batch, |_, _| Err::<Vec<()>, _>(anyhow::anyhow!("no")));
        assert_eq!((other.unwrap_err().to_string().as_str(), batch), ("no", 4));
    }
}
