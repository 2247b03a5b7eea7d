//! What pipelines cost, in evaluations and in time, before and after what is saved.
//!
//! *Before* is a grid whose every cell runs by itself: its own attack from the start, for its own number of steps, its own
//! companions and networks, and every vote in full. *After* is the plan: each job once, one run for all snapshots of an attack,
//! votes that stop once they are settled. When that is depends on the images, so after has two ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    ops::{Add, AddAssign},
};

use crate::{
    Cost, Estimates, Job, Load, Net, Plan, Rates,
    estimate::{Duration, Seconds, Span},
    rates::{Machine, Work},
};

/// Costs by the network that does the work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bill(Vec<(Load, Cost)>);

impl Bill {
    /// Adds what a network has to do; where no network runs, nothing is counted.
    pub fn add(&mut self, load: Option<&Load>, cost: Cost) {
        let Some(load) = load else { return };
        match self.0.iter_mut().find(|(known, _)| known == load) {
            Some((_, sum)) => *sum += cost,
            None => self.0.push((load.clone(), cost)),
        }
    }

    /// What each has to do.
    pub fn entries(&self) -> impl Iterator<Item = &(Load, Cost)> {
        self.0.iter()
    }

    /// The cost of all networks.
    #[must_use]
    pub fn total(&self) -> Cost {
        let mut total = Cost::default();
        self.0.iter().for_each(|(_, cost)| total += *cost);
        total
    }
}

impl AddAssign<&Self> for Bill {
    fn add_assign(&mut self, other: &Self) {
        other.0.iter().for_each(|(load, cost)| self.add(Some(load), *cost));
    }
}

/// Characters of a number's column.
const WIDTH: usize = 9;
/// Characters of a line.
const LINE: usize = 120;

/// Columns with a common heading.
type Group<'a> = (&'a str, &'a [&'a str]);

const COUNTS: [Group<'_>; 5] = [
    ("", &["cells", "jobs"]),
    ("gradient queries", &["before", "after"]),
    ("forward queries", &["before", "after"]),
    ("votes and detectors", &["before", "at least", "at most"]),
    ("training images", &["before", "after"]),
];

const RECORDED: [Group<'_>; 4] = [
    ("attacks", &["before", "after"]),
    ("votes and detectors", &["before", "at least", "at most"]),
    ("training", &["before", "after"]),
    ("together", &["before", "at least", "at most"]),
];

const TIMES: [Group<'_>; 5] = [
    ("attacks", &["before", "after"]),
    ("votes and detectors", &["before", "after"]),
    ("training", &["before", "after"]),
    ("processor time", &["before", "at least", "at most"]),
    ("wall clock", &["before", "about"]),
];

/// One pipeline of the tables.
struct Row<'a> {
    name: String,
    /// None where this machine lacks the data.
    work: Option<Done<'a>>,
}

struct Done<'a> {
    cells: usize,
    jobs: Vec<&'a Job>,
    before: Bill,
    after: Bill,
}

/// Every pipeline's cost if nothing of it is there, and that of all together, with jobs and cells that they share counted once:
/// a table of counts, one of times on this machine where it is measured, one for each other machine with recorded rates, and what
/// to know about them.
#[must_use]
pub fn tables(plan: &Plan, rates: &Rates, estimates: Option<&Estimates<'_>>) -> String {
    let rows = rows(plan);
    let name = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = heading("pipeline", name, &COUNTS);
    for row in &rows {
        line(&mut text, &row.name, name, &COUNTS, row.work.as_ref().map(Done::counts));
    }
    let mut notes = vec![
        "before: every cell runs by itself, its own attack from the start for its own number of steps, its own companions \
         and networks, every vote in full; after: the plan, in which one run gives all snapshots of an attack, what cells \
         share runs once, and votes stop when they are settled."
            .to_owned(),
        "at least, at most: all votes as short or as long as they can be; how long they are depends on the images. Forward \
         queries include those of gradients, both those of adversarial training; attacks that may stop early are counted \
         in full."
            .to_owned(),
    ];
    if let Some(estimates) = estimates {
        text.push_str(&times(&rows, name, estimates));
        notes.extend(time_notes(estimates));
    }
    // What another processor would take is of no use beside what this one does.
    let processor = rates.processor.as_ref().filter(|_| estimates.is_none());
    for machine in [processor, rates.gpu.as_ref()].into_iter().flatten() {
        let threads = match machine.threads() {
            0 => String::new(),
            threads => format!(", {threads} threads"),
        };
        writeln!(text, "\ntime at the rates recorded on {}{threads}\n", machine.name).expect("a string takes all");
        text.push_str(&heading("pipeline", name, &RECORDED));
        let mut caveats = Caveats::default();
        for row in &rows {
            let times = row.work.as_ref().map(|done| done.recorded(machine, &mut caveats));
            line(&mut text, &row.name, name, &RECORDED, times);
        }
        text.push('\n');
        caveats.notes().iter().for_each(|note| text.push_str(&wrapped(note)));
    }
    notes.push(match (processor.is_some() || estimates.is_some(), &rates.gpu) {
        (false, None) => "no rate has been recorded, or none was given: there are no times.".to_owned(),
        (true, None) => "no rate of a GPU has been recorded: all times are the processor's.".to_owned(),
        _ => "times of the GPU and of the processor are each for all of the work.".to_owned(),
    });
    if processor.is_some() || rates.gpu.is_some() {
        let rates = "recorded rates are of bare networks: what defenses, k-winners-take-all, pruning and files take is not in them.";
        notes.push(rates.to_owned());
    }
    let unknown = rows.last().and_then(|all| all.work.as_ref()).map_or(0, |all| all.after.total().unknown);
    if unknown > 0 {
        notes.push(format!("{unknown} jobs are left out: the number of their images is not written anywhere."));
    }
    text.push('\n');
    notes.iter().for_each(|note| text.push_str(&wrapped(note)));
    text
}

