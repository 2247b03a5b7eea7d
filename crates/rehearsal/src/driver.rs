//! The driver's functions (`libcuda.so.1`), as far as the program calls them.
//!
//! Each is documented in NVIDIA's CUDA Driver API; the pointers are the caller's, as there.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{
    failure::{
        self, ILLEGAL_ADDRESS, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NAMES, NOT_FOUND, NOT_SUPPORTED, Outcome,
        exported, fail, trace,
    },
    memory,
    ptx::{self, Grid, Kernel, Module},
    stream::{self, Graph},
};

/// The name under which the device is found.
pub const NAME: &CStr = c"rehearsal on the CPU";

/// The driver's code of a failure's.
const fn code(failure: u32) -> u32 {
    failure
}

/// Writes an answer where the caller wants it.
///
/// # Safety
/// The pointer is null or valid.
unsafe fn answer<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return fail(INVALID_VALUE, "no room for the answer");
    }
    // SAFETY: valid, says the caller.
    unsafe { to.write(value) };
    Ok(())
}

macro_rules! driver {
    ($($functions:tt)*) => {
        exported! { code; $($functions)* }
    };
}

static CONTEXT: AtomicUsize = AtomicUsize::new(1);
thread_local! {
    static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn device(device: c_int) -> Outcome {
    if device == 0 { Ok(()) } else { fail(INVALID_DEVICE, format!("there is no device {device}")) }
}

/// What an H100 says about itself.
fn attribute(number: c_int) -> c_int {
    match number {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65_535,
        8 => 49_152,
        9 | 12 | 82 => 65_536,
        10 => 32,
        11 => i32::MAX,
        13 => 1_980_000,
        14 => 512,
        16 => 132,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => 2048,
        75 => 9,
        81 => 233_472,
        97 => ptx::MOST_SHARED as c_int,
        106 => 32,
        111 => 1024,
        // Concurrent kernels, unified addresses, priorities, managed memory, cooperative launches, memory pools.
        31 | 41 | 78 | 83 | 95 | 115 => 1,
        _ => 0,
    }
}

/// A loaded kernel, and how much shared memory a launch may add.
struct Function {
    kernel: Kernel,
    most_dynamic: AtomicUsize,
}

/// A module's handle: its text, and the kernels that were asked for.
struct Loaded {
    module: Module,
    functions: std::sync::Mutex<std::collections::HashMap<String, Arc<Function>>>,
}

unsafe fn borrow<'a, T>(handle: usize) -> Outcome<&'a T> {
    if handle == 0 || !handle.is_multiple_of(align_of::<T>()) {
        return fail(INVALID_HANDLE, format!("{handle:#x} is no handle"));
    }
    // SAFETY: handles are made by `Box::into_raw` or `Arc::into_raw` here, and the caller has this one from us.
    Ok(unsafe { &*(handle as *const T) })
}

unsafe fn graph_of(handle: usize) -> Outcome<ManuallyDrop<Arc<Graph>>> {
    // SAFETY: as in `borrow`; the count stays, for the handle owns it.
    unsafe {
        borrow::<Graph>(handle)?;
        Ok(ManuallyDrop::new(Arc::from_raw(handle as *const Graph)))
    }
}

fn occupancy(threads: c_int, shared: usize) -> c_int {
    if threads <= 0 || threads > 1024 {
        return 0;
    }
    let by_threads = (2048 / threads).min(32);
    by_threads.min((233_472 / (shared + 1024)) as c_int)
}

driver! {
    fn cuInit(_flags: c_uint) { Ok(()) }
    fn cuDriverGetVersion(version: *mut c_int) { answer(version, 13_000) }
    fn cuDeviceGet(to: *mut c_int, ordinal: c_int) { device(ordinal)?; answer(to, ordinal) }
    fn cuDeviceGetCount(to: *mut c_int) { answer(to, 1) }
    fn cuDeviceGetName(to: *mut c_char, length: c_int, number: c_int) {
        device(number)?;
        let bytes = NAME.to_bytes_with_nul();
        if to.is_null() || (length as usize) < bytes.len() {
            return fail(INVALID_VALUE, "no room for the name");
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, bytes.len());
        Ok(())
    }
    fn cuDeviceGetUuid(to: *mut [u8; 16], number: c_int) { device(number)?; answer(to, *b"rehearsal on CPU") }
    fn cuDeviceGetUuid_v2(to: *mut [u8; 16], number: c_int) { device(number)?; answer(to, *b"rehearsal on CPU") }
    fn cuDeviceTotalMem_v2(to: *mut usize, number: c_int) { device(number)?; answer(to, memory::total()) }
    fn cuDeviceGetAttribute(to: *mut c_int, number: c_int, on: c_int) { device(on)?; answer(to, attribute(number)) }
    fn cuDevicePrimaryCtxRetain(to: *mut usize, number: c_int) { device(number)?; answer(to, &raw const CONTEXT as usize) }
    fn cuDevicePrimaryCtxRelease_v2(number: c_int) { device(number) }
    fn cuDevicePrimaryCtxSetFlags_v2(number: c_int, _flags: c_uint) { device(number) }
    fn cuCtxSetCurrent(context: usize) { CURRENT.set(context); Ok(()) }
    fn cuCtxGetCurrent(to: *mut usize) { answer(to, CURRENT.get()) }
    fn cuCtxPushCurrent_v2(context: usize) { CURRENT.set(context); Ok(()) }
    fn cuCtxPopCurrent_v2(to: *mut usize) { answer(to, CURRENT.replace(0)) }
    fn cuCtxGetDevice(to: *mut c_int) { answer(to, 0) }
    fn cuCtxSetFlags(_flags: c_uint) { Ok(()) }
    fn cuCtxSetCacheConfig(_config: c_uint) { Ok(()) }
    fn cuCtxGetCacheConfig(to: *mut c_uint) { answer(to, 0) }
    fn cuCtxSetLimit(_limit: c_uint, _value: usize) { Ok(()) }
    fn cuCtxGetLimit(to: *mut usize, _limit: c_uint) { answer(to, 1024) }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) { answer(least, 0)?; answer(greatest, -5) }
    fn cuCtxSynchronize() { stream::forbid_everywhere("a synchronisation of the device") }
    fn cuProfilerStart() { Ok(()) }
    fn cuProfilerStop() { Ok(()) }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        answer(free, memory::claimed().unwrap_or(memory::total() - memory::used()[0]))?;
        answer(total, memory::total())
    }
    fn cuMemAlloc_v2(to: *mut u64, bytes: usize) {
        stream::forbid_everywhere("an allocation in no stream's order")?;
        if bytes == 0 {
            return fail(INVALID_VALUE, "an allocation of nothing");
        }
        answer(to, memory::allocate(bytes)?)
    }
    fn cuMemFree_v2(address: u64) { stream::forbid_everywhere("a free in no stream's order")?; memory::free(address) }
    fn cuMemAllocAsync(to: *mut u64, bytes: usize, on: usize) { answer(to, stream::allocate(on, bytes)?) }
    fn cuMemAllocFromPoolAsync(to: *mut u64, bytes: usize, _pool: usize, on: usize) { answer(to, stream::allocate(on, bytes)?) }
    fn cuMemFreeAsync(address: u64, on: usize) { stream::free(on, address) }
    fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        // Pinned memory of the host is memory that both sides may touch.
        answer(to, memory::allocate(bytes)? as *mut c_void)
    }
    fn cuMemFreeHost(address: *mut c_void) { memory::free(address as u64) }
    fn cuDeviceGetDefaultMemPool(to: *mut usize, number: c_int) { device(number)?; answer(to, &raw const CONTEXT as usize) }
    fn cuDeviceGetMemPool(to: *mut usize, number: c_int) { device(number)?; answer(to, &raw const CONTEXT as usize) }
    fn cuDeviceSetMemPool(number: c_int, _pool: usize) { device(number) }
    fn cuMemPoolSetAttribute(_pool: usize, number: c_uint, _value: *mut c_void) {
        if (1..=8).contains(&number) { Ok(()) } else { fail(INVALID_VALUE, "no such attribute") }
    }
    fn cuMemPoolGetAttribute(_pool: usize, number: c_uint, value: *mut c_void) {
        let [used, most] = memory::used();
        match number {
            1..=3 => answer(value.cast::<c_int>(), 1),
            4 => answer(value.cast::<u64>(), 0),
            5 | 7 => answer(value.cast::<u64>(), used as u64),
            6 | 8 => answer(value.cast::<u64>(), most as u64),
            _ => fail(INVALID_VALUE, "no such attribute"),
        }
    }
    fn cuMemPoolTrimTo(_pool: usize, _bytes: usize) { Ok(()) }

    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        stream::forbid_everywhere("a copy in no stream's order")?;
        copy(to, from as u64, bytes, [true, false])
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        stream::forbid_everywhere("a copy in no stream's order")?;
        copy(to as u64, from, bytes, [false, true])
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        stream::forbid_everywhere("a copy in no stream's order")?;
        copy(to, from, bytes, [true; 2])
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, on: usize) { with_host(on, to, from as u64, bytes, [true, false]) }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, on: usize) { with_host(on, to as u64, from, bytes, [false, true]) }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, on: usize) {
        stream::submit(on, move || copy(to, from, bytes, [true; 2]))
    }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, on: usize) {
        let device = [to, from].map(|address| memory::check(address, bytes, "").is_ok());
        with_host(on, to, from, bytes, device)
    }
    fn cuMemcpyPeerAsync(to: u64, _to_context: usize, from: u64, _from_context: usize, bytes: usize, on: usize) {
        stream::submit(on, move || copy(to, from, bytes, [true; 2]))
    }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) { fill(0, to, value, count) }
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) { fill(0, to, value, count) }
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) { fill(0, to, value, count) }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, on: usize) { fill(on, to, value, count) }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, on: usize) { fill(on, to, value, count) }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, on: usize) { fill(on, to, value, count) }

    fn cuModuleLoadData(to: *mut usize, image: *const c_char) { load(to, image) }
    fn cuModuleLoadDataEx(to: *mut usize, image: *const c_char, _count: c_uint, _options: *mut c_uint, _values: *mut *mut c_void) {
        load(to, image)
    }
    fn cuModuleLoad(to: *mut usize, path: *const c_char) {
        let path = CStr::from_ptr(path).to_string_lossy().into_owned();
        match std::fs::read(&path) {
            Ok(mut text) => {
                text.push(0);
                load(to, text.as_ptr().cast())
            }
            Err(error) => fail(NOT_FOUND, format!("{path}: {error}")),
        }
    }
    fn cuModuleUnload(module: usize) {
        borrow::<Loaded>(module)?;
        drop(Box::from_raw(module as *mut Loaded));
        Ok(())
    }
    fn cuModuleGetFunction(to: *mut usize, module: usize, name: *const c_char) {
        let loaded = borrow::<Loaded>(module)?;
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let mut functions = loaded.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !functions.contains_key(&name) {
            let most_dynamic = AtomicUsize::new(0);
            functions.insert(name.clone(), Arc::new(Function { kernel: loaded.module.kernel(&name)?, most_dynamic }));
        }
        answer(to, Arc::as_ptr(&functions[&name]) as usize)
    }
    fn cuModuleGetGlobal_v2(to: *mut u64, bytes: *mut usize, module: usize, name: *const c_char) {
        let name = CStr::from_ptr(name).to_string_lossy();
        match borrow::<Loaded>(module)?.module.globals.get(&*name) {
            Some(&(address, size)) => {
                if !bytes.is_null() {
                    answer(bytes, size)?;
                }
                answer(to, address)
            }
            None => fail(NOT_FOUND, format!("the module has no variable {name}")),
        }
    }
    fn cuFuncSetAttribute(function: usize, number: c_uint, value: c_int) {
        let function = borrow::<Function>(function)?;
        if number == 8 {
            let room = ptx::MOST_SHARED - function.kernel.shared.min(ptx::MOST_SHARED);
            if value < 0 || value as usize > room {
                return fail(INVALID_VALUE, format!("{value} bytes of shared memory, of at most {room}"));
            }
            function.most_dynamic.store(value as usize, Ordering::Relaxed);
        }
        Ok(())
    }
    fn cuFuncGetAttribute(to: *mut c_int, number: c_uint, function: usize) {
        let function = borrow::<Function>(function)?;
        answer(to, match number {
            0 => function.kernel.most_threads as c_int,
            1 => function.kernel.shared as c_int,
            3 => function.kernel.local as c_int,
            // ptxas alone knows how many registers: as many as 2048 threads a multiprocessor may have.
            4 => 32,
            5 | 6 => 90,
            8 => function.most_dynamic.load(Ordering::Relaxed) as c_int,
            _ => 0,
        })
    }
    fn cuFuncSetCacheConfig(_function: usize, _config: c_uint) { Ok(()) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(to: *mut c_int, function: usize, threads: c_int, shared: usize) {
        answer(to, occupancy(threads, shared + borrow::<Function>(function)?.kernel.shared))
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(to: *mut c_int, function: usize, threads: c_int, shared: usize, _flags: c_uint) {
        answer(to, occupancy(threads, shared + borrow::<Function>(function)?.kernel.shared))
    }
    fn cuOccupancyMaxPotentialBlockSize(grid: *mut c_int, block: *mut c_int, function: usize, _shared_of: usize, _shared: usize, limit: c_int) {
        let most = borrow::<Function>(function)?.kernel.most_threads as c_int;
        answer(block, if limit > 0 { most.min(limit) } else { most })?;
        answer(grid, 2 * 132)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int, block: *mut c_int, function: usize, _shared_of: usize, _shared: usize, limit: c_int, _flags: c_uint,
    ) {
        let most = borrow::<Function>(function)?.kernel.most_threads as c_int;
        answer(block, if limit > 0 { most.min(limit) } else { most })?;
        answer(grid, 2 * 132)
    }
    fn cuLaunchKernel(
        function: usize, x: c_uint, y: c_uint, z: c_uint, tx: c_uint, ty: c_uint, tz: c_uint, shared: c_uint, on: usize,
        parameters: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        if !extra.is_null() {
            return fail(NOT_SUPPORTED, "parameters in a buffer");
        }
        launch(function, [x, y, z], [tx, ty, tz], shared, on, parameters)
    }
    fn cuLaunchCooperativeKernel(
        function: usize, x: c_uint, y: c_uint, z: c_uint, tx: c_uint, ty: c_uint, tz: c_uint, shared: c_uint, on: usize,
        parameters: *mut *mut c_void,
    ) {
        if x as u64 * y as u64 * z as u64 > 1 {
            return fail(NOT_SUPPORTED, "a cooperative launch of several blocks: they run one after the other here");
        }
        launch(function, [x, y, z], [tx, ty, tz], shared, on, parameters)
    }
    fn cuLaunchHostFunc(on: usize, f: Option<unsafe extern "C" fn(*mut c_void)>, data: usize) {
        stream::submit(on, move || {
            if let Some(f) = f {
                f(data as *mut c_void);
            }
            Ok(())
        })
    }

    fn cuStreamCreate(to: *mut usize, _flags: c_uint) { answer(to, stream::create()) }
    fn cuStreamCreateWithPriority(to: *mut usize, _flags: c_uint, _priority: c_int) { answer(to, stream::create()) }
    fn cuStreamDestroy_v2(on: usize) { stream::destroy(on) }
    fn cuStreamSynchronize(on: usize) { stream::forbid(on, "a synchronisation") }
    fn cuStreamQuery(on: usize) { stream::forbid(on, "a query") }
    fn cuStreamWaitEvent(on: usize, event: usize, _flags: c_uint) { stream::wait(on, event) }
    fn cuStreamGetPriority(_on: usize, to: *mut c_int) { answer(to, 0) }
    fn cuStreamGetCtx(_on: usize, to: *mut usize) { answer(to, &raw const CONTEXT as usize) }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) { answer(mode, 0) }
    fn cuStreamBeginCapture_v2(on: usize, mode: c_uint) { stream::begin(on, mode) }
    fn cuStreamIsCapturing(on: usize, to: *mut c_uint) { answer(to, stream::status(on)?.0) }
    fn cuStreamGetCaptureInfo_v2(on: usize, to: *mut c_uint, number: *mut u64, _graph: *mut usize, _after: *mut usize, _count: *mut usize) {
        let (status, id) = stream::status(on)?;
        if !number.is_null() {
            answer(number, id)?;
        }
        answer(to, status)
    }
    fn cuStreamEndCapture(on: usize, to: *mut usize) {
        answer(to, 0)?;
        let graph = stream::end(on)?;
        answer(to, Arc::into_raw(graph) as usize)
    }
    fn cuGraphInstantiateWithFlags(to: *mut usize, graph: usize, _flags: u64) {
        answer(to, Arc::into_raw(Arc::<Graph>::clone(&*graph_of(graph)?)) as usize)
    }
    fn cuGraphGetNodes(graph: usize, _nodes: *mut usize, count: *mut usize) { answer(count, graph_of(graph)?.len()) }
    fn cuGraphUpload(graph: usize, _on: usize) { graph_of(graph).map(|_| ()) }
    fn cuGraphLaunch(graph: usize, on: usize) { stream::launch(&*graph_of(graph)?, on) }
    fn cuGraphDestroy(graph: usize) { drop(ManuallyDrop::into_inner(graph_of(graph)?)); Ok(()) }
    fn cuGraphExecDestroy(graph: usize) { drop(ManuallyDrop::into_inner(graph_of(graph)?)); Ok(()) }

    fn cuEventCreate(to: *mut usize, _flags: c_uint) { answer(to, stream::new_event()) }
    fn cuEventDestroy_v2(event: usize) { stream::destroy_event(event) }
    fn cuEventRecord(event: usize, on: usize) { stream::record(event, on) }
    fn cuEventQuery(event: usize) { stream::query(event).map(|_| ()) }
    fn cuEventSynchronize(event: usize) { stream::query(event).map(|_| ()) }
    fn cuEventElapsedTime(to: *mut f32, start: usize, end: usize) { elapsed(to, start, end) }
    fn cuEventElapsedTime_v2(to: *mut f32, start: usize, end: usize) { elapsed(to, start, end) }
}

