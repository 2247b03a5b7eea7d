//! The tables: one struct per kind of artifact, one row per example, epoch, point or number.

use serde as _;

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

/// Where the time went; written beside an artifact, never inside it.
#[derive(Clone, Debug, PartialEq)]
pub struct TimingRow {
    /// What was done: `gradient_queries`, `votes`, `epoch`, `read`, ...
    pub work: String,
    /// How many of them.
    pub count: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl crate::Row for SampleRow {
    const KIND: &'static str = "sample";
    fn schema() -> arrow::datatypes::SchemaRef {
        unimplemented!()
    }
    fn encode(_rows: &[Self]) -> crate::Result<arrow::record_batch::RecordBatch> {
        unimplemented!()
    }
    fn decode(_batch: &arrow::record_batch::RecordBatch) -> crate::Result<Vec<Self>> {
        unimplemented!()
    }
}

impl crate::Row for FinetuneRow {
    const KIND: &'static str = "finetune";
    fn schema() -> arrow::datatypes::SchemaRef {
        unimplemented!()
    }
    fn encode(_rows: &[Self]) -> crate::Result<arrow::record_batch::RecordBatch> {
        unimplemented!()
    }
    fn decode(_batch: &arrow::record_batch::RecordBatch) -> crate::Result<Vec<Self>> {
        unimplemented!()
    }
}

impl crate::Row for AttackRow {
    const KIND: &'static str = "attack";
    fn schema() -> arrow::datatypes::SchemaRef {
        unimplemented!()
    }
    fn encode(_rows: &[Self]) -> crate::Result<arrow::record_batch::RecordBatch> {
        unimplemented!()
    }
    fn decode(_batch: &arrow::record_batch::RecordBatch) -> crate::Result<Vec<Self>> {
        unimplemented!()
    }
}

impl crate::Row for TheoryRow {
    const KIND: &'static str = "theory";
    fn schema() -> arrow::datatypes::SchemaRef {
        unimplemented!()
    }
    fn encode(_rows: &[Self]) -> crate::Result<arrow::record_batch::RecordBatch> {
        unimplemented!()
    }
    fn decode(_batch: &arrow::record_batch::RecordBatch) -> crate::Result<Vec<Self>> {
        unimplemented!()
    }
}

impl crate::Row for ReportRow {
    const KIND: &'static str = "report";
    fn schema() -> arrow::datatypes::SchemaRef {
        unimplemented!()
    }
    fn encode(_rows: &[Self]) -> crate::Result<arrow::record_batch::RecordBatch> {
        unimplemented!()
    }
    fn decode(_batch: &arrow::record_batch::RecordBatch) -> crate::Result<Vec<Self>> {
        unimplemented!()
    }
}

impl crate::Row for TimingRow {
    const KIND: &'static str = "timing";
    fn schema() -> arrow::datatypes::SchemaRef {
        unimplemented!()
    }
    fn encode(_rows: &[Self]) -> crate::Result<arrow::record_batch::RecordBatch> {
        unimplemented!()
    }
    fn decode(_batch: &arrow::record_batch::RecordBatch) -> crate::Result<Vec<Self>> {
        unimplemented!()
    }
}
