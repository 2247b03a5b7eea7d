//! How long jobs will take on this machine: by what was measured of their kind, and by what finished jobs say.

use std::{
    collections::HashMap,
    fmt,
    ops::{Add, AddAssign},
    path::Path,
};

use artifact::TimingRow;
use stage_attack::calibrate::Work;

use crate::{Bill, Calibration, Cost, Job, Load, Plan, calibration::Machine};

/// A time between two ends, in seconds: attacks and votes that may stop early end it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// If everything stops as early as it can.
    pub least: f64,
    /// If nothing stops early.
    pub most: f64,
    /// Some of it is not known, and not in it.
    pub lacking: bool,
}

impl Span {
    const fn exact(seconds: f64) -> Self {
        Self { least: seconds, most: seconds, lacking: false }
    }

    /// The one number that is wrong by the smallest factor, whichever end is right.
    #[must_use]
    pub fn likely(self) -> f64 {
        (self.least * self.most).sqrt()
    }

    fn times(self, factor: f64) -> Self {
        Self { least: self.least * factor, most: self.most * factor, ..self }
    }
}

impl AddAssign for Span {
    fn add_assign(&mut self, other: Self) {
        self.least += other.least;
        self.most += other.most;
        self.lacking |= other.lacking;
    }
}

impl Add for Span {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

/// Processor seconds by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Attacks, those of adversarial training among them.
    pub attacks: Span,
    /// Votes and detectors.
    pub votes: Span,
    /// Training.
    pub training: Span,
    /// Starting processes and compiling networks; of finished jobs, all that is none of the above.
    pub others: Span,
}

impl Seconds {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Span {
        self.attacks + self.votes + self.training + self.others
    }

    fn parts(&self) -> [Span; 3] {
        [self.attacks, self.votes, self.training]
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.attacks += other.attacks;
        self.votes += other.votes;
        self.training += other.training;
        self.others += other.others;
    }
}

/// Seconds in the unit that is due, with two or three digits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Duration(pub f64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(seconds) = *self;
        let units = [("s", 1.0, 99.5), ("min", 60.0, 99.5), ("h", 3600.0, 47.5), ("d", 86_400.0, f64::INFINITY)];
        let (unit, value) = units
            .into_iter()
            .find_map(|(unit, size, end)| Some((unit, seconds / size)).filter(|(_, value)| *value < end))
            .unwrap_or(("s", seconds));
        match value {
            0.0 => f.write_str("0"),
            _ if seconds < 0.95 => f.write_str("<1 s"),
            few if few < 9.95 && unit != "s" => write!(f, "{few:.1} {unit}"),
            many => write!(f, "{many:.0} {unit}"),
        }
    }
}

/// What a finished job took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Actual {
    seconds: Seconds,
    /// Forward evaluations by attacks and by votes with detectors, and training images: as often as they were done.
    counts: [f64; 3],
}

/// What finished jobs of one load took, and would have been said to take.
struct Learned {
    load: Load,
    taken: [f64; 3],
    said: [f64; 3],
}

/// How much of what was possible the attacks and votes of one kind did.
struct Share {
    load: Load,
    attack: String,
    done: [f64; 2],
    possible: [f64; 2],
}

/// Estimates of the jobs of a plan.
pub struct Estimates<'a> {
    /// What they rest on.
    pub calibration: &'a Calibration,
    finished: HashMap<&'a str, Actual>,
    learned: Vec<Learned>,
    shares: Vec<Share>,
}

/// Everything whose time the plan's costs ask for.
#[must_use]
pub fn works<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Vec<Work> {
    let mut works: Vec<Work> = Vec::new();
    for job in jobs {
        let (Some(load), cost) = (&job.load, &job.cost) else { continue };
        let asked = [
            (cost.gradient_queries, load.gradient()),
            (cost.votes + cost.forward_queries.saturating_sub(cost.gradient_queries) + cost.detector, load.forward()),
            (cost.training_images, load.train()),
            (cost.compilations, load.compile()),
            (cost.noise + cost.detector, load.noise()),
        ];
        let asked = asked.into_iter().filter(|(count, _)| *count > 0).flat_map(|(_, works)| works);
        for work in asked {
            if !works.contains(&work) {
                works.push(work);
            }
        }
    }
    works
}

