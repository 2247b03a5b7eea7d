//! cuDNN's convolutions (`libcudnn.so.9`), by their first interface: descriptors and one call each.
//!
//! Each function is documented in NVIDIA's cuDNN API reference; the pointers are the caller's, as there.

use std::ffi::{c_char, c_int, c_uint};

use crate::{
    convolution::{Kind, Motion, Problem, View, Wanted, read, write},
    failure::{INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, Outcome, exported, fail},
    memory, stream,
};

const BAD_PARAM: u32 = 2000;
const UNSUPPORTED: u32 = 3000;
const EXECUTION_FAILED: u32 = 5000;

const fn code(failure: u32) -> u32 {
    match failure {
        INVALID_VALUE | INVALID_HANDLE => BAD_PARAM,
        NOT_SUPPORTED => UNSUPPORTED,
        _ => EXECUTION_FAILED,
    }
}

struct Handle {
    stream: usize,
}

#[derive(Clone, Copy, Default)]
struct Convolution {
    motion: Option<Motion>,
    groups: usize,
    /// `cudnnMathType_t`; 3 alone forbids TF32.
    math: c_uint,
    /// Of the sums, as `cudnnDataType_t`.
    sums: c_uint,
}

#[derive(Clone, Copy, Default)]
struct Activation {
    /// `cudnnActivationMode_t`.
    mode: c_uint,
}

type Descriptor = Option<View>;

unsafe fn borrow<'a, T>(handle: usize) -> Outcome<&'a mut T> {
    if handle == 0 || !handle.is_multiple_of(align_of::<T>()) {
        return fail(INVALID_HANDLE, format!("{handle:#x} is no handle or descriptor"));
    }
    // SAFETY: made by `Box::into_raw` here, and used by one thread at a time, as cuDNN asks.
    Ok(unsafe { &mut *(handle as *mut T) })
}

unsafe fn view(descriptor: usize) -> Outcome<View> {
    // SAFETY: as in `borrow`.
    match unsafe { borrow::<Descriptor>(descriptor) }? {
        Some(view) => Ok(*view),
        None => fail(INVALID_VALUE, "a descriptor that was never set"),
    }
}

fn kind(number: c_uint) -> Outcome<Kind> {
    match number {
        0 => Ok(Kind::F32),
        1 => Ok(Kind::F64),
        2 => Ok(Kind::F16),
        9 => Ok(Kind::Bf16),
        _ => fail(NOT_SUPPORTED, format!("numbers of type {number}")),
    }
}

fn extents<const N: usize>(numbers: [c_int; N]) -> Outcome<[usize; N]> {
    if numbers.iter().any(|&n| n <= 0) {
        return fail(INVALID_VALUE, format!("extents or strides {numbers:?}"));
    }
    Ok(numbers.map(|n| n as usize))
}

unsafe fn list<const N: usize>(count: c_int, from: *const c_int) -> Outcome<[c_int; N]> {
    if count as usize != N || from.is_null() {
        return fail(NOT_SUPPORTED, format!("{count} dimensions"));
    }
    // SAFETY: so many numbers, says the caller.
    Ok(unsafe { *from.cast::<[c_int; N]>() })
}

/// The problem that three descriptors and a convolution's make.
unsafe fn problem(x: usize, w: usize, y: usize, convolution: usize) -> Outcome<Problem> {
    // SAFETY: as in `borrow`.
    let (x, w, y, convolution) = unsafe { (view(x)?, view(w)?, view(y)?, *borrow::<Convolution>(convolution)?) };
    let Some(motion) = convolution.motion else { return fail(INVALID_VALUE, "a convolution that was never set") };
    let double = x.kind == Kind::F64;
    if (kind(convolution.sums)? == Kind::F64) != double || !matches!(kind(convolution.sums)?, Kind::F32 | Kind::F64) {
        return fail(NOT_SUPPORTED, format!("sums of type {} for numbers in {:?}", convolution.sums, x.kind));
    }
    let problem =
        Problem { x, w, y, motion: Motion { groups: convolution.groups, tf32: convolution.math != 3, ..motion } };
    problem.check()?;
    Ok(problem)
}

