//! The network of a finetune table, rebuilt.

use artifact::FinetuneRow;
use candle_core::{DType, Device, Tensor};
use game::{Classifier, Key};
use nets::{Graph, Network, Weights, weights};
use serde_json::Value;
use stage::{Context, Epoch, Invalid, Progress, Table, Unfit};

/// The trained network of the finetune table among the inputs, ready to run on the context's device.
pub(crate) fn open(epoch: Epoch, ctx: &Context) -> anyhow::Result<(Box<dyn Classifier>, Table<FinetuneRow>)> {
    let table = ctx.table::<FinetuneRow>()?;
    let name = table.parts[0].path.display();
    let model = table.provenance().facts.get("model").cloned().unwrap_or(Value::Null);
    let foreign = |fault: String| Unfit(format!("{name}: does not name its network ({fault}); run finetune again"));
    let spec: nets::Spec = serde_json::from_value(model).map_err(|fault| foreign(fault.to_string()))?;
    let graph = spec.graph().map_err(|fault| foreign(fault.to_string()))?;
    let path = epoch.weights(&table)?;
    let mut weights = weights::load(&path).and_then(|found| weights::prepare(&graph, found, &path)).map_err(fault)?;
    for tensor in weights.values_mut() {
        *tensor = tensor.to_dtype(DType::F32)?;
    }
    Ok((executor(&graph, &weights, &ctx.device)?, table))
}

/// What runs frozen networks: the compiled plan on the CPU, autograd elsewhere.
fn executor(graph: &Graph, weights: &Weights, device: &Device) -> candle_core::Result<Box<dyn Classifier>> {
    Ok(match device {
        Device::Cpu => Box::new(engine::Plan::new(graph, weights)?),
        device => Box::new(Network::new(graph, weights, device)?),
    })
}

/// Gives an error about weights its exit code.
fn fault(error: weights::Error) -> anyhow::Error {
    let text = error.to_string();
    if error.is_invalid_numbers() { Invalid(text).into() } else { Unfit(text).into() }
}

/// A network whose evaluations by the attack move a progress bar.
pub(crate) struct Metered<'a> {
    pub network: &'a dyn Classifier,
    pub progress: &'a Progress,
}

impl Classifier for Metered<'_> {
    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn device(&self) -> &Device {
        self.network.device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> candle_core::Result<Tensor> {
        let logits = self.network.logits(x, keys)?;
        self.progress.advance(x.dim(0)? as u64);
        Ok(logits)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let gradient = self.network.input_gradient(x, keys, upstream)?;
        self.progress.advance(x.dim(0)? as u64);
        Ok(gradient)
    }
}