macro_rules! lacking {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() -> u32 {
            failure::code(stringify!($name), fail(NOT_SUPPORTED, "the stand-in has no such function"), code)
        }
    )*};
}

// What cudarc could call and this program does not: said rather than answered with "no device".
lacking!(
    cuCtxCreate_v3,
    cuCtxCreate_v4,
    cuCtxDestroy_v2,
    cuDestroyExternalMemory,
    cuExternalMemoryGetMappedBuffer,
    cuImportExternalMemory,
    cuMemAdvise_v2,
    cuMemAllocManaged,
    cuMemPoolCreate,
    cuMemPoolDestroy,
    cuMemPrefetchAsync_v2,
    cuOccupancyAvailableDynamicSMemPerBlock,
    cuOccupancyMaxActiveClusters,
    cuOccupancyMaxPotentialClusterSize,
    cuStreamAttachMemAsync,
    cuLaunchKernelEx,
    cuGetProcAddress_v2,
    cuMemcpy2D_v2,
    cuMemcpy2DAsync_v2
);

/// NVRTC asks for a table of functions that is nowhere documented, and does without it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetExportTable(to: *mut usize, _of: *const [u8; 16]) -> u32 {
    trace("cuGetExportTable");
    // SAFETY: the caller's room for a pointer.
    unsafe { to.write(0) };
    NOT_FOUND
}

