//! The one place where a queued run copies anything to the host, and waits for it.

use candle_core::{DType, Device, Result};
use gpu::kernels::{Call, Parameters};

use super::{QUERY, Queue};
use crate::Snapshot;

/// As `Report` in query.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Report {
    losses: u64,
    non_finite: u64,
    zeros: u64,
    out: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Report {}

impl Queue<'_> {
    /// The images and how they got there, once the device has done all that was queued.
    ///
    /// # Errors
    /// If the device failed at any of it, or an image is not where it may be.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        let x = self.gather(self.everything())?.to_device(&Device::Cpu)?;
        let images = self.run.origins.moved(x.flatten_all()?.to_vec1()?);
        images.check(&self.run.origins, self.run.inside)?;
        let rows = self.statistics()?;
        let queries = vec![(self.step * self.run.eot.draws) as u64; rows.len()];
        Ok(Snapshot {
            step: self.step,
            x: images.tensor()?,
            loss: rows.iter().map(|row| Some(row[0])).collect(),
            zero_gradient: rows.iter().map(|row| Some(row[1] / self.size() as f64)).collect(),
            non_finite: rows.iter().map(|row| row[2] as u64).collect(),
            forward_queries: queries.clone(),
            backward_queries: queries,
        })
    }

    /// Loss, entries of the gradient that are 0, and entries that were not finite, image by image.
    fn statistics(&self) -> Result<Vec<Vec<f64>>> {
        let out = Call::new(self.device()).output((self.count(), 3), DType::F64)?;
        let super::Query { losses, non_finite, zeros, .. } = self.query;
        let report = Report { losses, non_finite, zeros, out: out.address };
        // SAFETY: a thread writes one row of its own.
        unsafe { self.launch(&QUERY, "report", self.count(), &report)? };
        out.tensor().to_device(&Device::Cpu)?.to_vec2()
    }
}