/// The table of times on this machine.
fn times(rows: &[Row<'_>], name: usize, estimates: &Estimates<'_>) -> String {
    let machine = &estimates.calibration.machine;
    let mut text = format!("\ntime on {} x {}, as measured here\n\n", machine.processor, machine.cores);
    text.push_str(&heading("pipeline", name, &TIMES));
    for row in rows {
        line(&mut text, &row.name, name, &TIMES, row.work.as_ref().map(|done| done.times(estimates)));
    }
    text
}

fn time_notes(estimates: &Estimates<'_>) -> Vec<String> {
    let cores = estimates.calibration.machine.cores;
    let mut notes = vec![
        "processor time, at least: attacks that may stop early do at their first step, and votes as soon as they can; at \
         most: neither does. After and about: the geometric mean of both."
            .to_owned(),
        format!(
            "wall clock: the processor time over {cores} cores, for `make` keeps all of them at work. What files, reports \
             and closed forms take is not known before they were made once."
        ),
    ];
    match estimates.finished() {
        0 => {}
        finished => notes.push(format!(
            "{finished} jobs are finished: after is what they took, and what others like them are to take by that."
        )),
    }
    notes
}

/// One row per report, and one for all.
fn rows(plan: &Plan) -> Vec<Row<'_>> {
    // By the pipeline that defines the cells: those of a collection are its parts'.
    let mut apart = BTreeMap::new();
    let mut rows = Vec::new();
    for report in &plan.reports {
        let work = report.work.as_ref().ok().map(|work| {
            apart.extend(&work.apart);
            Done::new(work.apart.values().flatten(), plan.jobs.closure(&work.inputs))
        });
        rows.push(Row { name: report.name.clone(), work });
    }
    let jobs: Vec<&Job> = plan.jobs.all().iter().collect();
    let all = Done::new(apart.into_values().flatten(), jobs);
    rows.push(Row { name: "all together".to_owned(), work: Some(all) });
    rows
}

