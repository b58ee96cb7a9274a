//! `node completions SHELL` and `node man`: what a shell and `man` know of the commands, made from
//! the same definitions that parse them.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output};

/// Flags of `node completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints a completion script for the name that the program was started under.
pub fn completions(args: &CompletionsArgs) {
    let name = program_name();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), name, &mut text);
    output::text(String::from_utf8_lossy(&text).trim_end());
}

/// Prints the manual page: all commands on one page.
///
/// # Errors
/// Never in practice.
pub fn man() -> anyhow::Result<()> {
    let mut text = Vec::new();
    let mut command = Cli::command().name(program_name());
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        section(sub, &[], &mut text)?;
    }
    output::text(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

/// One command, and those below it.
fn section(command: &clap::Command, above: &[&str], text: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut path = above.to_vec();
    path.push(command.get_name());
    if path.first() == Some(&"help") {
        return Ok(());
    }
    text.extend_from_slice(format!("\n.SH COMMAND {}\n", path.join(" ").to_uppercase()).as_bytes());
    let man = clap_mangen::Man::new(command.clone());
    man.render_description_section(text)?;
    man.render_options_section(text)?;
    for sub in command.get_subcommands() {
        section(sub, &path, text)?;
    }
    Ok(())
}

/// `node` in the repository, `souk` where it is installed.
fn program_name() -> String {
    let first = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&first).file_name();
    let name = name.and_then(std::ffi::OsStr::to_str).unwrap_or("node");
    name.to_owned()
}
