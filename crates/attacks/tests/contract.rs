//! What every attack promises, asked of the whole catalogue on small networks; and what PGD and EOT promise besides.

mod forms;
mod golden;
mod queued;
mod small;

use attacks::{Attack, Ball, Eot, Guides, Loss, Mean, Pgd, Snapshot, Spec, UniformNoise, Victim};
use candle_core::{DType, Device, Tensor};
use game::{Defense, Goal, Gradient, Key, Norm, Phase};
use serde_json::{Value, json};
use small::{Jitter, Net, Open, Poisoned, Recorder, images, rows, values};

/// The keys an attack gets for images with these ids.
fn keys(seed: u64, ids: std::ops::Range<u64>) -> Vec<Key> {
    ids.map(|id| Key::root(seed).phase(Phase::Attack).at(id)).collect()
}

fn goal(n: u32) -> Goal {
    Goal::Untargeted((0..n).map(|i| i % 4).collect())
}

fn run(attack: &dyn Attack, victim: &Victim<'_>, x: &Tensor, goal: &Goal, keys: &[Key]) -> Vec<Snapshot> {
    let mut snapshots = vec![];
    let mut sink = |snapshot| {
        snapshots.push(snapshot);
        Ok(())
    };
    let (guides, labels) = (images(9).narrow(0, 5, 4).unwrap(), [2, 0, 1, 3]);
    let guides = Guides { x: &guides, labels: &labels };
    attack.run(victim, x, goal, keys, Some(guides), &mut sink).unwrap();
    snapshots
}

/// Everything a snapshot says about one image, bit for bit (losses may be NaN nowhere here).
fn about(snapshot: &Snapshot, image: usize) -> (usize, Vec<f64>, Option<f64>, Option<f64>, u64, u64, u64) {
    (
        snapshot.step,
        rows(&snapshot.x)[image].clone(),
        snapshot.loss[image],
        snapshot.zero_gradient[image],
        snapshot.non_finite[image],
        snapshot.forward_queries[image],
        snapshot.backward_queries[image],
    )
}

/// The parameters as JSON.
fn fields(spec: &Spec) -> Value {
    serde_json::to_value(spec).unwrap()
}

/// Whether some images may be asked about less often than others.
fn may_stop(spec: &Spec) -> bool {
    let fields = fields(spec);
    fields["stop"]["rule"].as_str().is_some_and(|rule| rule != "none") || fields["bookkeeping"] == "single-draw"
}

/// The attack's ball, or the box where images may leave it.
fn bound(attack: &dyn Attack) -> Ball {
    match attack.ball() {
        Some((norm, eps)) if attack.stays_inside() => Ball { norm, eps: eps.value() },
        Some((norm, _)) => Ball { norm, eps: f64::INFINITY },
        None => Ball { norm: Norm::Linf, eps: 0.0 },
    }
}

