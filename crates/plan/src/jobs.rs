//! Jobs and their addresses: the same work has the same address, whoever asks for it.

use std::{collections::HashMap, ops::AddAssign, path::PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Error, Load, Result};

/// One stage run: parameters and inputs to one table, in one or more parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The stage: its binary, and its folder under `data/`.
    pub stage: &'static str,
    /// `stage/slug--hash`: the table's folder under `data/`.
    pub address: String,
    /// The parameters, keys sorted.
    pub params: Value,
    /// Addresses of the input tables.
    pub inputs: Vec<String>,
    /// Local files it reads beside its inputs.
    pub files: Vec<PathBuf>,
    /// Number of part files.
    pub parts: u32,
    /// What it computes, as far as parameters tell.
    pub cost: Cost,
    /// The network that does it, and what stands around it; none where no network runs.
    pub load: Option<Load>,
}

impl Job {
    /// The parts' paths.
    #[must_use]
    pub fn outputs(&self) -> Vec<String> {
        (0..self.parts).map(|part| format!("data/{}/part-{part}-of-{}.parquet", self.address, self.parts)).collect()
    }
}

/// Work in units that no machine changes; attacks are counted as if none stopped early, but for what is `at_least`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Forward passes of one image, by attacks: those of gradients and all others.
    pub forward_queries: u64,
    /// Backward passes of one image, by attacks.
    pub gradient_queries: u64,
    /// Forward passes by attacks, if every one that may stop early does so at its first step.
    pub forward_at_least: u64,
    /// Backward passes by attacks, if every one that may stop early does so at its first step.
    pub gradient_at_least: u64,
    /// Images on which attacks draw normal noise of their own.
    pub noise: u64,
    /// Forward passes of one image, by votes that all run to their end.
    pub votes: u64,
    /// The same, if every vote that may stop early is settled by the fewest draws that can settle it.
    pub votes_at_least: u64,
    /// Forward passes of one image, by detectors: to judge votes, and to be fitted.
    pub detector: u64,
    /// Training passes of one image.
    pub training_images: u64,
    /// Networks that are compiled.
    pub compilations: u64,
    /// Jobs whose number of images is not written anywhere; they are counted as 0.
    pub unknown: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.forward_queries += other.forward_queries;
        self.gradient_queries += other.gradient_queries;
        self.forward_at_least += other.forward_at_least;
        self.gradient_at_least += other.gradient_at_least;
        self.noise += other.noise;
        self.votes += other.votes;
        self.votes_at_least += other.votes_at_least;
        self.detector += other.detector;
        self.training_images += other.training_images;
        self.compilations += other.compilations;
        self.unknown += other.unknown;
    }
}

/// All jobs of a plan, each once, in an order in which inputs come before those who read them.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    jobs: Vec<Job>,
    identities: HashMap<String, (usize, String)>,
}

/// The parts of a job that decide its address, and those that do not.
#[derive(Debug)]
pub struct Wanted {
    /// The stage.
    pub stage: &'static str,
    /// Its revision.
    pub revision: u32,
    /// For eyes only.
    pub slug: String,
    /// Its parameters.
    pub params: Value,
    /// Addresses of its inputs.
    pub inputs: Vec<String>,
    /// Local files it reads.
    pub files: Vec<PathBuf>,
    /// Number of part files.
    pub parts: u32,
    /// What it computes.
    pub cost: Cost,
    /// The network that does it, and what stands around it.
    pub load: Option<Load>,
}

impl Jobs {
    /// Adds a job unless it is there already; its address either way.
    ///
    /// # Errors
    /// If other work has the same address.
    pub fn add(&mut self, wanted: Wanted) -> Result<String> {
        let Wanted { stage, revision, slug, params, inputs, files, parts, cost, load } = wanted;
        let params = sorted(&params);
        let identity = json!([stage, revision, params, inputs]).to_string();
        let hash: String =
            Sha256::digest(identity.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let address = format!("{stage}/{slug}--{hash}");
        match self.identities.get(&address) {
            Some((_, known)) if *known == identity => {}
            Some((_, known)) => return Err(Error::Collision { address, one: known.clone(), other: identity }),
            None => {
                self.identities.insert(address.clone(), (self.jobs.len(), identity));
                let address = address.clone();
                self.jobs.push(Job { stage, address, params, inputs, files, parts, cost, load });
            }
        }
        Ok(address)
    }

    /// Every job.
    #[must_use]
    pub fn all(&self) -> &[Job] {
        &self.jobs
    }

    /// The job at an address that [`Jobs::add`] gave.
    ///
    /// # Panics
    /// If it gave no such address.
    #[must_use]
    pub fn at(&self, address: &str) -> &Job {
        &self.jobs[self.identities[address].0]
    }

    /// The jobs at these addresses and all they rest on, inputs first.
    #[must_use]
    pub fn closure(&self, addresses: &[String]) -> Vec<&Job> {
        let mut needed = vec![false; self.jobs.len()];
        let mut open: Vec<&str> = addresses.iter().map(String::as_str).collect();
        while let Some(address) = open.pop() {
            let (index, _) = self.identities[address];
            if !std::mem::replace(&mut needed[index], true) {
                open.extend(self.jobs[index].inputs.iter().map(String::as_str));
            }
        }
        self.jobs.iter().zip(needed).filter_map(|(job, needed)| needed.then_some(job)).collect()
    }
}

/// The value with the keys of all its tables sorted: one text for equal values.
#[must_use]
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(table) => {
            let mut entries: Vec<_> = table.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(slug: &str, params: Value, inputs: &[String]) -> Wanted {
        Wanted {
            stage: "attack",
            revision: 1,
            slug: slug.into(),
            params,
            inputs: inputs.to_vec(),
            files: vec![],
            parts: 1,
            cost: Cost::default(),
            load: None,
        }
    }

    #[test]
    fn equal_work_has_one_address_and_other_work_another() {
        let mut jobs = Jobs::default();
        let a = jobs.add(wanted("x", json!({"a": 1, "b": {"c": 2, "d": 3}}), &[])).unwrap();
        let same = jobs.add(wanted("x", json!({"b": {"d": 3, "c": 2}, "a": 1}), &[])).unwrap();
        assert_eq!((a.as_str(), jobs.all().len()), (same.as_str(), 1));
        // sha256 of ["attack",1,{"a":1,"b":{"c":2,"d":3}},[]], by coreutils.
        assert_eq!(a, "attack/x--99ee7597");
        let below = jobs.add(wanted("x", json!({"a": 1, "b": {"c": 2, "d": 3}}), std::slice::from_ref(&a))).unwrap();
        assert_ne!(a, below, "inputs are part of the address");
        let raised = Wanted { revision: 2, ..wanted("x", json!({"a": 1, "b": {"c": 2, "d": 3}}), &[]) };
        assert_ne!(a, jobs.add(raised).unwrap(), "so is the revision");
        assert_eq!(jobs.closure(std::slice::from_ref(&below)).len(), 2);
        assert_eq!(jobs.closure(std::slice::from_ref(&a)).len(), 1);
    }
}
