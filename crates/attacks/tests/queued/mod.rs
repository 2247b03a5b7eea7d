//! The way of a GPU against the way of the host: the kernels run on the CPU, compiled by a C++ compiler.

use attacks::{Attack, Eot, Loss, Mean, Snapshot, Spec, Victim};
use candle_core::{DType, Device, Result, Tensor};
use game::{Classifier, Defense, Goal, Gradient, Key};
use gpu::kernels::on_host;
use serde_json::{Value, json};

use crate::{
    fields, goal, keys, run,
    small::{Jitter, Net, Open, Poisoned, Recorder, images, values},
    victims,
};

/// The attacks whose steps wait for nothing; the others decide by what they have seen, or ask for no gradient.
const QUEUED: [&str; 5] = ["pgd", "momentum", "aggmo", "gradient-ascent", "adam"];

/// Runs `test` where kernels can run.
#[expect(clippy::print_stderr, reason = "why a test is skipped")]
fn with_kernels(test: impl FnOnce()) {
    if on_host(|| ()).is_none() {
        return eprintln!("skipped: no C++ compiler to run the kernels with");
    }
    test();
}

fn on_device(attack: &dyn Attack, victim: &Victim<'_>, x: &Tensor, goal: &Goal, keys: &[Key]) -> Vec<Snapshot> {
    on_host(|| run(attack, victim, x, goal, keys)).unwrap()
}

/// Whether every step of the attack sums over pixels, so that the order of a sum shows.
fn has_pixel_sums(spec: &Spec) -> bool {
    let fields = fields(spec);
    fields["norm"] == "l2" || spec.name() == "momentum" || fields["penalty"].as_f64().is_some_and(|p| p != 0.0)
}

/// Fails unless the snapshots agree: to the bit, or within `tolerance` of `[0, 1]` for pixels.
fn assert_same(host: &[Snapshot], device: &[Snapshot], tolerance: f64, what: &str) {
    assert_eq!(host.len(), device.len(), "{what}");
    for (host, device) in host.iter().zip(device) {
        assert_eq!(host.step, device.step, "{what}");
        assert_eq!(host.x.dims(), device.x.dims(), "{what}");
        for (host, device) in values(&host.x).into_iter().zip(values(&device.x)) {
            assert!((host - device).abs() <= tolerance, "{what}: pixel {host}, {device}");
        }
        let slack = if tolerance > 0.0 { 1e-5 } else { 1e-12 };
        for (host, device) in host.loss.iter().zip(&device.loss) {
            let (host, device) = (host.unwrap(), device.unwrap());
            assert!((host - device).abs() <= slack * host.abs(), "{what}: loss {host}, {device}");
        }
        assert_eq!(host.zero_gradient, device.zero_gradient, "{what}");
        assert_eq!(host.non_finite, device.non_finite, "{what}");
        assert_eq!(host.forward_queries, device.forward_queries, "{what}");
        assert_eq!(host.backward_queries, device.backward_queries, "{what}");
    }
}

/// The attacks of the catalogue's examples that are queued, and some that are like them.
fn queued() -> Vec<Spec> {
    let logits = json!({"draws": 3, "mean": "logits"});
    let more = [
        json!({"name": "pgd", "norm": "l2", "eps": "0.3", "step_size": "0.2", "steps": [1, 4], "eot": logits, "random_start": true}),
        json!({"name": "pgd", "steps": [2, 5], "eot": {"draws": 7, "mean": "logits"}}),
        json!({"name": "pgd", "steps": [3], "eot": {"draws": 70}, "random_start": true}),
        json!({"name": "momentum", "steps": [2, 5], "random_start": true, "loss": "margin", "eot": {"draws": 2}}),
        json!({"name": "aggmo", "steps": [4], "loss": "cross-entropy", "eot": logits}),
        json!({"name": "adam", "steps": [1, 5], "loss": "cross-entropy", "gradient": "raw", "eot": {"draws": 2}}),
        json!({"name": "gradient-ascent", "norm": "l2", "eps": "0.1", "penalty": "-0.5", "project": false, "steps": [1, 6]}),
    ];
    let more = more.into_iter().map(|value: Value| serde_json::from_value(value).unwrap());
    Spec::examples().into_iter().filter(|spec| spec.build().is_queued()).chain(more).collect()
}

