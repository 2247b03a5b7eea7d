//! What the attacks beside PGD do where it can be computed by hand, and when their rules stop them.

use attacks::{
    Adam, AggMo, Apgd, Attack, Bookkeeping, Eot, EvolutionStrategy, Gradient, GradientAscent, Guides, LogitMatching,
    Loss, Mean, Momentum, Pgd, Reading, Samples, Sampling, Schedule, Snapshot, Start, Stop, Victim,
};
use candle_core::Tensor;
use game::{Goal, Norm};

use crate::{
    about, goal, keys, run,
    small::{Jitter, Net, Open, images, rows, values},
};

/// The gradient of the margin of a linear network of two classes about class 0.
fn difference(net: &Net) -> Vec<f64> {
    (0..12).map(|j| net.weight(1, j) - net.weight(0, j)).collect()
}

#[test]
fn every_sign_step_finds_the_corner_of_a_linear_network() {
    let net = Net::linear(11, 2);
    let victim = Victim { net: &net, defense: &Open, batch: 64 };
    let (x, eps) = (images(6), 0.03);
    let attacks: [&dyn Attack; 6] = [
        &Momentum { eps: eps.into(), step_size: 0.01.into(), ..Momentum::default() },
        &AggMo { eps: eps.into(), step_size: 0.01.into(), ..AggMo::default() },
        &Adam { eps: eps.into(), learning_rate: 0.01.into(), ..Adam::default() },
        &Adam { eps: eps.into(), learning_rate: 0.01.into(), gradient: Gradient::Raw, ..Adam::default() },
        &Apgd { eps: eps.into(), step_size: (2.0 * eps).into(), steps: vec![30], ..Apgd::default() },
        &Apgd { eps: eps.into(), schedule: Schedule::Art, rating_draws: 1, steps: vec![30], ..Apgd::default() },
    ];
    for attack in attacks {
        for goal in [Goal::Untargeted(vec![0; 6]), Goal::Targeted(vec![1; 6])] {
            let last = run(attack, &victim, &x, &goal, &keys(1, 0..6)).pop().unwrap();
            for (origin, found) in rows(&x).iter().zip(rows(&last.x)) {
                for (j, direction) in difference(&net).iter().enumerate() {
                    let best = (origin[j] + eps * direction.signum()).clamp(0.0, 1.0);
                    assert!((found[j] - best).abs() < 1e-6, "{attack:?} {goal:?}");
                }
            }
        }
    }
}

#[test]
fn without_memory_momentum_is_pgd() {
    let x = images(5);
    let net = Net::curved(2, 4).noisy(0.2);
    let victim = Victim { net: &net, defense: &Jitter { noise: 0.2, gradient: game::Gradient::Exact }, batch: 8 };
    let eot = Eot { draws: 2, mean: Mean::Gradients };
    for (norm, eps, step_size) in [(Norm::Linf, 0.1, 0.02), (Norm::L2, 0.5, 0.1)] {
        let (eps, step_size, steps) = (eps.into(), step_size.into(), vec![1, 6]);
        let pgd = Pgd { norm, eps, step_size, steps, eot, loss: Loss::Margin, random_start: true };
        let Pgd { eps, step_size, steps, .. } = pgd.clone();
        let momentum = Momentum {
            norm,
            eps: eps.clone(),
            step_size: step_size.clone(),
            decay: 0.0,
            steps: steps.clone(),
            eot,
            loss: Loss::Margin,
            random_start: true,
            stop: Stop::None {},
        };
        let aggmo =
            AggMo { norm, eps, step_size, betas: vec![0.0], gradient: Gradient::Sign, steps, eot, ..AggMo::default() };
        let of = |attack: &dyn Attack| run(attack, &victim, &x, &goal(5), &keys(3, 0..5));
        for (i, expected) in of(&pgd).iter().enumerate() {
            let close = |found: &Snapshot, tolerance: f64| {
                let pairs = values(&found.x).into_iter().zip(values(&expected.x));
                pairs.into_iter().all(|(a, b)| (a - b).abs() <= tolerance)
            };
            // In l2 the guard against a vanishing gradient weighs differently.
            assert!(close(&of(&momentum)[i], if norm == Norm::Linf { 0.0 } else { 1e-5 }));
            assert!(norm == Norm::L2 || close(&of(&aggmo)[i], 0.0));
        }
    }
}

