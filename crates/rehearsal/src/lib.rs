//! A stand-in for the CUDA libraries that computes on the CPU: the GPU build runs on it, launch by launch, without a GPU.
//!
//! Built as one shared library that answers for `libcuda.so.1`, `libcublas.so.13`, `libcurand.so.10` and `libcudnn.so.9`
//! (`scripts/cuda/rehearse.sh` puts the links in place; NVRTC is the real one). A pointer of the device is an address of
//! the host. Kernels are PTX, interpreted a warp at a time; convolutions and products of matrices are plain loops.
//!
//! What it finds: a launch that the driver would refuse, an address outside every live allocation or of the wrong
//! alignment, memory read before it is written (new memory is full of NaN), a barrier that threads miss, descriptors
//! and workspaces that do not fit, work that may not be captured, memory that runs out, and wrong numbers.
//!
//! What it cannot find: anything about speed; races between threads, blocks or streams, for a warp runs from barrier to
//! barrier and every call is done when it returns; the registers a kernel needs; what ptxas makes of the PTX; the numerics
//! of cuDNN's and cuBLAS's algorithms, which sum in an order of their own.
//!
//! Two variables of the environment: `REHEARSAL_MEMORY`, the device's memory in bytes (8 GiB if unset), and
//! `REHEARSAL_TRACE`, which names every call on stderr.

mod blas;
mod convolution;
mod cudnn;
mod curand;
mod driver;
mod failure;
mod memory;
mod numbers;
mod ptx;
mod stream;