/// Small networks and defenses, with and without randomness.
fn victims(batch: usize, test: impl Fn(Victim<'_>)) {
    let nets = [Net::linear(1, 4), Net::curved(2, 4), Net::curved(3, 4).noisy(0.3)];
    let defenses: [&dyn Defense; 3] = [
        &Open,
        &Jitter { noise: 0.2, gradient: Gradient::Exact },
        &Jitter { noise: 0.2, gradient: Gradient::Identity },
    ];
    for net in &nets {
        for defense in defenses {
            test(Victim { net, defense, batch });
        }
    }
}

#[test]
fn every_attack_stays_in_its_ball_and_asks_what_it_said() {
    let (x, keys) = (images(5), keys(1, 0..5));
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for spec in Spec::examples() {
        let attack = spec.build();
        let moved = std::cell::Cell::new(false);
        victims(4, |victim| {
            let snapshots = run(attack, &victim, &x, &goal(5), &keys);
            assert_eq!(snapshots.iter().map(|snapshot| snapshot.step).collect::<Vec<_>>(), attack.steps());
            let cost = attack.cost();
            let asked =
                |snapshot: &Snapshot, image| (snapshot.forward_queries[image], snapshot.backward_queries[image]);
            for snapshot in &snapshots {
                bound(attack).check(&flat(&x), &flat(&snapshot.x), 12).unwrap();
                assert_eq!(snapshot.non_finite, [0; 5]);
                for image in 0..5 {
                    let has_gradient = cost.forward > 0 && !may_stop(&spec);
                    assert!(snapshot.loss[image].is_some() || !has_gradient, "{spec:?}");
                    assert_eq!(snapshot.loss[image].is_some(), snapshot.zero_gradient[image].is_some(), "{spec:?}");
                    let (forward, backward) = asked(snapshot, image);
                    assert!(forward <= cost.forward && backward <= cost.backward && backward <= forward, "{spec:?}");
                }
            }
            let last = &snapshots[snapshots.len() - 1];
            for image in (0..5).filter(|_| !may_stop(&spec)) {
                assert_eq!(asked(last, image), (cost.forward, cost.backward), "{spec:?}");
            }
            moved.set(moved.get() || values(&x) != values(&last.x));
        });
        assert_eq!(moved.get(), spec.name() != "none", "{spec:?}");
    }
}

#[test]
fn the_network_is_evaluated_as_often_as_is_said() {
    let x = images(3);
    let net = Net::curved(5, 4);
    for spec in Spec::examples() {
        for noise in [0.0, 1.0] {
            let counted = Recorder::new(&net);
            let victim = Victim { net: &counted, defense: &Jitter { noise, gradient: Gradient::Exact }, batch: 6 };
            let last = run(spec.build(), &victim, &x, &goal(3), &keys(1, 0..3)).pop().unwrap();
            let (forward, backward): (u64, u64) =
                (last.forward_queries.iter().sum(), last.backward_queries.iter().sum());
            assert_eq!((counted.seen().len() as u64, counted.backward()), (forward, backward), "{spec:?}");
        }
    }
}

#[test]
fn no_draw_is_used_twice() {
    let (x, net) = (images(3), Net::curved(5, 4));
    for spec in Spec::examples() {
        let counted = Recorder::new(&net);
        let victim = Victim { net: &counted, defense: &Open, batch: 64 };
        run(spec.build(), &victim, &x, &goal(3), &keys(1, 0..3));
        let mut times = std::collections::HashMap::new();
        counted.seen().into_iter().for_each(|key| *times.entry(key).or_insert(0) += 1);
        // Both evaluations of an antithetic pair share their draw.
        let most = if spec.name() == "evolution-strategy" { 2 } else { 1 };
        assert!(times.into_values().all(|times| times <= most), "{spec:?}");
    }
}

#[test]
fn an_image_is_attacked_the_same_in_any_batch_and_any_shard() {
    let (x, goal) = (images(6), goal(6));
    for spec in Spec::examples() {
        victims(64, |victim| {
            let whole = run(spec.build(), &victim, &x, &goal, &keys(7, 0..6));
            let again = run(spec.build(), &victim, &x, &goal, &keys(7, 0..6));
            for batch in [1, 2, 3, 4, 7] {
                let batched = run(spec.build(), &Victim { batch, ..victim }, &x, &goal, &keys(7, 0..6));
                for (whole, (again, batched)) in whole.iter().zip(again.iter().zip(&batched)) {
                    for image in 0..6 {
                        assert_eq!(about(whole, image), about(again, image), "{spec:?}");
                        assert_eq!(about(whole, image), about(batched, image), "{spec:?}, batches of {batch}");
                    }
                }
            }
            for (from, to) in [(0, 2), (2, 6)] {
                let part = x.narrow(0, from, to - from).unwrap();
                let (part_goal, keys) = (goal.slice(from..to).unwrap(), keys(7, from as u64..to as u64));
                let part = run(spec.build(), &victim, &part, &part_goal, &keys);
                for (whole, part) in whole.iter().zip(&part) {
                    for image in from..to {
                        assert_eq!(about(whole, image), about(part, image - from), "{spec:?}");
                    }
                }
            }
        });
    }
}

#[test]
fn other_keys_give_other_images_where_there_is_chance() {
    let x = images(4);
    let net = Net::curved(2, 4);
    for (defense, chance) in [(&Open as &dyn Defense, false), (&Jitter { noise: 0.5, gradient: Gradient::Exact }, true)]
    {
        let victim = Victim { net: &net, defense, batch: 8 };
        for spec in Spec::examples() {
            let of = |seed| values(&run(spec.build(), &victim, &x, &goal(4), &keys(seed, 0..4)).pop().unwrap().x);
            let fields = fields(&spec);
            let starts_anywhere =
                fields["random_start"] == true || fields["start"].as_str().is_some_and(|s| s != "image");
            let random = match spec.name() {
                "none" => false,
                "uniform-noise" | "evolution-strategy" => true,
                "logit-matching" => chance || fields["draws"] != 0,
                _ => chance || starts_anywhere,
            };
            // Auto-PGD ends in the same corner wherever it starts.
            if random && !chance && spec.name() == "apgd" {
                continue;
            }
            assert_eq!(of(1) != of(2), random, "{spec:?} against {defense:?}");
        }
    }
}

#[test]
fn pgd_finds_the_optimum_of_a_linear_network() {
    let net = Net::linear(11, 2);
    let victim = Victim { net: &net, defense: &Open, batch: 8 };
    let x = images(6);
    let origins = rows(&x);
    // Away from class 0 is towards class 1, and the only direction that matters is the difference of their weights.
    let direction: Vec<f64> = (0..12).map(|j| net.weight(1, j) - net.weight(0, j)).collect();
    let length = direction.iter().map(|w| w * w).sum::<f64>().sqrt();
    let eps = 0.03;
    for loss in [Loss::CrossEntropy, Loss::Margin] {
        for goal in [Goal::Untargeted(vec![0; 6]), Goal::Targeted(vec![1; 6])] {
            let pgd = |norm| {
                let pgd =
                    Pgd { norm, eps: eps.into(), step_size: 0.01.into(), steps: vec![10], loss, ..Pgd::default() };
                rows(&run(&pgd, &victim, &x, &goal, &keys(1, 0..6))[0].x)
            };
            for (origin, found) in origins.iter().zip(pgd(Norm::Linf)) {
                for j in 0..12 {
                    let best = (origin[j] + eps * direction[j].signum()).clamp(0.0, 1.0);
                    assert!((found[j] - best).abs() < 1e-7, "{loss:?} {goal:?}");
                }
            }
            for (origin, found) in origins.iter().zip(pgd(Norm::L2)) {
                let best: Vec<f64> = (0..12).map(|j| origin[j] + eps * direction[j] / length).collect();
                // The closed form holds where the box does not interfere.
                if best.iter().all(|pixel| (0.0..=1.0).contains(pixel)) {
                    assert!((0..12).all(|j| (found[j] - best[j]).abs() < 1e-6), "{loss:?} {goal:?}");
                }
            }
        }
    }
}

#[test]
fn a_short_run_is_the_beginning_of_a_long_one() {
    let x = images(5);
    victims(16, |victim| {
        for spec in Spec::examples().into_iter().filter(|spec| spec.cost().forward > 0 && spec.name() != "apgd") {
            let of_steps = |steps: &[usize]| -> Spec {
                let mut fields = fields(&spec);
                fields["steps"] = json!(steps);
                serde_json::from_value(fields).unwrap()
            };
            let long = run(of_steps(&[2, 5, 8]).build(), &victim, &x, &goal(5), &keys(3, 0..5));
            for snapshot in &long {
                let short = run(of_steps(&[snapshot.step]).build(), &victim, &x, &goal(5), &keys(3, 0..5));
                let same = (0..5).all(|image| about(&short[0], image) == about(snapshot, image));
                assert!(same, "{spec:?} after {} steps", snapshot.step);
            }
            assert!(may_stop(&spec) || values(&long[0].x) != values(&long[2].x), "{spec:?}");
        }
    });
}

/// Fails unless each of these changes changes the answer, and together they change every field.
fn every_field_matters(base: Value, changes: &[Value]) {
    let x = images(12);
    let net = Net::curved(4, 4);
    let victim = Victim { net: &net, defense: &Jitter { noise: 0.5, gradient: Gradient::Exact }, batch: 64 };
    let of = |spec: &Spec| values(&run(spec.build(), &victim, &x, &goal(12), &keys(5, 0..12)).pop().unwrap().x);
    let base: Spec = serde_json::from_value(base).unwrap();
    let Value::Object(fields) = fields(&base) else { panic!() };
    for field in fields.keys().filter(|field| *field != "name") {
        assert!(changes.iter().any(|change| !change[field].is_null()), "{field} of {base:?} is not tested");
    }
    let before = of(&base);
    for change in changes {
        let mut fields = fields.clone();
        fields.extend(change.as_object().unwrap().clone());
        let spec: Spec = serde_json::from_value(Value::Object(fields)).unwrap();
        spec.check().unwrap();
        assert_ne!(before, of(&spec), "{change} to {base:?}");
    }
}

/// Changes that many attacks know, but for some fields, and some more.
fn changes(without: &[&str], more: &[Value]) -> Vec<Value> {
    let common = [
        json!({"norm": "l2"}),
        json!({"eps": "4/255"}),
        json!({"steps": [9]}),
        json!({"step_size": "2/255"}),
        json!({"loss": "margin"}),
        json!({"eot": {"draws": 4}}),
        json!({"eot": {"draws": 3, "mean": "logits"}}),
        json!({"stop": {"rule": "draws-absent"}}),
        json!({"stop": {"rule": "draws-mean"}}),
        json!({"stop": {"rule": "fresh-vote", "draws": 2}}),
        json!({"stop": {"rule": "fresh-vote", "draws": 5, "reading": "all"}}),
    ];
    let known = common.into_iter().filter(|change| without.iter().all(|field| change[field].is_null()));
    known.chain(more.iter().cloned()).collect()
}

#[test]
fn every_parameter_matters() {
    let (eot, vote) = (json!({"draws": 3}), json!({"stop": {"rule": "fresh-vote", "draws": 2}}));
    let random_start = json!({"random_start": true});
    every_field_matters(json!({"name": "pgd", "eot": eot}), &changes(&["stop"], std::slice::from_ref(&random_start)));
    every_field_matters(json!({"name": "momentum", "eot": eot}), &changes(&[], &[random_start, json!({"decay": 0.3})]));
    every_field_matters(
        json!({"name": "aggmo", "eot": eot, "loss": "cross-entropy"}),
        &changes(&[], &[json!({"random_start": false}), json!({"betas": [0.0, 0.9]}), json!({"gradient": "sign"})]),
    );
    let apgd = changes(
        &["stop"],
        &[
            json!({"start": "uniform"}),
            json!({"start": "image"}),
            json!({"bookkeeping": "single-draw"}),
            json!({"schedule": "art", "rating_draws": 1}),
        ],
    );
    every_field_matters(json!({"name": "apgd", "eot": eot, "steps": [20]}), &apgd);
    let art = json!({"name": "apgd", "eot": eot, "steps": [40], "schedule": "art", "rating_draws": 1});
    let apgd =
        [&apgd[..apgd.len() - 1], &[json!({"rating_draws": 2}), json!({"schedule": "auto-attack", "rating_draws": 0})]];
    every_field_matters(art, &apgd.concat());
    let rate = json!({"learning_rate": "1/255"});
    every_field_matters(
        json!({"name": "gradient-ascent", "eot": eot, "norm": "l2", "eps": "0.2", "penalty": "-0.1"}),
        &changes(
            &["norm", "step_size"],
            &[json!({"norm": "linf", "penalty": 0}), json!({"penalty": "-0.5", "project": false}), rate.clone()],
        ),
    );
    every_field_matters(
        json!({"name": "adam", "eot": eot, "learning_rate": "2/255", "loss": "cross-entropy", "gradient": "raw"}),
        &changes(&["step_size"], &[json!({"beta1": 0.5}), json!({"beta2": 0.9}), json!({"gradient": "sign"}), rate]),
    );
    every_field_matters(
        json!({"name": "evolution-strategy", "schedule": [{"steps": 2, "samples": 4}], "loss": "cross-entropy"}),
        &changes(
            &["eot", "stop"],
            &[
                json!({"sigma": "80/255"}),
                json!({"schedule": [{"steps": 2, "samples": 4}, {"steps": 1, "samples": 6}]}),
                vote.clone(),
            ],
        ),
    );
    every_field_matters(
        json!({"name": "logit-matching", "draws": 2, "step_size": "4/255"}),
        &changes(
            &["eot", "stop", "loss"],
            &[json!({"sigma": "60/255"}), json!({"draws": 3}), json!({"clean": false}), vote],
        ),
    );
}

#[test]
fn draws_that_agree_are_one_draw() {
    let (x, keys) = (images(4), keys(1, 0..4));
    let net = Net::curved(6, 4);
    let victim = Victim { net: &net, defense: &Open, batch: 5 };
    let query = |draws, mean| victim.gradient(&x, &goal(4), Loss::CrossEntropy, Eot { draws, mean }, &keys).unwrap();
    let one = query(1, Mean::Gradients);
    for draws in [2, 3, 7, 16] {
        for mean in [Mean::Gradients, Mean::Logits] {
            let many = query(draws, mean);
            // Sums of up to 16 equal f32 gradients are exact in f64; means of logits round at its last bit.
            let tolerance = if mean == Mean::Gradients { 0.0 } else { 1e-6 };
            let pairs = values(&one.gradient).into_iter().zip(values(&many.gradient));
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= tolerance), "{draws} {mean:?}");
            assert_eq!(one.log2, many.log2);
            assert!(one.loss.iter().zip(&many.loss).all(|(a, b)| (a - b).abs() < 1e-14));
            assert_eq!(many.forward_queries, draws as u64);
        }
    }
}