#[test]
fn the_attacks_that_wait_for_nothing_are_known() {
    let names: std::collections::BTreeSet<_> =
        Spec::examples().iter().filter(|spec| spec.build().is_queued()).map(Spec::name).collect();
    assert_eq!(names, QUEUED.into());
    for spec in Spec::examples() {
        let stops = fields(&spec)["stop"]["rule"].as_str().is_some_and(|rule| rule != "none");
        assert_eq!(spec.build().is_queued(), QUEUED.contains(&spec.name()) && !stops, "{spec:?}");
    }
}

#[test]
fn nothing_copies_to_the_host_but_a_snapshot() {
    let sources = [
        include_str!("../../src/queue/mod.rs"),
        include_str!("../../src/pgd.rs"),
        include_str!("../../src/momentum.rs"),
        include_str!("../../src/aggmo.rs"),
        include_str!("../../src/adam.rs"),
        include_str!("../../src/gradient_ascent.rs"),
    ];
    let copies = ["to_vec", "to_scalar", "Device::Cpu", "synchronize", "host("];
    for source in sources {
        for copy in copies {
            assert!(!source.contains(copy), "{copy} in\n{source}");
        }
    }
    let snapshot = include_str!("../../src/queue/snapshot.rs");
    assert!(copies[..3].iter().any(|copy| snapshot.contains(copy)), "nothing is looked for");
}

#[test]
fn every_queued_attack_goes_where_the_host_goes() {
    with_kernels(|| {
        let (x, keys) = (images(5), keys(1, 0..5));
        for spec in queued() {
            let tolerance = if has_pixel_sums(&spec) { 1e-6 } else { 0.0 };
            for goal in [goal(5), Goal::Targeted(vec![1, 3, 0, 2, 1])] {
                for batch in [1, 3, 64] {
                    victims(batch, |victim| {
                        let host = run(spec.build(), &victim, &x, &goal, &keys);
                        let device = on_device(spec.build(), &victim, &x, &goal, &keys);
                        assert_same(&host, &device, tolerance, &format!("{spec:?} {goal:?} {victim:?}"));
                    });
                }
            }
        }
    });
}

#[test]
fn neither_batch_nor_shard_shows_on_the_device() {
    with_kernels(|| {
        let (x, goal) = (images(6), goal(6));
        let whole = |x: &Tensor| values(x);
        for spec in queued() {
            victims(64, |victim| {
                let all = on_device(spec.build(), &victim, &x, &goal, &keys(7, 0..6));
                for batch in [1, 2, 4, 7] {
                    let batched = on_device(spec.build(), &Victim { batch, ..victim }, &x, &goal, &keys(7, 0..6));
                    for (all, batched) in all.iter().zip(&batched) {
                        assert_eq!(whole(&all.x), whole(&batched.x), "{spec:?}, batches of {batch}");
                        assert_eq!(all.loss, batched.loss, "{spec:?}, batches of {batch}");
                    }
                }
                let (part, part_goal) = (x.narrow(0, 2, 4).unwrap(), goal.slice(2..6).unwrap());
                let part = on_device(spec.build(), &victim, &part, &part_goal, &keys(7, 2..6));
                for (all, part) in all.iter().zip(&part) {
                    assert_eq!(whole(&all.x.narrow(0, 2, 4).unwrap()), whole(&part.x), "{spec:?}");
                    assert_eq!(all.loss[2..], part.loss, "{spec:?}");
                }
            });
        }
    });
}

