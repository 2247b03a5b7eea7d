//! PyTorch's side: a process of `torch_server.py`, asked and answered in lines of JSON.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::work::{DRAWS, Work};

const SCRIPT: &str = include_str!("torch_server.py");

/// The process.
pub struct Torch {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Versions by name.
    pub versions: BTreeMap<String, String>,
}

/// The variants of a work that run, and why others do not.
#[derive(Debug, Deserialize)]
pub struct Variants {
    pub variants: Vec<String>,
    pub skipped: BTreeMap<String, String>,
}

impl Torch {
    /// Starts `python`; `folder` holds the script, and what is compiled.
    pub fn start(python: &str, folder: &Path) -> anyhow::Result<Self> {
        let script = folder.join("torch_server.py");
        fs::write(&script, SCRIPT)?;
        let mut command = Command::new(python);
        command.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("{python} cannot be started: set PYTHON to a Python with torch"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        let mut torch = Self { child, input: Some(input), output: BufReader::new(output), versions: BTreeMap::new() };
        torch.versions = serde_json::from_value(torch.answer(python)?)?;
        Ok(torch)
    }

    fn answer(&mut self, what: &str) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{what}: PyTorch's side ended"))?;
        match answer.get("error") {
            Some(error) => bail!("{}", error.as_str().unwrap_or("PyTorch's side failed")),
            None => Ok(answer),
        }
    }

    fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{request}").context("PyTorch's side ended")?;
            input.flush()?;
        }
        self.answer(&request["do"].to_string())
    }

    /// Makes the work's networks; `compile` says why `torch.compile` is left out, if it is.
    pub fn open(
        &mut self,
        work: &Work,
        weights: &Path,
        data: &Path,
        compile: Result<(), &str>,
    ) -> anyhow::Result<Variants> {
        let compile = compile.map_or_else(Value::from, |()| Value::from(true));
        let answer = self.ask(&json!({
            "do": "open", "kind": work.kind, "model": work.model, "side": work.side, "batch": work.batch,
            "threads": work.threads, "weights": weights, "data": data, "compile": compile, "draws": DRAWS,
        }))?;
        Ok(serde_json::from_value(answer)?)
    }

    /// What a variant answered first: logits and gradient one after the other, or the loss of a training step.
    pub fn first(&mut self, variant: &str, folder: &Path) -> anyhow::Result<Vec<f32>> {
        let path = folder.join("answer");
        self.ask(&json!({"do": "first", "name": variant, "path": path}))?;
        let bytes = fs::read(&path)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Images per second.
    pub fn rate(&mut self, variant: &str, seconds: f64) -> anyhow::Result<f64> {
        let answer = self.ask(&json!({"do": "rate", "name": variant, "seconds": seconds}))?;
        answer["rate"].as_f64().context("PyTorch's side gave no rate")
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // The end of its input ends the process.
        self.input.take();
        let _ = self.child.wait();
    }
}
