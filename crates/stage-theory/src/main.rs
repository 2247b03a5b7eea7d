//! The stage `theory` on the command line.

fn main() -> std::process::ExitCode {
    stage::main::<stage_theory::Theory>()
}
