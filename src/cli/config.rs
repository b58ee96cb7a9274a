//! `node config check|show`: whether the configuration is right, and what it comes to.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::GlobalArgs;
use super::output::{self, Output};

/// Flags of `node config`.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Check the configuration, naming every problem
    Check,
    /// Print the effective configuration
    Show {
        /// Also print where each value comes from
        #[arg(long)]
        origin: bool,
    },
}

/// Checks or prints the configuration; problems end with exit code 64.
pub fn run(global: &GlobalArgs, out: &Output, args: &ConfigArgs) -> anyhow::Result<()> {
    let loaded = global.load(Vec::new())?;
    match args.what {
        What::Check => {
            let file = loaded.file.as_ref().map(|path| path.display().to_string());
            if out.json {
                output::json(&json!({ "ok": true, "file": file }));
            } else {
                output::text(&match file {
                    Some(file) => format!("{file} is right"),
                    None => "there is no config file; the defaults are used".to_owned(),
                });
            }
        }
        What::Show { origin } if out.json => {
            let mut keys = Map::new();
            for (path, value, from) in loaded.entries() {
                let value = serde_json::to_value(value)?;
                let entry = if origin {
                    json!({ "value": value, "origin": from.to_string() })
                } else {
                    value
                };
                keys.insert(path, entry);
            }
            output::json(&Value::Object(keys));
        }
        What::Show { origin: true } => {
            let rows = loaded
                .entries()
                .into_iter()
                .map(|(path, value, from)| vec![path, value.to_string(), from.to_string()]);
            output::text(&output::table(
                &["KEY", "VALUE", "FROM"],
                &[],
                rows.collect(),
            ));
        }
        What::Show { origin: false } => output::text(loaded.config.to_toml().trim_end()),
    }
    Ok(())
}
