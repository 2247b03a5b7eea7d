//! How fast networks ran when they were measured, and what that says about those that were not.
//!
//! Rates come from recorded tables (`engine.json` of the bench, `gpu-check.json` of a GPU), never from here.

use std::{fmt, path::PathBuf};

use nets::{Graph, Op, Spec};
use serde::Deserialize;
use serde_json::json;
use trained::Model;

use crate::{Error, Result};

/// A network and the size of its images.
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    /// Family and depth, as `resnet-50`.
    pub name: String,
    /// The network itself.
    pub model: Model,
    /// Rows and columns of an image, where they are known.
    pub side: Option<u32>,
}

impl Net {
    /// A network for images of so many rows and columns.
    #[must_use]
    pub fn new(spec: &Spec, side: Option<u32>) -> Self {
        let table = json!(spec);
        let depth = table["depth"].as_u64().map(|depth| format!("-{depth}")).unwrap_or_default();
        let variant = table["variant"].as_u64().map(|variant| variant.to_string()).unwrap_or_default();
        let name = format!("{}{depth}{variant}", table["name"].as_str().unwrap_or_default());
        Self { name, model: Model::Graph(spec.clone()), side }
    }

    /// A network of whatever kind.
    #[must_use]
    pub fn of(model: &Model, side: Option<u32>) -> Self {
        match model {
            Model::Graph(spec) => Self::new(spec, side),
            Model::Candle(_) | Model::Program(_) => Self { name: model.slug(), model: model.clone(), side },
        }
    }

    /// The network that a recorded table calls so.
    fn named(name: &str, side: u32) -> Option<Self> {
        let lite = name.strip_prefix("efficientnet-lite").and_then(|variant| variant.parse::<usize>().ok());
        let spec = match family(name) {
            _ if lite.is_some() => json!({"name": "efficientnet-lite", "variant": lite}),
            family if family == name => json!({"name": name}),
            family => {
                let depth = name[family.len() + 1..].parse::<u32>().ok()?;
                if family == "resnet" && side < 64 {
                    json!({"name": family, "depth": depth, "stem": "cifar", "classes": 10})
                } else {
                    json!({"name": family, "depth": depth})
                }
            }
        };
        Some(Self { name: name.to_owned(), model: serde_json::from_value(spec).ok()?, side: Some(side) })
    }

    /// Multiply-adds of the convolutions and linear layers (and of attention) for one image, forward; none where its size is
    /// not known, and of a program.
    #[must_use]
    pub fn multiplications(&self) -> Option<u64> {
        let side = self.side? as usize;
        match &self.model {
            Model::Graph(spec) => Some(multiplications(&spec.graph().ok()?, side) as u64),
            Model::Candle(spec) => Some(spec.multiplications(side)),
            Model::Program(_) => None,
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Some(side) => write!(f, "{} at {side}x{side}", self.name),
            None => write!(f, "{} at an unknown size", self.name),
        }
    }
}

/// A network's name without its depth.
fn family(name: &str) -> &str {
    name.rsplit_once('-').filter(|(_, depth)| depth.parse::<u32>().is_ok()).map_or(name, |(family, _)| family)
}

/// By the definition of a convolution: one for each output, tap and input channel of its group, padding included.
fn multiplications(graph: &Graph, side: usize) -> usize {
    let places = |size: usize, window: usize, stride: usize| size.saturating_sub(window) / stride + 1;
    let mut planes: Vec<[usize; 2]> = Vec::new();
    let mut sum = 0;
    for node in &graph.nodes {
        let [rows, columns] = node.inputs.first().map_or([side, side], |&input| planes[input]);
        planes.push(match &node.op {
            Op::Conv(conv) => {
                let ([height, width], padding) = (conv.kernel, conv.padding([rows, columns]));
                let rows = places(rows + padding.top + padding.bottom, height, conv.stride);
                let columns = places(columns + padding.left + padding.right, width, conv.stride);
                sum += rows * columns * conv.outputs * (conv.inputs / conv.groups) * height * width;
                [rows, columns]
            }
            Op::MaxPool { kernel, stride, padding } | Op::AveragePool { kernel, stride, padding } => {
                [rows, columns].map(|size| places(size + 2 * padding, *kernel, *stride))
            }
            Op::Subsample { stride, .. } => [rows, columns].map(|size| size.div_ceil(*stride)),
            Op::GlobalAveragePool => [1, 1],
            Op::AdaptiveAveragePool { side } => [*side, *side],
            Op::Linear { inputs, outputs, .. } => {
                sum += inputs * outputs;
                [1, 1]
            }
            _ => [rows, columns],
        });
    }
    sum
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Forward, and the gradient with respect to the image; frozen weights.
    Gradient,
    /// Forward; frozen weights.
    Logits,
    /// Forward, backward and a step of the optimiser.
    Train,
}

