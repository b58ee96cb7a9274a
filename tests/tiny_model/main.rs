//! Writes a small random model of six layers, which says visible ASCII: `tiny_model FOLDER`.

use std::path::PathBuf;
use std::process::ExitCode;

#[path = "mod.rs"]
mod tiny_model;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("tiny_model FOLDER");
        return ExitCode::from(64);
    };
    if let Err(error) = std::fs::create_dir_all(&folder) {
        eprintln!("{}: {error}", folder.display());
        return ExitCode::FAILURE;
    }
    let model = tiny_model::TinyModel {
        is_legible: true,
        ..Default::default()
    };
    model.write(&folder);
    ExitCode::SUCCESS
}
