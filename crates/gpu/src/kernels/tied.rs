//! What kernels made, as the result of an operation that gradients pass through.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use super::Output;

/// The gradients of an operation's inputs, from the inputs, the result and the result's gradient.
pub trait Backward: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static {}
impl<F: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static> Backward for F {}

impl Output {
    /// The tensor, as the result of the operation `name` on `inputs`, of which there are one to three. Gradients pass
    /// through it by `backward`, which answers with one for each input, or with none where nothing wants it.
    ///
    /// What `backward` captures lives as long as the tensor: neither the tensor itself nor an input should be in it.
    ///
    /// # Errors
    /// If there are no inputs, or more than three, or they are on several devices.
    pub fn tied(self, name: &'static str, inputs: &[&Tensor], backward: impl Backward) -> Result<Tensor> {
        let op = Tied { name, made: Mutex::new(Some(self)), backward };
        match *inputs {
            [x] => x.apply_op1(op),
            [x, y] => x.apply_op2(y, op),
            [x, y, z] => x.apply_op3(y, z, op),
            _ => bail!("{name}: an operation has one to three inputs, not {}", inputs.len()),
        }
    }
}

/// An operation whose forward pass hands over what was made before.
struct Tied<F> {
    name: &'static str,
    made: Mutex<Option<Output>>,
    backward: F,
}

impl<F: Backward> Tied<F> {
    fn take(&self) -> Result<(Storage, Shape)> {
        match self.made.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Output { storage, shape, .. }) => Ok((storage, shape)),
            None => bail!("{}: its result was handed over before", self.name),
        }
    }

    fn on_host(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: its result is on another device than its inputs", self.name),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Result<(candle_core::CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: its result is on another device than its inputs", self.name),
        }
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        out: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let gradients = (self.backward)(&inputs, out, dy)?;
        gradients.try_into().map_err(|_| candle_core::Error::msg(format!("{}: one gradient per input", self.name)))
    }
}

/// The two forward passes, which look at no input.
macro_rules! hand_over {
    ($($input:ident),*) => {
        fn name(&self) -> &'static str {
            self.name
        }

        fn cpu_fwd(&self, $(_: hand_over!(@ $input CpuStorage), _: &Layout),*) -> Result<(CpuStorage, Shape)> {
            self.on_host()
        }

        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &self,
            $(_: hand_over!(@ $input candle_core::CudaStorage), _: &Layout),*
        ) -> Result<(candle_core::CudaStorage, Shape)> {
            self.on_gpu()
        }
    };
    (@ $input:ident $storage:ty) => { &$storage };
}

impl<F: Backward> CustomOp1 for Tied<F> {
    hand_over!(x);

    fn bwd(&self, x: &Tensor, out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = self.gradients([x], out, dy)?;
        Ok(dx)
    }
}

impl<F: Backward> CustomOp2 for Tied<F> {
    hand_over!(x, y);

    fn bwd(&self, x: &Tensor, y: &Tensor, out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.gradients([x, y], out, dout)?.into())
    }
}

impl<F: Backward> CustomOp3 for Tied<F> {
    hand_over!(x, y, z);

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.gradients([x, y, z], out, dout)?.into())
    }
}
