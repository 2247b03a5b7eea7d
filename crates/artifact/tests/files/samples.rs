//! A few rows of every kind, and what other programs must find in them.

use std::path::Path;

use artifact::{
    AttackRow, DetectorRow, FinetuneRow, Provenance, ReportRow, Row, SampleRow, Shard, TheoryRow, TimingRow, Writer,
};
use serde_json::{Value, json};

/// A 2x1 image, red and blue, as PNG: what Python's `zlib` and `struct` make of the PNG specification.
pub const PNG: &[u8] = include_bytes!("red-blue.png");

/// A row with examples.
pub trait Sample: Row {
    /// Two or three rows that use every column.
    fn rows() -> Vec<Self>;
    /// The same, column by column, as another reader must see them.
    fn expected() -> Value;
}

/// Where the examples come from.
pub fn provenance() -> Provenance {
    Provenance {
        kind: String::new(),
        stage: "test".to_owned(),
        revision: 3,
        parameters: json!({"zebra": 1, "apple": {"eps": "8/255"}}),
        shard: Shard::WHOLE,
        inputs: [("data/x.parquet".to_owned(), "00ff".to_owned())].into(),
        facts: [("classes".to_owned(), json!(["cat", "tench, a fish"]))].into(),
        environment: [("device".to_owned(), "cpu".to_owned())].into(),
    }
}

/// Writes an artifact.
pub fn write<R: Row>(path: &Path, rows: &[R]) {
    write_from(path, rows, provenance());
}

/// Writes an artifact of this provenance.
pub fn write_from<R: Row>(path: &Path, rows: &[R], provenance: Provenance) {
    let mut writer = Writer::<R>::create(path, provenance).unwrap();
    writer.push(rows).unwrap();
    writer.finish().unwrap();
}

impl Sample for SampleRow {
    fn rows() -> Vec<Self> {
        let row = |id, label| Self { id, png: PNG.to_vec(), path: format!("test.parquet#{id}"), label };
        vec![row(0, 1), row(4_000_000_000, 0)]
    }
    fn expected() -> Value {
        json!({"id": [0, 4_000_000_000_u32], "label": [1, 0]})
    }
}

impl Sample for FinetuneRow {
    fn rows() -> Vec<Self> {
        let fresh = Self {
            epoch: 0,
            steps: 0,
            learning_rate: None,
            train_loss: None,
            train_accuracy: None,
            validation_correct: Some(97),
            validation_images: Some(1000),
            weights: None,
            sha256: None,
            best: false,
        };
        let trained = Self {
            epoch: 12,
            steps: 5_000_000_000,
            learning_rate: Some(0.1),
            train_loss: Some(0.25),
            train_accuracy: Some(0.9375),
            weights: Some("epoch-012.safetensors".to_owned()),
            sha256: Some("ab".repeat(32)),
            best: true,
            ..fresh.clone()
        };
        vec![fresh, trained]
    }
    fn expected() -> Value {
        json!({
            "epoch": [0, 12], "steps": [0, 5_000_000_000_u64], "learning_rate": [null, 0.1],
            "train_loss": [null, 0.25], "train_accuracy": [null, 0.9375], "validation_correct": [97, 97],
            "validation_images": [1000, 1000], "weights": [null, "epoch-012.safetensors"],
            "sha256": [null, "ab".repeat(32)], "best": [false, true],
        })
    }
}

impl Sample for AttackRow {
    fn rows() -> Vec<Self> {
        let before = Self {
            id: 7,
            label: 3,
            target: None,
            phase: "before".to_owned(),
            step: 0,
            votes: vec![3, 3, 999],
            mean_logits: None,
            loss: None,
            linf: 0.0,
            l2: 0.0,
            zero_gradient: None,
            non_finite: 0,
            forward_queries: 0,
            backward_queries: 0,
            delta: None,
            flags: None,
            mean_probabilities: None,
        };
        let after = Self {
            target: Some(9),
            phase: "after".to_owned(),
            step: 50,
            votes: vec![],
            mean_logits: Some(vec![1.5, -2.25]),
            loss: Some(2.5),
            linf: 0.03125,
            l2: 1.75,
            zero_gradient: Some(0.125),
            non_finite: 2,
            forward_queries: 50,
            backward_queries: 49,
            delta: Some(vec![0.03125, -0.03125, 0.0]),
            flags: Some(vec![true, false, true]),
            mean_probabilities: Some(vec![0.75, 0.25]),
            ..before.clone()
        };
        vec![before, after]
    }
    fn expected() -> Value {
        json!({
            "id": [7, 7], "label": [3, 3], "target": [null, 9], "phase": ["before", "after"], "step": [0, 50],
            "votes": [[3, 3, 999], []], "mean_logits": [null, [1.5, -2.25]], "loss": [null, 2.5],
            "linf": [0.0, 0.03125], "l2": [0.0, 1.75], "zero_gradient": [null, 0.125], "non_finite": [0, 2],
            "forward_queries": [0, 50], "backward_queries": [0, 49], "delta": [null, [0.03125, -0.03125, 0.0]],
            "flags": [null, [true, false, true]], "mean_probabilities": [null, [0.75, 0.25]],
        })
    }
}