/// A workspace that grows with the problem, so that one made for another is found too small.
fn workspace(problem: &Problem) -> usize {
    1024 + 4 * problem.w.dims.iter().product::<usize>()
}

fn check_workspace(problem: &Problem, address: u64, bytes: usize) -> Outcome {
    let least = workspace(problem);
    if bytes < least {
        return fail(INVALID_VALUE, format!("a workspace of {bytes} bytes; it takes {least}"));
    }
    memory::check(address, bytes, "a workspace")?;
    // SAFETY: live. Nobody may count on what is in it.
    unsafe { (address as *mut u8).write_bytes(memory::UNWRITTEN, least) };
    Ok(())
}

/// A factor as the numbers' format has it: f64 for f64, f32 for all others.
unsafe fn scale(from: usize, kind: Kind) -> Outcome<f64> {
    if from == 0 {
        return fail(INVALID_VALUE, "a scale is missing");
    }
    // SAFETY: the caller's number.
    Ok(unsafe { if kind == Kind::F64 { *(from as *const f64) } else { (*(from as *const f32)).into() } })
}

/// Does, or keeps for a graph, one of the three.
unsafe fn convolve(
    handle: usize,
    problem: Problem,
    wanted: Wanted,
    places: [u64; 3],
    (work, bytes): (u64, usize),
    [alpha, beta]: [usize; 2],
) -> Outcome {
    // SAFETY: the caller's handle and scales.
    let (stream, scales) =
        unsafe { (borrow::<Handle>(handle)?.stream, [scale(alpha, problem.x.kind)?, scale(beta, problem.x.kind)?]) };
    stream::submit(stream, move || {
        check_workspace(&problem, work, bytes)?;
        problem.run(wanted, places, scales)
    })
}

macro_rules! cudnn {
    ($($functions:tt)*) => {
        exported! { code; $($functions)* }
    };
}

macro_rules! descriptors {
    ($($create:ident, $destroy:ident, $T:ty, $value:expr;)*) => {
        cudnn! {$(
            fn $create(to: *mut usize) {
                to.write(Box::into_raw(Box::<$T>::new($value)) as usize);
                Ok(())
            }
            fn $destroy(handle: usize) {
                drop(Box::from_raw(borrow::<$T>(handle)?));
                Ok(())
            }
        )*}
    };
}

descriptors! {
    cudnnCreate, cudnnDestroy, Handle, Handle { stream: 0 };
    cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor, Descriptor, None;
    cudnnCreateFilterDescriptor, cudnnDestroyFilterDescriptor, Descriptor, None;
    cudnnCreateConvolutionDescriptor, cudnnDestroyConvolutionDescriptor, Convolution, Convolution { groups: 1, ..Default::default() };
    cudnnCreateActivationDescriptor, cudnnDestroyActivationDescriptor, Activation, Activation::default();
}

/// One answer about an algorithm, laid out as `cudnnConvolutionFwdAlgoPerf_t` and its likes.
#[repr(C)]
struct Performance {
    algorithm: c_uint,
    status: c_uint,
    time: f32,
    memory: usize,
    determinism: c_uint,
    math: c_uint,
    reserved: [c_int; 3],
}

/// Names algorithms, the quickest first.
unsafe fn offer(
    problem: &Problem,
    algorithms: &[(c_uint, bool)],
    room: c_int,
    count: *mut c_int,
    to: *mut Performance,
) -> Outcome {
    if room < 1 || count.is_null() || to.is_null() {
        return fail(INVALID_VALUE, "no room for an answer");
    }
    let given = algorithms.len().min(room as usize);
    for (i, &(algorithm, deterministic)) in algorithms[..given].iter().enumerate() {
        let math = if problem.motion.tf32 { 1 } else { 3 };
        let time = (1 + i) as f32;
        let memory = workspace(problem);
        let row = Performance {
            algorithm,
            status: 0,
            time,
            memory,
            determinism: deterministic.into(),
            math,
            reserved: [0; 3],
        };
        // SAFETY: the caller has room for so many.
        unsafe { to.add(i).write(row) };
    }
    // SAFETY: as above.
    unsafe { count.write(given as c_int) };
    Ok(())
}

