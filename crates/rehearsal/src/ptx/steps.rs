//! Instructions, one by one (PTX ISA 9.0, chapter 9).
#![expect(clippy::unnecessary_cast, reason = "one body is written for every type")]

use std::{
    cmp::Ordering,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use half::{bf16, f16};

use super::{
    decode::{Access, Action, Address, Builder},
    machine::{LOCAL, PARAMETERS, SHARED, Space, Warp, each},
    text,
};
use crate::{
    failure::{ILLEGAL_INSTRUCTION, LAUNCH_FAILED, Outcome, fail},
    numbers::{Bits, Real, Round, of_integer},
};

type Decoded = Result<Option<Action>, String>;

/// Evaluates with `$T` for the integer type of that name; none for other types.
macro_rules! integers {
    ($kind:expr, $T:ident => $body:expr) => {
        match $kind {
            "u8" | "b8" => {
                type $T = u8;
                Some($body)
            }
            "u16" | "b16" => {
                type $T = u16;
                Some($body)
            }
            "u32" | "b32" => {
                type $T = u32;
                Some($body)
            }
            "u64" | "b64" => {
                type $T = u64;
                Some($body)
            }
            "s8" => {
                type $T = i8;
                Some($body)
            }
            "s16" => {
                type $T = i16;
                Some($body)
            }
            "s32" => {
                type $T = i32;
                Some($body)
            }
            "s64" => {
                type $T = i64;
                Some($body)
            }
            _ => None,
        }
    };
}

/// The same for formats of reals.
macro_rules! reals {
    ($kind:expr, $T:ident => $body:expr) => {
        match $kind {
            "f16" => {
                type $T = f16;
                Some($body)
            }
            "bf16" => {
                type $T = bf16;
                Some($body)
            }
            "f32" => {
                type $T = f32;
                Some($body)
            }
            "f64" => {
                type $T = f64;
                Some($body)
            }
            _ => None,
        }
    };
}

fn map1<T: Bits, R: Bits>(d: usize, a: usize, f: impl Fn(T) -> R + Send + Sync + 'static) -> Action {
    Action::Compute(Box::new(move |warp| {
        let (d, a) = (warp.slot(d), warp.slot(a));
        // SAFETY: slots of this warp; each lane is read before it is written.
        each(warp.active, |lane| unsafe { (*d)[lane] = f(T::of((*a)[lane])).bits() });
    }))
}

fn map2<T: Bits, U: Bits, R: Bits>([d, a, b]: [usize; 3], f: impl Fn(T, U) -> R + Send + Sync + 'static) -> Action {
    Action::Compute(Box::new(move |warp| {
        let (d, a, b) = (warp.slot(d), warp.slot(a), warp.slot(b));
        // SAFETY: as in `map1`.
        each(warp.active, |lane| unsafe { (*d)[lane] = f(T::of((*a)[lane]), U::of((*b)[lane])).bits() });
    }))
}

fn map3<T: Bits, U: Bits, V: Bits, R: Bits>(
    [d, a, b, c]: [usize; 4],
    f: impl Fn(T, U, V) -> R + Send + Sync + 'static,
) -> Action {
    Action::Compute(Box::new(move |warp| {
        let (d, a, b, c) = (warp.slot(d), warp.slot(a), warp.slot(b), warp.slot(c));
        // SAFETY: as in `map1`.
        each(warp.active, |lane| unsafe {
            (*d)[lane] = f(T::of((*a)[lane]), U::of((*b)[lane]), V::of((*c)[lane])).bits();
        });
    }))
}

/// A predicate of two numbers.
fn test<T: Bits>(
    a: usize,
    b: usize,
    f: impl Fn(T, T) -> bool + Send + Sync + 'static,
) -> impl Fn(&mut Warp<'_>) -> u32 {
    move |warp| {
        let (a, b) = (warp.slot(a), warp.slot(b));
        let mut lanes = 0;
        // SAFETY: as in `map1`.
        each(warp.active, |lane| lanes |= u32::from(unsafe { f(T::of((*a)[lane]), T::of((*b)[lane])) }) << lane);
        lanes
    }
}

/// What an instruction says beside its name and type.
#[derive(Clone, Copy)]
struct Manner {
    round: Round,
    flush: bool,
    saturate: bool,
    nan: bool,
}

impl Manner {
    fn of(words: &[&str]) -> Self {
        let has = |word| words.contains(&word);
        let round = match () {
            () if has("rz") => Round::Zero,
            () if has("rm") => Round::Down,
            () if has("rp") => Round::Up,
            () => Round::Nearest,
        };
        Self { round, flush: has("ftz"), saturate: has("sat"), nan: has("NaN") }
    }

    fn is_plain(self) -> bool {
        self.round == Round::Nearest && !self.flush && !self.saturate
    }

    fn take<T: Real>(self, x: T) -> T {
        if self.flush { x.flush() } else { x }
    }

    fn give<T: Real>(self, x: T) -> T {
        let x = self.take(x);
        if self.saturate { saturate(x) } else { x }
    }
}

fn saturate<T: Real>(x: T) -> T {
    let wide = x.wide();
    // NaN becomes 0.
    if wide > 0.0 { T::narrow(wide.min(1.0), 0.0, Round::Nearest) } else { T::of(0) }
}

fn real1<T: Real>(d: usize, a: usize, manner: Manner, f: impl Fn(T) -> T + Send + Sync + 'static) -> Action {
    if manner.is_plain() {
        return map1(d, a, f);
    }
    map1(d, a, move |x: T| manner.give(f(manner.take(x))))
}

fn real2<T: Real>(slots: [usize; 3], manner: Manner, f: impl Fn(T, T, Round) -> T + Send + Sync + 'static) -> Action {
    if manner.is_plain() {
        return map2(slots, move |x: T, y: T| f(x, y, Round::Nearest));
    }
    map2(slots, move |x: T, y: T| manner.give(f(manner.take(x), manner.take(y), manner.round)))
}

fn negate<T: Real>(x: T) -> T {
    T::of(x.bits() ^ 1 << (8 * size_of::<T>() - 1))
}

fn least<T: Real>(x: T, y: T, nan: bool) -> T {
    let (a, b) = (x.wide(), y.wide());
    match (a.is_nan(), b.is_nan()) {
        (true, _) | (_, true) if nan => T::narrow(f64::NAN, 0.0, Round::Nearest),
        (true, _) => y,
        (_, true) => x,
        _ if a < b || a == b && a.is_sign_negative() => x,
        _ => y,
    }
}

fn size_of_kind(kind: &str) -> Result<usize, String> {
    text::size_of(kind).ok_or_else(|| format!("the type {kind} is not known"))
}

/// What an instruction does; none where it does nothing here.
pub fn action(b: &mut Builder<'_>, op: &str, o: &[&str]) -> Decoded {
    let words: Vec<&str> = op.split('.').filter(|word| !word.is_empty()).collect();
    let (name, words) = (words[0], &words[1..]);
    let kind = words.last().copied().unwrap_or_default();
    let found = match name {
        "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "mad" | "fma" | "addc" | "subc"
        | "madc" | "copysign" | "mul24" | "mad24" | "sad" => arithmetic(b, name, words, kind, o)?,
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" => transcendental(b, name, words, kind, o)?,
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "bfe" | "bfi" | "prmt" | "popc"
        | "clz" | "brev" | "bfind" => bitwise(b, name, words, kind, o)?,
        "setp" | "set" | "selp" | "slct" | "testp" => choice(b, name, words, kind, o)?,
        "mov" => movement(b, kind, o)?,
        "cvt" => convert(b, words, o)?,
        "cvta" => space_address(b, words, kind, o)?,
        "ld" | "ldu" | "st" => memory(b, name, words, kind, o)?,
        "atom" | "red" => atomic(b, name, words, kind, o)?,
        "cp" => copy(b, words, o)?,
        "shfl" | "vote" | "redux" | "activemask" | "match" => together(b, name, words, kind, o)?,
        "bar" | "barrier" => barrier(b, words, o)?,
        // Everything is in order and in memory as soon as it is done.
        "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "applypriority"
        | "griddepcontrol" => return Ok(None),
        "trap" | "brkpt" => Some(Action::Fail(ILLEGAL_INSTRUCTION, "a trap".to_owned())),
        _ => None,
    };
    match found {
        Some(action) => Ok(Some(action)),
        None => Err("this instruction is not known to the interpreter".to_owned()),
    }
}

fn slots<const N: usize>(b: &mut Builder<'_>, o: &[&str], kind: &str) -> Result<[usize; N], String> {
    if o.len() != N {
        return Err(format!("it takes {N} operands"));
    }
    let mut found = [0; N];
    found[0] = b.write(o[0], kind)?;
    for (found, text) in found.iter_mut().zip(o).skip(1) {
        *found = b.read(text, kind)?;
    }
    Ok(found)
}

type Found = Result<Option<Action>, String>;

fn arithmetic(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    let manner = Manner::of(words);
    if kind == "f16x2" || kind == "bf16x2" {
        return pairs(b, name, manner, kind, o);
    }
    if kind.starts_with(['f', 'b']) && kind != "b32" {
        return Ok(match (name, o.len()) {
            ("abs" | "neg", 2) => {
                let [d, a] = slots(b, o, kind)?;
                let absolute = name == "abs";
                reals!(kind, T => if absolute {
                    real1(d, a, manner, |x: T| if negate(x).bits() < x.bits() { negate(x) } else { x })
                } else {
                    real1(d, a, manner, |x: T| negate(x))
                })
            }
            ("fma" | "mad", 4) => {
                let at = slots::<4>(b, o, kind)?;
                let relu = words.contains(&"relu");
                reals!(kind, T => if manner.is_plain() && !relu {
                    map3(at, |x: T, y: T, z: T| x.fma(y, z, Round::Nearest))
                } else {
                    map3(at, move |x: T, y: T, z: T| {
                        let out = manner.give(manner.take(x).fma(manner.take(y), manner.take(z), manner.round));
                        if relu && out.wide() < 0.0 { T::of(0) } else { out }
                    })
                })
            }
            (_, 3) => {
                let at = slots::<3>(b, o, kind)?;
                reals!(kind, T => match name {
                    "add" => real2(at, manner, T::add),
                    "sub" => real2(at, manner, |x: T, y: T, round| x.add(negate(y), round)),
                    "mul" => real2(at, manner, T::mul),
                    "div" => real2(at, manner, T::div),
                    "min" => real2(at, Manner { round: Round::Nearest, ..manner }, move |x: T, y: T, _| least(x, y, manner.nan)),
                    "max" => real2(at, manner, move |x: T, y: T, _| negate(least(negate(x), negate(y), manner.nan))),
                    "copysign" => map2(at, |x: T, y: T| if (x.bits() ^ y.bits()) & negate(T::of(0)).bits() != 0 { negate(y) } else { y }),
                    _ => return Ok(None),
                })
            }
            _ => None,
        });
    }
    if words.contains(&"cc") || name.ends_with('c') {
        return carried(b, name, words, kind, o);
    }
    let (wide, high) = (words.contains(&"wide"), words.contains(&"hi"));
    let double = match kind {
        "u16" => "u32",
        "s16" => "s32",
        "u32" => "u64",
        "s32" => "s64",
        kind => kind,
    };
    Ok(match (name, o.len()) {
        ("abs" | "neg", 2) => {
            let [d, a] = slots(b, o, kind)?;
            let absolute = name == "abs";
            integers!(kind, T => map1(d, a, move |x: T| if absolute && (x as i128) >= 0 { x } else { (0 as T).wrapping_sub(x) }))
        }
        ("mul" | "mad", n) if wide => {
            if n != if name == "mul" { 3 } else { 4 } {
                return Ok(None);
            }
            let (d, x, y) = (b.write(o[0], double)?, b.read(o[1], kind)?, b.read(o[2], kind)?);
            let z = if name == "mad" { b.read(o[3], double)? } else { b.constant(0) };
            // Both factors are extended by their own sign, and the product has the double type.
            integers!(kind, T => map3([d, x, y, z], |x: T, y: T, z: u64| (x as u64).wrapping_mul(y as u64).wrapping_add(z)))
        }
        ("mul" | "mul24", 3) => {
            let at = slots::<3>(b, o, kind)?;
            if high {
                integers!(kind, T => map2(at, |x: T, y: T| ((x as i128).wrapping_mul(y as i128) >> T::BITS) as T))
            } else {
                integers!(kind, T => map2(at, |x: T, y: T| x.wrapping_mul(y)))
            }
        }
        ("mad" | "mad24", 4) => {
            let at = slots::<4>(b, o, kind)?;
            if high {
                integers!(kind, T => map3(at, |x: T, y: T, z: T| (((x as i128).wrapping_mul(y as i128) >> T::BITS) as T).wrapping_add(z)))
            } else {
                integers!(kind, T => map3(at, |x: T, y: T, z: T| x.wrapping_mul(y).wrapping_add(z)))
            }
        }
        ("sad", 4) => {
            let at = slots::<4>(b, o, kind)?;
            integers!(kind, T => map3(at, |x: T, y: T, z: T| (x.abs_diff(y) as T).wrapping_add(z)))
        }
        (_, 3) => {
            let at = slots::<3>(b, o, kind)?;
            let sat = manner.saturate;
            integers!(kind, T => match name {
                "add" if sat => map2(at, |x: T, y: T| x.saturating_add(y)),
                "sub" if sat => map2(at, |x: T, y: T| x.saturating_sub(y)),
                "add" => map2(at, |x: T, y: T| x.wrapping_add(y)),
                "sub" => map2(at, |x: T, y: T| x.wrapping_sub(y)),
                // By zero: all ones, and the dividend, as the hardware has it.
                "div" => map2(at, |x: T, y: T| if y == 0 { !(0 as T) } else { x.wrapping_div(y) }),
                "rem" => map2(at, |x: T, y: T| if y == 0 { x } else { x.wrapping_rem(y) }),
                "min" => map2(at, |x: T, y: T| x.min(y)),
                "max" => map2(at, |x: T, y: T| x.max(y)),
                _ => return Ok(None),
            })
        }
        _ => None,
    })
}

/// Arithmetic on two halves of a register.
fn pairs(b: &mut Builder<'_>, name: &str, manner: Manner, kind: &str, o: &[&str]) -> Found {
    fn both<T: Real>(f: impl Fn(T, T, T) -> T + Send + Sync + 'static) -> impl Fn(u32, u32, u32) -> u32 {
        move |x, y, z| {
            let half = |shift: u32| {
                f(T::of((x >> shift).into()), T::of((y >> shift).into()), T::of((z >> shift).into())).bits() as u32
                    & 0xFFFF
            };
            half(0) | half(16) << 16
        }
    }
    let mut at = [0; 4];
    for (i, text) in o.iter().enumerate().take(4) {
        at[i] = if i == 0 { b.write(text, "b32")? } else { b.read(text, "b32")? };
    }
    for i in o.len()..4 {
        at[i] = at[1];
    }
    let kind = kind.trim_end_matches("x2");
    Ok(reals!(kind, T => match name {
        "add" => map3(at, both::<T>(move |x, y, _| manner.give(x.add(y, Round::Nearest)))),
        "sub" => map3(at, both::<T>(move |x, y, _| manner.give(x.add(negate(y), Round::Nearest)))),
        "mul" => map3(at, both::<T>(move |x, y, _| manner.give(x.mul(y, Round::Nearest)))),
        "fma" => map3(at, both::<T>(move |x, y, z| manner.give(x.fma(y, z, Round::Nearest)))),
        "min" => map3(at, both::<T>(move |x, y, _| least(x, y, manner.nan))),
        "max" => map3(at, both::<T>(move |x, y, _| negate(least(negate(x), negate(y), manner.nan)))),
        "neg" => map3(at, both::<T>(|x, _, _| negate(x))),
        "abs" => map3(at, both::<T>(|x, _, _| if negate(x).bits() < x.bits() { negate(x) } else { x })),
        _ => return Ok(None),
    }))
}

/// Additions of several words: `add.cc`, `addc`, `addc.cc`, `sub.cc`, `subc`, `mad.lo.cc`, `madc.hi.cc` ...
fn carried(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    let bits = 8 * size_of_kind(kind)?;
    let (carry, gives, takes) = (b.carry(), words.contains(&"cc"), name.ends_with('c') && name != "mad");
    let product = name.starts_with("mad");
    let high = words.contains(&"hi");
    let n = if product { 4 } else { 3 };
    if o.len() != n {
        return Ok(None);
    }
    let (d, x, y) = (b.write(o[0], kind)?, b.read(o[1], kind)?, b.read(o[2], kind)?);
    let z = if product { b.read(o[3], kind)? } else { b.constant(0) };
    let minus = name.starts_with("sub");
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let signed = kind.starts_with('s');
    let extend =
        move |x: u64| if signed { ((x << (64 - bits)) as i64 >> (64 - bits)) as i128 } else { (x & mask) as i128 };
    Ok(Some(Action::Compute(Box::new(move |warp| {
        let (d, x, y, z) = (warp.slot(d), warp.slot(x), warp.slot(y), warp.slot(z));
        let (before, mut after) = (warp.holds(carry), 0u32);
        each(warp.active, |lane| {
            // SAFETY: as in `map1`.
            let (x, y, z) = unsafe { ((*x)[lane], (*y)[lane], (*z)[lane]) };
            let carried = u64::from(takes && before >> lane & 1 == 1);
            let (first, second) = if product {
                let all = extend(x).wrapping_mul(extend(y));
                ((if high { all >> bits } else { all }) as u64 & mask, z & mask)
            } else {
                (x & mask, y & mask)
            };
            let total = if minus {
                // The flag borrows.
                i128::from(first) - i128::from(second) - i128::from(carried)
            } else {
                i128::from(first) + i128::from(second) + i128::from(carried)
            };
            after |= u32::from(total < 0 || total > i128::from(mask)) << lane;
            // SAFETY: as in `map1`.
            unsafe { (*d)[lane] = total as u64 & mask };
        });
        if gives {
            warp.set(carry, after);
        }
    }))))
}

fn transcendental(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    let manner = Manner::of(words);
    let approximate = words.contains(&"approx");
    if kind == "f16x2" || kind == "bf16x2" {
        return Ok(None);
    }
    let [d, a] = slots(b, o, kind)?;
    // The hardware's quick reciprocals of doubles have an upper word only.
    let short = approximate && kind == "f64";
    let wide =
        |f: fn(f64) -> f64| move |x: f64| if short { f64::from_bits(f(x).to_bits() & !0xFFFF_FFFF) } else { f(x) };
    Ok(match name {
        "rcp" if !approximate => {
            reals!(kind, T => real1(d, a, manner, move |x: T| T::narrow(1.0, 0.0, Round::Nearest).div(x, manner.round)))
        }
        "sqrt" if !approximate => reals!(kind, T => real1(d, a, manner, move |x: T| Real::sqrt(x, manner.round))),
        _ => {
            let f = wide(match name {
                "rcp" => |x| 1.0 / x,
                "sqrt" => f64::sqrt,
                "rsqrt" => |x| 1.0 / x.sqrt(),
                "sin" => f64::sin,
                "cos" => f64::cos,
                "ex2" => f64::exp2,
                "lg2" => f64::log2,
                _ => f64::tanh,
            });
            reals!(kind, T => real1(d, a, manner, move |x: T| T::narrow(f(x.wide()), 0.0, Round::Nearest)))
        }
    })
}

fn bitwise(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    if kind == "pred" {
        let d = b.predicate(o.first().copied().unwrap_or_default())?;
        let mut read = |i: usize| b.predicate(o.get(i).copied().unwrap_or_default());
        let f: fn(u32, u32) -> u32 = match (name, o.len()) {
            ("and", 3) => |x, y| x & y,
            ("or", 3) => |x, y| x | y,
            ("xor", 3) => |x, y| x ^ y,
            ("not", 2) => |x, _| !x,
            _ => return Ok(None),
        };
        let (x, y) = (read(1)?, read(o.len() - 1)?);
        return Ok(Some(Action::Compute(Box::new(move |warp| {
            let lanes = f(warp.holds(x), warp.holds(y));
            warp.set(d, lanes);
        }))));
    }
    let bits = 8 * size_of_kind(kind)? as u32;
    Ok(match (name, o.len()) {
        ("and", 3) => Some(map2(slots(b, o, kind)?, |x: u64, y: u64| x & y)),
        ("or", 3) => Some(map2(slots(b, o, kind)?, |x: u64, y: u64| x | y)),
        ("xor", 3) => Some(map2(slots(b, o, kind)?, |x: u64, y: u64| x ^ y)),
        ("not", 2) => slots(b, o, kind).map(|[d, a]| Some(map1(d, a, |x: u64| !x)))?,
        ("cnot", 2) => {
            let [d, a] = slots(b, o, kind)?;
            integers!(kind, T => map1(d, a, |x: T| (x == 0) as T))
        }
        ("shl" | "shr", 3) => {
            let at = [b.write(o[0], kind)?, b.read(o[1], kind)?, b.read(o[2], "u32")?];
            let left = name == "shl";
            integers!(kind, T => if left {
                map2(at, |x: T, n: u32| if n < T::BITS { x << n } else { 0 })
            } else {
                // Of a signed number what is left is its sign.
                map2(at, |x: T, n: u32| if n < T::BITS { x >> n } else if T::MIN != 0 { x >> (T::BITS - 1) } else { 0 })
            })
        }
        ("shf", 4) => {
            let at = slots::<4>(b, o, "b32")?;
            let (left, wrap) = (words.contains(&"l"), words.contains(&"wrap"));
            Some(map3(at, move |low: u32, high: u32, n: u32| {
                let n = if wrap { n & 31 } else { n.min(32) };
                let both = u64::from(high) << 32 | u64::from(low);
                if left { ((both << n) >> 32) as u32 } else { (both >> n) as u32 }
            }))
        }
        ("lop3", 5) => {
            let table = text::number(o[4], "b32").ok_or("no table")? as u32;
            Some(map3(slots(b, &o[..4], kind)?, move |x: u32, y: u32, z: u32| {
                let mut out = 0;
                for (entry, pattern) in (0..8u32).map(|entry| (entry, [entry >> 2 & 1, entry >> 1 & 1, entry & 1])) {
                    if table >> entry & 1 == 1 {
                        let is = |word: u32, bit: u32| if bit == 1 { word } else { !word };
                        out |= is(x, pattern[0]) & is(y, pattern[1]) & is(z, pattern[2]);
                    }
                }
                out
            }))
        }
        ("bfe", 4) => {
            let at = [b.write(o[0], kind)?, b.read(o[1], kind)?, b.read(o[2], "u32")?, b.read(o[3], "u32")?];
            let signed = kind.starts_with('s');
            Some(map3(at, move |x: u64, from: u32, length: u32| {
                let (from, length) = (from & 0xFF, length & 0xFF);
                let x = if bits == 32 {
                    if signed { x as i32 as i64 as i128 } else { i128::from(x as u32) }
                } else if signed {
                    i128::from(x as i64)
                } else {
                    i128::from(x)
                };
                if length == 0 {
                    return 0;
                }
                let end = (from + length).min(bits);
                let field = x >> from.min(bits);
                let kept = end.saturating_sub(from);
                if signed {
                    if kept == 0 {
                        return (x >> (bits - 1)) as u64;
                    }
                    let shift = 128 - kept;
                    (field << shift >> shift) as u64
                } else {
                    (field & ((1i128 << kept) - 1)) as u64
                }
            }))
        }
        ("bfi", 5) => {
            let (d, f, base) = (b.write(o[0], kind)?, b.read(o[1], kind)?, b.read(o[2], kind)?);
            let (from, length) = (b.read(o[3], "u32")?, b.read(o[4], "u32")?);
            Some(Action::Compute(Box::new(move |warp| {
                let [d, f, base, from, length] = [d, f, base, from, length].map(|slot| warp.slot(slot));
                each(warp.active, |lane| {
                    // SAFETY: as in `map1`.
                    unsafe {
                        let (from, length) = (((*from)[lane] & 0xFF) as u32, ((*length)[lane] & 0xFF) as u32);
                        let length = length.min(bits.saturating_sub(from));
                        let mask = (((1u128 << length) - 1) << from.min(64)) as u64;
                        let field = if from < 64 { (*f)[lane] << from } else { 0 };
                        (*d)[lane] = (*base)[lane] & !mask | field & mask;
                    }
                });
            })))
        }
        ("prmt", 4) => {
            if words.len() > 1 {
                return Ok(None);
            }
            Some(map3(slots(b, o, "b32")?, |x: u32, y: u32, selectors: u32| {
                let bytes = (u64::from(y) << 32 | u64::from(x)).to_le_bytes();
                let byte = |i: u32| {
                    let selector = selectors >> (4 * i);
                    let byte = bytes[(selector & 7) as usize];
                    if selector & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte }
                };
                u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
            }))
        }
        ("popc" | "clz" | "bfind" | "brev", 2) => {
            let d = b.write(o[0], if name == "brev" { kind } else { "u32" })?;
            let a = b.read(o[1], kind)?;
            let amount = words.contains(&"shiftamt");
            integers!(kind, T => match name {
                "popc" => map1(d, a, |x: T| x.count_ones()),
                "clz" => map1(d, a, |x: T| x.leading_zeros()),
                "brev" => map1(d, a, |x: T| x.reverse_bits()),
                _ => map1(d, a, move |x: T| {
                    let x = if (x as i128) < 0 { !x } else { x };
                    let place = if x == 0 { return u32::MAX } else { T::BITS - 1 - x.leading_zeros() };
                    if amount { T::BITS - 1 - place } else { place }
                }),
            })
        }
        _ => None,
    })
}

