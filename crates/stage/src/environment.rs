//! Facts about the machine and the build: metadata that no number depends on.

use std::{collections::BTreeMap, fs, process::Command};

use candle_core::{Device, DeviceLocation};

/// The versions this build was locked to.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// Crates whose version can explain a difference between two machines.
const CRATES: [&str; 4] = ["candle-core", "gemm", "image", "parquet"];

/// Commit, device, threads, processor, operating system and crate versions, as far as they can be had.
pub fn facts(device: &Device) -> BTreeMap<String, String> {
    let versions = CRATES.into_iter().filter_map(|name| Some((name, version(LOCK, name)?)));
    let facts = [
        ("commit", commit()),
        ("cpu", cpu()),
        ("cudnn", gpu::cudnn_version(device)),
        ("device", Some(describe(device))),
        ("platform", Some(format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))),
        ("threads", Some(rayon::current_num_threads().to_string())),
    ];
    let facts = facts.into_iter().filter_map(|(name, value)| Some((name, value?)));
    facts.chain(versions).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The device as the command line names it, with its number where there can be several, and a GPU's own name.
fn describe(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => match gpu::name(device) {
            Ok(Some(name)) => format!("cuda:{gpu_id} ({name})"),
            _ => format!("cuda:{gpu_id}"),
        },
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The commit of the source folder this binary was built in, `-dirty` with uncommitted changes; none without git.
#[must_use]
pub fn commit() -> Option<String> {
    let git = Command::new("git")
        .args(["--no-optional-locks", "-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&git.stdout).trim().to_owned())
}

/// The processor's name, where the system tells it.
#[must_use]
pub fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The version of a crate in a lock file; the first where there are several.
fn version(lock: &str, name: &str) -> Option<String> {
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{name}\""));
    Some(lines.nth(1)?.strip_prefix("version = \"")?.trim_end_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_every_crate() {
        for name in CRATES {
            let version = version(LOCK, name).unwrap();
            assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{name} {version}");
        }
        assert_eq!(version(LOCK, "no-such-crate"), None);
    }

    #[test]
    fn device_and_threads_are_always_known() {
        let facts = facts(&Device::Cpu);
        assert_eq!(facts["device"], "cpu");
        assert!(facts["threads"].parse::<usize>().unwrap() > 0);
    }
}
