//! The stages' binaries, run as Make runs them: votes, and the memory of an attack.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use artifact::TimingRow;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{clock, work::DRAWS};

/// A folder of tables made by the stages' binaries.
pub struct Stages<'a> {
    /// Where the binaries are.
    pub bin: &'a Path,
    /// The folder of local images and weights, if there is one.
    pub data_root: Option<&'a Path>,
    /// Where tables go.
    pub folder: &'a Path,
}

/// What an attack stage's run cost.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Processor seconds; the wall's where the system does not tell.
    pub processor: f64,
    pub wall: f64,
    /// The largest resident set, in bytes; 0 where the system does not tell.
    pub memory: u64,
}

/// The peak memory of the attack stage on a small and a large sample.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    pub images: [u32; 2],
    /// Bytes.
    pub peaks: [u64; 2],
}

/// A vote's cost: images judged, and evaluations of the network.
#[derive(Clone, Copy, Debug)]
pub struct Votes {
    pub images: u64,
    pub evaluations: u64,
    /// Processor seconds on one thread, else the wall's.
    pub seconds: f64,
}

const WEIGHTS: &str = "weights/cifar10-resnet20.safetensors";
const IMAGES: &str = "images/cifar10-test-1000.parquet";

impl Stages<'_> {
    /// Whether published weights and real images are at hand.
    pub fn real(&self) -> bool {
        self.data_root.is_some_and(|root| root.join(WEIGHTS).exists() && root.join(IMAGES).exists())
    }

    fn run(&self, stage: &str, name: &str, params: &Value, threads: usize, inputs: &[&Path]) -> anyhow::Result<Run> {
        let (file, out) = (self.folder.join(name).with_extension("json"), self.table(name));
        fs::write(&file, params.to_string())?;
        let mut command = Command::new(self.bin.join(stage));
        command.arg("--params").arg(file).arg("--out").arg(&out).args(["--device", "cpu"]);
        if threads > 0 {
            command.args(["--threads", &threads.to_string()]);
        }
        if let Some(root) = self.data_root {
            command.arg("--data-root").arg(root);
        }
        let log = self.folder.join(name).with_extension("log");
        command.args(inputs).env("RUST_LOG", "warn").stderr(fs::File::create(&log)?);
        let (before, start) = (clock::children(), Instant::now());
        let mut child =
            command.spawn().with_context(|| format!("{}: run make first", self.bin.join(stage).display()))?;
        let memory = watch(&mut child);
        let status = child.wait()?;
        if !status.success() {
            bail!("{stage} failed ({status}): {}", fs::read_to_string(&log)?.trim());
        }
        let wall = start.elapsed().as_secs_f64();
        let processor = before.zip(clock::children()).map_or(wall, |(before, after)| after - before);
        Ok(Run { processor, wall, memory })
    }

    fn table(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("part-0-of-1.parquet")
    }

    /// A sample of `images`, real ones where they are at hand and `real` asks for them.
    fn sample(&self, images: u32, real: bool) -> anyhow::Result<PathBuf> {
        let name = format!("sample-{images}");
        let params = match real {
            true => json!({"source": {"name": "parquet", "files": [IMAGES]}, "classes": 10, "limit": images}),
            false => json!({"source": {"name": "embedded", "split": "test", "images": images}}),
        };
        self.run("sample", &name, &params, 0, &[])?;
        Ok(self.table(&name))
    }

    /// A ResNet-20, trained where weights are at hand.
    fn network(&self) -> anyhow::Result<PathBuf> {
        let init = match self.real() {
            true => json!({"name": "file", "path": WEIGHTS}),
            false => json!({"name": "fresh"}),
        };
        let params = json!({"model": {"name": "cifar-resnet", "depth": 20}, "init": init, "training": null, "seed": 0});
        self.run("finetune", "network", &params, 0, &[])?;
        Ok(self.table("network"))
    }

    /// The tables of [`Stages::votes`].
    pub fn ballot(&self, images: u32) -> anyhow::Result<[PathBuf; 2]> {
        Ok([self.sample(images, self.real())?, self.network()?])
    }

    /// Votes before and after the attack `none`.
    pub fn votes(&self, [sample, network]: &[PathBuf; 2], threads: usize) -> anyhow::Result<Votes> {
        let params = json!({
            "epoch": "last", "attack": {"name": "none"}, "goal": {"name": "untargeted"},
            "defense": {"name": "gaussian-noise", "sigma": 0.1, "clip": true},
            "votes": {"draws": DRAWS, "stop": "majority"}, "seed": 0,
        });
        let run = self.run("attack", "votes", &params, threads, &[sample, network])?;
        let images = artifact::read::<artifact::AttackRow>(&self.table("votes"))?.1.len() as u64;
        let timing = artifact::read::<TimingRow>(&self.table("votes").with_extension("timing.parquet"))?.1;
        let evaluations = timing.iter().filter(|row| row.work == "votes").map(|row| row.count).sum();
        Ok(Votes { images, evaluations, seconds: if threads == 1 { run.processor } else { run.wall } })
    }

    /// One step of PGD and one vote on a sample and on one ten times as large.
    pub fn memory(&self, images: u32) -> anyhow::Result<Memory> {
        let network = self.network()?;
        let params = json!({
            "epoch": "last", "goal": {"name": "untargeted"}, "seed": 0, "votes": {"draws": 1},
            "defense": {"name": "gaussian-noise", "sigma": 0.1, "clip": true},
            "attack": {"name": "pgd", "eps": "8/255", "step_size": "2/255", "steps": [1]},
        });
        let images = [images, 10 * images];
        let mut peaks = [0; 2];
        for (images, peak) in images.into_iter().zip(&mut peaks) {
            let sample = self.sample(images, false)?;
            *peak = self.run("attack", &format!("memory-{images}"), &params, 0, &[&sample, &network])?.memory;
        }
        Ok(Memory { images, peaks })
    }
}

/// Waits for a process and answers with the last peak of its resident set that the system told, in bytes.
fn watch(child: &mut Child) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while let Ok(None) = child.try_wait() {
        peak = fs::read_to_string(&path).ok().and_then(|text| high_water(&text)).unwrap_or(peak);
        sleep(Duration::from_millis(5));
    }
    peak
}

/// `VmHWM` of a process's status, in bytes.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn peaks_are_read_from_the_status() {
        assert_eq!(super::high_water("VmPeak:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS: 7 kB\n"), Some(1234 * 1024));
        assert_eq!(super::high_water("Name: x"), None);
    }
}
