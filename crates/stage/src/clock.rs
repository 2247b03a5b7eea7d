//! Time that work takes, on the wall and of the processor.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What some work has cost since it began.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    wall: Instant,
    processor: Duration,
}

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { wall: Instant::now(), processor: processor() }
    }

    /// Seconds on the wall.
    #[must_use]
    pub fn wall(&self) -> f64 {
        self.wall.elapsed().as_secs_f64()
    }

    /// Processor seconds of all threads of this process: unlike those on the wall, hardly more on a busy machine.
    #[must_use]
    pub fn processor(&self) -> f64 {
        processor().saturating_sub(self.processor).as_secs_f64()
    }
}

/// Processor time of this process so far.
fn processor() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_costs_no_processor_time_and_work_does() {
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(50));
        let (wall, processor) = (watch.wall(), watch.processor());
        assert!(wall >= 0.05, "{wall}");
        let mut sum = 0u64;
        while watch.processor() < processor + 0.02 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(watch.processor() >= processor + 0.02);
    }
}