#[test]
fn each_mean_is_the_derivative_of_its_own_objective() {
    // In f64 throughout: the gradient in its true magnitude against finite differences of what is averaged.
    let x = images(3).to_dtype(DType::F64).unwrap();
    let (goal, keys, draws) = (goal(3), keys(2, 0..3), 4);
    let defense = Jitter { noise: 0.5, gradient: Gradient::Exact };
    for scale in [1.0, 12.0] {
        let net = Net::curved(8, 4).stretched(scale);
        let victim = Victim { net: &net, defense: &defense, batch: 3 };
        for loss in [Loss::CrossEntropy, Loss::Margin] {
            let objective = |x: &Tensor, mean: Mean, image: usize| -> f64 {
                let class = goal.classes()[image] as usize;
                let logits = (0..draws).map(|d| {
                    let keys: Vec<Key> = keys.iter().map(|key| key.at(d)).collect();
                    rows(&victim.predict(x, &keys).unwrap())[image].clone()
                });
                let of = |logits: &[f64]| loss.evaluate(logits, class, &mut [0.0; 4]).loss;
                match mean {
                    Mean::Gradients => logits.map(|row| of(&row)).sum::<f64>() / draws as f64,
                    Mean::Logits => {
                        let rows: Vec<_> = logits.collect();
                        let mean: Vec<f64> =
                            (0..4).map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / draws as f64).collect();
                        of(&mean)
                    }
                }
            };
            let mut answers = vec![];
            for mean in [Mean::Gradients, Mean::Logits] {
                let query = victim.gradient(&x, &goal, loss, Eot { draws: draws as usize, mean }, &keys).unwrap();
                let gradient = rows(&query.true_gradient().unwrap());
                for image in 0..3 {
                    assert!((query.loss[image] - objective(&x, mean, image)).abs() < 1e-12);
                    let largest = gradient[image].iter().fold(0.0f64, |largest, g| largest.max(g.abs()));
                    for (j, got) in gradient[image].iter().enumerate() {
                        let at = |h: f64| {
                            let mut pixels = values(&x);
                            pixels[image * 12 + j] += h;
                            objective(&Tensor::from_vec(pixels, x.dims(), &Device::Cpu).unwrap(), mean, image)
                        };
                        let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                        // The answer is f32, relative to its largest entry; the slope has its own error.
                        let tolerance = 2e-7 * largest + 1e-8;
                        assert!((slope - got).abs() < tolerance, "{loss:?} {mean:?} {scale}: {slope} {got}");
                    }
                }
                answers.push(gradient);
            }
            if loss == Loss::CrossEntropy {
                assert!((0..3).all(|image| answers[0][image] != answers[1][image]), "the two means agree");
            }
        }
    }
}

