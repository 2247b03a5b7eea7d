//! The tables: one struct per kind of artifact, one row per example, epoch, point or number.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StructArray, cast::AsArray};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::json;

use crate::{
    Mismatch, Provenance, Row,
    column::{self, table},
};

/// One image of a data set (`sample`).
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// Position in the source, in the source's own order, before any skipping: names the image's random keys.
    pub id: u32,
    /// The image after resizing and cropping, as PNG bytes (8-bit RGB); column `image`, a struct of `bytes` and `path`.
    pub png: Vec<u8>,
    /// Where the image came from: a file name, or a file and row.
    pub path: String,
    /// The true class, from 0.
    pub label: u32,
}

/// One epoch of training, or one imported set of weights (`finetune`).
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneRow {
    /// Epoch, from 1; 0 is the network before training (imported or fresh weights).
    pub epoch: u32,
    /// Optimiser steps taken so far.
    pub steps: u64,
    /// Learning rate of the epoch; null for epoch 0.
    pub learning_rate: Option<f64>,
    /// Mean training loss over the epoch's (defended) images; null for epoch 0.
    pub train_loss: Option<f64>,
    /// Share of the epoch's (defended) training images classified right during training; null for epoch 0.
    pub train_accuracy: Option<f64>,
    /// Right answers on the validation images, one draw each where the protocol defends them.
    pub validation_correct: Option<u32>,
    /// Number of validation images.
    pub validation_images: Option<u32>,
    /// File of the weights beside this table (safetensors); null where the epoch was not kept.
    pub weights: Option<String>,
    /// SHA-256 of that file, in hexadecimal.
    pub sha256: Option<String>,
    /// Whether this is the best epoch by validation accuracy (the earliest on ties).
    pub best: bool,
}

/// One image at one step of one attack, or before it (`attack`).
#[derive(Clone, Debug, PartialEq)]
pub struct AttackRow {
    /// The image's id in the sample.
    pub id: u32,
    /// Its true class.
    pub label: u32,
    /// The adversary's target; null when untargeted.
    pub target: Option<u32>,
    /// `before` (fresh votes on the clean image) or `after` (fresh votes on the attacked one).
    pub phase: String,
    /// Attack steps taken.
    pub step: u32,
    /// The class of every draw, in order of the draws; shorter than the number asked for when the outcome was settled.
    pub votes: Vec<u16>,
    /// Mean of the drawn logits; null unless asked for.
    pub mean_logits: Option<Vec<f32>>,
    /// Cross-entropy of the last attack step's draws about the label (or target), mean over draws; null at step 0.
    pub loss: Option<f64>,
    /// Largest absolute change of a channel of a pixel, in pixel units of `[0, 1]`.
    pub linf: f64,
    /// Euclidean length of the change, in pixel units of `[0, 1]`.
    pub l2: f64,
    /// Share of gradient entries that were exactly zero at the last step; null at step 0.
    pub zero_gradient: Option<f64>,
    /// Gradient entries that were not finite, over all steps so far (they are taken as 0).
    pub non_finite: u64,
    /// Forward evaluations of the network by the attack so far (votes not counted).
    pub forward_queries: u64,
    /// Backward evaluations of the network by the attack so far.
    pub backward_queries: u64,
    /// The perturbation, `(c, h, w)` row-major; null unless asked for.
    pub delta: Option<Vec<f32>>,
    /// Whether the detector flagged the image in each draw, in order of the draws; null without a detector.
    pub flags: Option<Vec<bool>>,
    /// Mean of the drawn probabilities (softmax of the logits); null unless the logits were asked for.
    pub mean_probabilities: Option<Vec<f32>>,
}

