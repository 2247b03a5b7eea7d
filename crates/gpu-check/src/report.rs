//! The table, as Parquet and as Markdown.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use artifact::{BenchRow, Provenance, Shard, Writer};

use crate::{
    check::Check,
    speed::{Ceilings, Rate, name},
    torch::Theirs,
};

/// All that was found.
#[derive(Debug)]
pub struct Report {
    /// The GPU's name.
    pub device: String,
    pub checks: Vec<Check>,
    /// None where nothing was timed.
    pub ceilings: Option<Ceilings>,
    pub ours: Vec<Rate>,
    /// Ways that the device could not go, and why.
    pub refused: Vec<String>,
    pub theirs: Theirs,
}

/// How much faster another way must be for a note.
const NOTICED: f64 = 1.05;

impl Report {
    /// Whether the GPU computes what the CPU does.
    pub fn agrees(&self) -> bool {
        self.checks.iter().all(Check::holds)
    }

    /// Gradient queries as runs make them beside PyTorch's, then those of other ways, then logits alone.
    fn rows(&self) -> Vec<BenchRow> {
        let (usual, others): (Vec<Rate>, Vec<Rate>) = self.ours.iter().partition(|rate| rate.is_usual());
        let precision = |rate: &Rate| rate.work.precision.name();
        let beside = |rate: &Rate| {
            let (variant, best) = self.theirs.best(&rate.work).unwrap_or(("", f64::NAN));
            BenchRow {
                torch_best_per_second: best,
                torch_variant: variant.to_owned(),
                ratio: rate.gradient / best,
                ..self.row(rate, format!("gradient {}", precision(rate)), rate.gradient)
            }
        };
        let other = |rate: &Rate| {
            self.row(rate, format!("gradient {}, {}", precision(rate), name(rate.settings)), rate.gradient)
        };
        let forward = |rate: &Rate| self.row(rate, format!("logits {}", precision(rate)), rate.forward);
        let rows = usual.iter().map(beside).chain(others.iter().map(other));
        rows.chain(usual.iter().map(forward)).collect()
    }

    /// A row without PyTorch's side.
    fn row(&self, rate: &Rate, work: String, ours_per_second: f64) -> BenchRow {
        BenchRow {
            work,
            model: rate.work.model.to_owned(),
            input: format!("3x{0}x{0}", rate.work.side),
            batch: rate.work.batch as u32,
            threads: 0,
            ours_per_second,
            torch_best_per_second: f64::NAN,
            torch_variant: String::new(),
            ratio: f64::NAN,
            machine: self.device.clone(),
        }
    }

    /// Where a run would be faster in another way: a work, the way, and how many times as fast it is.
    fn better(&self) -> Vec<String> {
        let usual = |rate: &Rate| self.ours.iter().find(|other| other.is_usual() && other.work == rate.work);
        let better = |rate: &Rate| {
            let ratio = rate.gradient / usual(rate)?.gradient;
            (ratio > NOTICED)
                .then(|| format!("{}: {} would be {ratio:.2} times as fast", rate.work, name(rate.settings)))
        };
        self.ours.iter().filter_map(better).collect()
    }

    /// The page for people.
    pub fn markdown(&self) -> String {
        let wrong: Vec<&Check> = self.checks.iter().filter(|check| !check.holds()).collect();
        let mut page = format!("# {}\n\n{} checks against the CPU", self.device, self.checks.len());
        let _ = match &wrong[..] {
            [] => writeln!(page, ": all agree."),
            wrong => writeln!(page, ": {} do not agree, so no rate below means anything.", wrong.len()),
        };
        for check in wrong {
            let _ = writeln!(page, "- {check}");
        }
        if let Some(ceilings) = self.ceilings {
            self.rates(ceilings, &mut page);
        }
        let versions: Vec<String> =
            self.theirs.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ = writeln!(page, "\n{}", versions.join("; "));
        for skipped in &self.theirs.skipped {
            let _ = writeln!(page, "- {skipped}");
        }
        page
    }