#[test]
fn certainty_does_not_cost_the_gradients_sign() {
    // Logits stretched until the label's probability is within 1e-9 of one, as a trained network's often is.
    let x = images(40);
    let net = Net::curved(9, 4).stretched(60.0);
    let victim = Victim { net: &net, defense: &Open, batch: 16 };
    let keys = keys(1, 0..40);
    let double = x.to_dtype(DType::F64).unwrap();
    let logits = rows(&victim.predict(&double, &keys).unwrap());
    let top: Vec<u32> =
        logits.iter().map(|row| (0..4).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32).collect();
    let query = victim.gradient(&x, &Goal::Untargeted(top.clone()), Loss::CrossEntropy, Eot::default(), &keys).unwrap();
    let restored = rows(&query.true_gradient().unwrap());
    let (mut certain, mut entries, mut naive_right) = (0, 0, 0);
    for image in 0..40 {
        let (class, pixels) = (top[image] as usize, &rows(&double)[image]);
        let others: f64 = (0..4).filter(|&j| j != class).map(|j| (logits[image][j] - logits[image][class]).exp()).sum();
        if !(1e-300..1e-9).contains(&others) {
            continue;
        }
        certain += 1;
        // In f64, with the label's entry as the negative sum of the others.
        let mut upstream = net.textbook(pixels, class);
        upstream[class] = -(0..4).filter(|&j| j != class).map(|j| upstream[j]).sum::<f64>();
        let truth = net.row_gradient(pixels, &upstream);
        let naive = net.textbook_gradient(&pixels.iter().map(|&x| x as f32).collect::<Vec<_>>(), class);
        let largest = truth.iter().fold(0.0f64, |largest, g| largest.max(g.abs()));
        for j in 0..12 {
            // Stretched f32 logits are off by up to 1e-4, and the probabilities relatively so.
            assert!((restored[image][j] - truth[j]).abs() < 1e-3 * largest, "{image} {j}");
            if truth[j].abs() > 1e-2 * largest {
                entries += 1;
                assert_eq!(restored[image][j] > 0.0, truth[j] > 0.0, "image {image}, entry {j}");
                naive_right += usize::from(naive[j] != 0.0 && (naive[j] > 0.0) == (truth[j] > 0.0));
            }
        }
    }
    assert!(certain >= 10, "only {certain} of 40 images are classified with certainty");
    assert!(
        naive_right * 10 < entries * 9,
        "the naive formula kept {naive_right} of {entries} signs: nothing is tested"
    );
}