#[test]
fn certainty_silence_and_poison_are_met_alike() {
    with_kernels(|| {
        let (x, keys) = (images(5), keys(3, 0..5));
        let curved = Net::curved(9, 4);
        // Draws whose gradients differ by many powers of two; none at all; some that are not numbers; logits that are not.
        let (certain, silent) = (Net::curved(9, 4).stretched(300.0), Net::of(None, vec![0.0; 48]));
        let entries = vec![(1, f32::NAN), (5, f32::INFINITY), (6, f32::NEG_INFINITY)];
        let poisoned = Poisoned { net: &curved, entries };
        let mute = Poisoned { net: &curved, entries: (0..12).map(|j| (j, f32::NAN)).collect() };
        let nets: [&dyn Classifier; 4] = [&certain, &silent, &poisoned, &mute];
        let defense = Jitter { noise: 0.4, gradient: Gradient::Exact };
        let mut zeros = vec![];
        for net in nets {
            for (loss, mean) in [
                (Loss::CrossEntropy, Mean::Gradients),
                (Loss::CrossEntropy, Mean::Logits),
                (Loss::Margin, Mean::Gradients),
            ] {
                let pgd = attacks::Pgd { steps: vec![1, 3], loss, eot: Eot { draws: 5, mean }, ..Default::default() };
                let victim = Victim { net, defense: &defense, batch: 7 };
                let host = run(&pgd, &victim, &x, &goal(5), &keys);
                let device = on_device(&pgd, &victim, &x, &goal(5), &keys);
                assert_same(&host, &device, 0.0, "pgd");
                zeros.push((device[1].zero_gradient[0].unwrap(), device[1].non_finite[0]));
            }
        }
        assert_eq!(zeros[3..6], [(1.0, 0); 3]);
        assert_eq!(zeros[6..9], [(0.25, 45); 3]);
        assert_eq!(zeros[9..], [(1.0, 180); 3]);
    });
}

/// A linear network on larger images, whose gradient is candle's, and whose logits can be of any precision.
struct Wide {
    weights: Tensor,
    classes: usize,
}

impl Wide {
    fn new(seed: u64, pixels: usize, classes: usize) -> Self {
        let mut weights = vec![0.0; pixels * classes];
        Key::root(seed).fill_normal(&mut weights);
        Self { weights: Tensor::from_vec(weights, (pixels, classes), &Device::Cpu).unwrap(), classes }
    }
}

impl Classifier for Wide {
    fn classes(&self) -> usize {
        self.classes
    }
    fn device(&self) -> &Device {
        &Device::Cpu
    }
    fn logits(&self, x: &Tensor, _: &[Key]) -> Result<Tensor> {
        x.flatten_from(1)?.tanh()?.matmul(&self.weights)
    }
}

#[test]
fn sums_over_many_pixels_agree() {
    with_kernels(|| {
        // More pixels than partial sums, and not a multiple of them.
        let (n, c, h, w) = (3, 3, 19, 17);
        let mut pixels = vec![0.0f32; n * c * h * w];
        Key::root(5).fill_uniform(&mut pixels);
        let x = Tensor::from_vec(pixels, (n, c, h, w), &Device::Cpu).unwrap();
        let net = Wide::new(8, c * h * w, 10);
        let defense = Jitter { noise: 0.1, gradient: Gradient::Exact };
        let (victim, keys) = (Victim { net: &net, defense: &defense, batch: 4 }, keys(2, 0..3));
        for spec in queued() {
            let host = run(spec.build(), &victim, &x, &goal(3), &keys);
            let device = on_device(spec.build(), &victim, &x, &goal(3), &keys);
            assert_same(&host, &device, if has_pixel_sums(&spec) { 1e-6 } else { 0.0 }, &format!("{spec:?}"));
            assert_ne!(values(&x), values(&device[0].x), "{spec:?}");
        }
    });
}

#[test]
fn the_device_asks_with_the_same_keys_and_as_often() {
    with_kernels(|| {
        let net = Net::curved(2, 4);
        for spec in queued() {
            let ask = |device: bool| {
                let (network, defense) = (Recorder::new(&net), Recorder::new(&net));
                let victim = Victim { net: &network, defense: &defense, batch: 4 };
                let attack = if device { on_device } else { run };
                let last = attack(spec.build(), &victim, &images(3), &goal(3), &keys(4, 0..3)).pop().unwrap();
                let said = (last.forward_queries.iter().sum::<u64>(), last.backward_queries.iter().sum::<u64>());
                assert_eq!(said.1, network.backward(), "{spec:?}");
                (said, network.seen(), defense.seen())
            };
            assert_eq!(ask(true), ask(false), "{spec:?}");
        }
    });
}

