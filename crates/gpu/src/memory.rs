//! How many images a device takes at a time, and what to do when it was fewer.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Error, Result, Tensor};
use game::{Classifier, Key};

/// The share of the free memory that a batch may be expected to fill: the rest is for workspaces, and for estimates that
/// fall short.
const SHARE: f64 = 0.6;
/// More images than this keep no device busier.
const MOST: usize = 1024;

/// Bytes free on a GPU; none on the CPU, which is asked for no batch of that kind.
///
/// # Errors
/// If the device fails.
pub fn free(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            use candle_core::cuda_backend::WrapErr as _;
            let stream = device.cuda_stream();
            let (free, _) = stream.context().mem_get_info().w()?;
            Ok(Some(free as u64 + unused(stream.context().cu_device()).w()?))
        }
        _ => Ok(None),
    }
}

/// Bytes that tensors have given back and that are kept for others.
#[cfg(feature = "cuda")]
fn unused(
    device: candle_core::cuda_backend::cudarc::driver::sys::CUdevice,
) -> std::result::Result<u64, candle_core::cuda_backend::cudarc::driver::DriverError> {
    use candle_core::cuda_backend::cudarc::driver::{
        result::{device::get_default_mem_pool, mem_pool},
        sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT},
    };
    let (mut reserved, mut used) = (0u64, 0u64);
    // SAFETY: both attributes' values are u64.
    unsafe {
        let pool = get_default_mem_pool(device)?;
        mem_pool::get_attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, (&raw mut reserved).cast())?;
        mem_pool::get_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, (&raw mut used).cast())?;
    }
    Ok(reserved.saturating_sub(used))
}

/// How many images to evaluate together, of so many bytes each, in so many free ones: at least 1.
#[must_use]
pub fn batch(free: u64, bytes: u64) -> usize {
    let images = free as f64 * SHARE / bytes.max(1) as f64;
    (images as usize).clamp(1, MOST)
}

/// Whether an error says that the device has no memory left.
#[must_use]
pub fn is_out_of_memory(error: &Error) -> bool {
    let text = error.to_string();
    // The driver's word, cuDNN's and cuBLAS's.
    ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED"].iter().any(|word| text.contains(word))
}

/// A network that evaluates a batch in halves, and these in halves, when the device has no memory for the whole, and
/// remembers the size that went.
///
/// Each image's result is what the network would give it in a smaller batch.
#[derive(Debug)]
pub struct Halving<C> {
    network: C,
    /// The most images that may be tried together.
    most: AtomicUsize,
}

impl<C: Classifier> Halving<C> {
    /// Of a network that has not run out of memory yet.
    pub const fn new(network: C) -> Self {
        Self { network, most: AtomicUsize::new(usize::MAX) }
    }