#[test]
fn numbers_that_are_not_finite_are_dropped_and_counted() {
    let (x, keys) = (images(3), keys(1, 0..3));
    let net = Net::curved(2, 4);
    let clean = Victim { net: &net, defense: &Open, batch: 4 };
    let poisoned = Poisoned { net: &net, entries: vec![(1, f32::NAN), (5, f32::INFINITY), (6, f32::NEG_INFINITY)] };
    let victim = Victim { net: &poisoned, ..clean };
    let ask = |victim: &Victim<'_>| {
        let eot = Eot { draws: 2, mean: Mean::Gradients };
        victim.gradient(&x, &goal(3), Loss::CrossEntropy, eot, &keys).unwrap()
    };
    let (clean, query) = (ask(&clean), ask(&victim));
    assert_eq!(query.non_finite, [6; 3]);
    assert_eq!(query.zero_gradient, [0.25; 3]);
    let (clean, poisoned) = (rows(&clean.true_gradient().unwrap()), rows(&query.true_gradient().unwrap()));
    for (clean, poisoned) in clean.iter().zip(&poisoned) {
        for j in 0..12 {
            let expected = if [1, 5, 6].contains(&j) { 0.0 } else { clean[j] };
            assert_eq!(poisoned[j], expected);
        }
    }
    let pgd = Pgd { steps: vec![1, 3], ..Pgd::default() };
    let snapshots = run(&pgd, &victim, &x, &goal(3), &keys);
    assert_eq!((&snapshots[0].non_finite, &snapshots[1].non_finite), (&vec![3; 3], &vec![9; 3]));
}