impl Work {
    const ALL: [Self; 3] = [Self::Gradient, Self::Logits, Self::Train];

    /// Its name in recorded tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Logits => "logits",
            Self::Train => "train",
        }
    }
}

/// A row of a recorded table, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Row {
    work: String,
    model: String,
    /// Channels, rows and columns, as `3x224x224`.
    input: String,
    #[serde(default)]
    threads: u32,
    /// Images at a time.
    #[serde(default)]
    batch: u32,
    ours_per_second: Option<f64>,
    machine: String,
}

/// One recorded rate.
#[derive(Clone, Debug)]
struct Measured {
    work: Work,
    net: Net,
    multiplications: u64,
    threads: u32,
    batch: u32,
    per_second: f64,
}

/// The recorded rates of one machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// As the table names it.
    pub name: String,
    rates: Vec<Measured>,
}

/// The recorded rates: of the processor and of the GPU that were recorded last.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// A processor, by the tables of the bench.
    pub processor: Option<Machine>,
    /// A GPU, by tables called `gpu-check.json`.
    pub gpu: Option<Machine>,
}

/// How fast a machine does one kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Rate<'a> {
    /// Images per second.
    pub per_second: f64,
    /// The measured network that stands in for one that was not, by multiply-adds.
    pub stand_in: Option<&'a Net>,
}

impl Rates {
    /// Reads recorded tables; of several rates for the same work on the same machine that of the most threads counts, of those
    /// that of the most images at a time, and of those the last.
    ///
    /// # Errors
    /// If a file cannot be read, or is no such table.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for path in files {
            let text = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
            let wrong = |reason| Error::File { path: path.clone(), reason };
            let rows: Vec<Row> = serde_json::from_slice(&text).map_err(|error| {
                wrong(format!("{error}; a table of rates, as `make bench-torch` writes it, is wanted"))
            })?;
            let machine =
                if path.file_stem() == Some("gpu-check".as_ref()) { &mut all.gpu } else { &mut all.processor };
            for row in rows {
                take(machine, row).map_err(wrong)?;
            }
        }
        Ok(all)
    }
}

/// Adds a row to a machine's rates, which those of another machine make obsolete; rows of other work are passed over.
fn take(machine: &mut Option<Machine>, row: Row) -> Result<(), String> {
    // A GPU's table names the precision too; that of the plans is full.
    let done = row.work.strip_suffix(" f32").unwrap_or(&row.work);
    let Some(work) = Work::ALL.into_iter().find(|work| work.name() == done) else { return Ok(()) };
    let Some(per_second) = row.ours_per_second.filter(|rate| *rate > 0.0) else { return Ok(()) };
    let side = row.input.rsplit('x').next().and_then(|side| side.parse().ok());
    let net = side.and_then(|side| Net::named(&row.model, side));
    let (net, multiplications) = net
        .and_then(|net| net.multiplications().map(|count| (net, count)))
        .ok_or_else(|| format!("the rate of `{}` at `{}` is of no network that is known here", row.model, row.input))?;
    if machine.as_ref().is_none_or(|known| known.name != row.machine) {
        *machine = Some(Machine { name: row.machine, rates: Vec::new() });
    }
    let rates = &mut machine.as_mut().expect("just made").rates;
    let other = |known: &Measured| known.work != work || known.net != net;
    if rates.iter().all(|known| other(known) || (known.threads, known.batch) <= (row.threads, row.batch)) {
        rates.retain(other);
        rates.push(Measured { work, net, multiplications, threads: row.threads, batch: row.batch, per_second });
    }
    Ok(())
}