/// Rows and columns of the largest images whose works take no more than a blink each.
const SMALL: u32 = 64;

/// Whether a work is measured in a fraction of a second.
#[must_use]
pub fn is_cheap(work: &Work) -> bool {
    let side = match work {
        Work::Logits { network } | Work::Gradient { network } | Work::Compile { network } => network.side,
        Work::Train { network, .. } => network.side,
        Work::Defend { side, .. } | Work::Pullback { side, .. } => *side,
    };
    side <= SMALL
}

impl<'a> Estimates<'a> {
    /// Estimates by a calibration and by the timing tables of the plan's finished jobs below `root`.
    #[must_use]
    pub fn new(plan: &'a Plan, calibration: &'a Calibration, root: &Path) -> Self {
        let mut commit = None;
        let jobs = plan.jobs.all().iter();
        let actual = |job: &'a Job| {
            let actual = actual(job, root, &calibration.machine, &mut commit)?;
            Some((job, actual))
        };
        let finished: Vec<(&Job, Actual)> = jobs.filter_map(actual).collect();
        let mut all = Self { calibration, finished: HashMap::new(), learned: Vec::new(), shares: Vec::new() };
        for (job, actual) in &finished {
            all.learn(job, actual);
        }
        all.finished = finished.into_iter().map(|(job, actual)| (job.address.as_str(), actual)).collect();
        all
    }

    fn learn(&mut self, job: &Job, actual: &Actual) {
        let Some(load) = &job.load else { return };
        let said = bare(self.calibration, load, &job.cost).parts().map(|span| span.most);
        let most = most(&job.cost);
        let index = self.learned.iter().position(|known| known.load == *load).unwrap_or_else(|| {
            self.learned.push(Learned { load: load.clone(), taken: [0.0; 3], said: [0.0; 3] });
            self.learned.len() - 1
        });
        let learned = &mut self.learned[index];
        for (part, taken) in actual.seconds.parts().iter().enumerate() {
            if most[part] > 0.0 && said[part] > 0.0 {
                learned.taken[part] += taken.most;
                learned.said[part] += said[part] * actual.counts[part] / most[part];
            }
        }
        let attack = kind(job);
        let of = |share: &Share| share.load == *load && share.attack == attack;
        let index = self.shares.iter().position(of).unwrap_or_else(|| {
            self.shares.push(Share { load: load.clone(), attack, done: [0.0; 2], possible: [0.0; 2] });
            self.shares.len() - 1
        });
        let share = &mut self.shares[index];
        for (part, (done, possible)) in share.done.iter_mut().zip(&mut share.possible).enumerate() {
            *done += actual.counts[part];
            *possible += most[part];
        }
    }

    /// The time of one job: what it took, where it is done, else what is to be expected.
    #[must_use]
    pub fn job(&self, job: &Job) -> Seconds {
        if let Some(actual) = self.finished.get(job.address.as_str()) {
            return actual.seconds;
        }
        let start = Span::exact(self.calibration.start * f64::from(job.parts));
        let Some(load) = &job.load else { return Seconds { others: start, ..Seconds::default() } };
        let mut seconds = self.cost(load, &job.cost);
        seconds.others += start;
        let attack = kind(job);
        if let Some(share) = self.shares.iter().find(|share| share.load == *load && share.attack == attack) {
            for (part, span) in [&mut seconds.attacks, &mut seconds.votes].into_iter().enumerate() {
                let settled = span.most * share.done[part] / share.possible[part];
                if settled.is_finite() {
                    let inside = settled.clamp(span.least, span.most);
                    (span.least, span.most) = (inside, inside);
                }
            }
        }
        seconds
    }

    /// The time of so much work by one network.
    fn cost(&self, load: &Load, cost: &Cost) -> Seconds {
        let mut seconds = bare(self.calibration, load, cost);
        if let Some(learned) = self.learned.iter().find(|known| known.load == *load) {
            let spans = [&mut seconds.attacks, &mut seconds.votes, &mut seconds.training];
            for (span, (taken, said)) in spans.into_iter().zip(learned.taken.iter().zip(learned.said)) {
                if said > 0.0 {
                    *span = span.times(taken / said);
                }
            }
        }
        seconds
    }

    /// The time of a bill.
    #[must_use]
    pub fn bill(&self, bill: &Bill) -> Seconds {
        let mut sum = Seconds::default();
        bill.entries().for_each(|(load, cost)| sum += self.cost(load, cost));
        sum
    }

    /// How many of the jobs are finished, and known to have taken how long.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished.len()
    }
}