#[test]
fn defense_and_network_draw_from_their_own_keys() {
    let net = Net::curved(2, 4);
    let (network, defense) = (Recorder::new(&net), Recorder::new(&net));
    let victim = Victim { net: &network, defense: &defense, batch: 3 };
    let keys = keys(4, 0..2);
    let eot = Eot { draws: 3, mean: Mean::Gradients };
    victim.gradient(&images(2), &goal(2), Loss::Margin, eot, &keys).unwrap();
    let draws: Vec<Key> = keys.iter().flat_map(|key| (0..3).map(|d| key.at(d))).collect();
    assert_eq!(defense.seen(), draws.iter().map(|draw| draw.at(0)).collect::<Vec<_>>());
    assert_eq!(network.seen(), draws.iter().map(|draw| draw.at(1)).collect::<Vec<_>>());
    victim.predict(&images(2), &keys).unwrap();
    assert_eq!(defense.seen()[6..], keys.iter().map(|key| key.at(0)).collect::<Vec<_>>());
    assert_eq!(network.seen()[6..], keys.iter().map(|key| key.at(1)).collect::<Vec<_>>());
}

#[test]
fn every_step_draws_anew() {
    let net = Net::curved(2, 4);
    let defense = Recorder::new(&net);
    let victim = Victim { net: &net, defense: &defense, batch: 4 };
    let pgd =
        Pgd { steps: vec![3], eot: Eot { draws: 2, mean: Mean::Gradients }, random_start: true, ..Pgd::default() };
    let keys = keys(4, 0..1);
    run(&pgd, &victim, &images(1), &goal(1), &keys);
    let expected: Vec<Key> =
        (1..=3).flat_map(|step| (0..2).map(move |d| (step, d))).map(|(step, d)| keys[0].at(step).at(d).at(0)).collect();
    assert_eq!(defense.seen(), expected);
}