impl<'a> Done<'a> {
    fn new<'b>(cells: impl Iterator<Item = &'b Bill>, jobs: Vec<&'a Job>) -> Self {
        let mut done = Self { cells: 0, jobs, before: Bill::default(), after: Bill::default() };
        for cell in cells {
            done.cells += 1;
            done.before += cell;
        }
        done.jobs.iter().for_each(|job| done.after.add(job.load.as_ref(), job.cost));
        done
    }

    fn times(&self, estimates: &Estimates<'_>) -> Vec<String> {
        let (before, cores) = (estimates.bill(&self.before), f64::from(estimates.calibration.machine.cores));
        let mut after = Seconds::default();
        self.jobs.iter().for_each(|job| after += estimates.job(job));
        let time = |span: Span, seconds: f64| Time { seconds, estimated: false, lacking: span.lacking }.to_string();
        let pairs = [(before.attacks, after.attacks), (before.votes, after.votes), (before.training, after.training)];
        let pairs = pairs.into_iter().flat_map(|(before, after)| [(before, before.most), (after, after.likely())]);
        let (before, after) = (before.total(), after.total());
        let together = [
            (before, before.most),
            (after, after.least),
            (after, after.most),
            (before, before.most / cores),
            (after, after.likely() / cores),
        ];
        pairs.chain(together).map(|(span, seconds)| time(span, seconds)).collect()
    }

    fn counts(&self) -> Vec<String> {
        let (before, after) = (self.before.total(), self.after.total());
        let numbers = [
            self.cells as u64,
            self.jobs.len() as u64,
            before.gradient_queries,
            after.gradient_queries,
            before.forward_queries,
            after.forward_queries,
            before.votes + before.detector,
            after.votes_at_least + after.detector,
            after.votes + after.detector,
            before.training_images,
            after.training_images,
        ];
        numbers.map(short).into()
    }

    fn recorded(&self, machine: &Machine, caveats: &mut Caveats) -> Vec<String> {
        let mut of = |bill: &Bill, work: &dyn Fn(&Cost) -> Vec<(Work, u64)>| {
            let mut sum = Time::default();
            for (load, cost) in &bill.0 {
                for (work, count) in work(cost).into_iter().filter(|(_, count)| *count > 0) {
                    sum += caveats.time(machine, work, &load.net, count);
                }
            }
            sum
        };
        let attacks = |cost: &Cost| {
            let others = cost.forward_queries.saturating_sub(cost.gradient_queries);
            vec![(Work::Gradient, cost.gradient_queries), (Work::Logits, others)]
        };
        let most = |cost: &Cost| vec![(Work::Logits, cost.votes + cost.detector)];
        let least = |cost: &Cost| vec![(Work::Logits, cost.votes_at_least + cost.detector)];
        let training = |cost: &Cost| vec![(Work::Train, cost.training_images)];
        let attacks = [of(&self.before, &attacks), of(&self.after, &attacks)];
        let votes = [of(&self.before, &most), of(&self.after, &least), of(&self.after, &most)];
        let training = [of(&self.before, &training), of(&self.after, &training)];
        let together = [(0, 0), (1, 1), (1, 2)].map(|(side, end)| attacks[side] + votes[end] + training[side]);
        attacks.into_iter().chain(votes).chain(training).chain(together).map(|time| time.to_string()).collect()
    }
}

/// The time of some work: what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Time {
    seconds: f64,
    /// Some by the rate of another network.
    estimated: bool,
    /// Some without any rate, and not in the sum.
    lacking: bool,
}

impl AddAssign for Time {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.estimated |= other.estimated;
        self.lacking |= other.lacking;
    }
}

impl Add for Time {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lacking && self.seconds == 0.0 {
            return f.write_str("-");
        }
        let estimated = if self.estimated { "~" } else { "" };
        write!(f, "{estimated}{}{}", Duration(self.seconds), if self.lacking { "+" } else { "" })
    }
}

/// What times rest on beside measured rates.
#[derive(Default)]
struct Caveats {
    /// Networks, and those whose rates stand in for theirs.
    estimated: BTreeSet<String>,
    /// Work without any rate.
    lacking: BTreeSet<String>,
}

impl Caveats {
    /// The time of one kind of work on so many images.
    fn time(&mut self, machine: &Machine, work: Work, net: &Net, count: u64) -> Time {
        let Some(rate) = machine.rate(work, net) else {
            self.lacking.insert(format!("{} of {net}", work.name()));
            return Time { lacking: true, ..Time::default() };
        };
        if let Some(other) = rate.stand_in {
            self.estimated.insert(format!("{net} from {other}"));
        }
        let seconds = count as f64 / rate.per_second;
        Time { seconds, estimated: rate.stand_in.is_some(), lacking: false }
    }

    fn notes(&self) -> Vec<String> {
        let list = |what: &str, of: &BTreeSet<String>| {
            let items: Vec<&str> = of.iter().map(String::as_str).collect();
            (!items.is_empty()).then(|| format!("{what}: {}.", items.join("; ")))
        };
        let estimated = "where ~ stands, some has no recorded rate and is estimated in proportion to multiply-adds";
        let lacking = "where - or + stands, all or some has no recorded rate and is left out";
        list(estimated, &self.estimated).into_iter().chain(list(lacking, &self.lacking)).collect()
    }
}

