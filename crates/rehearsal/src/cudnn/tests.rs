use candle_core::{DType, Device, Tensor, Var};
use gpu::Precision;

use super::*;

/// Numbers without a pattern, in `[-1, 1)`, as f32 has them.
fn numbers(seed: u64, shape: [usize; 4]) -> Tensor {
    let number = |i: u64| ((i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1 << 23) as f64 - 1.0;
    let list: Vec<f64> = (0..shape.iter().product::<usize>() as u64).map(number).collect();
    Tensor::from_vec(list, &shape, &Device::Cpu).unwrap()
}

fn list(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Puts numbers in the order `n, c, h, w` where a view wants them.
fn put(view: View, from: &[f64]) -> u64 {
    let address = memory::allocate(from.len() * view.kind.bytes()).unwrap();
    let mut next = from.iter();
    // SAFETY: just allocated.
    for_each(view.dims, |at| unsafe { write(view.kind, address, offset(&view, at), *next.next().unwrap()) });
    address
}

fn get(view: View, address: u64) -> Vec<f64> {
    let mut out = Vec::new();
    // SAFETY: live.
    for_each(view.dims, |at| out.push(unsafe { read(view.kind, address, offset(&view, at)) }));
    out
}

fn made(create: unsafe extern "C" fn(*mut usize) -> u32) -> usize {
    let mut to = 0;
    // SAFETY: room for a handle.
    assert_eq!(unsafe { create(&mut to) }, 0);
    to
}

/// What the device holds: the three tensors, in one format and order.
struct Case {
    handle: usize,
    convolution: usize,
    descriptors: [usize; 3],
    views: [View; 3],
    work: (u64, usize),
}

impl Case {
    fn new(
        shapes: [[usize; 4]; 3],
        kind: Kind,
        last: bool,
        math: c_uint,
        padding: [i32; 2],
        stride: i32,
        groups: i32,
    ) -> Self {
        let number = [0, 1, 2, 9][kind as usize];
        let handle = made(cudnnCreate);
        let convolution = made(cudnnCreateConvolutionDescriptor);
        let descriptors =
            [made(cudnnCreateTensorDescriptor), made(cudnnCreateFilterDescriptor), made(cudnnCreateTensorDescriptor)];
        let sums = c_uint::from(kind == Kind::F64);
        // SAFETY: handles from above.
        unsafe {
            cudnnSetConvolution2dDescriptor(convolution, padding[0], padding[1], stride, stride, 1, 1, 1, sums);
            cudnnSetConvolutionGroupCount(convolution, groups);
            cudnnSetConvolutionMathType(convolution, math);
            for (i, shape) in shapes.into_iter().enumerate() {
                let [n, c, h, w] = shape.map(|extent| extent as c_int);
                let code = match i {
                    1 => cudnnSetFilter4dDescriptor(descriptors[i], number, last.into(), n, c, h, w),
                    _ => cudnnSetTensor4dDescriptor(descriptors[i], last.into(), number, n, c, h, w),
                };
                assert_eq!(code, 0);
            }
            let mut bytes = 0;
            let [x, w, y] = descriptors;
            assert_eq!(cudnnGetConvolutionForwardWorkspaceSize(handle, x, w, convolution, y, 1, &mut bytes), 0);
            let work = (memory::allocate(bytes).unwrap(), bytes);
            Self { handle, convolution, descriptors, views: shapes.map(|shape| View::packed(kind, shape, last)), work }
        }
    }

    /// Each of the three from the others, with scales.
    fn all(&self, values: [&[f64]; 3], [alpha, beta]: [f64; 2]) -> [Vec<f64>; 3] {
        let ([xd, wd, yd], conv, (work, bytes)) = (self.descriptors, self.convolution, self.work);
        let scale =
            |x: f64| if self.views[0].kind == Kind::F64 { x.to_bits() } else { u64::from((x as f32).to_bits()) };
        let (alpha, beta) = (scale(alpha), scale(beta));
        let (alpha, beta) = (&raw const alpha as usize, &raw const beta as usize);
        let place = |i: usize| put(self.views[i], values[i]);
        let ([x, w], [v, dy], [u, dz]) = ([place(0), place(1)], [place(1), place(2)], [place(0), place(2)]);
        let [y, dx, dw] = [place(2), place(0), place(1)];
        // SAFETY: handles and addresses from above.
        unsafe {
            assert_eq!(cudnnConvolutionForward(self.handle, alpha, xd, x, wd, w, conv, 1, work, bytes, beta, yd, y), 0);
            assert_eq!(
                cudnnConvolutionBackwardData(self.handle, alpha, wd, v, yd, dy, conv, 1, work, bytes, beta, xd, dx),
                0
            );
            assert_eq!(
                cudnnConvolutionBackwardFilter(self.handle, alpha, xd, u, yd, dz, conv, 1, work, bytes, beta, wd, dw),
                0
            );
        }
        [get(self.views[2], y), get(self.views[0], dx), get(self.views[1], dw)]
    }
}

/// Images, kernels, padding, stride and groups.
type Shape = ([usize; 4], [usize; 4], [usize; 2], usize, usize);

const CASES: [Shape; 5] = [
    ([2, 4, 7, 6], [6, 4, 3, 3], [1, 1], 1, 1),
    ([2, 4, 8, 7], [6, 2, 3, 1], [1, 0], 2, 2),
    ([1, 6, 5, 5], [6, 1, 3, 3], [1, 1], 2, 6),
    ([3, 5, 4, 4], [7, 5, 1, 1], [0, 0], 2, 1),
    ([1, 3, 9, 8], [4, 3, 5, 7], [2, 3], 2, 1),
];

/// The three, as the GPU crate's reference in double precision has them.
fn expected(x: &Tensor, w: &Tensor, padding: [usize; 2], stride: usize, groups: usize, dy: &Tensor) -> [Vec<f64>; 3] {
    let (x, w) = (Var::from_tensor(x).unwrap(), Var::from_tensor(w).unwrap());
    let y = gpu::conv2d(&x, &w, padding, stride, groups, Precision::F32).unwrap();
    let found = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    [list(&y.detach()), list(found.get(&x).unwrap()), list(found.get(&w).unwrap())]
}

fn gap(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    // A NaN is far.
    found
        .iter()
        .zip(expected)
        .map(|(x, y)| (x - y).abs() / largest)
        .fold(0.0, |most, gap| if gap <= most { most } else { gap })
}

#[test]
fn all_three_are_the_references_in_every_format_and_order() {
    for (x, w, padding, stride, groups) in CASES {
        let motion = Motion { padding, stride: [stride; 2], dilation: [1, 1], groups, tf32: false };
        let y = Problem::result(x, w, &motion).unwrap();
        let tensors = [numbers(1, x), numbers(2, w), numbers(3, y)];
        let values = tensors.each_ref().map(list);
        let right = expected(&tensors[0], &tensors[1], padding, stride, groups, &tensors[2]);
        let unread = values.each_ref().map(|list| vec![f64::NAN; list.len()]);
        // In f32 without and with TF32, in f64, in f16 and in bf16: how far rounding takes it, at least and at most.
        let formats = [
            (Kind::F32, 3, 0.0, 1e-6),
            (Kind::F32, 1, 1e-6, 2e-3),
            (Kind::F64, 0, 0.0, 1e-14),
            (Kind::F16, 1, 1e-6, 2e-3),
            (Kind::Bf16, 1, 1e-6, 2e-2),
        ];
        for (kind, math, least, most) in formats {
            for last in [false, true] {
                let case =
                    Case::new([x, w, y], kind, last, math, padding.map(|n| n as i32), stride as i32, groups as i32);
                let found = case.all(values.each_ref().map(Vec::as_slice), [1.0, 0.0]);
                for (found, right) in found.iter().zip(&right) {
                    let gap = gap(found, right);
                    assert!((least..=most).contains(&gap), "{kind:?}, math {math}, {last}, {x:?} by {w:?}: {gap}");
                }
                // With a second scale of 0 what is there is not read: it may be NaN. (Its operands are then NaN too.)
                let y_is_new = case.all([&values[0], &values[1], &unread[2]], [1.0, 0.0]);
                assert_eq!(y_is_new[0], found[0]);
                let doubled = case.all(values.each_ref().map(Vec::as_slice), [2.0, -1.0]);
                for ((doubled, found), old) in doubled.iter().zip(&found).zip([2, 0, 1]) {
                    let sum: Vec<f64> = found.iter().zip(&values[old]).map(|(new, old)| 2.0 * new - old).collect();
                    assert!(gap(doubled, &sum) <= most.max(1e-6), "{kind:?} {last}");
                }
            }
        }
    }
}

#[test]
fn a_bias_and_a_second_summand_come_before_the_activation() {
    let shapes = [[2, 4, 5, 5], [6, 4, 3, 3], [2, 6, 5, 5]];
    let [x, w, z] = [numbers(1, shapes[0]), numbers(2, shapes[1]), numbers(3, shapes[2])];
    let bias = numbers(4, [1, 6, 1, 1]);
    let plain = gpu::conv2d(&x, &w, [1, 1], 1, 1, Precision::F32).unwrap();
    let right = ((plain + (&z * 0.5).unwrap()).unwrap().broadcast_add(&bias)).unwrap().relu().unwrap();
    let case = Case::new(shapes, Kind::F64, true, 0, [1, 1], 1, 1);
    let ([xd, wd, yd], bd, relu) =
        (case.descriptors, made(cudnnCreateTensorDescriptor), made(cudnnCreateActivationDescriptor));
    let view = View::packed(Kind::F64, [1, 6, 1, 1], true);
    let [x, w, y, bias] = [
        put(case.views[0], &list(&x)),
        put(case.views[1], &list(&w)),
        put(case.views[2], &list(&z)),
        put(view, &list(&bias)),
    ];
    let scales = [1.0f64, 0.5];
    let [alpha, beta] = [&raw const scales[0] as usize, &raw const scales[1] as usize];
    let call = |algorithm, (work, bytes)| {
        // SAFETY: handles and addresses from above; the second summand lies where the result goes.
        unsafe {
            cudnnConvolutionBiasActivationForward(
                case.handle,
                alpha,
                xd,
                x,
                wd,
                w,
                case.convolution,
                algorithm,
                work,
                bytes,
                beta,
                yd,
                y,
                bd,
                bias,
                relu,
                yd,
                y,
            )
        }
    };
    // SAFETY: handles from above.
    unsafe {
        assert_eq!(cudnnSetTensor4dDescriptor(bd, 1, 1, 1, 6, 1, 1), 0);
        assert_eq!(cudnnSetActivationDescriptor(relu, 5, 0, 0.0), 0);
        assert_eq!(call(0, case.work), UNSUPPORTED, "only one algorithm goes without an activation");
        assert_eq!(cudnnSetActivationDescriptor(relu, 1, 0, 0.0), 0);
    }
    assert_eq!(call(0, (case.work.0, case.work.1 - 1)), BAD_PARAM, "the workspace is too small");
    assert_eq!(call(0, (0, case.work.1)), EXECUTION_FAILED, "there is no workspace");
    assert_eq!(call(0, case.work), 0);
    assert!(gap(&get(case.views[2], y), &list(&right)) < 1e-14);
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new([[1, 4, 5, 5], [6, 4, 3, 3], [1, 6, 5, 5]], Kind::F32, false, 3, [1, 1], 1, 1);
    let [x, w, y] = case.descriptors;
    let small = memory::allocate(16).unwrap();
    let (one, mut bytes) = (1f32, 0);
    let one = &raw const one as usize;
    // SAFETY: handles and addresses from above.
    unsafe {
        let (work, size) = case.work;
        let call = cudnnConvolutionForward(
            case.handle,
            one,
            x,
            small,
            w,
            small,
            case.convolution,
            1,
            work,
            size,
            one,
            y,
            small,
        );
        assert_eq!(call, EXECUTION_FAILED, "the images are not all there");
        cudnnSetTensor4dDescriptor(y, 0, 0, 1, 6, 4, 5);
        assert_eq!(
            cudnnGetConvolutionForwardWorkspaceSize(case.handle, x, w, case.convolution, y, 1, &mut bytes),
            BAD_PARAM
        );
        assert_eq!(cudnnSetTensor4dDescriptor(y, 0, 5, 1, 6, 4, 5), UNSUPPORTED);
        assert_eq!(cudnnSetTensor4dDescriptor(y, 0, 0, 1, 0, 4, 5), BAD_PARAM);
    }
}