/// Yields the lanes for which something holds.
type Test = Box<dyn Fn(&mut Warp<'_>) -> u32 + Send + Sync>;

/// What two numbers are compared by, as a step that yields the lanes for which it holds.
fn comparison(op: &str, kind: &str, flush: bool, a: usize, b: usize) -> Option<Test> {
    macro_rules! compare {
        ($T:ty, $f:expr) => {{
            let f = $f;
            Some(Box::new(test::<$T>(a, b, f)) as Test)
        }};
    }
    if let Some(found) = integers!(kind, T => match op {
        "eq" => compare!(T, |x, y| x == y),
        "ne" => compare!(T, |x, y| x != y),
        "lt" | "lo" => compare!(T, |x, y| x < y),
        "le" | "ls" => compare!(T, |x, y| x <= y),
        "gt" | "hi" => compare!(T, |x, y| x > y),
        "ge" | "hs" => compare!(T, |x, y| x >= y),
        _ => None,
    }) {
        return found;
    }
    reals!(kind, T => {
        let w = move |x: T| if flush { x.flush().wide() } else { x.wide() };
        match op {
            "eq" => compare!(T, move |x, y| w(x) == w(y)),
            "ne" => compare!(T, move |x, y| w(x) < w(y) || w(x) > w(y)),
            "lt" => compare!(T, move |x, y| w(x) < w(y)),
            "le" => compare!(T, move |x, y| w(x) <= w(y)),
            "gt" => compare!(T, move |x, y| w(x) > w(y)),
            "ge" => compare!(T, move |x, y| w(x) >= w(y)),
            "equ" => compare!(T, move |x, y| !(w(x) < w(y) || w(x) > w(y))),
            "neu" => compare!(T, move |x, y| w(x) != w(y)),
            "ltu" => compare!(T, move |x, y| w(x).partial_cmp(&w(y)).is_none_or(Ordering::is_lt)),
            "leu" => compare!(T, move |x, y| w(x).partial_cmp(&w(y)).is_none_or(Ordering::is_le)),
            "gtu" => compare!(T, move |x, y| w(x).partial_cmp(&w(y)).is_none_or(Ordering::is_gt)),
            "geu" => compare!(T, move |x, y| w(x).partial_cmp(&w(y)).is_none_or(Ordering::is_ge)),
            "num" => compare!(T, move |x, y| !w(x).is_nan() && !w(y).is_nan()),
            "nan" => compare!(T, move |x, y| w(x).is_nan() || w(y).is_nan()),
            _ => None,
        }
    })
    .flatten()
}

fn choice(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    let flush = words.contains(&"ftz");
    match (name, o.len()) {
        ("setp", 3 | 4) => {
            let (x, y) = (b.read(o[1], kind)?, b.read(o[2], kind)?);
            let third = match o.get(3) {
                Some(text) => {
                    let (negated, text) = text.strip_prefix('!').map_or((false, *text), |text| (true, text));
                    Some((b.predicate(text)?, negated))
                }
                None => None,
            };
            let join = words.get(1).copied().unwrap_or_default();
            let (p, q) = match o[0].split_once('|') {
                Some((p, q)) => (b.write(p.trim(), "pred")?, Some(b.write(q.trim(), "pred")?)),
                None => (b.write(o[0], "pred")?, None),
            };
            let Some(compare) = comparison(words[0], kind, flush, x, y) else { return Ok(None) };
            let joined: fn(u32, u32) -> u32 = match (third, join) {
                (None, _) => |x, _| x,
                (_, "and") => |x, y| x & y,
                (_, "or") => |x, y| x | y,
                (_, "xor") => |x, y| x ^ y,
                _ => return Ok(None),
            };
            Ok(Some(Action::Compute(Box::new(move |warp| {
                let holds = compare(warp);
                let third =
                    third.map_or(0, |(slot, negated)| if negated { !warp.holds(slot) } else { warp.holds(slot) });
                if let Some(q) = q {
                    warp.set(q, joined(!holds, third));
                }
                warp.set(p, joined(holds, third));
            }))))
        }
        ("set", 3) => {
            let to = words[words.len() - 2];
            let (d, x, y) = (b.write(o[0], to)?, b.read(o[1], kind)?, b.read(o[2], kind)?);
            let Some(compare) = comparison(words[0], kind, flush, x, y) else { return Ok(None) };
            let one = match to {
                "f32" => u64::from(1f32.to_bits()),
                "f16" => f16::ONE.to_bits().into(),
                "bf16" => bf16::ONE.to_bits().into(),
                _ => u32::MAX.into(),
            };
            Ok(Some(Action::Compute(Box::new(move |warp| {
                let holds = compare(warp);
                let d = warp.slot(d);
                // SAFETY: as in `map1`.
                each(warp.active, |lane| unsafe { (*d)[lane] = if holds >> lane & 1 == 1 { one } else { 0 } });
            }))))
        }
        ("selp", 4) => {
            let (d, x, y) = (b.write(o[0], kind)?, b.read(o[1], kind)?, b.read(o[2], kind)?);
            let p = b.predicate(o[3])?;
            Ok(Some(Action::Compute(Box::new(move |warp| {
                let (d, x, y, holds) = (warp.slot(d), warp.slot(x), warp.slot(y), warp.holds(p));
                // SAFETY: as in `map1`.
                each(warp.active, |lane| unsafe {
                    (*d)[lane] = if holds >> lane & 1 == 1 { (*x)[lane] } else { (*y)[lane] }
                });
            }))))
        }
        ("slct", 4) => {
            let to = words[words.len() - 2];
            let at = [b.write(o[0], to)?, b.read(o[1], to)?, b.read(o[2], to)?, b.read(o[3], kind)?];
            Ok(match kind {
                "s32" => Some(map3(at, |x: u64, y: u64, z: i32| if z >= 0 { x } else { y })),
                "f32" => Some(map3(at, |x: u64, y: u64, z: f32| if z >= 0.0 { x } else { y })),
                _ => None,
            })
        }
        ("testp", 2) => {
            let (p, x) = (b.write(o[0], "pred")?, b.read(o[1], kind)?);
            let f: fn(f64) -> bool = match words[0] {
                "finite" => f64::is_finite,
                "infinite" => f64::is_infinite,
                "number" => |x| !x.is_nan(),
                "notanumber" => f64::is_nan,
                _ => return Ok(None),
            };
            Ok(reals!(kind, T => {
                let holds = test::<T>(x, x, move |x, _| f(x.wide()));
                Action::Compute(Box::new(move |warp| { let lanes = holds(warp); warp.set(p, lanes) }))
            }))
        }
        _ => Ok(None),
    }
}

fn movement(b: &mut Builder<'_>, kind: &str, o: &[&str]) -> Found {
    let [to, from] = o else { return Ok(None) };
    if kind == "pred" {
        let (d, a) = (b.predicate(to)?, b.predicate(from)?);
        return Ok(Some(Action::Compute(Box::new(move |warp| {
            let lanes = warp.holds(a);
            warp.set(d, lanes);
        }))));
    }
    let bytes = size_of_kind(kind)?;
    let list = |text: &str| -> Option<Vec<String>> {
        let inner = text.strip_prefix('{')?.strip_suffix('}')?;
        Some(inner.split(',').map(|text| text.trim().to_owned()).collect())
    };
    let part = |n: usize| {
        Ok::<_, String>(match bytes / n {
            1 => "b8",
            2 => "b16",
            4 => "b32",
            8 => "b64",
            _ => return Err("vectors of this kind are not supported".to_owned()),
        })
    };
    if let Some(parts) = list(from) {
        let kind = part(parts.len())?;
        let bits = 8 * bytes / parts.len();
        let d = b.write(to, if bytes == 8 { "b64" } else { "b32" })?;
        let parts = parts.iter().map(|text| b.read(text, kind)).collect::<Result<Vec<_>, _>>()?;
        let mask = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
        return Ok(Some(Action::Compute(Box::new(move |warp| {
            let d = warp.slot(d);
            let parts: Vec<_> = parts.iter().map(|&slot| warp.slot(slot)).collect();
            each(warp.active, |lane| {
                // SAFETY: as in `map1`.
                unsafe {
                    let joined =
                        parts.iter().enumerate().fold(0, |all, (i, part)| all | ((**part)[lane] & mask) << (i * bits));
                    (*d)[lane] = joined;
                }
            });
        }))));
    }
    if let Some(parts) = list(to) {
        let kind = part(parts.len())?;
        let bits = 8 * bytes / parts.len();
        let a = b.read(from, if bytes == 8 { "b64" } else { "b32" })?;
        let parts = parts.iter().map(|text| b.write(text, kind)).collect::<Result<Vec<_>, _>>()?;
        let mask = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
        return Ok(Some(Action::Compute(Box::new(move |warp| {
            let a = warp.slot(a);
            let parts: Vec<_> = parts.iter().map(|&slot| warp.slot(slot)).collect();
            each(warp.active, |lane| {
                // SAFETY: as in `map1`.
                unsafe {
                    let whole = (*a)[lane];
                    for (i, part) in parts.iter().enumerate() {
                        (**part)[lane] = whole >> (i * bits) & mask;
                    }
                }
            });
        }))));
    }
    let [d, a] = slots(b, o, kind)?;
    Ok(Some(map1(d, a, |x: u64| x)))
}

/// Cuts an integer to a type, and extends it as that type is to the lanes' 64 bits.
fn narrow(kind: &str) -> impl Fn(i128) -> u64 + use<> {
    let bits = 8 * text::size_of(kind).unwrap_or(8) as u32;
    let signed = kind.starts_with('s');
    move |x: i128| {
        let shift = 64 - bits;
        let low = (x as u64) << shift;
        if signed { ((low as i64) >> shift) as u64 } else { low >> shift }
    }
}

fn bounds(kind: &str) -> (i128, i128) {
    let bits = 8 * text::size_of(kind).unwrap_or(8) as u32;
    if kind.starts_with('s') { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn is_integer(kind: &str) -> bool {
    kind.starts_with(['u', 's']) || ["b8", "b16", "b32", "b64"].contains(&kind)
}

fn to_integral(words: &[&str]) -> Option<fn(f64) -> f64> {
    words.iter().find_map(|word| {
        Some(match *word {
            "rni" => f64::round_ties_even as fn(f64) -> f64,
            "rzi" => f64::trunc,
            "rmi" => f64::floor,
            "rpi" => f64::ceil,
            _ => return None,
        })
    })
}

fn convert(b: &mut Builder<'_>, words: &[&str], o: &[&str]) -> Found {
    let [.., to, from] = words else { return Ok(None) };
    let (to, from) = (*to, *from);
    let manner = Manner::of(words);
    let relu = words.contains(&"relu");
    if let (true, [d, high, low]) = (to.ends_with("x2"), o) {
        let at = [b.write(d, "b32")?, b.read(high, from)?, b.read(low, from)?];
        let to = to.trim_end_matches("x2");
        let clip = move |x: f32| if relu && x < 0.0 { 0.0 } else { x };
        return Ok(reals!(to, T => map2(at, move |high: f32, low: f32| {
            let half = |x: f32| T::narrow(clip(x).into(), 0.0, manner.round).bits() as u32 & 0xFFFF;
            half(high) << 16 | half(low)
        })));
    }
    let [d, a] = o else { return Ok(None) };
    let (d, a) = (b.write(d, to)?, b.read(a, from)?);
    let saturating = manner.saturate;
    if is_integer(from) && is_integer(to) {
        let (low, high) = bounds(to);
        let out = narrow(to);
        return Ok(integers!(from, S => if saturating {
            map1(d, a, move |x: S| out((x as i128).clamp(low, high)))
        } else {
            map1(d, a, move |x: S| out(x as i128))
        }));
    }
    if is_integer(from) {
        return Ok(reals!(to, T => integers!(from, S => map1(d, a, move |x: S| manner.give(of_integer::<T>(x as i128, manner.round))))).flatten());
    }
    if is_integer(to) {
        let (low, high) = bounds(to);
        let out = narrow(to);
        let bits = 8 * size_of_kind(to)?;
        let special = from == "f64" || bits == 64;
        let Some(whole) = to_integral(words) else { return Ok(None) };
        return Ok(reals!(from, S => map1(d, a, move |x: S| {
            let x = manner.take(x).wide();
            if x.is_nan() {
                return if special { 1u64 << (bits - 1) } else { 0 };
            }
            out((whole(x) as i128).clamp(low, high))
        })));
    }
    if to == "tf32" {
        return Ok(Some(map1(d, a, |x: f32| crate::numbers::tf32(x))));
    }
    let whole = to_integral(words);
    Ok(reals!(to, T => reals!(from, S => map1(d, a, move |x: S| {
        let x = manner.take(x).wide();
        let x = whole.map_or(x, |whole| whole(x));
        let x = if relu && x < 0.0 { 0.0 } else { x };
        manner.give(T::narrow(x, 0.0, manner.round))
    })))
    .flatten())
}

fn space_address(b: &mut Builder<'_>, words: &[&str], kind: &str, o: &[&str]) -> Found {
    let [d, a] = slots(b, o, kind)?;
    let base = match () {
        () if words.iter().any(|word| word.starts_with("shared")) => SHARED,
        () if words.contains(&"local") => LOCAL,
        () if words.iter().any(|word| word.starts_with("param")) => PARAMETERS,
        () => 0,
    };
    Ok(Some(if words.contains(&"to") {
        map1(d, a, move |x: u64| x.wrapping_sub(base))
    } else {
        map1(d, a, move |x: u64| x.wrapping_add(base))
    }))
}

fn space(words: &[&str], address: &Address) -> Space {
    let has = |word: &str| words.iter().any(|found| *found == word || found.split("::").next() == Some(word));
    match () {
        () if has("param") && address.passed => Space::Local,
        () if has("param") => Space::Parameters,
        () if has("global") || has("const") => Space::Global,
        () if has("shared") => Space::Shared,
        () if has("local") => Space::Local,
        () => Space::Generic,
    }
}

/// A number of so many bits as memory holds it.
trait Raw: Copy + Send + Sync + 'static {
    fn wide(self) -> u64;
    fn signed(self) -> u64;
    fn of(x: u64) -> Self;
}

macro_rules! raw {
    ($($U:ty as $S:ty),*) => {$(
        impl Raw for $U {
            #[inline(always)]
            fn wide(self) -> u64 { self.into() }
            #[inline(always)]
            fn signed(self) -> u64 { self as $S as i64 as u64 }
            #[inline(always)]
            fn of(x: u64) -> Self { x as $U }
        }
    )*};
}
raw!(u8 as i8, u16 as i16, u32 as i32, u64 as i64);

#[inline(always)]
fn at(warp: &mut Warp<'_>, address: &Address, lane: usize) -> u64 {
    // SAFETY: a slot of this warp.
    unsafe { ((*warp.slot(address.slot))[lane] & address.mask).wrapping_add(address.offset) }
}

fn load<B: Raw>(to: Vec<usize>, address: Address, space: Space, signed: bool) -> Access {
    let bytes = size_of::<B>() * to.len();
    Box::new(move |warp| {
        let mut outcome = Ok(());
        let active = warp.active;
        each(active, |lane| {
            let address = at(warp, &address, lane);
            match warp.place(space, lane, address, bytes) {
                Ok(place) => {
                    for (i, &slot) in to.iter().enumerate() {
                        // SAFETY: so many bytes from there are live.
                        let value = unsafe { place.cast::<B>().add(i).read_unaligned() };
                        // SAFETY: a slot of this warp.
                        unsafe { (*warp.slot(slot))[lane] = if signed { value.signed() } else { value.wide() } };
                    }
                }
                Err(failure) => outcome = Err(failure),
            }
        });
        outcome
    })
}

fn store<B: Raw>(from: Vec<usize>, address: Address, space: Space) -> Access {
    let bytes = size_of::<B>() * from.len();
    Box::new(move |warp| {
        let mut outcome = Ok(());
        let active = warp.active;
        each(active, |lane| {
            let address = at(warp, &address, lane);
            match warp.place(space, lane, address, bytes) {
                Ok(place) => {
                    for (i, &slot) in from.iter().enumerate() {
                        // SAFETY: as in `load`.
                        unsafe { place.cast::<B>().add(i).write_unaligned(B::of((*warp.slot(slot))[lane])) };
                    }
                }
                Err(failure) => outcome = Err(failure),
            }
        });
        outcome
    })
}

fn memory(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    let [first, second] = o else { return Ok(None) };
    let (value, address) = if name == "st" { (*second, *first) } else { (*first, *second) };
    let address = b.address(address)?;
    let space = space(words, &address);
    let names: Vec<&str> = match value.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        Some(list) => list.split(',').map(str::trim).collect(),
        None => vec![value],
    };
    if !matches!(names.len(), 1 | 2 | 4 | 8) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for name_of in names {
        found.push(if name == "st" { b.read(name_of, kind)? } else { b.write(name_of, kind)? });
    }
    let signed = kind.starts_with('s');
    Ok(Some(Action::Access(match (name, size_of_kind(kind)?) {
        ("st", 1) => store::<u8>(found, address, space),
        ("st", 2) => store::<u16>(found, address, space),
        ("st", 4) => store::<u32>(found, address, space),
        ("st", 8) => store::<u64>(found, address, space),
        (_, 1) => load::<u8>(found, address, space, signed),
        (_, 2) => load::<u16>(found, address, space, signed),
        (_, 4) => load::<u32>(found, address, space, signed),
        (_, 8) => load::<u64>(found, address, space, signed),
        _ => return Ok(None),
    })))
}

/// Replaces what is at an aligned place by `f` of it, whatever other threads do, and gives what was there.
fn replace(place: *mut u8, bytes: usize, mut f: impl FnMut(u64) -> u64) -> u64 {
    // SAFETY: the place is live and aligned, as `Warp::place` has found.
    unsafe {
        match bytes {
            2 => AtomicU16::from_ptr(place.cast())
                .fetch_update(SeqCst, SeqCst, |x| Some(f(x.into()) as u16))
                .unwrap_or_else(|x| x)
                .into(),
            4 => AtomicU32::from_ptr(place.cast())
                .fetch_update(SeqCst, SeqCst, |x| Some(f(x.into()) as u32))
                .unwrap_or_else(|x| x)
                .into(),
            _ => AtomicU64::from_ptr(place.cast()).fetch_update(SeqCst, SeqCst, |x| Some(f(x))).unwrap_or_else(|x| x),
        }
    }
}

fn atomic(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    type Update = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;
    let (to, rest) = if name == "atom" { (Some(o[0]), &o[1..]) } else { (None, o) };
    let operations = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
    let Some(operation) = words.iter().find(|word| operations.contains(word)) else { return Ok(None) };
    let [address, operands @ ..] = rest else { return Ok(None) };
    let address = b.address(address)?;
    let space = space(words, &address);
    let x = b.read(operands.first().ok_or("no operand")?, kind)?;
    let y = match operands.get(1) {
        Some(text) => b.read(text, kind)?,
        None => x,
    };
    let to = match to {
        Some(to) => Some(b.write(to, kind)?),
        None => None,
    };
    let bytes = size_of_kind(kind)?;
    let flush = kind == "f32" && !words.contains(&"noftz") && space == Space::Shared;
    let update: Option<Update> = match *operation {
        "exch" => Some(Box::new(|_, x, _| x)),
        "cas" => {
            let mask = if bytes == 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
            Some(Box::new(move |old, compare, new| if old & mask == compare & mask { new } else { old }))
        }
        "and" => Some(Box::new(|old: u64, x: u64, _: u64| old & x)),
        "or" => Some(Box::new(|old: u64, x: u64, _: u64| old | x)),
        "xor" => Some(Box::new(|old: u64, x: u64, _: u64| old ^ x)),
        "inc" => Some(Box::new(|old: u64, x: u64, _: u64| if old as u32 >= x as u32 { 0 } else { old + 1 })),
        "dec" => Some(Box::new(
            |old: u64, x: u64, _: u64| if old as u32 == 0 || old as u32 > x as u32 { x } else { old - 1 },
        )),
        operation => {
            let real = reals!(kind, T => match operation {
                "add" => Box::new(move |old: u64, x: u64, _: u64| {
                    let sum = T::of(old).add(T::of(x), Round::Nearest);
                    (if flush { sum.flush() } else { sum }).bits()
                }) as Update,
                "min" => Box::new(|old: u64, x: u64, _: u64| least(T::of(old), T::of(x), false).bits()),
                _ => Box::new(|old: u64, x: u64, _: u64| negate(least(negate(T::of(old)), negate(T::of(x)), false)).bits()),
            });
            real.or_else(|| {
                integers!(kind, T => match operation {
                    "add" => Box::new(|old: u64, x: u64, _: u64| (old as T).wrapping_add(x as T) as u64) as Update,
                    "min" => Box::new(|old: u64, x: u64, _: u64| (old as T).min(x as T) as u64),
                    _ => Box::new(|old: u64, x: u64, _: u64| (old as T).max(x as T) as u64),
                })
            })
        }
    };
    let Some(update) = update else { return Ok(None) };
    Ok(Some(Action::Access(Box::new(move |warp| {
        let mut outcome = Ok(());
        let active = warp.active;
        each(active, |lane| {
            let address = at(warp, &address, lane);
            match warp.place(space, lane, address, bytes) {
                Ok(place) => {
                    // SAFETY: slots of this warp.
                    let (x, y) = unsafe { ((*warp.slot(x))[lane], (*warp.slot(y))[lane]) };
                    let old = replace(place, bytes, |old| update(old, x, y));
                    if let Some(to) = to {
                        // SAFETY: as above.
                        unsafe { (*warp.slot(to))[lane] = old };
                    }
                }
                Err(failure) => outcome = Err(failure),
            }
        });
        outcome
    }))))
}

/// `cp.async` from global to shared memory: done at once, so its groups are always complete.
fn copy(b: &mut Builder<'_>, words: &[&str], o: &[&str]) -> Found {
    if words.contains(&"commit_group") || words.contains(&"wait_group") || words.contains(&"wait_all") {
        return Ok(Some(Action::Compute(Box::new(|_| ()))));
    }
    let ([to, from, bytes], true) = (&o[..o.len().min(3)], words.contains(&"async") && !words.contains(&"bulk")) else {
        return Ok(None);
    };
    let (to, from) = (b.address(to)?, b.address(from)?);
    let bytes = text::number(bytes, "b32").ok_or("no number of bytes")? as usize;
    let read = match o.get(3) {
        Some(text) => b.read(text, "u32")?,
        None => b.constant(bytes as u64),
    };
    Ok(Some(Action::Access(Box::new(move |warp| {
        let mut outcome = Ok(());
        let active = warp.active;
        each(active, |lane| {
            let (to, from) = (at(warp, &to, lane), at(warp, &from, lane));
            // SAFETY: a slot of this warp.
            let read = unsafe { (*warp.slot(read))[lane] as u32 as usize }.min(bytes);
            let mut one = || -> Outcome {
                let to = warp.place(Space::Shared, lane, to, bytes)?;
                // SAFETY: both are live, and lie in different spaces.
                unsafe {
                    to.write_bytes(0, bytes);
                    if read > 0 {
                        let from = warp.place(Space::Global, lane, from, bytes)?;
                        std::ptr::copy_nonoverlapping(from, to, read);
                    }
                }
                Ok(())
            };
            if let Err(failure) = one() {
                outcome = Err(failure);
            }
        });
        outcome
    }))))
}

/// What the lanes of a warp do together.
fn together(b: &mut Builder<'_>, name: &str, words: &[&str], kind: &str, o: &[&str]) -> Found {
    match (name, o) {
        ("activemask", [d]) => {
            let d = b.write(d, "b32")?;
            Ok(Some(Action::Compute(Box::new(move |warp| {
                let (d, active) = (warp.slot(d), warp.active);
                // SAFETY: as in `map1`.
                each(active, |lane| unsafe { (*d)[lane] = active.into() });
            }))))
        }
        ("shfl", [to, value, by, clamp, members]) => {
            let (to, inside) = match to.split_once('|') {
                Some((to, p)) => (to.trim(), Some(b.write(p.trim(), "pred")?)),
                None => (*to, None),
            };
            let d = b.write(to, "b32")?;
            let [value, by, clamp, members] = [value, by, clamp, members].map(|text| b.read(text, "b32"));
            let (value, by, clamp, members) = (value?, by?, clamp?, members?);
            let mode = ["up", "down", "bfly", "idx"].iter().position(|mode| words.contains(mode)).ok_or("no mode")?;
            Ok(Some(Action::Meet(
                members,
                Box::new(move |warp| {
                    let active = warp.active;
                    // SAFETY: slots of this warp.
                    let [values, by, clamp] = [value, by, clamp].map(|slot| unsafe { *warp.slot(slot) });
                    let (mut found, mut valid, mut lost) = ([0; 32], 0u32, false);
                    each(active, |lane| {
                        let (lane_number, by, clamp) = (lane as i64, (by[lane] & 31) as i64, clamp[lane] as i64);
                        let (segment, most) = (clamp >> 8 & 31, clamp & 31);
                        let (least, most) = (lane_number & segment, lane_number & segment | most & !segment & 31);
                        let (from, holds) = match mode {
                            0 => (lane_number - by, lane_number - by >= most),
                            1 => (lane_number + by, lane_number + by <= most),
                            2 => (lane_number ^ by, lane_number ^ by <= most),
                            _ => (least | by & !segment, least | by & !segment <= most),
                        };
                        let from = if holds { from } else { lane_number };
                        lost |= active >> from & 1 == 0;
                        found[lane] = values[from as usize];
                        valid |= u32::from(holds) << lane;
                    });
                    if lost {
                        return fail(LAUNCH_FAILED, "a lane reads from one that does not take part");
                    }
                    let d = warp.slot(d);
                    // SAFETY: as in `map1`.
                    each(active, |lane| unsafe { (*d)[lane] = found[lane] });
                    if let Some(p) = inside {
                        warp.set(p, valid);
                    }
                    Ok(())
                }),
            )))
        }
        ("vote", [to, predicate, members]) => {
            let (negated, predicate) = predicate.strip_prefix('!').map_or((false, *predicate), |text| (true, text));
            let (p, members) = (b.predicate(predicate)?, b.read(members, "b32")?);
            let ballot = words.contains(&"ballot");
            let d = b.write(to, if ballot { "b32" } else { "pred" })?;
            let mode = ["all", "any", "uni", "ballot"].iter().position(|mode| words.contains(mode)).ok_or("no mode")?;
            Ok(Some(Action::Meet(
                members,
                Box::new(move |warp| {
                    let active = warp.active;
                    let lanes = active & if negated { !warp.holds(p) } else { warp.holds(p) };
                    let holds = [lanes == active, lanes != 0, lanes == active || lanes == 0, false][mode];
                    if ballot {
                        let d = warp.slot(d);
                        // SAFETY: as in `map1`.
                        each(active, |lane| unsafe { (*d)[lane] = lanes.into() });
                    } else {
                        warp.set(d, if holds { u32::MAX } else { 0 });
                    }
                    Ok(())
                }),
            )))
        }
        ("redux", [to, value, members]) => {
            let (d, value, members) = (b.write(to, kind)?, b.read(value, kind)?, b.read(members, "b32")?);
            let operation = words
                .iter()
                .find(|word| ["add", "min", "max", "and", "or", "xor"].contains(word))
                .ok_or("no operation")?;
            let f = integers!(kind, T => match *operation {
                "add" => (|x, y| (x as T).wrapping_add(y as T) as u64) as fn(u64, u64) -> u64,
                "min" => |x, y| (x as T).min(y as T) as u64,
                "max" => |x, y| (x as T).max(y as T) as u64,
                "and" => |x, y| x & y,
                "or" => |x, y| x | y,
                _ => |x, y| x ^ y,
            });
            let Some(f) = f else { return Ok(None) };
            Ok(Some(Action::Meet(
                members,
                Box::new(move |warp| {
                    let active = warp.active;
                    let (d, value) = (warp.slot(d), warp.slot(value));
                    let mut total = None;
                    // SAFETY: as in `map1`.
                    each(active, |lane| unsafe {
                        total = Some(total.map_or((*value)[lane], |so_far| f(so_far, (*value)[lane])))
                    });
                    // SAFETY: as in `map1`.
                    each(active, |lane| unsafe { (*d)[lane] = total.unwrap_or_default() });
                    Ok(())
                }),
            )))
        }
        ("match", [to, value, members]) if words.contains(&"any") => {
            let (d, value, members) = (b.write(to, "b32")?, b.read(value, kind)?, b.read(members, "b32")?);
            let mask = if kind == "b64" { u64::MAX } else { u32::MAX.into() };
            Ok(Some(Action::Meet(
                members,
                Box::new(move |warp| {
                    let active = warp.active;
                    // SAFETY: as in `map1`.
                    let values = unsafe { *warp.slot(value) };
                    let d = warp.slot(d);
                    each(active, |lane| {
                        let mut same = 0u64;
                        each(active, |other| same |= u64::from(values[lane] & mask == values[other] & mask) << other);
                        // SAFETY: as in `map1`.
                        unsafe { (*d)[lane] = same };
                    });
                    Ok(())
                }),
            )))
        }
        _ => Ok(None),
    }
}

fn barrier(b: &mut Builder<'_>, words: &[&str], o: &[&str]) -> Found {
    match (words, o) {
        (["warp", "sync"], [members]) => {
            let members = b.read(members, "b32")?;
            Ok(Some(Action::Meet(members, Box::new(|_| Ok(())))))
        }
        (["sync"] | ["sync", "aligned"] | ["cta", "sync"] | ["cta", "sync", "aligned"], ["0"]) => {
            Ok(Some(Action::Barrier))
        }
        _ => Ok(None),
    }
}