/// What noise does to the margin between two classes on clean images (`detector`).
#[derive(Clone, Debug, PartialEq)]
pub struct DetectorRow {
    /// The class that the network predicts without noise.
    pub predicted: u32,
    /// Another class.
    pub other: u32,
    /// Images of that prediction.
    pub images: u32,
    /// Mean erosion of the margin over them, in units of logits; null without images.
    pub mean: Option<f64>,
    /// Its standard deviation over them (the population's); null without images.
    pub standard_deviation: Option<f64>,
}

/// One value of one quantity of the binary Gaussian example (`theory`).
#[derive(Clone, Debug, PartialEq)]
pub struct TheoryRow {
    /// `accuracy`, `robustness` (conditional), `joint` (robust and correct), or `invariance`.
    pub quantity: String,
    /// Trained shift of the decision boundary; null for the undefended classifier.
    pub k: Option<f64>,
    /// Standard deviation of the defense's noise.
    pub sigma: f64,
    /// Budget of the adversary.
    pub epsilon: f64,
    /// Votes; null for infinitely many.
    pub votes: Option<u32>,
    /// `closed-form` or `monte-carlo`.
    pub method: String,
    /// The value.
    pub value: f64,
    /// Lower end of the 95% interval; null for closed forms.
    pub low: Option<f64>,
    /// Upper end of the 95% interval; null for closed forms.
    pub high: Option<f64>,
    /// Monte-Carlo samples; null for closed forms.
    pub samples: Option<u64>,
}

/// One number of a report, with everything it came from (`report`).
#[derive(Clone, Debug, PartialEq)]
pub struct ReportRow {
    /// The pipeline's name.
    pub pipeline: String,
    /// `demo`, `cifar10` or `paper`.
    pub scale: String,
    /// `paper-text`, `authors-code` or `corrected`.
    pub protocol: String,
    /// `benign_accuracy`, `attack_success_rate`, ...
    pub quantity: String,
    /// The varying parameters by name, a JSON object of texts and numbers.
    pub parameters: String,
    /// The value, a rate in `[0, 1]` unless the quantity says otherwise.
    pub value: Option<f64>,
    /// Lower end of the 95% interval.
    pub low: Option<f64>,
    /// Upper end of the 95% interval.
    pub high: Option<f64>,
    /// Images (or draws) counted.
    pub numerator: Option<u64>,
    /// Images (or draws) they are counted among.
    pub denominator: Option<u64>,
    /// The same rate with no perturbation at all, under fresh draws.
    pub baseline_zero: Option<f64>,
    /// The same rate under uniform noise in the adversary's ball.
    pub baseline_noise: Option<f64>,
    /// Forward evaluations per image by the attack.
    pub forward_queries: Option<f64>,
    /// Backward evaluations per image by the attack.
    pub backward_queries: Option<f64>,
    /// The paper's claim.
    pub paper: Option<f64>,
}

/// One work of the benchmark, beside PyTorch's (`bench`).
#[derive(Clone, Debug, PartialEq)]
pub struct BenchRow {
    /// `gradient` (forward, and gradient with respect to the image), `logits` (forward), `votes` or `train`.
    pub work: String,
    /// The network.
    pub model: String,
    /// What it is given, as `3x32x32`.
    pub input: String,
    /// Images in one evaluation.
    pub batch: u32,
    /// Threads.
    pub threads: u32,
    /// Images per second of this system, the median over rounds.
    pub ours_per_second: f64,
    /// Images per second of PyTorch's best variant by the median over rounds.
    pub torch_best_per_second: f64,
    /// That variant.
    pub torch_variant: String,
    /// The former over the latter.
    pub ratio: f64,
    /// The processor, and how many of it.
    pub machine: String,
}

impl BenchRow {
    /// The row for a JSON file beside the table, by the names of its columns; what is not a number is null.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "work": self.work, "model": self.model, "input": self.input, "batch": self.batch, "threads": self.threads,
            "ours_per_second": self.ours_per_second, "torch_best_per_second": self.torch_best_per_second,
            "torch_variant": self.torch_variant, "ratio": self.ratio, "machine": self.machine,
        })
    }
}

