//! Programs that answer, programs that fail, and what a caller sees of both.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use attacks::{Attack, Eot, Pgd, Snapshot, Victim as Attacked};
use candle_core::{DType, Device, Result, Tensor};
use game::{Classifier, Defense, Goal, Gradient, Key, Norm};
use support::{faulty, plain, program};
use victim::{Client, Draws, Kind, Network, Options, Reduce, Transformation};

fn options() -> Options {
    Options { seconds: 20.0, memory: None, threads: 1, shared_memory: true, data_root: None }
}

fn start(words: &[&str]) -> Client {
    Client::start(&program(plain(), words), &options()).unwrap()
}

fn fails(words: &[&str]) -> Client {
    Client::start(&program(faulty(), words), &options()).unwrap()
}

fn images(n: usize) -> Tensor {
    let mut pixels = vec![0.0; n * 3 * 4 * 4];
    Key::root(9).fill_uniform(&mut pixels);
    Tensor::from_vec(pixels, (n, 3, 4, 4), &Device::Cpu).unwrap()
}

fn keys(n: u64) -> Vec<Key> {
    (0..n).map(|i| Key::root(3).at(i)).collect()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_program_says_what_it_is() {
    let client = start(&["network", "7"]);
    let hello = client.hello();
    assert_eq!((hello.classes, hello.shape, hello.batch, hello.draws), (Some(7), None, Some(64), Draws::Row));
    assert!(hello.random && hello.answers("logits") && hello.answers("pull") && !hello.answers("apply"));
    assert_eq!(client.files().keys().map(String::as_str).collect::<Vec<_>>(), [plain().to_str().unwrap()]);
    let error = Transformation::new(Arc::new(client)).unwrap_err();
    assert!(error.to_string().contains("name it as `model`"), "{error}");
    let error = Network::new(Arc::new(start(&["transformation"]))).unwrap_err();
    assert!(error.to_string().contains("name it as `defense`"), "{error}");
}

#[test]
fn a_row_is_the_same_in_any_batch_and_with_any_neighbours() {
    let client = start(&["network"]);
    // More rows than it takes at once.
    let (x, keys) = (images(100), keys(100));
    let all = client.logits(&x, &keys).unwrap();
    assert_eq!(all.dims(), [100, 10]);
    for i in [0, 63, 64, 99] {
        let alone = client.logits(&x.narrow(0, i, 1).unwrap(), &keys[i..=i]).unwrap();
        assert_eq!(numbers(&alone), numbers(&all.narrow(0, i, 1).unwrap()));
    }
    let other = client.logits(&x.narrow(0, 0, 1).unwrap(), &keys[1..2]).unwrap();
    assert_ne!(numbers(&other), numbers(&all.narrow(0, 0, 1).unwrap()));
    let nothing = client.logits(&x.narrow(0, 0, 0).unwrap(), &[]).unwrap();
    assert_eq!(nothing.dims(), [0, 10]);
}

#[test]
fn the_draws_of_a_program_are_ours() {
    let client = start(&["transformation"]);
    let (x, keys) = (images(5), keys(5));
    let found = client.apply(&x, &keys).unwrap();
    let mut expected = numbers(&x);
    for (row, key) in expected.chunks_mut(48).zip(&keys) {
        let mut noise = [0.0; 48];
        key.fill_uniform(&mut noise);
        row.iter_mut().zip(noise).for_each(|(x, u)| {
            let noisy = *x + 0.1 * (2.0 * u - 1.0);
            *x = noisy * noisy;
        });
    }
    assert_eq!(numbers(&found), expected);
}

/// A loss that is no plain sum, and its gradient at the logits.
fn loss(logits: &Tensor) -> (f64, Tensor) {
    let value = logits.powf(3.0).unwrap().sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap();
    (value, (logits.sqr().unwrap() * 3.0).unwrap())
}

#[test]
fn gradients_are_those_of_finite_differences_and_means_are_means() {
    let client = start(&["network"]);
    let (x, keys) = (images(2), keys(6));
    let upstream = &mut |logits: &Tensor| Ok(loss(logits).1);
    let mean = client.gradient(&x, &keys, Reduce::Mean, upstream).unwrap();
    let each = client.gradient(&x, &keys, Reduce::Each, upstream).unwrap();
    assert_eq!((mean.gradient.dims(), each.gradient.dims()), (&[2, 3, 4, 4][..], &[6, 3, 4, 4][..]));
    let averaged = each.gradient.reshape((2, 3, 3, 4, 4)).unwrap().mean(1).unwrap();
    let direction = images(4).narrow(0, 2, 2).unwrap();
    let step =
        |sign: f64| loss(&client.logits(&(&x + (&direction * (sign * 0.01)).unwrap()).unwrap(), &keys).unwrap()).0;
    let slope = (step(1.0) - step(-1.0)) / 0.02 / 3.0;
    let product = (&mean.gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((f64::from(product) - slope).abs() < 2e-3 * slope.abs(), "{product} {slope}");
    for (a, b) in numbers(&mean.gradient).iter().zip(numbers(&averaged)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    // Divided by images, and by draws: as many rows as the program takes or fewer.
    for most in ["3", "2"] {
        let few = fails(&["few", most, "-", "network"]);
        assert_eq!(few.hello().batch, most.parse().ok());
        let mut asked = 0;
        let found = few.gradient(&x, &keys, Reduce::Mean, &mut |logits| {
            asked += 1;
            Ok(loss(logits).1)
        });
        assert_eq!(asked, 1, "a loss is asked once");
        for (a, b) in numbers(&found.unwrap().gradient).iter().zip(numbers(&mean.gradient)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        assert_eq!(numbers(&few.logits(&x, &keys).unwrap()), numbers(&client.logits(&x, &keys).unwrap()));
    }
}

#[test]
fn a_program_is_a_classifier_and_a_defense() {
    let network = Network::new(Arc::new(start(&["network"]))).unwrap();
    let defense = Transformation::new(Arc::new(start(&["transformation"]))).unwrap();
    let (x, keys) = (images(3), keys(3));
    assert_eq!((network.classes(), defense.gradient()), (10, Gradient::Exact));
    let images = defense.apply(&x, &keys).unwrap();
    let above = network.input_gradient(&images, &keys, &mut |logits| Ok(loss(logits).1)).unwrap();
    // The first asks anew, the second finds what the program has kept.
    let first = defense.exact_pullback(&x, &keys, &above).unwrap();
    let before = defense.client().requests();
    defense.apply(&x, &keys).unwrap();
    let second = defense.exact_pullback(&x, &keys, &above).unwrap();
    assert_eq!(defense.client().requests() - before, 2);
    assert_eq!(numbers(&first), numbers(&second));
    let through = |x: &Tensor| loss(&network.logits(&defense.apply(x, &keys).unwrap(), &keys).unwrap()).0;
    let at = |sign: f64| through(&(&x + sign * 0.01).unwrap());
    let (slope, sum) = ((at(1.0) - at(-1.0)) / 0.02, first.sum_all().unwrap().to_scalar::<f32>().unwrap());
    assert!((f64::from(sum) - slope).abs() < 2e-3 * slope.abs(), "{sum} {slope}");
    assert_eq!(defense.apply(&x.narrow(0, 0, 0).unwrap(), &[]).unwrap().dims(), [0, 3, 4, 4]);
    // In double precision, too, as our own networks are tested.
    let wide = network.logits(&x.to_dtype(DType::F64).unwrap(), &keys).unwrap();
    assert_eq!(wide.dtype(), DType::F64);

    let mut identity = program(plain(), &["transformation"]);
    identity.gradient = Some(Gradient::Identity);
    let identity = Transformation::new(Arc::new(Client::start(&identity, &options()).unwrap())).unwrap();
    assert_eq!(numbers(&game::pullback(&identity, &x, &keys, &x).unwrap()), numbers(&x));
}

#[test]
fn images_are_brought_to_the_programs_range_and_back() {
    let (x, keys) = (images(2), keys(2));
    let (ours, theirs) = (start(&["network"]), fails(&["range", "0", "-", "network"]));
    let moved = ((&x * 2.0).unwrap() - 1.0).unwrap();
    assert_eq!(numbers(&theirs.logits(&x, &keys).unwrap()), numbers(&ours.logits(&moved, &keys).unwrap()));
    let upstream = &mut |logits: &Tensor| Ok(loss(logits).1);
    let inner = ours.gradient(&moved, &keys, Reduce::Each, upstream).unwrap().gradient;
    let outer = theirs.gradient(&x, &keys, Reduce::Each, upstream).unwrap().gradient;
    assert_eq!(numbers(&outer), numbers(&(inner * 2.0).unwrap()));
    let theirs = fails(&["range", "0", "-", "transformation"]);
    let inner = start(&["transformation"]).apply(&moved, &keys).unwrap();
    let expected = ((inner + 1.0).unwrap() / 2.0).unwrap();
    for (a, b) in numbers(&theirs.apply(&x, &keys).unwrap()).iter().zip(numbers(&expected)) {
        assert!((a - b).abs() < 1e-6);
    }
}

const FAULTS: [&str; 14] = [
    "die",
    "abort",
    "hang",
    "close",
    "nan",
    "infinity",
    "shape",
    "nothing",
    "number",
    "operation",
    "error",
    "garbage",
    "length",
    "half",
];

fn patient(fault: &str) -> Options {
    Options { seconds: if fault == "hang" { 0.5 } else { 20.0 }, ..options() }
}

#[test]
fn a_program_that_fails_once_is_started_again_and_nobody_notices() {
    let folder = tempfile::tempdir().unwrap();
    let (x, keys) = (images(4), keys(4));
    let upstream = &mut |logits: &Tensor| Ok(loss(logits).1);
    let whole = start(&["network"]);
    let expected = whole.gradient(&x, &keys, Reduce::Each, upstream).unwrap().gradient;
    // The second request is a gradient's second half.
    for (when, faults) in [("1", &FAULTS[..]), ("2", &["die", "hang", "shape", "number", "half"][..])] {
        for fault in faults {
            let marker = folder.path().join(format!("{fault}-{when}"));
            let words = [fault, when, marker.to_str().unwrap(), "network"];
            let client = Client::start(&program(faulty(), &words), &patient(fault)).unwrap();
            let mut asked = 0;
            let found = client.gradient(&x, &keys, Reduce::Each, &mut |logits| {
                asked += 1;
                Ok(loss(logits).1)
            });
            let found = found.unwrap_or_else(|error| panic!("{fault} {when}: {error}"));
            assert_eq!(numbers(&found.gradient), numbers(&expected), "{fault} {when}");
            assert_eq!((client.restarts(), asked, client.fault()), (1, 1, None), "{fault} {when}");
        }
    }
}

#[test]
fn a_program_that_fails_again_is_told_with_its_last_words() {
    let (x, keys) = (images(1), keys(1));
    let kinds = [
        ("die", Kind::Died, "exit code 3"),
        ("abort", Kind::Died, "signal 6"),
        ("hang", Kind::Time, "no answer within 0.5 seconds"),
        ("close", Kind::Died, "exit code 0"),
        ("nan", Kind::Numbers, "a NaN among them"),
        ("infinity", Kind::Numbers, "a inf among them"),
        ("shape", Kind::Reply, "wrong shape [1, 1, 10, 1]"),
        ("nothing", Kind::Reply, "no tensor `logits`"),
        ("number", Kind::Reply, "to request 999999"),
        ("operation", Kind::Reply, "its reply is to `hello`"),
        ("error", Kind::Refused, "out of ideas"),
        ("garbage", Kind::Reply, "no safetensors blob"),
        ("length", Kind::Reply, "as the length of a reply"),
        ("half", Kind::Died, "exit code 0"),
    ];
    assert_eq!(kinds.map(|(fault, ..)| fault), FAULTS);
    for (fault, kind, part) in kinds {
        let words = [fault, "1", "-", "network"];
        let client = Client::start(&program(faulty(), &words), &patient(fault)).unwrap();
        let start = Instant::now();
        let error = client.logits(&x, &keys).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10), "{fault}");
        let text = error.to_string();
        assert_eq!((error.kind, client.restarts()), (kind, 1), "{text}");
        assert!(text.contains(part), "{fault}: {text}");
        assert!(text.contains("failed before it too") && text.contains(&format!("about to {fault}")), "{text}");
        assert!(text.starts_with(&format!("program `{}", faulty().display())), "{text}");
        assert_eq!(client.fault(), Some(error));
    }
}

#[test]
fn what_is_no_program_is_told_at_once() {
    let error = |words: &[&str]| Client::start(&program(faulty(), words), &options()).unwrap_err();
    let version = error(&["version", "0", "-"]).to_string();
    assert!(version.contains("speaks the protocol `victim` 2.0, and this program 1.0"), "{version}");
    let dead = error(&["no-hello", "0", "-"]);
    assert!(dead.kind == Kind::Died && dead.to_string().contains("exit code 7"), "{dead}");
    let nobody = Client::start(&program("no/such/program".as_ref(), &[]), &options()).unwrap_err();
    assert!(nobody.kind == Kind::Start && nobody.to_string().contains("cannot be started"), "{nobody}");
    // Something that reads nothing and says nothing, and something that says something else.
    let silent = Client::start(&program("sleep".as_ref(), &["60"]), &patient("hang")).unwrap_err();
    assert_eq!(silent.kind, Kind::Time, "{silent}");
    let other = Client::start(&program("sh".as_ref(), &["-c", "echo hello; exit 4"]), &options()).unwrap_err();
    assert!(other.to_string().ends_with("its last words:\n  hello"), "{other}");
    let mut stated = program(plain(), &["network"]);
    stated.digests.insert(plain().display().to_string(), "0".repeat(64));
    let changed = Client::start(&stated, &options()).unwrap_err().to_string();
    assert!(changed.contains("has changed"), "{changed}");
}

#[test]
fn what_a_program_is_not_is_not_asked() {
    let (x, keys) = (images(2), keys(2));
    let square = fails(&["square", "0", "-", "network"]);
    assert!(square.logits(&x, &keys).is_ok());
    let wide = Tensor::zeros((2, 3, 4, 5), DType::F32, &Device::Cpu).unwrap();
    let error = square.logits(&wide, &keys).unwrap_err();
    assert_eq!((error.kind, square.restarts()), (Kind::Misuse, 0));
    assert!(error.to_string().contains("images of 3x4x4, and is asked about images of 3x4x5"), "{error}");
    let error = square.logits(&x, &keys[..1]).unwrap_err().to_string();
    assert!(error.contains("2 images with 1 keys"), "{error}");
    let bare = fails(&["no-gradient", "0", "-", "network"]);
    let error = bare.gradient(&x, &keys, Reduce::Each, &mut |logits| Ok(logits.clone())).unwrap_err().to_string();
    assert!(error.contains("it has no gradient"), "{error}");
    let error = square.gradient(&x, &keys, Reduce::Each, &mut |_| candle_core::bail!("no loss")).unwrap_err();
    assert!(error.kind == Kind::Misuse && error.to_string().contains("no loss"), "{error}");
    assert_eq!(square.restarts(), 0, "a loss that fails is not the program's fault");
}

#[test]
fn memory_is_limited() {
    let words = ["memory", "1", "-", "network"];
    let limited = Options { memory: Some(100 << 20), ..options() };
    let client = Client::start(&program(faulty(), &words), &limited).unwrap();
    if client.resident().is_none() {
        return;
    }
    let error = client.logits(&images(1), &keys(1)).unwrap_err();
    assert!(error.kind == Kind::Memory && error.to_string().contains("may take 100"), "{error}");
}

#[test]
fn what_a_program_prints_reaches_neither_pipe_nor_memory() {
    let client = fails(&["noise", "1", "-", "network"]);
    let expected = start(&["network"]).logits(&images(2), &keys(2)).unwrap();
    assert_eq!(numbers(&client.logits(&images(2), &keys(2)).unwrap()), numbers(&expected));
    assert_eq!(client.restarts(), 0);
}

fn alive(group: u32) -> bool {
    // SAFETY: asks whether a process of the group exists.
    unsafe { libc::kill(-(group as libc::pid_t), 0) == 0 }
}

#[test]
fn nothing_that_a_program_has_started_survives_it() {
    let client = fails(&["close", "1", "-", "network"]);
    let (first, before) = (client.process_id(), client.restarts());
    client.logits(&images(1), &keys(1)).unwrap_err();
    let second = client.process_id();
    assert!(first != second && before == 0);
    let idle = start(&["network"]);
    let third = idle.process_id();
    assert!(alive(third));
    drop((client, idle));
    for group in [first, second, third] {
        let until = Instant::now() + Duration::from_secs(5);
        while alive(group) && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!alive(group), "a process of group {group} is left");
    }
}

/// An attack with expectation over transformation through both kinds of program; its images, bit by bit.
fn attacked(network: &dyn Classifier, defense: &dyn Defense) -> Vec<u32> {
    let pgd: Pgd = Pgd {
        norm: Norm::Linf,
        eps: "8/255".parse().unwrap(),
        step_size: "2/255".parse().unwrap(),
        steps: vec![40],
        eot: Eot { draws: 3, ..Eot::default() },
        ..Pgd::default()
    };
    let victim = Attacked { net: network, defense, batch: 16 };
    let (x, goal) = (images(12), Goal::Untargeted((0..12).map(|i| i % 10).collect()));
    let mut bits = Vec::new();
    let sink: &mut dyn FnMut(Snapshot) -> Result<()> = &mut |snapshot| {
        bits.extend(numbers(&snapshot.x).into_iter().map(f32::to_bits));
        Ok(())
    };
    pgd.run(&victim, &x, &goal, &keys(12), None, sink).unwrap();
    bits
}

#[test]
fn programs_killed_at_random_change_no_bit_of_an_attack() {
    let part = |word: &str| Arc::new(start(&[word]));
    let (one, other) = (part("network"), part("transformation"));
    let network = Network::new(one.clone()).unwrap();
    let defense = Transformation::new(other.clone()).unwrap();
    let expected = attacked(&network, &defense);
    assert_eq!(one.restarts() + other.restarts(), 0);
    let done = Arc::new(AtomicBool::new(false));
    let killer = thread::spawn({
        let (done, clients) = (done.clone(), [one.clone(), other.clone()]);
        move || {
            let mut random = Key::root(1);
            while !done.load(Ordering::Relaxed) {
                random = random.at(0);
                let client = &clients[random.below(2) as usize];
                let (lives, requests) = (client.restarts(), client.requests());
                // SAFETY: a process of this test's own.
                unsafe { libc::kill(client.process_id() as libc::pid_t, libc::SIGKILL) };
                // A request may fail once: the next blow falls when the program is up again, and has answered some.
                while !done.load(Ordering::Relaxed) && (client.restarts() == lives || client.requests() < requests + 5)
                {
                    thread::sleep(Duration::from_micros(50));
                }
                thread::sleep(Duration::from_micros(random.at(1).below(3000)));
            }
        }
    });
    let mut runs = 0;
    while one.restarts() + other.restarts() < 100 {
        assert_eq!(attacked(&network, &defense), expected, "run {runs}");
        runs += 1;
    }
    done.store(true, Ordering::Relaxed);
    killer.join().unwrap();
    assert!(one.restarts() > 10 && other.restarts() > 10, "{} and {}", one.restarts(), other.restarts());
}
