//! Images to a Parquet table: embedded, Parquet, ImageFolder, or the hub.

fn main() -> std::process::ExitCode {
    stage::main::<stage_sample::Sample>()
}