/// Where the time went; written beside an artifact, never inside it.
#[derive(Clone, Debug, PartialEq)]
pub struct TimingRow {
    /// What was done: `attack_queries` (forward evaluations), `votes`, ..., and for all of it `total` and `processor`.
    pub work: String,
    /// How many of them.
    pub count: u64,
    /// Wall-clock seconds; of `processor`, processor seconds of all threads.
    pub seconds: f64,
}

table!(
    FinetuneRow,
    "finetune",
    epoch,
    steps,
    learning_rate,
    train_loss,
    train_accuracy,
    validation_correct,
    validation_images,
    weights,
    sha256,
    best
);
table!(
    AttackRow,
    "attack",
    id,
    label,
    target,
    phase,
    step,
    votes,
    mean_logits,
    loss,
    linf,
    l2,
    zero_gradient,
    non_finite,
    forward_queries,
    backward_queries,
    delta;
    later flags, mean_probabilities
);
table!(DetectorRow, "detector", predicted, other, images, mean, standard_deviation);
table!(TheoryRow, "theory", quantity, k, sigma, epsilon, votes, method, value, low, high, samples);
table!(
    ReportRow,
    "report",
    pipeline,
    scale,
    protocol,
    quantity,
    parameters,
    value,
    low,
    high,
    numerator,
    denominator,
    baseline_zero,
    baseline_noise,
    forward_queries,
    backward_queries,
    paper
);
table!(
    BenchRow,
    "bench",
    work,
    model,
    input,
    batch,
    threads,
    ours_per_second,
    torch_best_per_second,
    torch_variant,
    ratio,
    machine
);
table!(TimingRow, "timing", work, count, seconds);

impl Row for SampleRow {
    const KIND: &'static str = "sample";

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            column::field("id", |row: &Self| &row.id),
            Field::new("image", DataType::Struct(image_fields()), true),
            Field::new("label", DataType::Int64, true),
        ]))
    }

    fn encode(rows: &[Self]) -> RecordBatch {
        let image = vec![column::encode(rows, |row| &row.png), column::encode(rows, |row| &row.path)];
        let image: ArrayRef = Arc::new(StructArray::new(image_fields(), image, None));
        let label: ArrayRef = Arc::new(rows.iter().map(|row| i64::from(row.label)).collect::<Int64Array>());
        column::batch::<Self>(vec![column::encode(rows, |row| &row.id), image, label])
    }

    fn decode(batch: &RecordBatch) -> Result<Vec<Self>, Mismatch> {
        let image = column::find(batch, "image", &DataType::Struct(image_fields()))?.as_struct();
        let png = column::cells("image.bytes", image.column(0))?;
        let path = column::cells("image.path", image.column(1))?;
        let id = column::decode(batch, "id")?;
        let label = column::decode::<i64>(batch, "label")?;
        let rows = id.into_iter().zip(png).zip(path).zip(label);
        rows.map(|(((id, png), path), label)| {
            let label = u32::try_from(label).map_err(|_| Mismatch {
                column: "label".to_owned(),
                problem: format!("holds {label}, which is no class"),
            })?;
            Ok(Self { id, png, path, label })
        })
        .collect()
    }

    fn weight(&self) -> usize {
        self.png.len() + self.path.len()
    }

    /// `Image` and `ClassLabel`, the class names taken from the fact `classes`.
    fn features(provenance: &Provenance) -> Option<serde_json::Value> {
        let label = match provenance.facts.get("classes") {
            Some(names) if names.is_array() => json!({"_type": "ClassLabel", "names": names}),
            _ => json!({"_type": "Value", "dtype": "int64"}),
        };
        Some(json!({"id": {"_type": "Value", "dtype": "uint32"}, "image": {"_type": "Image"}, "label": label}))
    }
}

/// The struct that `datasets` takes for an image.
fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}