    /// The most images that are tried together now.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Calls `run(first, count)` for parts of `0..n` and joins the answers; parts are as large as memory allows.
    fn parts(&self, n: usize, mut run: impl FnMut(usize, usize) -> Result<Tensor>) -> Result<Tensor> {
        let (mut done, mut answers) = (0, Vec::new());
        while done < n || answers.is_empty() {
            let count = (n - done).min(self.most());
            match run(done, count) {
                Ok(answer) => {
                    answers.push(answer);
                    done += count;
                }
                Err(error) if count > 1 && is_out_of_memory(&error) => {
                    self.most.fetch_min(count / 2, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if answers.len() == 1 { Ok(answers.remove(0)) } else { Tensor::cat(&answers, 0) }
    }
}

impl<C: Classifier> Classifier for Halving<C> {
    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn device(&self) -> &Device {
        self.network.device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.parts(x.dim(0)?, |first, count| self.network.logits(&x.narrow(0, first, count)?, part(keys, first, count)))
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let n = x.dim(0)?;
        // The gradient at the logits is asked for once, about all of them.
        let mut above: Option<Tensor> = None;
        if n <= self.most() {
            let whole = self.network.input_gradient(x, keys, &mut |logits| {
                let answer = upstream(logits)?;
                Ok(above.insert(answer).clone())
            });
            match whole {
                Err(error) if n > 1 && is_out_of_memory(&error) => {
                    self.most.fetch_min(n / 2, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        let above = match above {
            Some(above) => above,
            None => upstream(&self.logits(x, keys)?)?,
        };
        self.parts(n, |first, count| {
            let above = above.narrow(0, first, count)?;
            let (x, keys) = (x.narrow(0, first, count)?, part(keys, first, count));
            self.network.input_gradient(&x, keys, &mut |_| Ok(above.clone()))
        })
    }
}

/// The keys of some images; a network without randomness may have been given none.
fn part(keys: &[Key], first: usize, count: usize) -> &[Key] {
    keys.get(first..first + count).unwrap_or(keys)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use candle_core::DType;

    use super::*;

    /// Logits `(x, x^2)` of images of one pixel, on a device with room for few images, and fewer with gradients.
    struct Small {
        forward: usize,
        backward: usize,
        asked: Mutex<Vec<usize>>,
    }

    impl Small {
        fn room(&self, n: usize, room: usize) -> Result<()> {
            self.asked.lock().unwrap().push(n);
            if n > room {
                candle_core::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
            }
            Ok(())
        }
    }

    impl Classifier for Small {
        fn classes(&self) -> usize {
            2
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
        fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
            assert_eq!(keys.len(), x.dim(0)?);
            self.room(x.dim(0)?, self.forward)?;
            let x = x.flatten_from(1)?;
            Tensor::cat(&[&x, &x.sqr()?], 1)
        }
        fn input_gradient(
            &self,
            x: &Tensor,
            _: &[Key],
            upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
        ) -> Result<Tensor> {
            let flat = x.flatten_from(1)?;
            self.room(x.dim(0)?, self.forward)?;
            let above = upstream(&Tensor::cat(&[&flat, &flat.sqr()?], 1)?)?;
            self.room(x.dim(0)?, self.backward)?;
            let slope = Tensor::cat(&[&flat.ones_like()?, &(&flat * 2.0)?], 1)?;
            (above * slope)?.sum_keepdim(1)?.reshape(x.shape())
        }
    }

    fn images(n: usize) -> (Tensor, Vec<Key>) {
        let pixels: Vec<f32> = (0..n).map(|i| i as f32 / 8.0).collect();
        (Tensor::from_vec(pixels, (n, 1, 1, 1), &Device::Cpu).unwrap(), (0..n as u64).map(Key::root).collect())
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_batch_that_does_not_fit_is_halved_and_answers_the_same() {
        let (x, keys) = images(13);
        let asking = |forward, backward| {
            let net = Halving::new(Small { forward, backward, asked: Mutex::default() });
            let logits = flat(&net.logits(&x, &keys).unwrap());
            let mut times = 0;
            // The gradient depends on all logits of the batch, so parts would show.
            let gradient = net.input_gradient(&x, &keys, &mut |logits| {
                times += 1;
                assert_eq!(logits.dims(), [13, 2]);
                logits.broadcast_mul(&logits.sum_all()?)
            });
            assert_eq!(times, 1, "the gradient at the logits is asked for once");
            let most = net.most();
            (logits, flat(&gradient.unwrap()), most)
        };
        let (logits, gradient, most) = asking(100, 100);
        assert_eq!(most, usize::MAX);
        for (forward, backward, most) in [(100, 6, 6), (100, 5, 3), (4, 4, 3), (4, 1, 1), (1, 1, 1), (13, 12, 6)] {
            let (halved_logits, halved, found) = asking(forward, backward);
            assert_eq!((halved_logits, halved), (logits.clone(), gradient.clone()));
            assert_eq!(found, most);
        }
    }

    #[test]
    fn the_size_that_went_is_remembered() {
        let (x, keys) = images(8);
        let net = Halving::new(Small { forward: 2, backward: 2, asked: Mutex::default() });
        net.logits(&x, &keys).unwrap();
        assert_eq!(*net.network.asked.lock().unwrap(), [8, 4, 2, 2, 2, 2]);
        net.network.asked.lock().unwrap().clear();
        net.logits(&x, &keys).unwrap();
        assert_eq!(*net.network.asked.lock().unwrap(), [2; 4]);
    }

    #[test]
    fn what_does_not_fit_alone_and_other_errors_are_passed_on() {
        let (x, keys) = images(5);
        let net = Halving::new(Small { forward: 0, backward: 0, asked: Mutex::default() });
        assert!(is_out_of_memory(&net.logits(&x, &keys).unwrap_err()));
        assert!(is_out_of_memory(&net.input_gradient(&x, &keys, &mut |z| Ok(z.clone())).unwrap_err()));
        let net = Halving::new(Small { forward: 9, backward: 9, asked: Mutex::default() });
        let mut fail = |_: &Tensor| candle_core::bail!("no");
        let error = net.input_gradient(&x, &keys, &mut fail).unwrap_err().to_string();
        assert!(error.starts_with("no"), "{error}");
        assert_eq!(*net.network.asked.lock().unwrap(), [5]);
        let none = Tensor::zeros((0, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(net.logits(&none, &[]).unwrap().dims(), [0, 2]);
    }

    #[test]
    fn batches_fill_a_share_of_what_is_free() {
        assert_eq!(batch(10_000, 100), 60);
        assert_eq!(batch(10, 100), 1);
        assert_eq!(batch(u64::MAX, 0), 1024);
    }

    #[test]
    fn the_cpu_has_no_such_limit() {
        assert_eq!(free(&Device::Cpu).unwrap(), None);
    }
}
