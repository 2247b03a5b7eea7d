//! What is measured.

use std::fmt;

use serde::Serialize;

/// One kind of work on a batch of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Forward, and the gradient with respect to the image; frozen weights.
    Gradient,
    /// Forward; frozen weights.
    Logits,
    /// Votes of 500 draws of Gaussian noise, by the stage `attack` until each is decided.
    Votes,
    /// Forward, backward, and a step of AdamW; batch statistics.
    Train,
    /// A step of PGD on PyTorch's network behind Gaussian noise, as a program that speaks the protocol `victim`; PyTorch's side
    /// is the same in a loop by hand.
    Program,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    pub kind: Kind,
    pub model: &'static str,
    /// Rows and columns of pixels.
    pub side: usize,
    pub batch: usize,
    /// 0 for all cores.
    pub threads: usize,
}

/// The normalisation that all networks here have, on both sides.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// What a vote asks for.
pub const DRAWS: u32 = 500;

impl Kind {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Logits => "logits",
            Self::Votes => "votes",
            Self::Train => "train",
            Self::Program => "program",
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, model, side, batch, threads } = self;
        write!(f, "{} {model} {side} {batch} {threads}", kind.name())
    }
}

impl Work {
    /// The works on so many threads (0: all cores), in the table's order.
    pub fn all(threads: usize) -> Vec<Self> {
        let models = [
            ("cifar-resnet-20", 32, 100),
            ("cifar-resnet-56", 32, 100),
            ("resnet-18", 32, 32),
            ("resnet-34", 224, 8),
            ("resnet-50", 224, 8),
            ("mobilenet-v2", 224, 8),
            ("efficientnet-lite0", 224, 8),
        ];
        let of = |kind| move |(model, side, batch)| Self { kind, model, side, batch, threads };
        let once = |kind, batch| Self { kind, model: "cifar-resnet-20", side: 32, batch, threads };
        let frozen = models.map(of(Kind::Gradient)).into_iter().chain(models.map(of(Kind::Logits)));
        // One thread each: with several, a loop by hand and a program differ in what else runs.
        let program = (threads == 1).then(|| once(Kind::Program, 100));
        frozen.chain([once(Kind::Votes, 100), once(Kind::Train, 128)]).chain(program).collect()
    }

    /// The network, as parameters name it.
    pub fn spec(&self) -> serde_json::Value {
        if let Some(variant) = self.model.strip_prefix("efficientnet-lite").and_then(|v| v.parse::<usize>().ok()) {
            return serde_json::json!({"name": "efficientnet-lite", "variant": variant, "mean": MEAN, "std": STD});
        }
        let (name, depth) = self.model.rsplit_once('-').unwrap_or((self.model, ""));
        match (name, depth.parse::<usize>()) {
            ("resnet", Ok(depth)) if self.side < 64 => {
                serde_json::json!({"name": name, "depth": depth, "stem": "cifar", "classes": 10})
            }
            (_, Ok(depth)) => serde_json::json!({"name": name, "depth": depth}),
            _ => serde_json::json!({"name": self.model}),
        }
    }

    /// The threads it runs on.
    pub fn cores(&self) -> usize {
        if self.threads == 0 { cores() } else { self.threads }
    }
}

/// Threads the machine runs at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_is_one_of_ours() {
        for work in Work::all(1) {
            let spec: nets::Spec = serde_json::from_value(work.spec()).unwrap();
            assert_eq!(spec.classes(), if work.side < 64 { 10 } else { 1000 }, "{work}");
            spec.graph().unwrap();
        }
    }
}