/// The name of a code.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: u32, to: *mut *const c_char) -> u32 {
    let name = NAMES.iter().find(|known| known.0 == code).map_or("CUDA_ERROR_UNKNOWN\0", |known| known.1);
    // SAFETY: the caller's room for a pointer.
    unsafe { to.write(name.as_ptr().cast()) };
    0
}

/// What a code means: what happened was told on stderr.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: u32, to: *mut *const c_char) -> u32 {
    let text = if code == 2 { c"out of memory" } else { c"see what the rehearsal says on stderr" };
    // SAFETY: as above.
    unsafe { to.write(text.as_ptr()) };
    0
}

/// Copies, where each side that is the device's must be live there.
fn copy(to: u64, from: u64, bytes: usize, device: [bool; 2]) -> Outcome {
    if device[0] {
        memory::check(to, bytes, "the target of a copy")?;
    }
    if device[1] {
        memory::check(from, bytes, "the source of a copy")?;
    }
    if bytes > 0 && (to == 0 || from == 0) {
        return fail(ILLEGAL_ADDRESS, "a copy by a null pointer");
    }
    // SAFETY: live where they are the device's; the host's side is the caller's.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    Ok(())
}

/// A copy to or from the host: a graph would touch the host's memory long after the call.
fn with_host(on: usize, to: u64, from: u64, bytes: usize, device: [bool; 2]) -> Outcome {
    let host = if device[0] { from } else { to };
    if memory::check(host, bytes, "").is_err() {
        stream::forbid(on, "a copy between the device and memory of the host that is not pinned")?;
    }
    stream::submit(on, move || copy(to, from, bytes, device))
}