/// As often as anything may be done: forward evaluations by attacks and by votes, and training images.
fn most(cost: &Cost) -> [f64; 3] {
    [cost.forward_queries, cost.votes + cost.detector, cost.training_images].map(|count| count as f64)
}

/// The time of so much work by what was measured alone.
fn bare(calibration: &Calibration, load: &Load, cost: &Cost) -> Seconds {
    let of = |works: &[Work], least: u64, most: u64| match calibration.processor(works) {
        _ if most == 0 => Span::default(),
        Some(one) => Span { least: one * least as f64, most: one * most as f64, lacking: false },
        None => Span { lacking: true, ..Span::default() },
    };
    let exact = |works: &[Work], count: u64| of(works, count, count);
    let others = |forward: u64, gradients: u64| forward.saturating_sub(gradients);
    let noise_at_least = cost.noise as f64 * cost.forward_at_least as f64 / cost.forward_queries.max(1) as f64;
    Seconds {
        attacks: of(&load.gradient(), cost.gradient_at_least, cost.gradient_queries)
            + of(
                &load.forward(),
                others(cost.forward_at_least, cost.gradient_at_least),
                others(cost.forward_queries, cost.gradient_queries),
            )
            + of(&load.noise(), noise_at_least as u64, cost.noise),
        // A detector asks the network without the defense, for it looks at what the defense has made.
        votes: of(&load.forward(), cost.votes_at_least, cost.votes)
            + exact(&load.forward()[..load.forward().len().min(1)], cost.detector)
            + exact(&load.noise(), cost.detector),
        training: exact(&load.train(), cost.training_images),
        others: exact(&load.compile(), cost.compilations),
    }
}

/// What decides when an attack and its votes stop, beside the network and the defense.
fn kind(job: &Job) -> String {
    let attack = &job.params["attack"];
    format!("{} {} {} {}", attack["name"], attack["stop"], attack["eot"], job.params["votes"])
}

/// What a job took by its timing tables, if all of its parts are there and were made by this build on this machine.
fn actual(job: &Job, root: &Path, machine: &Machine, commit: &mut Option<Option<String>>) -> Option<Actual> {
    let mut sum = Actual::default();
    for part in job.outputs() {
        let part = root.join(part);
        let path = part.with_extension("timing.parquet");
        if !part.exists() || !path.exists() {
            return None;
        }
        let (provenance, rows) = artifact::read::<TimingRow>(&path).ok()?;
        let fact = |name: &str| provenance.environment.get(name).map(String::as_str);
        let ours = commit.get_or_insert_with(stage::commit);
        let same = fact("cpu").is_none_or(|cpu| cpu == machine.processor) && fact("commit") == ours.as_deref();
        if !same || fact("device") != Some("cpu") {
            return None;
        }
        sum.add(&rows)?;
    }
    Some(sum)
}

impl Actual {
    /// Adds a part's timing table; nothing where it does not tell processor seconds.
    fn add(&mut self, rows: &[TimingRow]) -> Option<()> {
        let of = |work: &str| rows.iter().find(|row| row.work == work);
        let seconds = |work: &str| of(work).map_or(0.0, |row| row.seconds);
        let count = |work: &str| of(work).map_or(0.0, |row| row.count as f64);
        let (total, processor) = (of("total")?.seconds, of("processor")?.seconds);
        // Works are timed on the wall; all of a process's threads wait together.
        let share = if total > 0.0 { processor / total } else { 0.0 };
        let attacks = seconds("attack_queries");
        // Training images are attacked while they are timed.
        let training = (seconds("training_images") - attacks).max(0.0) + seconds("validation_images");
        let training = if of("training_images").is_some() { training } else { seconds("validation_images") };
        let votes = seconds("votes") + seconds("detector_queries");
        let others = (total - attacks - votes - training).max(0.0);
        let exact = |seconds: f64| Span::exact(seconds * share);
        self.seconds +=
            Seconds { attacks: exact(attacks), votes: exact(votes), training: exact(training), others: exact(others) };
        let counts = [
            count("attack_queries"),
            count("votes") + count("detector_queries"),
            count("training_images") + count("validation_images"),
        ];
        self.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        Some(())
    }
}

