//! Launches that are recorded once and replayed at little cost.

use candle_core::{Device, Result};

/// A CUDA graph of some launches.
pub struct Recording {
    #[cfg(feature = "cuda")]
    graph: candle_core::cuda_backend::cudarc::driver::CudaGraph,
}

// SAFETY: a graph may be used by any thread, by one at a time; it is not `Sync`, and its owners share it behind a lock.
#[cfg(feature = "cuda")]
unsafe impl Send for Recording {}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

/// Records what `launch` queues on the device, and queues none of it; nothing on the CPU, or if the device cannot record it.
///
/// `launch` may neither allocate nor wait, and the memory it names must live as long as the recording.
///
/// # Errors
/// If `launch` fails, or the device does.
pub fn record(device: &Device, launch: impl FnOnce() -> Result<()>) -> Result<Option<Recording>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            use candle_core::cuda_backend::cudarc::driver::sys;
            let stream = device.cuda_stream();
            if stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).is_err() {
                return Ok(None);
            }
            let launched = launch();
            // Ended whatever happened, or nothing could be queued any more.
            let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
            match (launched, graph) {
                (Ok(()), Ok(Some(graph))) => Ok(Some(Recording { graph })),
                // What cannot be recorded can still be launched.
                (Ok(()), _) => Ok(None),
                (Err(error), graph) => {
                    drop(graph);
                    Err(error)
                }
            }
        }
        _ => {
            let _ = launch;
            Ok(None)
        }
    }
}

impl Recording {
    /// Queues all launches.
    ///
    /// # Errors
    /// If the device fails.
    pub fn replay(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        {
            use candle_core::cuda_backend::WrapErr as _;
            self.graph.launch().w()?;
        }
        Ok(())
    }
}