    fn rates(&self, Ceilings { f32, bf16, copy }: Ceilings, page: &mut String) {
        let _ = writeln!(
            page,
            "\nAt best: {:.1} TFLOP/s in f32 and {:.1} in bf16 (products of 8192 x 8192 matrices), {:.0} GB/s (a copy, read \
             and written).\n",
            f32 * 1e-12,
            bf16 * 1e-12,
            copy * 1e-9,
        );
        page.push_str(
            "| work | model | input | images at a time | ours, images per second | PyTorch | variant | ratio |\n",
        );
        page.push_str("|---|---|---|---|---|---|---|---|\n");
        for row in self.rows() {
            let (theirs, ratio) = match row.torch_best_per_second.is_nan() {
                true => ("none".to_owned(), String::new()),
                false => (format!("{:.1}", row.torch_best_per_second), format!("{:.2}", row.ratio)),
            };
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {:.1} | {theirs} | {} | {ratio} |",
                row.work, row.model, row.input, row.batch, row.ours_per_second, row.torch_variant,
            );
        }
        page.push('\n');
        match &self.better()[..] {
            [] => page
                .push_str("No other layout, and neither recording nor plain launches, is faster than what runs use.\n"),
            better => better.iter().for_each(|line| {
                let _ = writeln!(page, "- {line}: see `engine::Settings::of`");
            }),
        }
        for refused in &self.refused {
            let _ = writeln!(page, "- {refused}");
        }
    }

    /// Writes both, and the rows as JSON, which `plan --cost` takes its rates from; the Parquet last.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path, page: &str) -> anyhow::Result<()> {
        let rows = self.rows();
        let tidy = serde_json::to_string_pretty(&rows.iter().map(BenchRow::json).collect::<Vec<_>>())? + "\n";
        artifact::write_atomic(&folder.join("gpu-check.json"), tidy.as_bytes())?;
        artifact::write_atomic(&folder.join("gpu-check.md"), page.as_bytes())?;
        let mut environment = self.theirs.versions.clone();
        environment.insert("device".to_owned(), self.device.clone());
        let checks: Vec<String> = self.checks.iter().map(ToString::to_string).collect();
        let provenance = Provenance {
            kind: String::new(),
            stage: "gpu-check".to_owned(),
            revision: 1,
            parameters: serde_json::Value::Null,
            shard: Shard::WHOLE,
            inputs: BTreeMap::new(),
            facts: [("checks".to_owned(), checks.into()), ("agrees".to_owned(), self.agrees().into())].into(),
            environment,
        };
        let mut writer = Writer::<BenchRow>::create(&folder.join("gpu-check.parquet"), provenance)?;
        writer.push(&rows)?;
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use engine::Settings;
    use gpu::Order;
    use nets::Precision;

    use super::*;
    use crate::speed::Work;

    #[test]
    fn the_report_holds_what_was_found() {
        let work = Work { model: "resnet-50", side: 224, batch: 64, precision: Precision::Tf32 };
        let theirs: Theirs = serde_json::from_value(serde_json::json!({
            "rates": [{"model": "resnet-50", "side": 224, "batch": 64, "precision": "tf32", "variant": "eager", "rate": 50.0}],
            "skipped": ["compiled: no compiler"], "versions": {"torch": "2.15"},
        }))
        .unwrap();
        let ceilings = Ceilings { f32: 5e13, bf16: 8e14, copy: 2.9e12 };
        let rate =
            |work: Work, gradient| Rate { work, settings: Settings::of(work.precision), gradient, forward: 300.0 };
        let slower = Rate { settings: Settings { graphs: false, ..Settings::of(work.precision) }, ..rate(work, 90.0) };
        let good = Check { name: "relu".into(), gap: Ok(0.0), limit: 1e-4 };
        let full = Work { precision: Precision::F32, ..work };
        let faster =
            Rate { settings: Settings { order: Order::Nhwc, ..Settings::of(Precision::F32) }, ..rate(full, 60.0) };
        let mut report = Report {
            device: "a GPU".into(),
            checks: vec![good],
            ceilings: Some(ceilings),
            ours: vec![rate(work, 100.0), rate(full, 30.0), slower, faster],
            refused: vec!["NHWC: no algorithm".into()],
            theirs,
        };
        let page = report.markdown();
        for part in [
            "# a GPU\n\n1 checks against the CPU: all agree.",
            "| gradient tf32 | resnet-50 | 3x224x224 | 64 | 100.0 | 50.0 | eager | 2.00 |",
            "| gradient f32 | resnet-50 | 3x224x224 | 64 | 30.0 | none |  |  |",
            "| gradient tf32, NHWC, plain launches | resnet-50 | 3x224x224 | 64 | 90.0 | none |  |  |",
            "| logits tf32 | resnet-50 | 3x224x224 | 64 | 300.0 | none |  |  |",
            "- resnet-50 at 224 pixels, 64 images, f32: NHWC, CUDA graphs would be 2.00 times as fast",
            "- NHWC: no algorithm",
            "- compiled: no compiler",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path(), &page).unwrap();
        let (from, rows) = artifact::read::<BenchRow>(&folder.path().join("gpu-check.parquet")).unwrap();
        assert_eq!((rows.len(), rows[0].ratio, rows[1].ratio.is_nan()), (6, 2.0, true));
        assert_eq!(from.facts["agrees"], true);
        let json = std::fs::read(folder.path().join("gpu-check.json")).unwrap();
        let json: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            (&json[0]["work"], &json[1]["torch_best_per_second"]),
            (&"gradient tf32".into(), &serde_json::Value::Null)
        );
        report.checks.push(Check { name: "max-pool".into(), gap: Err("lost".into()), limit: 1e-4 });
        assert!(!report.agrees() && report.markdown().contains("1 do not agree"));
        (report.ceilings, report.ours) = (None, Vec::new());
        let page = report.markdown();
        assert!(!page.contains("TFLOP") && !page.contains("| model |"), "{page}");
    }
}