fn fill<T: Copy + Send + Sync + 'static>(on: usize, to: u64, value: T, count: usize) -> Outcome {
    stream::submit(on, move || {
        memory::check(to, count * size_of::<T>(), "a fill")?;
        if !to.is_multiple_of(align_of::<T>() as u64) {
            return fail(INVALID_VALUE, "a fill of words that are not aligned");
        }
        // SAFETY: live and aligned.
        unsafe { std::slice::from_raw_parts_mut(to as *mut T, count) }.fill(value);
        Ok(())
    })
}

unsafe fn load(to: *mut usize, image: *const c_char) -> Outcome {
    // SAFETY: the caller's text, ended by a zero.
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
    let loaded = Loaded { module: Module::load(&text)?, functions: Default::default() };
    // SAFETY: the caller's room.
    unsafe { answer(to, Box::into_raw(Box::new(loaded)) as usize) }
}

unsafe fn launch(
    function: usize,
    blocks: [u32; 3],
    threads: [u32; 3],
    shared: u32,
    on: usize,
    parameters: *mut *mut c_void,
) -> Outcome {
    // SAFETY: the caller's handle; the count is kept for as long as the work may be done.
    let function = unsafe {
        borrow::<Function>(function)?;
        Arc::increment_strong_count(function as *const Function);
        Arc::from_raw(function as *const Function)
    };
    let list = &function.kernel.parameters;
    let mut buffer = vec![0u8; list.last().map_or(0, |&(offset, bytes)| offset + bytes)];
    if parameters.is_null() && !list.is_empty() {
        return fail(INVALID_VALUE, "a launch without its parameters");
    }
    for (i, &(offset, bytes)) in list.iter().enumerate() {
        // SAFETY: as many pointers as the kernel has parameters, each to as many bytes.
        unsafe {
            let from = *parameters.add(i);
            std::ptr::copy_nonoverlapping(from.cast::<u8>(), buffer.as_mut_ptr().add(offset), bytes);
        }
    }
    let most_dynamic = function.most_dynamic.load(Ordering::Relaxed);
    trace(&format!("kernel {} <<<{blocks:?}, {threads:?}, {shared}>>>", function.kernel.name));
    let grid = Grid { blocks, threads, shared: shared as usize };
    stream::submit(on, move || ptx::launch(&function.kernel, grid, most_dynamic, &buffer))
}

unsafe fn elapsed(to: *mut f32, start: usize, end: usize) -> Outcome {
    let at = |event| -> Outcome<Instant> {
        match stream::query(event)? {
            Some(when) => Ok(when),
            None => fail(INVALID_HANDLE, "an event that was never recorded"),
        }
    };
    let time = at(end)?.saturating_duration_since(at(start)?).as_secs_f32() * 1e3;
    // SAFETY: the caller's room.
    unsafe { answer(to, time) }
}

#[cfg(test)]
mod tests;