#[test]
fn misfits_and_errors_come_back_as_errors() {
    let net = Net::curved(2, 4);
    let victim = Victim { net: &net, defense: &Open, batch: 4 };
    let (x, good) = (images(3), keys(1, 0..3));
    let error = |victim: &Victim<'_>, x: &Tensor, goal: &Goal, keys: &[Key]| {
        Pgd::default().run(victim, x, goal, keys, None, &mut |_| Ok(())).unwrap_err().to_string()
    };
    assert!(error(&victim, &x, &goal(3), &good[..2]).contains("3 images with 2 keys"));
    assert!(error(&victim, &x, &goal(2), &good).contains("a goal for 2"));
    assert!(error(&victim, &x, &Goal::Targeted(vec![4; 3]), &good).contains("class 4 is no goal"));
    assert!(error(&victim, &(&x + 1.0).unwrap(), &goal(3), &good).contains("pixels in [0, 1]"));
    assert!(error(&Victim { batch: 0, ..victim }, &x, &goal(3), &good).contains("batch of 0"));
    let stopped =
        Pgd::default().run(&victim, &x, &goal(3), &good, None, &mut |_| candle_core::bail!("the disk is full"));
    assert!(stopped.unwrap_err().to_string().contains("the disk is full"));
    assert_eq!(victim.predict(&images(0), &[]).unwrap().dims(), [0, 4]);
    assert_eq!(run(&Pgd::default(), &victim, &images(0), &goal(0), &[])[0].x.dims(), [0, 3, 2, 2]);
}

#[test]
fn the_catalogue_is_whole_and_names_its_companions() {
    assert_eq!(
        Spec::NAMES,
        [
            "none",
            "uniform-noise",
            "pgd",
            "momentum",
            "aggmo",
            "apgd",
            "gradient-ascent",
            "adam",
            "evolution-strategy",
            "logit-matching",
        ]
    );
    for spec in Spec::examples() {
        spec.check().unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec, "{text}");
        for companion in spec.companions() {
            assert_eq!(companion.build().cost(), attacks::Cost::default());
        }
    }
    let pgd: Spec = serde_json::from_value(json!({"name": "pgd", "norm": "l2", "eps": "3/2", "steps": [5]})).unwrap();
    let noise = UniformNoise { norm: Norm::L2, eps: "3/2".parse().unwrap() };
    assert_eq!(pgd.companions(), [attacks::None {}.into(), noise.into()]);
    assert_eq!(pgd.slug(), "pgd-5");
    assert_eq!((pgd.norm(), pgd.eps().map(|eps| eps.text()), pgd.steps()), (Some(Norm::L2), Some("3/2"), vec![5]));
    assert_eq!((pgd.cost().forward, pgd.companions()[0].eps()), (5, None));
}

#[test]
fn mistakes_are_named_with_what_is_accepted() {
    let parse = |value: Value| serde_json::from_value::<Spec>(value);
    let unknown = parse(json!({"name": "pgd", "epsilon": "8/255"})).unwrap_err().to_string();
    assert!(unknown.contains("unknown field `epsilon`") && unknown.contains("`eps`"), "{unknown}");
    let unknown = parse(json!({"name": "pgd", "eot": {"draw": 5}})).unwrap_err().to_string();
    assert!(unknown.contains("unknown field `draw`"), "{unknown}");
    let refused = |value: Value| parse(value).unwrap().check().unwrap_err();
    assert_eq!(refused(json!({"name": "uniform-noise", "eps": -1})), "uniform-noise: eps = -1 must be at least 0");
    assert!(refused(json!({"name": "pgd", "step_size": 0})).contains("step_size = 0"));
    for steps in [json!([]), json!([0, 3]), json!([5, 5]), json!([5, 2])] {
        assert!(refused(json!({"name": "pgd", "steps": steps})).contains("ascending"));
    }
    assert!(refused(json!({"name": "pgd", "eot": {"draws": 0}})).contains("eot.draws = 0"));
}