impl Machine {
    /// The most threads that any of its rates was measured on; 0 where the tables do not say.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.rates.iter().map(|known| known.threads).max().unwrap_or(0)
    }

    /// The measured rate of a network, or that of the measured network most like it in proportion to their multiply-adds:
    /// of the same family and image size if there is one, and else of the nearest number. No other network stands in for
    /// training.
    #[must_use]
    pub fn rate(&self, work: Work, net: &Net) -> Option<Rate<'_>> {
        let count = net.multiplications()? as f64;
        let away = |known: &Measured| (known.multiplications as f64 / count).ln().abs();
        let of_work = || self.rates.iter().filter(|known| known.work == work);
        // A last layer for other classes is no other network.
        let same = |known: &&Measured| (&known.net.name, known.net.side) == (&net.name, net.side) && away(known) < 0.01;
        if let Some(known) = of_work().find(same) {
            return Some(Rate { per_second: known.per_second, stand_in: None });
        }
        if work == Work::Train {
            return None;
        }
        let order =
            |known: &Measured| (family(&known.net.name) != family(&net.name), known.net.side != net.side, away(known));
        let nearest =
            of_work().min_by(|a, b| order(a).partial_cmp(&order(b)).expect("logarithms of positive numbers"))?;
        let per_second = nearest.per_second * nearest.multiplications as f64 / count;
        Some(Rate { per_second, stand_in: Some(&nearest.net) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str, side: u32) -> Net {
        Net::new(&serde_json::from_str(text).unwrap(), Some(side))
    }

    #[test]
    fn multiplications_are_the_published_ones() {
        // Documentation of torchvision's weights ("GFLOPS" are 10^9 multiply-adds); by hand for CIFAR: 442,368 + 6 x 2,359,296
        // + 2 x (1,179,648 + 5 x 2,359,296) + 640.
        for (name, side, published) in [
            ("resnet-18", 224, 1.81e9),
            ("resnet-34", 224, 3.66e9),
            ("resnet-50", 224, 4.09e9),
            ("mobilenet-v2", 224, 0.30e9),
            ("inception-v3", 299, 5.71e9),
            ("densenet-121", 224, 2.83e9),
            ("vgg-11", 224, 7.61e9),
            ("cifar-resnet-20", 32, 40_551_040.0),
        ] {
            let count = Net::named(name, side).unwrap().multiplications().unwrap() as f64;
            assert!((count / published - 1.0).abs() < 0.01, "{name}: {count}");
        }
        // Google's table of EfficientNet-Lite counts some additions too.
        for (name, side, published) in
            [("efficientnet-lite0", 224, 407e6), ("efficientnet-lite1", 240, 631e6), ("efficientnet-lite2", 260, 899e6)]
        {
            let count = Net::named(name, side).unwrap().multiplications().unwrap() as f64;
            assert!((0.93..=1.0).contains(&(count / published)), "{name}: {count}");
        }
        assert_eq!(Net { side: None, ..Net::named("resnet-18", 32).unwrap() }.multiplications(), None);
        let model = serde_json::from_str(r#"{"name": "candle", "architecture": "deit-small-patch16-224"}"#).unwrap();
        let net = Net::of(&model, Some(224));
        assert_eq!(net.to_string(), "deit-small-patch16-224 at 224x224");
        assert!((net.multiplications().unwrap() as f64 / 4.61e9 - 1.0).abs() < 0.01, "Touvron et al. 2021");
    }

    fn row(work: &str, model: &str, input: &str, threads: u32, rate: f64, machine: &str) -> serde_json::Value {
        json!({"work": work, "model": model, "input": input, "threads": threads, "ours_per_second": rate,
               "machine": machine, "ratio": 1.5})
    }

    fn read(files: &[(&str, serde_json::Value)]) -> Result<Rates> {
        let folder = tempfile::tempdir().unwrap();
        let write = |(index, (name, rows)): (usize, &(&str, serde_json::Value))| {
            let path = folder.path().join(index.to_string()).join(name);
            std::fs::create_dir(path.parent().unwrap()).unwrap();
            std::fs::write(&path, rows.to_string()).unwrap();
            path
        };
        Rates::read(&files.iter().enumerate().map(write).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_rate_of_the_most_threads_on_the_last_machine_counts() {
        let engine = |rows: &[serde_json::Value]| ("engine.json", json!(rows));
        let of = |batch: u32, mut row: serde_json::Value| {
            row["batch"] = batch.into();
            row
        };
        let rates = read(&[
            engine(&[row("gradient", "resnet-50", "3x224x224", 1, 9.0, "old")]),
            engine(&[
                row("gradient", "resnet-50", "3x224x224", 4, 37.0, "new"),
                row("gradient", "resnet-50", "3x224x224", 1, 10.0, "new"),
                row("votes", "anything", "at all", 1, 1.0, "newer"),
            ]),
            engine(&[row("gradient", "resnet-50", "3x224x224", 4, 40.0, "new")]),
            (
                "gpu-check.json",
                json!([
                    of(64, row("logits f32", "resnet-50", "3x224x224", 0, 3000.0, "GPU")),
                    of(4, row("logits f32", "resnet-50", "3x224x224", 0, 500.0, "GPU")),
                    row("gradient tf32", "resnet-50", "3x224x224", 0, 2000.0, "GPU"),
                ]),
            ),
        ])
        .unwrap();
        let resnet = net(r#"{"name": "resnet", "depth": 50}"#, 224);
        let (processor, gpu) = (rates.processor.unwrap(), rates.gpu.unwrap());
        assert_eq!((processor.name.as_str(), processor.threads()), ("new", 4));
        assert_eq!(processor.rate(Work::Gradient, &resnet).unwrap().per_second, 40.0);
        assert!(processor.rate(Work::Logits, &resnet).is_none() && gpu.rate(Work::Gradient, &resnet).is_none());
        assert_eq!(gpu.rate(Work::Logits, &resnet).unwrap().per_second, 3000.0);
    }

    #[test]
    fn what_was_not_measured_is_estimated_from_its_family_and_says_so() {
        let table = json!([
            row("gradient", "cifar-resnet-20", "3x32x32", 1, 1000.0, "m"),
            row("gradient", "mobilenet-v2", "3x224x224", 1, 100.0, "m"),
            row("gradient", "resnet-50", "3x224x224", 1, 10.0, "m"),
            row("train", "cifar-resnet-20", "3x32x32", 1, 500.0, "m"),
        ]);
        let machine = read(&[("engine.json", table)]).unwrap().processor.unwrap();
        let rate = |work, net: &Net| {
            let rate = machine.rate(work, net)?;
            Some((rate.per_second, rate.stand_in.map(|net| net.name.clone())))
        };
        let deep = net(r#"{"name": "cifar-resnet", "depth": 110}"#, 32);
        let measured = net(r#"{"name": "cifar-resnet", "depth": 20, "shortcut": "A", "classes": 100}"#, 32);
        assert_eq!(rate(Work::Gradient, &measured), Some((1000.0, None)));
        assert_eq!(rate(Work::Train, &measured), Some((500.0, None)));
        // MobileNet's number is nearer, its family is not.
        let (slower, like) = rate(Work::Gradient, &deep).unwrap();
        let ratio = measured.multiplications().unwrap() as f64 / deep.multiplications().unwrap() as f64;
        assert_eq!(like.as_deref(), Some("cifar-resnet-20"));
        assert!((slower / (1000.0 * ratio) - 1.0).abs() < 0.001 && slower < 170.0, "{slower}");
        assert_eq!(rate(Work::Train, &deep), None, "nothing stands in for training");
        let inception = net(r#"{"name": "inception-v3"}"#, 299);
        assert_eq!(rate(Work::Gradient, &inception).unwrap().1.as_deref(), Some("resnet-50"));
        let narrow = net(r#"{"name": "cifar-resnet", "depth": 20, "width": 4}"#, 32);
        assert!(rate(Work::Gradient, &narrow).unwrap().0 > 10_000.0, "a narrower network of the same name");
        assert_eq!(rate(Work::Gradient, &Net { side: None, ..measured }), None);
    }

    #[test]
    fn a_file_that_is_no_table_of_rates_is_refused() {
        let told = |rows: serde_json::Value| read(&[("engine.json", rows)]).unwrap_err().to_string();
        assert!(told(json!({"work": "gradient"})).contains("engine.json: "));
        assert!(told(json!([row("gradient", "resnet-51", "3x32x32", 1, 1.0, "m")])).contains("`resnet-51`"));
        assert!(told(json!([row("gradient", "resnet-50", "large", 1, 1.0, "m")])).contains("`large`"));
        let missing = Rates::read(&["none.json".into()]).unwrap_err().to_string();
        assert!(missing.contains("none.json: cannot be read"));
    }
}