// The first of each gradient's adds in any order on a GPU: who wants the same result twice must pass it over.
const FORWARD: &[(c_uint, bool)] = &[(1, true), (0, true)];
const INPUT: &[(c_uint, bool)] = &[(0, false), (1, true)];
const WEIGHT: &[(c_uint, bool)] = &[(3, false), (1, true)];

cudnn! {
    fn cudnnSetStream(handle: usize, on: usize) { borrow::<Handle>(handle)?.stream = on; Ok(()) }
    fn cudnnGetStream(handle: usize, to: *mut usize) { to.write(borrow::<Handle>(handle)?.stream); Ok(()) }

    fn cudnnSetTensor4dDescriptor(tensor: usize, format: c_uint, of: c_uint, n: c_int, c: c_int, h: c_int, w: c_int) {
        if format > 1 {
            return fail(NOT_SUPPORTED, "vectors of channels");
        }
        *borrow::<Descriptor>(tensor)? = Some(View::packed(kind(of)?, extents([n, c, h, w])?, format == 1));
        Ok(())
    }
    fn cudnnSetTensor4dDescriptorEx(
        tensor: usize, of: c_uint, n: c_int, c: c_int, h: c_int, w: c_int, ns: c_int, cs: c_int, hs: c_int, ws: c_int,
    ) {
        *borrow::<Descriptor>(tensor)? =
            Some(View { kind: kind(of)?, dims: extents([n, c, h, w])?, strides: extents([ns, cs, hs, ws])? });
        Ok(())
    }
    fn cudnnSetTensorNdDescriptor(tensor: usize, of: c_uint, count: c_int, dims: *const c_int, strides: *const c_int) {
        *borrow::<Descriptor>(tensor)? =
            Some(View { kind: kind(of)?, dims: extents(list(count, dims)?)?, strides: extents(list(count, strides)?)? });
        Ok(())
    }
    fn cudnnSetTensorNdDescriptorEx(tensor: usize, format: c_uint, of: c_uint, count: c_int, dims: *const c_int) {
        if format > 1 {
            return fail(NOT_SUPPORTED, "vectors of channels");
        }
        *borrow::<Descriptor>(tensor)? = Some(View::packed(kind(of)?, extents(list(count, dims)?)?, format == 1));
        Ok(())
    }
    fn cudnnSetFilter4dDescriptor(filter: usize, of: c_uint, format: c_uint, k: c_int, c: c_int, h: c_int, w: c_int) {
        if format > 1 {
            return fail(NOT_SUPPORTED, "vectors of channels");
        }
        *borrow::<Descriptor>(filter)? = Some(View::packed(kind(of)?, extents([k, c, h, w])?, format == 1));
        Ok(())
    }
    fn cudnnSetFilterNdDescriptor(filter: usize, of: c_uint, format: c_uint, count: c_int, dims: *const c_int) {
        if format > 1 {
            return fail(NOT_SUPPORTED, "vectors of channels");
        }
        *borrow::<Descriptor>(filter)? = Some(View::packed(kind(of)?, extents(list(count, dims)?)?, format == 1));
        Ok(())
    }
    fn cudnnSetConvolution2dDescriptor(
        convolution: usize, ph: c_int, pw: c_int, u: c_int, v: c_int, dh: c_int, dw: c_int, mode: c_uint, sums: c_uint,
    ) {
        set_convolution(convolution, [ph, pw], [u, v], [dh, dw], mode, sums)
    }
    fn cudnnSetConvolutionNdDescriptor(
        convolution: usize, count: c_int, padding: *const c_int, strides: *const c_int, dilations: *const c_int, mode: c_uint, sums: c_uint,
    ) {
        set_convolution(convolution, list(count, padding)?, list(count, strides)?, list(count, dilations)?, mode, sums)
    }
    fn cudnnSetConvolutionGroupCount(convolution: usize, groups: c_int) {
        borrow::<Convolution>(convolution)?.groups = extents([groups])?[0];
        Ok(())
    }
    fn cudnnSetConvolutionMathType(convolution: usize, math: c_uint) {
        if math > 3 {
            return fail(INVALID_VALUE, format!("math of type {math}"));
        }
        borrow::<Convolution>(convolution)?.math = math;
        Ok(())
    }
    fn cudnnGetConvolution2dForwardOutputDim(
        convolution: usize, x: usize, w: usize, n: *mut c_int, c: *mut c_int, h: *mut c_int, width: *mut c_int,
    ) {
        let convolution = *borrow::<Convolution>(convolution)?;
        let Some(motion) = convolution.motion else { return fail(INVALID_VALUE, "a convolution that was never set") };
        let motion = Motion { groups: convolution.groups, ..motion };
        let Some(dims) = Problem::result(view(x)?.dims, view(w)?.dims, &motion) else {
            return fail(INVALID_VALUE, "kernels that do not fit the images");
        };
        for (to, extent) in [n, c, h, width].into_iter().zip(dims) {
            to.write(extent as c_int);
        }
        Ok(())
    }
    fn cudnnSetActivationDescriptor(activation: usize, mode: c_uint, _nan: c_uint, _coefficient: f64) {
        *borrow::<Activation>(activation)? = Activation { mode };
        Ok(())
    }

    fn cudnnGetConvolutionForwardAlgorithm_v7(
        _handle: usize, x: usize, w: usize, convolution: usize, y: usize, room: c_int, count: *mut c_int, to: *mut Performance,
    ) {
        offer(&problem(x, w, y, convolution)?, FORWARD, room, count, to)
    }
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
        _handle: usize, w: usize, y: usize, convolution: usize, x: usize, room: c_int, count: *mut c_int, to: *mut Performance,
    ) {
        offer(&problem(x, w, y, convolution)?, INPUT, room, count, to)
    }
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
        _handle: usize, x: usize, y: usize, convolution: usize, w: usize, room: c_int, count: *mut c_int, to: *mut Performance,
    ) {
        offer(&problem(x, w, y, convolution)?, WEIGHT, room, count, to)
    }
    fn cudnnFindConvolutionForwardAlgorithmEx(
        _handle: usize, x: usize, _px: u64, w: usize, _pw: u64, convolution: usize, y: usize, _py: u64, room: c_int,
        count: *mut c_int, to: *mut Performance, _work: u64, _bytes: usize,
    ) {
        offer(&problem(x, w, y, convolution)?, FORWARD, room, count, to)
    }
    fn cudnnFindConvolutionBackwardDataAlgorithmEx(
        _handle: usize, w: usize, _pw: u64, y: usize, _py: u64, convolution: usize, x: usize, _px: u64, room: c_int,
        count: *mut c_int, to: *mut Performance, _work: u64, _bytes: usize,
    ) {
        offer(&problem(x, w, y, convolution)?, INPUT, room, count, to)
    }
    fn cudnnFindConvolutionBackwardFilterAlgorithmEx(
        _handle: usize, x: usize, _px: u64, y: usize, _py: u64, convolution: usize, w: usize, _pw: u64, room: c_int,
        count: *mut c_int, to: *mut Performance, _work: u64, _bytes: usize,
    ) {
        offer(&problem(x, w, y, convolution)?, WEIGHT, room, count, to)
    }
    fn cudnnGetConvolutionForwardWorkspaceSize(
        _handle: usize, x: usize, w: usize, convolution: usize, y: usize, _algorithm: c_uint, to: *mut usize,
    ) {
        to.write(workspace(&problem(x, w, y, convolution)?));
        Ok(())
    }
    fn cudnnGetConvolutionBackwardDataWorkspaceSize(
        _handle: usize, w: usize, y: usize, convolution: usize, x: usize, _algorithm: c_uint, to: *mut usize,
    ) {
        to.write(workspace(&problem(x, w, y, convolution)?));
        Ok(())
    }
    fn cudnnGetConvolutionBackwardFilterWorkspaceSize(
        _handle: usize, x: usize, y: usize, convolution: usize, w: usize, _algorithm: c_uint, to: *mut usize,
    ) {
        to.write(workspace(&problem(x, w, y, convolution)?));
        Ok(())
    }
    fn cudnnConvolutionForward(
        handle: usize, alpha: usize, xd: usize, x: u64, wd: usize, w: u64, convolution: usize, _algorithm: c_uint, work: u64,
        bytes: usize, beta: usize, yd: usize, y: u64,
    ) {
        convolve(handle, problem(xd, wd, yd, convolution)?, Wanted::Y, [x, w, y], (work, bytes), [alpha, beta])
    }
    fn cudnnConvolutionBackwardData(
        handle: usize, alpha: usize, wd: usize, w: u64, yd: usize, y: u64, convolution: usize, _algorithm: c_uint, work: u64,
        bytes: usize, beta: usize, xd: usize, x: u64,
    ) {
        convolve(handle, problem(xd, wd, yd, convolution)?, Wanted::X, [x, w, y], (work, bytes), [alpha, beta])
    }
    fn cudnnConvolutionBackwardFilter(
        handle: usize, alpha: usize, xd: usize, x: u64, yd: usize, y: u64, convolution: usize, _algorithm: c_uint, work: u64,
        bytes: usize, beta: usize, wd: usize, w: u64,
    ) {
        convolve(handle, problem(xd, wd, yd, convolution)?, Wanted::W, [x, w, y], (work, bytes), [alpha, beta])
    }
    fn cudnnConvolutionBiasActivationForward(
        handle: usize, alpha: usize, xd: usize, x: u64, wd: usize, w: u64, convolution: usize, algorithm: c_uint, work: u64,
        bytes: usize, beta: usize, zd: usize, z: u64, bd: usize, bias: u64, activation: usize, yd: usize, y: u64,
    ) {
        let (problem, zd, bd) = (problem(xd, wd, yd, convolution)?, view(zd)?, view(bd)?);
        let (activation, stream) = (*borrow::<Activation>(activation)?, borrow::<Handle>(handle)?.stream);
        let scales = [scale(alpha, problem.x.kind)?, scale(beta, problem.x.kind)?];
        match activation.mode {
            1 => (),
            5 if algorithm == 1 => (),
            5 => return fail(NOT_SUPPORTED, "no activation, with another algorithm than IMPLICIT_PRECOMP_GEMM"),
            mode => return fail(NOT_SUPPORTED, format!("activation {mode}")),
        }
        if bd.dims != [1, problem.y.dims[1], 1, 1] || zd.dims != problem.y.dims {
            return fail(INVALID_VALUE, format!("a bias of {:?} or a second summand of {:?}", bd.dims, zd.dims));
        }
        stream::submit(stream, move || {
            check_workspace(&problem, work, bytes)?;
            biased(&problem, [x, w, y], scales, (zd, z), (bd, bias), activation)
        })
    }
    fn cudnnAddTensor(handle: usize, alpha: usize, ad: usize, a: u64, beta: usize, cd: usize, c: u64) {
        let (ad, cd, stream) = (view(ad)?, view(cd)?, borrow::<Handle>(handle)?.stream);
        let [alpha, beta] = [scale(alpha, cd.kind)?, scale(beta, cd.kind)?];
        if ad.dims.iter().zip(cd.dims).any(|(&a, c)| a != 1 && a != c) {
            return fail(INVALID_VALUE, format!("{:?} added to {:?}", ad.dims, cd.dims));
        }
        stream::submit(stream, move || {
            ad.check(a, "a summand")?;
            cd.check(c, "a sum")?;
            for_each(cd.dims, |at| {
                let mut from = at;
                for (from, extent) in from.iter_mut().zip(ad.dims) {
                    *from = if extent == 1 { 0 } else { *from };
                }
                let (from, to) = (offset(&ad, from), offset(&cd, at));
                let old = if beta == 0.0 { 0.0 } else { beta * read(cd.kind, c, to) };
                write(cd.kind, c, to, alpha * read(ad.kind, a, from) + old);
            });
            Ok(())
        })
    }
}