impl Sample for DetectorRow {
    fn rows() -> Vec<Self> {
        let seen = Self { predicted: 1, other: 0, images: 12, mean: Some(-0.5), standard_deviation: Some(0.25) };
        vec![Self { predicted: 0, other: 1, images: 0, mean: None, standard_deviation: None }, seen]
    }
    fn expected() -> Value {
        json!({
            "predicted": [0, 1], "other": [1, 0], "images": [0, 12], "mean": [null, -0.5],
            "standard_deviation": [null, 0.25],
        })
    }
}

impl Sample for TheoryRow {
    fn rows() -> Vec<Self> {
        let closed = Self {
            quantity: "accuracy".to_owned(),
            k: None,
            sigma: 0.5,
            epsilon: 0.125,
            votes: None,
            method: "closed-form".to_owned(),
            value: 0.75,
            low: None,
            high: None,
            samples: None,
        };
        let drawn = Self {
            k: Some(-1.0),
            votes: Some(500),
            method: "monte-carlo".to_owned(),
            low: Some(0.7),
            high: Some(0.8),
            samples: Some(1_000_000),
            ..closed.clone()
        };
        vec![closed, drawn]
    }
    fn expected() -> Value {
        json!({
            "quantity": ["accuracy", "accuracy"], "k": [null, -1.0], "sigma": [0.5, 0.5], "epsilon": [0.125, 0.125],
            "votes": [null, 500], "method": ["closed-form", "monte-carlo"], "value": [0.75, 0.75],
            "low": [null, 0.7], "high": [null, 0.8], "samples": [null, 1_000_000],
        })
    }
}

impl Sample for ReportRow {
    fn rows() -> Vec<Self> {
        let empty = Self {
            pipeline: "table1".to_owned(),
            scale: "demo".to_owned(),
            protocol: "corrected".to_owned(),
            quantity: "attack_success_rate".to_owned(),
            parameters: r#"{"defense.degrees":90,"attack.eps":"8/255"}"#.to_owned(),
            value: None,
            low: None,
            high: None,
            numerator: None,
            denominator: Some(0),
            baseline_zero: None,
            baseline_noise: None,
            forward_queries: None,
            backward_queries: None,
            paper: None,
        };
        let full = Self {
            value: Some(0.5),
            low: Some(0.25),
            high: Some(0.75),
            numerator: Some(5),
            denominator: Some(10),
            baseline_zero: Some(0.1),
            baseline_noise: Some(0.2),
            forward_queries: Some(50.0),
            backward_queries: Some(49.5),
            paper: Some(0.53),
            ..empty.clone()
        };
        vec![empty, full]
    }
    fn expected() -> Value {
        let parameters = r#"{"defense.degrees":90,"attack.eps":"8/255"}"#;
        json!({
            "pipeline": ["table1", "table1"], "scale": ["demo", "demo"], "protocol": ["corrected", "corrected"],
            "quantity": ["attack_success_rate", "attack_success_rate"], "parameters": [parameters, parameters],
            "value": [null, 0.5], "low": [null, 0.25], "high": [null, 0.75], "numerator": [null, 5],
            "denominator": [0, 10], "baseline_zero": [null, 0.1], "baseline_noise": [null, 0.2],
            "forward_queries": [null, 50.0], "backward_queries": [null, 49.5], "paper": [null, 0.53],
        })
    }
}

impl Sample for TimingRow {
    fn rows() -> Vec<Self> {
        vec![
            Self { work: "votes".to_owned(), count: 5_000_000_000, seconds: 1.5 },
            Self { work: "total".to_owned(), count: 1, seconds: 2.0 },
        ]
    }
    fn expected() -> Value {
        json!({"work": ["votes", "total"], "count": [5_000_000_000_u64, 1], "seconds": [1.5, 2.0]})
    }
}
