//! An attack on a PyTorch network through the protocol `victim`: what a program as victim costs beside a loop by hand.

use std::{fs, path::Path, sync::Arc};

use attacks::{Attack as _, Pgd, Victim};
use candle_core::Tensor;
use defenses::Identity;
use game::{Goal, Key};
use victim::{Client, Network, Options};

use crate::clock;

/// Steps of an attack that is timed: what is done once an attack is done once in so many steps of the loop by hand.
const STEPS: usize = 10;

const SCRIPT: &str = include_str!("program.py");
const HELPER: &str = include_str!("../../victim/victim.py");

/// A running program, and the images that it is attacked on.
pub struct Program {
    network: Network,
    images: Tensor,
    labels: Vec<u32>,
    pgd: Pgd,
}

impl Program {
    /// Starts the program; `folder` holds what it imports.
    pub fn start(
        python: &str,
        folder: &Path,
        weights: &Path,
        images: Tensor,
        labels: Vec<u32>,
    ) -> anyhow::Result<Self> {
        fs::write(folder.join("victim.py"), HELPER)?;
        fs::write(folder.join("program.py"), SCRIPT)?;
        let script = folder.join("program.py");
        let command = [python.into(), script.display().to_string(), weights.display().to_string()].to_vec();
        let options = Options { threads: 1, ..Options::from_env(None).map_err(anyhow::Error::msg)? };
        let client = Client::start(&game::Program { command, ..game::Program::default() }, &options)?;
        let number = |text: &str| text.parse().map_err(|_| anyhow::anyhow!("{text} is no number"));
        let (eps, step_size) = (number("8/255")?, number("2/255")?);
        let pgd = Pgd { eps, step_size, steps: vec![STEPS], ..Pgd::default() };
        Ok(Self { network: Network::new(Arc::new(client))?, images, labels, pgd })
    }

    /// Images times steps a second of both processes' processor time (the wall's where the system does not tell), on one
    /// thread each.
    pub fn rate(&self, seconds: f64) -> anyhow::Result<f64> {
        let program = self.network.client().process_id();
        let now = || clock::both(program);
        let (start, mut steps) = (now(), 0);
        while steps == 0 || now() - start < seconds {
            self.attack()?;
            steps += STEPS;
        }
        Ok((steps * self.labels.len()) as f64 / (now() - start))
    }

    fn attack(&self) -> anyhow::Result<()> {
        let n = self.labels.len();
        let victim = Victim { net: &self.network, defense: &Identity {}, batch: n };
        let keys: Vec<Key> = (0..n as u64).map(|image| Key::root(0).image(image)).collect();
        let goal = Goal::Untargeted(self.labels.clone());
        Ok(self.pgd.run(&victim, &self.images, &goal, &keys, None, &mut |_| Ok(()))?)
    }
}