unsafe fn set_convolution(
    convolution: usize,
    padding: [c_int; 2],
    stride: [c_int; 2],
    dilation: [c_int; 2],
    mode: c_uint,
    sums: c_uint,
) -> Outcome {
    if mode != 1 {
        return fail(NOT_SUPPORTED, "a convolution that is no cross-correlation");
    }
    if padding.iter().any(|&n| n < 0) {
        return fail(INVALID_VALUE, format!("padding {padding:?}"));
    }
    let padding = padding.map(|n| n as usize);
    // SAFETY: the caller's descriptor.
    let convolution = unsafe { borrow::<Convolution>(convolution)? };
    convolution.sums = sums;
    convolution.motion =
        Some(Motion { padding, stride: extents(stride)?, dilation: extents(dilation)?, groups: 1, tf32: false });
    Ok(())
}

fn offset(view: &View, at: [usize; 4]) -> usize {
    at.iter().zip(view.strides).map(|(at, stride)| at * stride).sum()
}

fn for_each(dims: [usize; 4], mut f: impl FnMut([usize; 4])) {
    let [n, c, h, w] = dims;
    for i in 0..n * c * h * w {
        f([i / (c * h * w), i / (h * w) % c, i / w % h, i % w]);
    }
}

/// `activation(alpha conv(x, w) + beta z + bias)`, rounded once; `z` may be where the result goes.
fn biased(
    problem: &Problem,
    [x, w, y]: [u64; 3],
    [alpha, beta]: [f64; 2],
    (zd, z): (View, u64),
    (bd, bias): (View, u64),
    activation: Activation,
) -> Outcome {
    problem.y.check(y, "a convolution's result")?;
    bd.check(bias, "a convolution's bias")?;
    if beta != 0.0 {
        zd.check(z, "a convolution's second summand")?;
    }
    let sums = if problem.x.kind == Kind::F64 { Kind::F64 } else { Kind::F32 };
    let room = View::packed(sums, problem.y.dims, true);
    let place = memory::allocate(room.dims.iter().product::<usize>() * sums.bytes())?;
    let done = Problem { y: room, ..*problem }.run(Wanted::Y, [x, w, place], [alpha, 0.0]);
    if done.is_ok() {
        for_each(problem.y.dims, |at| {
            // SAFETY: all of them have been checked.
            unsafe {
                let mut value = read(sums, place, offset(&room, at)) + read(bd.kind, bias, at[1] * bd.strides[1]);
                if beta != 0.0 {
                    value += beta * read(zd.kind, z, offset(&zd, at));
                }
                if activation.mode == 1 {
                    value = value.max(0.0);
                }
                write(problem.y.kind, y, offset(&problem.y, at), value);
            }
        });
    }
    memory::free(place)?;
    done
}

/// As cuDNN 9.
#[unsafe(no_mangle)]
extern "C" fn cudnnGetVersion() -> usize {
    91_300
}

/// As CUDA 13.
#[unsafe(no_mangle)]
extern "C" fn cudnnGetCudartVersion() -> usize {
    13_000
}

/// What a code means: what happened was told on stderr.
#[unsafe(no_mangle)]
extern "C" fn cudnnGetErrorString(code: u32) -> *const c_char {
    let text = match code {
        0 => c"CUDNN_STATUS_SUCCESS",
        BAD_PARAM => c"CUDNN_STATUS_BAD_PARAM",
        UNSUPPORTED => c"CUDNN_STATUS_NOT_SUPPORTED",
        _ => c"CUDNN_STATUS_EXECUTION_FAILED",
    };
    text.as_ptr()
}

#[cfg(test)]
mod tests;
