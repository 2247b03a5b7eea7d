//! What pipelines cost, in evaluations and in hours, before and after what is saved.
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
    Cost, Job, Net, Plan, Rates,
    rates::{Machine, Work},
};

/// Costs by the network that does the work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bill(Vec<(Net, Cost)>);

impl Bill {
    /// Adds what a network has to do; where no network runs, nothing is counted.
    pub fn add(&mut self, net: Option<&Net>, cost: Cost) {
        let Some(net) = net else { return };
        match self.0.iter_mut().find(|(known, _)| known == net) {
            Some((_, sum)) => *sum += cost,
            None => self.0.push((net.clone(), cost)),
        }
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
        other.0.iter().for_each(|(net, cost)| self.add(Some(net), *cost));
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

const HOURS: [Group<'_>; 4] = [
    ("attacks", &["before", "after"]),
    ("votes and detectors", &["before", "at least", "at most"]),
    ("training", &["before", "after"]),
    ("together", &["before", "at least", "at most"]),
];

/// One pipeline of the tables.
struct Row {
    name: String,
    /// None where this machine lacks the data.
    work: Option<Done>,
}

struct Done {
    cells: usize,
    jobs: usize,
    before: Bill,
    after: Bill,
}

/// Every pipeline's cost if nothing of it is there, and that of all together, with jobs and cells that they share counted once:
/// a table of counts, a table of hours for each machine with recorded rates, and what to know about both.
#[must_use]
pub fn tables(plan: &Plan, rates: &Rates) -> String {
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
         queries include those of gradients; attacks that may stop early are counted in full."
            .to_owned(),
    ];
    for machine in [&rates.processor, &rates.gpu].into_iter().flatten() {
        let threads = match machine.threads() {
            0 => String::new(),
            threads => format!(", {threads} threads"),
        };
        writeln!(text, "\nhours at the rates recorded on {}{threads}\n", machine.name).expect("a string takes all");
        text.push_str(&heading("pipeline", name, &HOURS));
        let mut caveats = Caveats::default();
        for row in &rows {
            let hours = row.work.as_ref().map(|done| done.hours(machine, &mut caveats));
            line(&mut text, &row.name, name, &HOURS, hours);
        }
        notes.extend(caveats.notes(machine));
    }
    notes.push(match (&rates.processor, &rates.gpu) {
        (None, None) => "no rate has been recorded, or none was given: there are no hours.".to_owned(),
        (Some(_), None) => "no rate of a GPU has been recorded: all hours are the processor's.".to_owned(),
        _ => "hours of the GPU and of the processor are each for all of the work.".to_owned(),
    });
    if rates.processor.is_some() || rates.gpu.is_some() {
        let rates = "rates are of bare networks: what defenses, k-winners-take-all, pruning and files take is not in the hours.";
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

/// One row per report, and one for all.
fn rows(plan: &Plan) -> Vec<Row> {
    // By the pipeline that defines the cells: those of a collection are its parts'.
    let mut apart = BTreeMap::new();
    let mut rows = Vec::new();
    for report in &plan.reports {
        let work = report.work.as_ref().ok().map(|work| {
            apart.extend(&work.apart);
            Done::new(work.apart.values().flatten(), &plan.jobs.closure(&work.inputs))
        });
        rows.push(Row { name: report.name.clone(), work });
    }
    let jobs: Vec<&Job> = plan.jobs.all().iter().collect();
    let all = Done::new(apart.into_values().flatten(), &jobs);
    rows.push(Row { name: "all together".to_owned(), work: Some(all) });
    rows
}

impl Done {
    fn new<'a>(cells: impl Iterator<Item = &'a Bill>, jobs: &[&Job]) -> Self {
        let mut done = Self { cells: 0, jobs: jobs.len(), before: Bill::default(), after: Bill::default() };
        for cell in cells {
            done.cells += 1;
            done.before += cell;
        }
        jobs.iter().for_each(|job| done.after.add(job.network.as_ref(), job.cost));
        done
    }

    fn counts(&self) -> Vec<String> {
        let (before, after) = (self.before.total(), self.after.total());
        let numbers = [
            self.cells as u64,
            self.jobs as u64,
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

    fn hours(&self, machine: &Machine, caveats: &mut Caveats) -> Vec<String> {
        let mut of = |bill: &Bill, work: &dyn Fn(&Cost) -> Vec<(Work, u64)>| {
            let mut sum = Hours::default();
            for (net, cost) in &bill.0 {
                for (work, count) in work(cost).into_iter().filter(|(_, count)| *count > 0) {
                    sum += caveats.hours(machine, work, net, count);
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
        attacks.into_iter().chain(votes).chain(training).chain(together).map(|hours| hours.to_string()).collect()
    }
}

/// Hours of work: what is known of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Hours {
    known: f64,
    /// Some by the rate of another network.
    estimated: bool,
    /// Some without any rate, and not in the sum.
    lacking: bool,
}

impl AddAssign for Hours {
    fn add_assign(&mut self, other: Self) {
        self.known += other.known;
        self.estimated |= other.estimated;
        self.lacking |= other.lacking;
    }
}

impl Add for Hours {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lacking && self.known == 0.0 {
            return f.write_str("-");
        }
        let estimated = if self.estimated { "~" } else { "" };
        let number = match self.known {
            0.0 => "0".to_owned(),
            few if few < 0.01 => "<0.01".to_owned(),
            few if few < 10.0 => format!("{few:.2}"),
            few if few < 100.0 => format!("{few:.1}"),
            many => grouped(many.round() as u64),
        };
        write!(f, "{estimated}{number}{}", if self.lacking { "+" } else { "" })
    }
}

/// What hours rest on, beside the rates that were measured.
#[derive(Default)]
struct Caveats {
    estimated: BTreeSet<String>,
    lacking: BTreeSet<String>,
}

impl Caveats {
    /// The hours of one kind of work on so many images.
    fn hours(&mut self, machine: &Machine, work: Work, net: &Net, count: u64) -> Hours {
        let Some(rate) = machine.rate(work, net) else {
            self.lacking.insert(format!("{} of {net}", work.name()));
            return Hours { lacking: true, ..Hours::default() };
        };
        if let Some(other) = rate.stand_in {
            self.estimated.insert(format!("{} of {net} from {other}", work.name()));
        }
        let known = count as f64 / rate.per_second / 3600.0;
        Hours { known, estimated: rate.stand_in.is_some(), lacking: false }
    }

    fn notes(&self, machine: &Machine) -> Vec<String> {
        let list = |what: &str, of: &BTreeSet<String>| {
            let items: Vec<&str> = of.iter().map(String::as_str).collect();
            (!items.is_empty()).then(|| format!("{}: {what}: {}.", machine.name, items.join("; ")))
        };
        let estimated = "~ estimated in proportion to multiply-adds, for no rate is recorded";
        let lacking = "- or + no rate is recorded, and the hours are left out";
        list(estimated, &self.estimated).into_iter().chain(list(lacking, &self.lacking)).collect()
    }
}

/// Two lines: what groups of columns are about, and the columns.
fn heading(first: &str, name: usize, groups: &[Group<'_>]) -> String {
    let mut above = format!("{:name$}", "");
    let columns = groups.iter().flat_map(|(_, columns)| columns.iter().map(|column| (*column).to_owned())).collect();
    for (title, columns) in groups {
        write!(above, "  {title:>width$}", width = columns.len() * WIDTH).expect("a string takes all");
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
                text.push_str("  ");
                values.by_ref().take(columns.len()).for_each(|value| text.push_str(&format!("{value:>WIDTH$}")));
            }
        }
        None => text.push_str("  data missing"),
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
