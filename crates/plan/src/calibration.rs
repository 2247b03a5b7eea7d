//! How long this machine takes for what jobs are made of, measured once and kept in `data/cost/`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use stage_attack::calibrate::{Time, Work};

use crate::{Error, Result, write_if_changed};

/// Times of works on one machine, by one build of the programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The machine.
    pub machine: Machine,
    /// The build that was measured: the program's size and when it was made.
    program: String,
    /// How long a process takes to start and end, in seconds on the wall.
    pub start: f64,
    /// What was measured.
    times: Vec<Measured>,
}

/// What is known of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many threads run at once.
    pub cores: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    #[serde(rename = "of")]
    work: Work,
    time: Time,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        Self { processor: stage::cpu().unwrap_or_else(|| std::env::consts::ARCH.to_owned()), cores }
    }

    /// The file of its times.
    fn path(&self, folder: &Path) -> PathBuf {
        let digest = Sha256::digest(json!(self).to_string().as_bytes());
        let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        folder.join(format!("{digits}.json"))
    }
}

impl Calibration {
    /// Times that were measured before, where they are this machine's and of the program as it is now.
    fn kept(path: &Path, machine: &Machine, program: &str) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (kept.machine == *machine && kept.program == program).then_some(kept)
    }

    /// The times of `works`: those kept in `folder`, and the others measured now by `attack`, the stage's program, and kept.
    /// Where `is_cheap` does not hold for a work that is missing, nothing is measured, and there is no answer.
    ///
    /// # Errors
    /// If the program cannot be run or does not answer, or the file cannot be written.
    pub fn of(works: &[Work], attack: &Path, folder: &Path, is_cheap: impl Fn(&Work) -> bool) -> Result<Option<Self>> {
        let machine = Machine::here();
        let (path, program) = (machine.path(folder), fingerprint(attack)?);
        let kept = Self::kept(&path, &machine, &program);
        let mut all = kept.unwrap_or_else(|| Self { machine, program, ..Self::default() });
        let mut missing: Vec<Work> = Vec::new();
        for work in works.iter().filter(|work| all.time(work).is_none()) {
            if !missing.contains(work) {
                missing.push(work.clone());
            }
        }
        if !missing.iter().all(is_cheap) {
            return Ok(None);
        }
        if all.start == 0.0 {
            let start = std::time::Instant::now();
            measure(attack, &[])?;
            all.start = start.elapsed().as_secs_f64();
        }
        if !missing.is_empty() {
            let times = measure(attack, &missing)?;
            all.times.extend(missing.into_iter().zip(times).map(|(work, time)| Measured { work, time }));
        }
        let text = serde_json::to_string_pretty(&all).map_err(|error| Error::Calibration(error.to_string()))?;
        write_if_changed(&path, &(text + "\n"))?;
        Ok(Some(all))
    }

    /// How long one of these takes.
    #[must_use]
    pub fn time(&self, work: &Work) -> Option<Time> {
        self.times.iter().find(|known| known.work == *work).map(|known| known.time)
    }

    /// Processor seconds of all of these together; none where one was not measured, or there is nothing to measure.
    #[must_use]
    pub fn processor(&self, works: &[Work]) -> Option<f64> {
        let sum = works.iter().map(|work| self.time(work).map(|time| time.processor)).sum::<Option<f64>>();
        sum.filter(|_| !works.is_empty())
    }

    /// Times as if they had been measured.
    #[cfg(test)]
    pub(crate) fn pretend(cores: u32, times: impl IntoIterator<Item = (Work, f64)>) -> Self {
        let time = |processor| Time { wall: processor / f64::from(cores), processor };
        Self {
            machine: Machine { processor: "Processor".to_owned(), cores },
            times: times.into_iter().map(|(work, seconds)| Measured { work, time: time(seconds) }).collect(),
            ..Self::default()
        }
    }
}

/// What changes with every build of a program.
fn fingerprint(program: &Path) -> Result<String> {
    let facts = std::fs::metadata(program).and_then(|facts| Ok((facts.len(), facts.modified()?)));
    let (size, time) = facts.map_err(|source| Error::Read { path: program.into(), source })?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(format!("{size} bytes, {}.{:09}", since.as_secs(), since.subsec_nanos()))
}

/// Asks the program for the times of some works.
fn measure(attack: &Path, works: &[Work]) -> Result<Vec<Time>> {
    let failed = |reason: String| Error::Calibration(format!("{} calibrate: {reason}", attack.display()));
    let io = |error: std::io::Error| failed(error.to_string());
    let mut command = Command::new(attack);
    let command = command.arg("calibrate").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io)?;
    if let Some(mut to) = child.stdin.take() {
        to.write_all(json!(works).to_string().as_bytes()).map_err(io)?;
    }
    let output = child.wait_with_output().map_err(io)?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let times: Vec<Time> = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    if times.len() != works.len() {
        return Err(failed(format!("{} times of {} works", times.len(), works.len())));
    }
    Ok(times)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program that counts its calls and answers every work with half a second, a quarter on the wall.
    fn program(folder: &Path, remark: &str) -> PathBuf {
        let path = folder.join("attack");
        let text = format!(
            "#!/bin/sh\n# {remark}\necho call >> {}/calls\n\
             tr -d '\\n' | grep -o '\"work\":' | sed 's/.*/{{\"wall\":0.25,\"processor\":0.5}}/' | paste -sd, - | sed 's/^/[/;s/$/]/'\n",
            folder.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn works(sides: &[u32]) -> Vec<Work> {
        let work = |&side: &u32| Work::Defend { defense: defenses::Identity {}.into(), side };
        sides.iter().map(work).collect()
    }

    #[test]
    fn what_was_measured_is_kept_until_the_program_changes() {
        let folder = tempfile::tempdir().unwrap();
        let attack = program(folder.path(), "old");
        let data = folder.path().join("cost");
        let calls = || std::fs::read_to_string(folder.path().join("calls")).map_or(0, |text| text.lines().count());
        let of = |sides: &[u32]| Calibration::of(&works(sides), &attack, &data, |_| true).unwrap().unwrap();
        let first = of(&[8, 16, 8]);
        assert_eq!(first.processor(&works(&[8, 16])), Some(1.0));
        assert_eq!((first.processor(&works(&[8, 9])), first.processor(&[])), (None, None));
        assert_eq!(calls(), 2, "once for nothing, to see how long it takes to start, and once for both");
        assert_eq!(of(&[16]), first);
        assert_eq!(calls(), 2, "what is known is not measured again");
        assert!(Calibration::of(&works(&[32]), &attack, &data, |_| false).unwrap().is_none());
        assert_eq!((of(&[32]).times.len(), calls()), (3, 3));
        program(folder.path(), "another");
        assert_eq!((of(&[8]).times.len(), calls()), (1, 5));
    }

    #[test]
    fn a_program_that_does_not_answer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let told =
            |attack: &Path| Calibration::of(&works(&[8]), attack, folder.path(), |_| true).unwrap_err().to_string();
        assert!(told(&folder.path().join("attack")).contains("attack"));
        let attack = folder.path().join("silent");
        std::fs::write(&attack, "#!/bin/sh\ncat > /dev/null; echo no such network >&2; exit 2\n").unwrap();
        std::fs::set_permissions(&attack, std::fs::Permissions::from_mode(0o755)).unwrap();
        let told = told(&attack);
        assert!(told.contains("silent calibrate: no such network"), "{told}");
    }
}