/// Two lines: what groups of columns are about, and the columns.
fn heading(first: &str, name: usize, groups: &[Group<'_>]) -> String {
    let mut above = format!("{:name$}", "");
    let columns = groups.iter().flat_map(|(_, columns)| columns.iter().map(|column| (*column).to_owned())).collect();
    for (title, columns) in groups {
        write!(above, " {title:>width$}", width = columns.len() * WIDTH).expect("a string takes all");
    }
    let mut text = above.trim_end().to_owned() + "\n";
    line(&mut text, first, name, groups, Some(columns));
    text
}

fn line(text: &mut String, first: &str, name: usize, groups: &[Group<'_>], values: Option<Vec<String>>) {
    write!(text, "{first:<name$}").expect("a string takes all");
    match values {
        Some(values) => {
            let mut values = values.into_iter();
            for (_, columns) in groups {
                text.push(' ');
                values.by_ref().take(columns.len()).for_each(|value| text.push_str(&format!("{value:>WIDTH$}")));
            }
        }
        None => text.push_str(" data missing"),
    }
    text.push('\n');
}

/// A number in at most three digits and a unit, exact below ten thousand.
fn short(number: u64) -> String {
    if number < 10_000 {
        return grouped(number);
    }
    let mut value = number as f64;
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P"] {
        // What would be printed as 1000 is 1 of the next unit.
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}{unit}")
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A note in lines.
fn wrapped(note: &str) -> String {
    let mut lines = vec!["-".to_owned()];
    for word in note.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if last.chars().count() + 1 + word.chars().count() > LINE {
            lines.push(format!("  {word}"));
        } else {
            *last = format!("{last} {word}");
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{Options, Scale, Sources};

    const SOURCES: &str = r#"
        images.drawn = { side = 32, from = [{ name = "embedded", split = "test", images = 1000 }] }
    "#;

    /// Four cells, of which two by two share an attack, and all a network and its companions.
    const PIPELINE: &str = r#"
        title = "t"
        analysis = "a"
        axis = [
            { name = "steps", points = [{ step = 2 }, { step = 5 }] },
            { name = "protocol", points = [{ protocol = "authors-code" }, { protocol = "corrected" }] },
        ]
        report = { rows = ["steps"], columns = ["protocol"] }
        [base]
        sample = { source = "drawn", limit = 10 }
        model = { name = "cifar-resnet", depth = 8 }
        training = { sample = { source = "drawn", limit = 100 }, epochs = 2 }
        defense = { name = "gaussian-noise", sigma = 0.1 }
        attack = { name = "pgd", eps = "8/255", step_size = "1/255", steps = [2, 5], eot.draws = 3 }
        goal = { name = "untargeted" }
        votes = { draws = 7 }
    "#;

    fn plan(files: &[(&str, &str)]) -> Plan {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files.iter().map(|(name, _)| folder.path().join(format!("{name}.toml"))).collect();
        files.iter().zip(&paths).for_each(|((_, text), path)| std::fs::write(path, text).unwrap());
        std::fs::write(folder.path().join("grid.toml"), PIPELINE).unwrap();
        let sources: Sources = toml::from_str(SOURCES).unwrap();
        Plan::new(&paths, &sources, &Options { scale: Scale::Demo, shards: 1, data_root: None }).unwrap()
    }

    fn done(plan: &Plan) -> (Cost, Cost) {
        let all = rows(plan).pop().unwrap().work.unwrap();
        (all.before.total(), all.after.total())
    }

    #[test]
    fn before_is_every_cell_by_itself_and_after_is_the_plan() {
        let plan = plan(&[("grid", PIPELINE)]);
        let all = rows(&plan).pop().unwrap().work.unwrap();
        assert_eq!((all.cells, all.jobs.len()), (4, 6), "two samples, one network, one attack and its companions");
        let (before, after) = (all.before.total(), all.after.total());
        // 10 images, 3 draws, two protocols of 2 and of 5 steps; one run of 5.
        assert_eq!((before.gradient_queries, after.gradient_queries), (10 * 3 * 2 * (2 + 5), 10 * 3 * 5));
        assert_eq!((before.forward_queries, after.forward_queries), (420, 150));
        // Votes before and after no attack, after noise, and after the attack: of each cell once, of the run at each snapshot.
        assert_eq!((before.votes, after.votes), (4 * 10 * 7 * (2 + 1 + 1), 10 * 7 * (2 + 1 + 2)));
        assert_eq!(after.votes_at_least, 10 * 4 * 5, "4 of 7 are a majority");
        assert_eq!((before.training_images, after.training_images), (4 * 200, 200));
    }

    #[test]
    fn a_cell_by_itself_differs_from_the_plan_by_early_stops_alone() {
        let alone = PIPELINE.replace("{ step = 2 }, ", "").replace("{ protocol = \"authors-code\" }, ", "");
        let once = |text: &str| done(&plan(&[("one", text)]));
        let (before, after) = once(&alone.replace("[2, 5]", "[5]"));
        assert_eq!(before, after);
        assert!(after.votes_at_least < after.votes);
        for full in ["votes.stop = \"never\"", "keep_logits = true"] {
            let (_, after) = once(&alone.replace("votes = { draws = 7 }", &format!("votes.draws = 7\n{full}")));
            assert_eq!(after.votes_at_least, after.votes, "{full}");
        }
        // Without a defense one draw stands for all; half of an even number settles a tie.
        let (before, after) = once(&alone.replace("\"gaussian-noise\", sigma = 0.1", "\"none\""));
        assert_eq!((before.votes, after.votes, after.votes_at_least), (10 * 4, 10 * 5, 10 * 5));
        assert_eq!(once(&alone.replace("draws = 7", "draws = 8")).1.votes_at_least, 10 * 4 * 5);
    }

    #[test]
    fn a_collections_cells_are_counted_once() {
        let both = r#"
            kind = "collection"
            title = "t"
            analysis = "a"
            part_axis = "part"
            part = [{ pipeline = "grid", label = "one" }]
            report = { rows = ["part", "steps"], columns = ["protocol"] }
        "#;
        let alone = done(&plan(&[("grid", PIPELINE)]));
        for files in [vec![("both", both)], vec![("both", both), ("grid", PIPELINE)]] {
            let plan = plan(&files);
            assert_eq!(done(&plan), alone);
            assert_eq!(rows(&plan).iter().map(|row| row.work.as_ref().unwrap().cells).max(), Some(4));
        }
    }

    #[test]
    fn times_are_counts_at_recorded_rates() {
        let plan = plan(&[("grid", PIPELINE)]);
        let folder = tempfile::tempdir().unwrap();
        let table = |name: &str, model: &str, machine: &str| {
            let row = |work: &str, rate: f64| {
                serde_json::json!({"work": work, "model": model, "input": "3x32x32", "threads": 2, "ours_per_second": rate,
                                   "machine": machine})
            };
            let path = folder.path().join(name);
            std::fs::write(&path, serde_json::json!([row("gradient", 0.01), row("logits", 0.1)]).to_string()).unwrap();
            path
        };
        let processor = table("engine.json", "cifar-resnet-8", "Processor");
        let rates = Rates::read(std::slice::from_ref(&processor)).unwrap();
        let mut caveats = Caveats::default();
        let all = rows(&plan).pop().unwrap().work.unwrap();
        let times = all.recorded(rates.processor.as_ref().unwrap(), &mut caveats);
        // 420, 150 queries of 100 s; 1120, 200, 350 votes of 10 s.
        let expected = ["12 h", "4.2 h", "3.1 h", "33 min", "58 min", "-", "-", "15 h+", "4.7 h+", "5.1 h+"];
        assert_eq!(times, expected);
        assert!(tables(&plan, &rates, None).lines().all(|line| line.chars().count() <= LINE));
        let unwrapped = |rates: &Rates| tables(&plan, rates, None).replace("\n  ", " ");
        let text = unwrapped(&rates);
        for expected in [
            "recorded on Processor, 2 threads",
            "no rate of a GPU has been recorded",
            "left out: train of cifar-resnet-8 at 32x32.",
        ] {
            assert!(text.contains(expected), "{text}");
        }

        let gpu = table("gpu-check.json", "cifar-resnet-20", "GPU");
        let text = unwrapped(&Rates::read(&[processor, gpu]).unwrap());
        assert!(text.contains("recorded on GPU") && !text.contains("no rate of a GPU"), "{text}");
        assert!(text.contains("multiply-adds: cifar-resnet-8 at 32x32 from cifar-resnet-20 at 32x32."), "{text}");
        assert!(tables(&plan, &Rates::default(), None).contains("there are no times"));
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let numbers = [0, 999, 1000, 9999, 10_000, 99_960, 999_499, 999_500, 1_234_567, 25_730_000_000];
        let texts = ["0", "999", "1,000", "9,999", "10.0k", "100k", "999k", "1.00M", "1.23M", "25.7G"];
        assert_eq!(numbers.map(short), texts);
        let time = |seconds, estimated, lacking| Time { seconds, estimated, lacking }.to_string();
        assert_eq!(time(0.0, false, false), "0");
        assert_eq!(time(0.02, true, true), "~<1 s+");
        assert_eq!(time(44.0, true, false), "~44 s");
        assert_eq!(time(60_000.0, true, true), "~17 h+");
        assert_eq!(time(0.0, false, true), "-");
    }
}
