//! A compiled executor of frozen networks: gradient queries and votes on the CPU.

mod compile;
mod execute;
mod kernels;
mod lower;
mod memory;
mod plan;
mod simd;
#[cfg(test)]
mod tests;

pub use plan::Plan;
pub use simd::Isa;

#[doc(hidden)]
#[allow(missing_docs, clippy::all)]
pub mod prof {
    use std::sync::Mutex; use std::collections::BTreeMap; use std::time::Instant;
    pub static ON: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    pub static M: Mutex<BTreeMap<String,(f64,usize)>> = Mutex::new(BTreeMap::new());
    pub struct T(Option<(String, Instant)>);
    impl T { pub fn new(f: impl Fn()->String) -> T { if ON.load(std::sync::atomic::Ordering::Relaxed) { T(Some((f(), Instant::now()))) } else { T(None) } } }
    impl Drop for T { fn drop(&mut self) { if let Some((s,i)) = self.0.take() { let e=i.elapsed().as_secs_f64(); let mut m=M.lock().unwrap(); let x=m.entry(s).or_insert((0.0,0)); x.0+=e; x.1+=1; } } }
    pub fn dump() { let m=M.lock().unwrap(); let mut v: Vec<_>=m.iter().collect(); v.sort_by(|a,b| b.1.0.total_cmp(&a.1.0)); let tot: f64=v.iter().map(|x| x.1.0).sum(); for (s,(t,n)) in v { println!("{:9.3} ms {:6} calls {:5.1}% {s}", t*1e3, n, 100.0*t/tot); } println!("total {:.3} ms", tot*1e3); }
}
