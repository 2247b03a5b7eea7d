#!/usr/bin/env bash
# candle-nn's LayerNorm and softmax_last_dim answer right and cut the gradient without a word.
#
# Asked for gradients, `backward` returns Ok, and the input has none: an attack on a transformer of candle-transformers finds
# a flat loss and "fails". The same functions composed of tensor operations pass the right gradient. Not contiguous inputs
# take another path inside LayerNorm, so the gradient also comes and goes with the memory layout.
#
# Exits with 0 while candle-nn 0.11.1 behaves so, and with 1 once it does not.
set -euo pipefail

VERSION=0.11.1
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
mkdir "$FOLDER/src"

cat > "$FOLDER/Cargo.toml" <<TOML
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=$VERSION"
candle-nn = "=$VERSION"

[workspace]
TOML

cat > "$FOLDER/src/main.rs" <<'RUST'
use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{LayerNorm, Module, ops};

/// The largest gradient that reaches the input, and the outputs; none where nothing reaches it.
fn asked(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(Option<f32>, Vec<f32>)> {
    let x = Var::from_tensor(x)?;
    let y = f(x.as_tensor())?;
    let weights = Tensor::arange(0f32, y.elem_count() as f32, &Device::Cpu)?.reshape(y.shape())?;
    let gradients = (&y * weights)?.sum_all()?.backward()?;
    let most = gradients.get(x.as_tensor()).map(|g| g.abs()?.max_all()?.to_scalar()).transpose()?;
    Ok((most, y.flatten_all()?.to_vec1()?))
}

fn main() -> Result<()> {
    let x = Tensor::new(&[[0.3f32, -1.2, 0.8, 0.1], [1.5, 0.2, -0.7, 0.4]], &Device::Cpu)?;
    let ones = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?;
    let norm = LayerNorm::new(ones.clone(), ones.zeros_like()?, 1e-5);
    let plain = |x: &Tensor| {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?)
    };
    let cases = [
        ("LayerNorm", asked(&x, |x| norm.forward(x))?, asked(&x, plain)?),
        // The same numbers, columns first in memory.
        ("LayerNorm, not contiguous", asked(&x, |x| norm.forward(&x.t()?.contiguous()?.t()?))?, asked(&x, plain)?),
        ("softmax_last_dim", asked(&x, ops::softmax_last_dim)?, asked(&x, |x| ops::softmax(x, D::Minus1))?),
    ];
    println!("{:<28}{:>24}{:>24}{:>20}", "largest gradient of x", "as it comes", "of plain operations", "outputs differ by");
    let mut cut = Vec::new();
    for (name, (fused, y), (composed, z)) in cases {
        let far = y.iter().zip(&z).map(|(y, z)| (y - z).abs()).fold(0.0, f32::max);
        let text = |g: Option<f32>| g.map_or("none".to_owned(), |g| format!("{g:.4}"));
        println!("{name:<28}{:>24}{:>24}{far:>20.1e}", text(fused), text(composed));
        cut.push(fused.is_none() && composed.is_some_and(|g| g > 0.01) && far < 1e-5);
    }
    println!("expected: the two columns are equal in every row");
    if cut != [true, false, true] {
        println!("seen: candle-nn no longer cuts what it did");
        std::process::exit(1);
    }
    println!("seen: no gradient at all, and no error, where the input is contiguous");
    Ok(())
}
RUST

echo "candle-nn $VERSION"
CARGO_TARGET_DIR="$FOLDER/target" cargo run --quiet --manifest-path "$FOLDER/Cargo.toml"
