//! Time on a shared machine.

use std::time::Instant;

/// A clock for work on some number of threads.
///
/// One thread is timed by the processor's time of this process, where the system tells it: others on the machine then
/// matter less. Several threads wait for each other, so for them only the wall will do.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    one: bool,
    epoch: Instant,
}

impl Clock {
    pub fn new(threads: usize) -> Self {
        Self { one: threads == 1 && processor().is_some(), epoch: Instant::now() }
    }

    /// Seconds.
    pub fn now(self) -> f64 {
        let wall = || self.epoch.elapsed().as_secs_f64();
        if self.one { processor().unwrap_or_else(wall) } else { wall() }
    }

    /// How often per second `work` can be done, over at least so many seconds.
    pub fn rate(self, seconds: f64, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        let (start, mut count) = (self.now(), 0);
        while count == 0 || self.now() - start < seconds {
            work()?;
            count += 1;
        }
        Ok(f64::from(count) / (self.now() - start))
    }
}

/// Processor seconds of this process's threads.
fn processor() -> Option<f64> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-9)
}

/// Processor seconds of children that have ended, to a hundredth (`times(2)`; Linux counts them in hundredths).
pub fn children() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 16 and 17; the name, field 2, may hold spaces and ends at the last parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// Seconds of processor time of this process and of another one, which takes hundredths (the wall's where the system does not
/// tell): only differences mean something.
pub fn both(other: u32) -> f64 {
    let theirs = || {
        let text = std::fs::read_to_string(format!("/proc/{other}/stat")).ok()?;
        // Fields 14 and 15, of the process itself.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(ticks as f64 / 100.0)
    };
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let wall = || EPOCH.get_or_init(Instant::now).elapsed().as_secs_f64();
    processor().zip(theirs()).map_or_else(wall, |(ours, theirs)| ours + theirs)
}

/// The middle value; the lower one of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 1.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn rates_are_counts_over_time() {
        let mut count = 0;
        let rate = Clock::new(2).rate(0.05, || {
            count += 1;
            std::thread::sleep(std::time::Duration::from_millis(10));
            Ok(())
        });
        assert!((1..=5).contains(&count) && rate.unwrap() <= 100.0);
    }
}
