//! A defense in plain Rust, of the standard library alone: the protocol is nobody's language's.
//!
//! `rustc -O crates/victim/examples/plain/main.rs -o plain`, and in a pipeline `model = { name = "program", command =
//! ["./plain", "network", "10"] }`, or `defense = { name = "program", command = ["./plain", "transformation"] }`. The network
//! is a quadratic one behind uniform noise, the transformation squares noisy pixels; both draw by Philox4x32-10.

mod play;
mod wire;

#[expect(clippy::print_stdout, reason = "what a program prints must not disturb the protocol")]
fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let classes = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(10);
    let mut player = play::Player::new(words.first().is_some_and(|word| word == "transformation"), classes);
    let mut pipe = wire::Pipe::open();
    println!("ready");
    while let Some(request) = pipe.read() {
        if pipe.write(&player.answer(&request)).is_err() {
            return;
        }
    }
}
