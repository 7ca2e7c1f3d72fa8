// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-lab demo`: the classic three-pod Service on a real agent, told in plain words.
//!
//! Makes a lab, runs the agent on `demo/hostnames.yaml`, asks with curl, changes the
//! endpoints, removes everything. **Invariant:** whatever the demo says has been checked; what
//! does not hold ends it with an error. Read next: `story`, the steps in their order.

mod ask;
mod error;
mod manifest;
mod play;
mod screen;
mod stage;
mod story;
mod traces;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

pub use error::DemoError;
pub use screen::Screen;

use crate::error::LabError;
use screen::seconds;
use stage::Stage;
use traces::{Found, Traces};

/// What the demo needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `lb-agent` program.
    pub agent: PathBuf,
    /// Whether the lab stays up until a signal comes.
    pub keep: bool,
}

/// Runs the demo; the lab is removed also when it fails.
pub fn run(screen: &mut Screen, options: &Options) -> Result<(), DemoError> {
    let start = Instant::now();
    require_tools()?;
    screen.title("A Kubernetes Service, balanced inside the Linux kernel")?;
    let mut stage = story::build(screen)?;
    story::nobody_answers(screen, &stage)?;
    story::start_agent(screen, &mut stage, &options.agent)?;
    let told = tell(screen, &mut stage, options.keep);
    if told.is_err() {
        screen.gap()?;
        screen.say("The end of the agent's log:")?;
        screen.code(&stage.log_end())?;
    }
    let traces = told?;
    story::remove(screen, stage, traces)?;
    screen.gap()?;
    let time = if options.keep {
        String::new()
    } else {
        format!(" It took {}.", seconds(start.elapsed()))
    };
    screen.done(&format!("Everything was as told.{time}"))?;
    play::next(screen, options.keep)
}

fn tell(screen: &mut Screen, stage: &mut Stage, keep: bool) -> Result<(Traces, Found), DemoError> {
    story::three_requests(screen, stage)?;
    story::the_map(screen, stage)?;
    story::a_pod_goes(screen, stage)?;
    story::a_pod_comes(screen, stage)?;
    let traces = story::note_traces(stage)?;
    if keep {
        play::wait(screen, stage)?;
    } else {
        story::without_the_agent(screen, stage)?;
    }
    Ok(traces)
}

/// Says at once what would be missing in the middle.
fn require_tools() -> Result<(), DemoError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::NotRoot.into());
    }
    for (tool, question) in [("curl", "--version"), ("bpftool", "version")] {
        match ask::output(Command::new(tool).arg(question)) {
            Err(LabError::MissingTool { .. }) => return Err(DemoError::MissingTool { tool }),
            other => drop(other?),
        }
    }
    Ok(())
}
