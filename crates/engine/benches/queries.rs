//! Queries per second of compiled networks.
//!
//! `cargo bench -p engine` prints a table. With `--serve` it answers requests on its input, one a line
//! (`gradient cifar-resnet-20 32 100 1`: work, model, side in pixels, batch, threads) with images per second and the
//! seconds a plan took to compile, so that `torch_bench.py` can alternate with it.

use std::collections::HashMap;
use std::io::BufRead;
use std::time::Instant;

use candle_core::{Device, Tensor};
use engine::Plan;
use game::{Classifier, Key, Phase};
use nets::Spec;

const WORK: [&str; 14] = [
    "gradient cifar-resnet-20 32 100 1",
    "gradient cifar-resnet-56 32 100 1",
    "gradient resnet-18 32 32 1",
    "gradient resnet-34 224 8 1",
    "gradient resnet-50 224 8 1",
    "gradient mobilenet-v2 224 8 1",
    "logits cifar-resnet-20 32 500 1",
    "logits cifar-resnet-56 32 100 1",
    "logits resnet-18 32 32 1",
    "logits resnet-34 224 8 1",
    "logits resnet-50 224 8 1",
    "logits mobilenet-v2 224 8 1",
    "gradient cifar-resnet-20 32 100 4",
    "gradient resnet-34 224 8 4",
];

/// Seconds of measurement a request.
const SECONDS: f64 = 0.5;

fn spec(model: &str, side: usize) -> String {
    let (name, depth) = model.rsplit_once('-').expect("a model such as resnet-18");
    match name {
        "mobilenet" => r#"{"name": "mobilenet-v2"}"#.to_owned(),
        "resnet" if side < 64 => {
            format!(r#"{{"name": "{name}", "depth": {depth}, "stem": "cifar", "classes": 10}}"#)
        }
        _ => format!(r#"{{"name": "{name}", "depth": {depth}}}"#),
    }
}

/// Processor seconds of this process, where the system tells: on a shared machine, fairer than the wall for one thread.
fn processor() -> Option<f64> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-9)
}

struct Bench {
    plans: HashMap<String, (Plan, f64)>,
}

impl Bench {
    /// Images per second, and seconds of compilation.
    fn run(&mut self, request: &str) -> (f64, f64) {
        let [work, model, side, batch, threads] = request.split(' ').collect::<Vec<_>>()[..] else {
            panic!("a request is `work model side batch threads`, not {request:?}")
        };
        let epoch = Instant::now();
        let number = |s: &str| s.parse::<usize>().expect("a number");
        let (side, batch) = (number(side), number(batch));
        let (plan, seconds) = self.plans.entry(format!("{model} {side}")).or_insert_with(|| {
            let graph = serde_json::from_str::<Spec>(&spec(model, side)).expect("a model").graph().expect("a graph");
            let key = Key::root(0).phase(Phase::Init);
            let weights = nets::weights::initialise(&graph, key).expect("weights");
            let start = Instant::now();
            let plan = Plan::new(&graph, &weights).expect("a plan");
            plan.prepare(side, side).expect("a plan");
            (plan, start.elapsed().as_secs_f64())
        });
        let pool = rayon::ThreadPoolBuilder::new().num_threads(number(threads)).build().expect("threads");
        let mut pixels = vec![0.0; batch * 3 * side * side];
        Key::root(0).phase(Phase::Data).fill_uniform(&mut pixels);
        let x = Tensor::from_vec(pixels, (batch, 3, side, side), &Device::Cpu).expect("images");
        let query = || match work {
            "gradient" => plan.input_gradient(&x, &[], &mut |logits| logits.ones_like()),
            _ => plan.logits(&x, &[]),
        };
        let clock = || if threads == "1" { processor() } else { None }.unwrap_or_else(|| epoch.elapsed().as_secs_f64());
        let rate = pool.install(|| {
            query().expect("an answer");
            let (start, mut count) = (clock(), 0);
            while count == 0 || clock() - start < SECONDS {
                query().expect("an answer");
                count += 1;
            }
            (count * batch) as f64 / (clock() - start)
        });
        (rate, *seconds)
    }
}

#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn main() {
    let mut bench = Bench { plans: HashMap::new() };
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if arguments.first().is_some_and(|a| a == "--serve") {
        for line in std::io::stdin().lock().lines() {
            let (rate, compile) = bench.run(line.expect("a line").trim());
            println!("{rate} {compile}");
        }
        return;
    }
    for work in WORK.iter().filter(|w| arguments.iter().all(|a| w.contains(a.as_str()))) {
        let mut rates: Vec<_> = (0..3).map(|_| bench.run(work)).collect();
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!("{work:40} {:10.1} images/s, compiled in {:.1} ms", rates[1].0, 1e3 * rates[1].1);
    }
}