/// One line about what is missing of some pipelines and how long it will take; nothing where nothing is missing.
#[must_use]
pub fn missing(names: &[String], jobs: &[&Job], estimates: Option<&Estimates<'_>>, root: &Path) -> Option<String> {
    let open: Vec<&&Job> =
        jobs.iter().filter(|job| !job.outputs().iter().all(|part| root.join(part).exists())).collect();
    if open.is_empty() {
        return None;
    }
    let counted = format!("{}: {} of {} jobs to run", names.join(" "), open.len(), jobs.len());
    let Some(estimates) = estimates else { return Some(format!("{counted}; `make cost` tells how long they take")) };
    let mut sum = Span::default();
    open.iter().for_each(|job| sum += estimates.job(job).total());
    let cores = f64::from(estimates.calibration.machine.cores);
    let [least, likely, most] = [sum.least, sum.likely(), sum.most].map(|seconds| Duration(seconds / cores));
    let range = if least.to_string() == most.to_string() { String::new() } else { format!(" ({least} to {most})") };
    let more = if sum.lacking { ", and what is not known" } else { "" };
    Some(format!("{counted}, about {likely}{range}{more} on {cores} cores"))
}

#[cfg(test)]
mod tests {
    use artifact::{Provenance, Shard, Writer};
    use serde_json::json;

    use super::*;
    use crate::{Net, jobs::Jobs, jobs::Wanted};

    fn load() -> Load {
        Load::bare(Net::new(&serde_json::from_value(json!({"name": "cifar-resnet", "depth": 8})).unwrap(), Some(32)))
    }

    /// A plan of attacks that may stop early, by their names.
    fn plan(names: &[&str]) -> Plan {
        let mut jobs = Jobs::default();
        for name in names {
            jobs.add(Wanted {
                stage: "attack",
                revision: 1,
                slug: (*name).to_owned(),
                params: json!({"attack": {"name": "pgd"}, "seed": name}),
                inputs: vec![],
                files: vec![],
                parts: 1,
                cost: Cost {
                    forward_queries: 1000,
                    gradient_queries: 1000,
                    forward_at_least: 10,
                    gradient_at_least: 10,
                    votes: 100,
                    votes_at_least: 50,
                    compilations: 1,
                    ..Cost::default()
                },
                load: Some(load()),
            })
            .unwrap();
        }
        Plan { jobs, reports: vec![] }
    }

    fn calibration() -> Calibration {
        let of = |works: Vec<Work>, seconds: f64| works.into_iter().map(move |work| (work, seconds));
        let load = load();
        let times = of(load.gradient(), 0.2).chain(of(load.forward(), 0.1)).chain(of(load.compile(), 3.0));
        Calibration::pretend(2, times)
    }

    /// Writes a job's table and what it took.
    fn finish(root: &Path, job: &Job, machine: &str, rows: &[(&str, u64, f64)]) {
        let part = root.join(&job.outputs()[0]);
        let environment =
            [("cpu", Some(machine.to_owned())), ("device", Some("cpu".to_owned())), ("commit", stage::commit())];
        let provenance = Provenance {
            kind: String::new(),
            stage: "attack".to_owned(),
            revision: 1,
            parameters: json!({}),
            shard: Shard::WHOLE,
            inputs: [].into(),
            facts: [].into(),
            environment: environment.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect(),
        };
        let mut writer = Writer::create(&part.with_extension("timing.parquet"), provenance).unwrap();
        let row = |&(work, count, seconds): &(&str, u64, f64)| TimingRow { work: work.to_owned(), count, seconds };
        writer.push(&rows.iter().map(row).collect::<Vec<_>>()).unwrap();
        writer.finish().unwrap();
        std::fs::write(part, "").unwrap();
    }

    const TAKEN: [(&str, u64, f64); 4] =
        [("attack_queries", 500, 200.0), ("votes", 60, 6.0), ("total", 1, 210.0), ("processor", 1, 420.0)];

