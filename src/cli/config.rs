//! `freshet config`: settings of an appliance, checked and shown.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::context::Context;
use super::report::Report;
use crate::control::Settings;
use crate::control::settings::example;
use crate::error::Result;

/// Settings of an appliance
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with a settings file; changes nothing
    Check {
        /// The settings file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a settings file with every setting, its meaning, bounds and default
    Example,
}

impl Config {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        match self.command {
            ConfigCommand::Check { file } => {
                let settings = Settings::load(&file)?;
                settings.check_files()?;
                let json = json!({ "file": file, "site": settings.site.as_str(), "good": true });
                Report::new(&json, format!("{}: good, for site {}", file.display(), settings.site))
            }
            ConfigCommand::Example => Report::new(&json!({ "example": example() }), example()),
        }
    }
}
