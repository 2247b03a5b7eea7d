//! PyTorch's side: one process of `torch_gpu.py`.

use std::{collections::BTreeMap, fs, process::Command};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::speed::Work;

const SCRIPT: &str = include_str!("torch_gpu.py");

/// Seconds after which nothing more is compiled: the whole check takes eight minutes at most.
const BUDGET: f64 = 200.0;

/// What PyTorch reached.
#[derive(Debug, Default, Deserialize)]
pub struct Theirs {
    rates: Vec<Rate>,
    /// Variants that did not run, and why; or why there is nothing at all.
    pub skipped: Vec<String>,
    /// Versions by name.
    pub versions: BTreeMap<String, String>,
}

/// One variant's gradient queries per second.
#[derive(Debug, Deserialize)]
struct Rate {
    model: String,
    side: usize,
    batch: usize,
    precision: String,
    variant: String,
    rate: f64,
}

impl Theirs {
    /// Nothing, for this reason.
    pub fn absent(reason: &str) -> Self {
        Self { skipped: vec![format!("PyTorch: {reason}")], ..Self::default() }
    }

    /// The best variant of a work in its own precision, and its rate.
    pub fn best(&self, work: &Work) -> Option<(&str, f64)> {
        let same = |rate: &&Rate| {
            (rate.model.as_str(), rate.side, rate.batch) == (work.model, work.side, work.batch)
                && rate.precision == work.precision.name()
        };
        let best = self.rates.iter().filter(same).max_by(|a, b| a.rate.total_cmp(&b.rate))?;
        Some((&best.variant, best.rate))
    }
}

/// Measures every variant of these works; what fails is skipped with its reason.
pub fn measure(python: &str, device: &str, compile: bool, works: &[Work]) -> Theirs {
    ask(python, device, compile, works, 0.7).unwrap_or_else(|error| Theirs::absent(&format!("{error:#}")))
}

fn ask(python: &str, device: &str, compile: bool, works: &[Work], seconds: f64) -> anyhow::Result<Theirs> {
    let mut asked: Vec<Value> =
        works.iter().map(|work| json!({"model": work.model, "side": work.side, "batch": work.batch})).collect();
    // Precisions are the script's own.
    asked.dedup();
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("torch_gpu.py");
    fs::write(&script, SCRIPT)?;
    let request =
        json!({"device": device, "compile": compile, "seconds": seconds, "budget": BUDGET, "works": asked}).to_string();
    let output =
        Command::new(python).arg(&script).arg(request).stderr(std::process::Stdio::inherit()).output().map_err(
            |error| anyhow::anyhow!("{python} cannot be started ({error}): set PYTHON to a Python with torch"),
        )?;
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(|_| anyhow::anyhow!("{python}: no answer"))?;
    if let Some(error) = answer["error"].as_str() {
        anyhow::bail!("{python}: {error}")
    }
    Ok(serde_json::from_value(answer)?)
}

#[cfg(test)]
mod tests {
    use nets::Precision;

    use super::*;

    #[test]
    fn the_best_variant_is_of_the_same_work_and_precision() {
        let rate = |precision: &str, batch, variant: &str, rate| Rate {
            model: "resnet-50".into(),
            side: 224,
            batch,
            precision: precision.into(),
            variant: variant.into(),
            rate,
        };
        let rates = vec![
            rate("tf32", 64, "eager", 5.0),
            rate("tf32", 64, "compiled", 6.0),
            rate("tf32", 8, "small", 9.0),
            rate("bf16", 64, "amp", 9.0),
        ];
        let theirs = Theirs { rates, ..Theirs::default() };
        let work = Work { model: "resnet-50", side: 224, batch: 64, precision: Precision::Tf32 };
        assert_eq!(theirs.best(&work), Some(("compiled", 6.0)));
        assert_eq!(theirs.best(&Work { precision: Precision::F32, ..work }), None);
    }

    #[test]
    fn a_python_that_is_not_there_is_a_reason() {
        let theirs = measure("no-such-python", "cpu", false, &[]);
        assert!(theirs.skipped[0].contains("set PYTHON"), "{:?}", theirs.skipped);
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "why a test is skipped")]
    fn the_script_measures_on_any_device() {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let work = Work { model: "resnet-18", side: 64, batch: 1, precision: Precision::F32 };
        match ask(&python, "cpu", false, &[work, work], 0.0) {
            Err(error) => eprintln!("skipped: {error:#}"),
            Ok(theirs) => {
                assert!(theirs.best(&work).is_some_and(|(_, rate)| rate > 0.0), "{theirs:?}");
                assert_eq!(theirs.rates.len(), 3, "{theirs:?}");
            }
        }
    }
}