#[test]
fn momentum_goes_straight_up_a_linear_network() {
    // A linear network's gradient is constant: whatever the decay, the sum keeps its direction, and a step its length.
    let net = Net::linear(11, 2);
    let victim = Victim { net: &net, defense: &Open, batch: 64 };
    let x = (images(4) * 0.2).unwrap().affine(1.0, 0.4).unwrap();
    let (length, direction) = (difference(&net).iter().map(|w| w * w).sum::<f64>().sqrt(), difference(&net));
    let momentum = Momentum {
        norm: Norm::L2,
        eps: 10.0.into(),
        step_size: 0.03.into(),
        decay: 0.7,
        steps: vec![1, 4],
        loss: Loss::Margin,
        ..Momentum::default()
    };
    for snapshot in run(&momentum, &victim, &x, &Goal::Untargeted(vec![0; 4]), &keys(1, 0..4)) {
        for (origin, found) in rows(&x).iter().zip(rows(&snapshot.x)) {
            for j in 0..12 {
                let expected = origin[j] + 0.03 * snapshot.step as f64 * direction[j] / length;
                assert!((found[j] - expected).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn raw_ascent_adds_the_gradient_as_it_is() {
    let net = Net::linear(11, 2);
    let victim = Victim { net: &net, defense: &Open, batch: 64 };
    let x = images(4);
    let direction = difference(&net);
    let of = |ascent: &GradientAscent, goal: &Goal| run(ascent, &victim, &x, goal, &keys(1, 0..4));
    let free = GradientAscent {
        norm: Norm::L2,
        eps: 0.05.into(),
        learning_rate: 0.01.into(),
        steps: vec![1, 5],
        loss: Loss::Margin,
        project: false,
        ..GradientAscent::default()
    };
    for (goal, sign) in [(Goal::Untargeted(vec![0; 4]), 1.0), (Goal::Targeted(vec![0; 4]), -1.0)] {
        for snapshot in of(&free, &goal) {
            for (origin, found) in rows(&x).iter().zip(rows(&snapshot.x)) {
                for j in 0..12 {
                    let expected = origin[j] + sign * 0.01 * snapshot.step as f64 * direction[j];
                    assert!((found[j] - expected.clamp(0.0, 1.0)).abs() < 1e-6);
                }
            }
        }
    }
    // Five steps leave the ball; projected steps cannot.
    let goal = Goal::Untargeted(vec![0; 4]);
    let distances = |ascent: &GradientAscent| -> Vec<f64> {
        let last = of(ascent, &goal).pop().unwrap();
        let pairs = rows(&x).into_iter().zip(rows(&last.x));
        pairs.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()).collect()
    };
    assert!(distances(&free).iter().all(|&distance| distance > 0.06));
    assert!(distances(&GradientAscent { project: true, ..free.clone() }).iter().all(|&distance| distance <= 0.05));
    // Inside the ball the penalty is silent.
    let inside = |weight: f64| distances(&GradientAscent { eps: 10.0.into(), penalty: weight.into(), ..free.clone() });
    assert_eq!(inside(-1.0), inside(0.0));
    // The penalty moves an image outside by its weight towards the ball, and with the wrong sign away from it.
    let penalised = |weight: f64| distances(&GradientAscent { penalty: weight.into(), ..free.clone() });
    let (inwards, without, outwards) = (penalised(-1.0), penalised(0.0), penalised(1.0));
    for image in 0..4 {
        // Four of the five steps start outside; near the box's faces less of a step is left.
        let (pulled, pushed) = (without[image] - inwards[image], outwards[image] - without[image]);
        assert!(pulled > 0.01 && pulled < 0.041, "{pulled}");
        assert!(pushed > 0.01 && pushed < 0.041, "{pushed}");
    }
}

#[test]
fn the_estimate_converges_to_the_gradient() {
    let x = images(3);
    let keys = keys(2, 0..3);
    // Where the margin has two rivals it has a kink, and no gradient to converge to.
    let cases = [
        (Net::linear(4, 2), &[Loss::CrossEntropy, Loss::Margin][..], Goal::Untargeted(vec![0, 1, 0])),
        (Net::curved(8, 4), &[Loss::CrossEntropy], goal(3)),
    ];
    let sigma = 0.003;
    for (net, losses, goal) in cases {
        let victim = Victim { net: &net, defense: &Open, batch: 500 };
        for &loss in losses {
            let truth = victim.gradient(&x, &goal, loss, Eot::default(), &keys).unwrap();
            let truth = rows(&truth.true_gradient().unwrap());
            let pairs = 20_000;
            let estimate = victim.estimate(&x, &goal, loss, Sampling { sigma, samples: 2 * pairs }, &keys).unwrap();
            assert_eq!((estimate.forward_queries, estimate.backward_queries), (2 * pairs as u64, 0));
            for (truth, estimate) in truth.iter().zip(rows(&estimate.true_gradient().unwrap())) {
                // Entry j of one pair has the variance |g|^2 + g_j^2.
                let square: f64 = truth.iter().map(|g| g * g).sum();
                for (g, found) in truth.iter().zip(estimate) {
                    let error = ((square + g * g) / pairs as f64).sqrt();
                    assert!((g - found).abs() < 5.0 * error + 0.02 * square.sqrt(), "{loss:?}: {g} {found} {error}");
                }
            }
        }
    }
}

#[test]
fn evolution_strategies_stop_asking_where_the_mask_says() {
    let (x, net) = (images(8), Net::curved(4, 4));
    let victim = Victim { net: &net, defense: &Open, batch: 16 };
    let free = EvolutionStrategy {
        eps: 0.3.into(),
        step_size: 0.05.into(),
        steps: (1..=8).collect(),
        schedule: vec![Samples { steps: 3, samples: 10 }, Samples { steps: 1, samples: 40 }],
        ..EvolutionStrategy::default()
    };
    let masked = EvolutionStrategy { stop: Stop::FreshVote { draws: 1, reading: Reading::Majority }, ..free.clone() };
    let cost = |steps: usize| (0..steps).map(|step| if step < 3 { 10 } else { 40 }).sum::<u64>();
    stops_where_it_should(&victim, &x, [&free, &masked], |stop, last| {
        (cost(stop.map_or(last, |step| step - 1)) + stop.unwrap_or(last) as u64, 0)
    });
}

/// Fails unless the second attack, which is the first with a stop rule, leaves every image where the first has first
/// brought it to success, and asks what `asked` says, given the step that stopped and the last step.
fn stops_where_it_should(
    victim: &Victim<'_>,
    x: &Tensor,
    [free, stopping]: [&dyn Attack; 2],
    asked: impl Fn(Option<usize>, usize) -> (u64, u64),
) {
    let n = x.dim(0).unwrap();
    let (goal, keys) = (goal(n as u32), keys(1, 0..n as u64));
    let path = run(free, victim, x, &goal, &keys);
    let last = run(stopping, victim, x, &goal, &keys).pop().unwrap();
    let iterates: Vec<&Tensor> = std::iter::once(x).chain(path.iter().map(|snapshot| &snapshot.x)).collect();
    let (mut stopped, mut walked) = (0, 0);
    for image in 0..n {
        let class = |x: &Tensor| {
            let logits = rows(&victim.predict(x, &keys).unwrap())[image].clone();
            (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
        };
        // Step s looks at the iterate before it.
        let stop = (1..iterates.len()).find(|&step| goal.reached(image, class(iterates[step - 1])));
        let end = iterates[stop.map_or(iterates.len() - 1, |step| step - 1)];
        assert_eq!(rows(&last.x)[image], rows(end)[image], "{stopping:?}, image {image}");
        let found = (last.forward_queries[image], last.backward_queries[image]);
        assert_eq!(found, asked(stop, iterates.len() - 1), "{stopping:?}, image {image}");
        stopped += usize::from(stop.is_some());
        walked += usize::from(stop.is_some_and(|step| step > 1));
    }
    assert!(stopped < n && walked > 0, "{stopped} of {n} stopped, {walked} on their way: nothing is tested");
}

#[test]
fn stopped_images_stay_and_pay_no_more() {
    let (x, net) = (images(12), Net::curved(4, 4));
    let victim = Victim { net: &net, defense: &Open, batch: 16 };
    let eot = Eot { draws: 3, mean: Mean::Gradients };
    let free = GradientAscent { eps: 0.1.into(), steps: (1..=6).collect(), eot, ..GradientAscent::default() };
    let of = |stop| GradientAscent { stop, ..free.clone() };
    for stop in [Stop::DrawsAbsent {}, Stop::DrawsMean {}] {
        // The step that stops has drawn, and paid.
        stops_where_it_should(&victim, &x, [&free, &of(stop)], |stop, last| {
            let queries = 3 * stop.unwrap_or(last) as u64;
            (queries, queries)
        });
    }
    for reading in [Reading::Majority, Reading::Mean, Reading::All] {
        // A fresh vote comes before the step.
        stops_where_it_should(&victim, &x, [&free, &of(Stop::FreshVote { draws: 2, reading })], |stop, last| {
            let queries = 3 * stop.map_or(last, |step| step - 1) as u64;
            (queries + 2 * stop.unwrap_or(last) as u64, queries)
        });
    }
}

#[test]
fn an_image_outside_its_ball_does_not_stop() {
    let (x, net) = (images(6), Net::curved(4, 4));
    let victim = Victim { net: &net, defense: &Open, batch: 16 };
    let ascent = GradientAscent {
        norm: Norm::L2,
        eps: 1e-6.into(),
        steps: vec![30],
        learning_rate: 1.0.into(),
        project: false,
        stop: Stop::DrawsMean {},
        ..GradientAscent::default()
    };
    let last = run(&ascent, &victim, &x, &goal(6), &keys(1, 0..6)).pop().unwrap();
    let logits = rows(&victim.predict(&last.x, &keys(1, 0..6)).unwrap());
    let mut outside = 0;
    for (image, logits) in logits.iter().enumerate() {
        let class = (0..4).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        if last.forward_queries[image] > 1 {
            assert!(goal(6).reached(image, class), "thirty large steps did not fool the network");
            assert_eq!(last.forward_queries[image], 30);
            outside += 1;
        }
    }
    assert!(outside > 0);
}

#[test]
fn logit_matching_brings_the_logits_to_the_guides() {
    let net = Net::linear(3, 4);
    let victim = Victim { net: &net, defense: &Open, batch: 16 };
    let x = images(6);
    let (away, keys) = (goal(6), keys(1, 0..6));
    // Near the first images, so that the ball holds an image with their logits.
    let guides_x = (x.narrow(0, 0, 2).unwrap() * 0.9).unwrap().affine(1.0, 0.05).unwrap();
    let labels = [1, 0];
    let matching = LogitMatching {
        eps: 1.0.into(),
        step_size: "1/255".parse().unwrap(),
        draws: 0,
        steps: vec![1, 400],
        ..LogitMatching::default()
    };
    let mut snapshots = vec![];
    let guides = Guides { x: &guides_x, labels: &labels };
    let mut sink = |snapshot| {
        snapshots.push(snapshot);
        Ok(())
    };
    matching.run(&victim, &x, &away, &keys, Some(guides), &mut sink).unwrap();
    let logits = |x: &Tensor| rows(&net_logits(&victim, x));
    let (start, targets) = (logits(&x), logits(&guides_x));
    for (image, start) in start.iter().enumerate() {
        // The first guide whose label is not the image's.
        let guide = usize::from(image % 4 == 1);
        let distance: f64 = start.iter().zip(&targets[guide]).map(|(z, t)| (z - t).powi(2)).sum();
        assert!((snapshots[0].loss[image].unwrap() - distance).abs() < 1e-4 * distance, "image {image}");
        assert!(snapshots[1].loss[image].unwrap() < 0.02 * distance.max(1.0), "image {image} is not there");
    }
    // Towards a class, the first guide of that class.
    snapshots.clear();
    let mut sink = |snapshot| {
        snapshots.push(snapshot);
        Ok(())
    };
    matching.run(&victim, &x, &Goal::Targeted(vec![0; 6]), &keys, Some(guides), &mut sink).unwrap();
    let distance: f64 = start[0].iter().zip(&targets[1]).map(|(z, t)| (z - t).powi(2)).sum();
    assert!((snapshots[0].loss[0].unwrap() - distance).abs() < 1e-4 * distance);
    let error =
        |goal: &Goal, guides| matching.run(&victim, &x, goal, &keys, guides, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error(&away, None).contains("needs guides"));
    assert!(error(&Goal::Targeted(vec![3; 6]), Some(guides)).contains("no guide satisfies the goal about class 3"));
}

fn net_logits(victim: &Victim<'_>, x: &Tensor) -> Tensor {
    victim.predict(x, &vec![game::Key::root(0); x.dim(0).unwrap()]).unwrap()
}

#[test]
fn the_gradient_of_matching_is_that_of_the_squared_distance() {
    let x = images(3);
    let net = Net::linear(3, 4);
    let victim = Victim { net: &net, defense: &Open, batch: 2 };
    let targets = vec![vec![1.0, -2.0, 0.5, 0.0]; 3];
    let eot = Eot { draws: 2, mean: Mean::Logits };
    let query = victim.matching(&x, &targets, eot, &keys(1, 0..3)).unwrap();
    let (gradient, logits) = (rows(&query.true_gradient().unwrap()), rows(&net_logits(&victim, &x)));
    for image in 0..3 {
        for (j, found) in gradient[image].iter().enumerate() {
            let expected: f64 = (0..4).map(|c| 2.0 * (logits[image][c] - targets[image][c]) * net.weight(c, j)).sum();
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
    let error = victim.matching(&x, &targets[..2], eot, &keys(1, 0..3)).unwrap_err().to_string();
    assert!(error.contains("3 images with 2 rows of logits"), "{error}");
}

#[test]
fn noise_of_no_size_averages_to_the_gradient_itself() {
    let x = images(5);
    let net = Net::curved(3, 4);
    let victim = Victim { net: &net, defense: &Open, batch: 4 };
    let of = |draws, clean, sigma: f64| {
        let matching = LogitMatching { draws, clean, sigma: sigma.into(), steps: vec![3], ..LogitMatching::default() };
        run(&matching, &victim, &x, &goal(5), &keys(1, 0..5)).pop().unwrap()
    };
    let clean = of(0, true, 0.1);
    for (draws, and_clean, per_step) in [(1, false, 1), (4, false, 4), (3, true, 4)] {
        let noisy = of(draws, and_clean, 0.0);
        assert_eq!(values(&noisy.x), values(&clean.x), "{draws} {and_clean}");
        for image in 0..5 {
            assert!((noisy.loss[image].unwrap() - clean.loss[image].unwrap()).abs() < 1e-9);
            assert_eq!((noisy.forward_queries[image], noisy.backward_queries[image]), (1 + 3 * per_step, 3 * per_step));
        }
    }
    assert_ne!(values(&of(3, true, 0.3).x), values(&clean.x));
    assert_ne!(values(&of(3, true, 0.3).x), values(&of(3, false, 0.3).x));
}

#[test]
fn bookkeeping_by_one_draw_returns_what_it_says() {
    let (x, net) = (images(24), Net::curved(4, 4));
    let logits = rows(&net_logits(&Victim { net: &net, defense: &Open, batch: 16 }, &x));
    let top = |logits: &Vec<f64>| (0..4).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
    let goal = Goal::Untargeted(logits.iter().map(top).collect());
    let victim = Victim { net: &net, defense: &Jitter { noise: 1.0, gradient: game::Gradient::Exact }, batch: 16 };
    let of = |bookkeeping, start| Apgd {
        schedule: Schedule::Art,
        rating_draws: 1,
        step_size: "2/255".parse().unwrap(),
        steps: vec![5],
        start,
        bookkeeping,
        ..Apgd::default()
    };
    let answer = |apgd: &Apgd| run(apgd, &victim, &x, &goal, &keys(2, 0..24)).pop().unwrap();
    let every = answer(&of(Bookkeeping::None, Start::Uniform));
    let kept = answer(&of(Bookkeeping::SingleDraw, Start::Uniform));
    let (origins, every_x, kept_x) = (rows(&x), rows(&every.x), rows(&kept.x));
    let (mut untouched, mut attacked, mut started) = (0, 0, 0);
    for image in 0..24 {
        // Five gradients; six ratings; one look before and one after.
        assert_eq!((every.forward_queries[image], every.backward_queries[image]), (11, 5));
        if kept_x[image] == origins[image] {
            assert_eq!((kept.forward_queries[image], kept.backward_queries[image]), (1, 0));
            assert_eq!(about(&kept, image).2, None);
            untouched += 1;
            continue;
        }
        assert_eq!((kept.forward_queries[image], kept.backward_queries[image]), (13, 5));
        if kept_x[image] == every_x[image] { attacked += 1 } else { started += 1 }
    }
    assert!(untouched > 0 && attacked > 0 && started > 0, "{untouched} {attacked} {started}");
}
