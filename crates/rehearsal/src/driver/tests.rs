use std::{ffi::CString, ptr::null_mut};

use super::*;
use crate::failure::{CAPTURE_INVALIDATED, CAPTURE_ISOLATION, CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, OUT_OF_MEMORY};

fn handle(make: unsafe extern "C" fn(*mut usize, c_uint) -> u32) -> usize {
    let mut handle = 0;
    // SAFETY: room for a handle.
    assert_eq!(unsafe { make(&mut handle, 1) }, 0);
    handle
}

fn words(address: u64, count: usize) -> Vec<u32> {
    let mut out = vec![0u32; count];
    // SAFETY: room for so many.
    assert_eq!(unsafe { cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), address, 4 * count) }, 0);
    out
}

fn room(bytes: usize, stream: usize) -> u64 {
    let mut address = 0;
    // SAFETY: room for an address.
    assert_eq!(unsafe { cuMemAllocAsync(&mut address, bytes, stream) }, 0);
    address
}

/// The kernel that writes a word by each thread of a block.
fn kernel() -> usize {
    let text = CString::new(include_str!("../ptx/fixtures/kernels.ptx")).unwrap();
    let (mut module, mut function) = (0, 0);
    // SAFETY: a text that a zero ends, and room for handles.
    unsafe {
        assert_eq!(cuModuleLoadData(&mut module, text.as_ptr()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"no such kernel".as_ptr()), NOT_FOUND);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"beyond".as_ptr()), 0);
    }
    function
}

fn launch_words(function: usize, stream: usize, threads: u32, mut to: u64, mut word: u32) -> u32 {
    let mut parameters: [*mut c_void; 2] = [(&raw mut to).cast(), (&raw mut word).cast()];
    // SAFETY: the kernel's parameters.
    unsafe { cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut()) }
}

#[test]
fn what_is_captured_runs_when_its_graph_is_launched() {
    let (function, stream) = (kernel(), handle(cuStreamCreate));
    let (to, copy) = (room(16, stream), room(16, stream));
    // SAFETY: handles and addresses from above, and room for the answers.
    unsafe {
        assert_eq!(cuMemsetD8Async(to, 0, 16, stream), 0);
        // Of this thread alone: other tests run beside it.
        assert_eq!(cuStreamBeginCapture_v2(stream, 1), 0);
        assert_eq!(launch_words(function, stream, 4, to, 5), 0);
        assert_eq!(launch_words(function, stream, 2, to, 6), 0);
        assert_eq!(cuMemcpyDtoDAsync_v2(copy, to, 16, stream), 0);
        let (mut status, mut graph, mut ready, mut count) = (0, 0, 0, 0);
        assert_eq!((cuStreamIsCapturing(stream, &mut status), status), (0, 1));
        assert_eq!(cuStreamEndCapture(stream, &mut graph), 0);
        assert_eq!((cuStreamIsCapturing(stream, &mut status), status), (0, 0));
        assert_eq!(words(to, 4), [0; 4], "nothing has run yet");
        assert_eq!((cuGraphGetNodes(graph, null_mut(), &mut count), count), (0, 3));
        assert_eq!(cuGraphInstantiateWithFlags(&mut ready, graph, 0), 0);
        assert_eq!(cuGraphDestroy(graph), 0);
        for _ in 0..2 {
            assert_eq!(cuMemsetD8Async(to, 1, 16, stream), 0);
            assert_eq!(cuGraphLaunch(ready, stream), 0);
            assert_eq!((words(to, 4), words(copy, 4)), (vec![6, 6, 5, 5], vec![6, 6, 5, 5]));
        }
        // A graph does not keep the memory alive that it was given.
        assert_eq!(cuMemFreeAsync(to, stream), 0);
        assert_eq!(cuGraphLaunch(ready, stream), ILLEGAL_ADDRESS);
        assert_eq!((cuGraphExecDestroy(ready), cuMemFreeAsync(copy, stream), cuStreamDestroy_v2(stream)), (0, 0, 0));
    }
}

#[test]
fn what_must_not_be_captured_spoils_the_capture() {
    let (stream, other) = (handle(cuStreamCreate), handle(cuStreamCreate));
    let (outside, mut host) = (room(16, stream), [0u32; 4]);
    let before = handle(cuEventCreate);
    // Begins a capture, does something, ends it: the code of either.
    let during = |f: &mut dyn FnMut() -> u32| {
        let mut graph = 0;
        // SAFETY: handles from above, and room for one more.
        unsafe {
            assert_eq!(cuStreamBeginCapture_v2(stream, 2), 0);
            let code = f();
            (code, cuStreamEndCapture(stream, &mut graph))
        }
    };
    // SAFETY: handles and addresses from above, and room for the answers.
    unsafe {
        assert_eq!(cuEventRecord(before, other), 0);
        assert_eq!(during(&mut || cuStreamSynchronize(stream)), (CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED));
        assert_eq!(during(&mut || cuMemFreeAsync(outside, stream)), (INVALID_VALUE, CAPTURE_INVALIDATED));
        assert_eq!(during(&mut || cuStreamWaitEvent(stream, before, 0)), (CAPTURE_ISOLATION, CAPTURE_INVALIDATED));
        let upload = &mut || cuMemcpyHtoDAsync_v2(outside, host.as_ptr().cast(), 16, stream);
        assert_eq!(during(upload), (CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED));
        let download = &mut || cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), outside, 16, stream);
        assert_eq!(during(download), (CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED));
        // A second stream that waits for an event of the capture belongs to it; memory of the capture may be freed in it.
        let own = &mut || {
            let inner = room(16, stream);
            let codes = [
                cuEventRecord(before, stream),
                cuStreamWaitEvent(other, before, 0),
                cuMemsetD8Async(inner, 3, 16, other),
            ];
            codes.into_iter().sum::<u32>() + cuMemFreeAsync(inner, stream)
        };
        assert_eq!(during(own), (0, 0));
        let mut graph = 0;
        assert_eq!(cuStreamEndCapture(stream, &mut graph), CAPTURE_UNMATCHED);
        assert_eq!(cuStreamBeginCapture_v2(0, 2), CAPTURE_UNSUPPORTED);
        assert_eq!(words(outside, 4), [u32::MAX; 4], "nothing has run");
    }
}

#[test]
fn bad_calls_have_the_drivers_codes() {
    let function = kernel();
    let mut address = 0;
    // SAFETY: room for the answers.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut address, 0), INVALID_VALUE);
        assert_eq!(cuMemAlloc_v2(&mut address, usize::MAX / 2), OUT_OF_MEMORY);
        assert_eq!(cuMemFree_v2(12), INVALID_VALUE);
        assert_eq!(cuStreamSynchronize(0xDEAD), INVALID_HANDLE);
        assert_eq!(launch_words(function, 0, 0, 0, 0), INVALID_VALUE);
        assert_eq!(launch_words(function, 0, 1, 4096, 0), ILLEGAL_ADDRESS);
        assert_eq!(cuFuncSetAttribute(function, 8, 300_000), INVALID_VALUE);
        let mut name = std::ptr::null();
        assert_eq!(cuGetErrorName(ILLEGAL_ADDRESS, &mut name), 0);
        assert_eq!(CStr::from_ptr(name), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    }
}