#[test]
fn mistakes_surface_on_the_device_as_on_the_host() {
    with_kernels(|| {
        let net = Net::curved(2, 4);
        let victim = Victim { net: &net, defense: &Open, batch: 4 };
        let (x, good) = (images(3), keys(1, 0..3));
        let error = |spec: Value, victim: &Victim<'_>, x: &Tensor, goal: &Goal, keys: &[Key]| {
            let spec: Spec = serde_json::from_value(spec).unwrap();
            let run = || spec.build().run(victim, x, goal, keys, None, &mut |_| Ok(())).unwrap_err().to_string();
            let (host, device) = (run(), on_host(run).unwrap());
            // Without the stack, where there is one.
            let [host, device] = [host, device].map(|error| error.lines().next().unwrap_or_default().to_owned());
            assert_eq!(host, device);
            device
        };
        let pgd = || json!({"name": "pgd"});
        assert!(error(pgd(), &victim, &x, &goal(3), &good[..2]).contains("3 images with 2 keys"));
        assert!(error(pgd(), &victim, &x, &Goal::Targeted(vec![4; 3]), &good).contains("class 4 is no goal"));
        assert!(error(pgd(), &victim, &(&x + 1.0).unwrap(), &goal(3), &good).contains("pixels in [0, 1]"));
        assert!(error(pgd(), &Victim { batch: 0, ..victim }, &x, &goal(3), &good).contains("batch of 0"));
        let silent = Net::of(None, vec![0.0; 48]);
        let adam = json!({"name": "adam", "learning_rate": "1e308", "gradient": "raw"});
        let refused = error(adam, &Victim { net: &silent, ..victim }, &x, &goal(3), &good);
        assert!(refused.contains("must be at most 1"), "{refused}");
        let empty = on_device(&attacks::Pgd::default(), &victim, &images(0), &goal(0), &[]);
        assert_eq!(empty[0].x.dims(), [0, 3, 2, 2]);
    });
}

/// A network that answers about another number of classes than it says.
struct Confused<'a>(&'a Net);

impl Classifier for Confused<'_> {
    fn classes(&self) -> usize {
        5
    }
    fn device(&self) -> &Device {
        self.0.device()
    }
    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.0.logits(x, keys)
    }
}

/// A network that answers without asking what its gradient is for, or in another shape.
struct Deaf<'a> {
    net: &'a Net,
    listens: bool,
}

impl Classifier for Deaf<'_> {
    fn classes(&self) -> usize {
        4
    }
    fn device(&self) -> &Device {
        self.net.device()
    }
    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.net.logits(x, keys)
    }
    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.listens {
            upstream(&self.net.logits(x, keys)?)?;
        }
        Tensor::zeros((x.dim(0)?, 5), DType::F32, &Device::Cpu)
    }
}

#[test]
fn no_kernel_reads_past_what_a_network_answers() {
    with_kernels(|| {
        let net = Net::curved(2, 4);
        let confused = Confused(&net);
        let nets: [(&dyn Classifier, &str); 3] = [
            (&confused, "logits of [3, 4] for 3 images and 5 classes"),
            (&Deaf { net: &net, listens: false }, "did not ask for the gradient"),
            (&Deaf { net: &net, listens: true }, "a gradient of [3, 5] for 3 images of 12 pixels"),
        ];
        let defense: &dyn Defense = &Jitter { noise: 0.0, gradient: Gradient::Exact };
        for (net, expected) in nets {
            let victim = Victim { net, defense, batch: 4 };
            let run =
                || attacks::Pgd::default().run(&victim, &images(3), &goal(3), &keys(1, 0..3), None, &mut |_| Ok(()));
            let error = on_host(run).unwrap().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    });
}