    #[test]
    fn what_was_measured_times_how_often_has_two_ends() {
        let (plan, calibration) = (plan(&["a"]), calibration());
        let root = tempfile::tempdir().unwrap();
        let seconds = Estimates::new(&plan, &calibration, root.path()).job(&plan.jobs.all()[0]);
        let ends = |span: Span| (span.least, span.most);
        assert_eq!(ends(seconds.attacks), (2.0, 200.0));
        assert_eq!(ends(seconds.votes), (5.0, 10.0));
        assert_eq!((ends(seconds.training), ends(seconds.others)), ((0.0, 0.0), (3.0, 3.0)));
        assert_eq!(seconds.attacks.likely(), 20.0);
        assert!(!seconds.total().lacking);
        let none = Calibration::pretend(2, []);
        assert!(Estimates::new(&plan, &none, root.path()).job(&plan.jobs.all()[0]).total().lacking);
        assert_eq!(works(plan.jobs.all()).len(), 3, "nothing is trained");
    }

    #[test]
    fn a_finished_job_counts_by_what_it_took_and_so_do_those_like_it() {
        let (plan, calibration) = (plan(&["a", "b"]), calibration());
        let root = tempfile::tempdir().unwrap();
        let [a, b] = plan.jobs.all() else { panic!("two jobs") };
        finish(root.path(), a, "Processor", &TAKEN);
        let estimates = Estimates::new(&plan, &calibration, root.path());
        assert_eq!(estimates.finished(), 1);
        // Two processors were at work all the time.
        let exact = |seconds: Seconds| (seconds.attacks.likely(), seconds.votes.likely(), seconds.others.likely());
        assert_eq!(exact(estimates.job(a)), (400.0, 12.0, 8.0));
        // Half of what was possible, four times as long as was said; 60 of 100 votes, twice as long.
        let like = estimates.job(b);
        assert!((like.attacks.least - 400.0).abs() < 1e-9 && like.attacks.least == like.attacks.most, "{like:?}");
        assert!((like.votes.least - 12.0).abs() < 1e-9 && like.votes.least == like.votes.most, "{like:?}");
    }

    #[test]
    fn what_another_machine_took_says_nothing() {
        let (plan, calibration) = (plan(&["a"]), calibration());
        let root = tempfile::tempdir().unwrap();
        let job = &plan.jobs.all()[0];
        finish(root.path(), job, "Another", &TAKEN);
        assert_eq!(Estimates::new(&plan, &calibration, root.path()).finished(), 0);
        finish(root.path(), job, "Processor", &TAKEN[..3]);
        assert_eq!(Estimates::new(&plan, &calibration, root.path()).finished(), 0, "no processor seconds");
        finish(root.path(), job, "Processor", &TAKEN);
        assert_eq!(Estimates::new(&plan, &calibration, root.path()).finished(), 1);
    }

    #[test]
    fn one_line_says_what_is_missing() {
        let (plan, calibration) = (plan(&["a", "b"]), calibration());
        let root = tempfile::tempdir().unwrap();
        let jobs: Vec<&Job> = plan.jobs.all().iter().collect();
        let line = |estimates: Option<&Estimates<'_>>| missing(&["t".to_owned()], &jobs, estimates, root.path());
        let estimates = Estimates::new(&plan, &calibration, root.path());
        // 20 to 426 processor seconds.
        assert_eq!(line(Some(&estimates)).unwrap(), "t: 2 of 2 jobs to run, about 46 s (10 s to 3.5 min) on 2 cores");
        assert_eq!(line(None).unwrap(), "t: 2 of 2 jobs to run; `make cost` tells how long they take");
        for job in &jobs {
            finish(root.path(), job, "Processor", &TAKEN);
        }
        assert_eq!(line(Some(&estimates)), None);
    }

    #[test]
    fn times_are_told_in_the_unit_that_is_due() {
        let times = [0.0, 0.2, 1.4, 99.0, 100.0, 720.0, 5930.0, 6000.0, 170_000.0, 200_000.0, 9e7];
        let texts = ["0", "<1 s", "1 s", "99 s", "1.7 min", "12 min", "99 min", "1.7 h", "47 h", "2.3 d", "1042 d"];
        assert_eq!(times.map(|seconds| Duration(seconds).to_string()), texts);
    }
}
