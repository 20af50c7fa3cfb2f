//! What each command does.

mod agent;
mod backend;
mod check;
mod cleanup;
mod drift;
mod explain;
mod pool;
mod service;
mod status;
mod version;
mod watch;

use clap::CommandFactory;
use lb_agent::api::Client;

use crate::{
    cli::{BackendCommand, Cli, Command, PoolCommand, ServiceCommand},
    exit::{Outcome, Verdict},
    output,
};

pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Agent(args) => agent::run(*args),
        Command::Service(ServiceCommand::List(args)) => service::list(&args),
        Command::Service(ServiceCommand::Get(args)) => service::get(&args),
        Command::Service(ServiceCommand::Describe(args)) => service::describe(&args),
        Command::Backend(BackendCommand::List(args)) => backend::list(&args),
        Command::Pool(PoolCommand::List(args)) => pool::list(&args),
        Command::Pool(PoolCommand::Get(args)) => pool::get(&args),
        Command::Pool(PoolCommand::Explain(args)) => pool::explain(&args),
        Command::Pool(PoolCommand::Plan(args)) => pool::plan(&args),
        Command::Status(args) => status::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Drift(args) => drift::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Cleanup(flags) => cleanup::run(&flags.complete()?),
        #[cfg(feature = "lab")]
        Command::Lab(args) => crate::lab::run(&args),
        Command::Version(args) => version::run(&args),
        Command::Completions(args) => completions(args.shell),
        Command::Man => man(),
    }
}

/// What is said beside an answer that lacks something, if that may be so because the agent is not ready.
fn unready(client: &Client) -> Option<&'static str> {
    let is_ready = client.status().is_ok_and(|status| status.ready);
    (!is_ready).then_some("the agent is not ready, so it may not know everything yet: see `lb status`")
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    output::write_text(&String::from_utf8_lossy(&crate::completions::script(shell)?))?;
    Ok(Verdict::Fine)
}

/// One page: the program, then every command.
fn man() -> Outcome {
    let mut text = Vec::new();
    let mut root = Cli::command();
    root.build();
    clap_mangen::Man::new(root.clone()).render(&mut text)?;
    render_commands(&root, "lb", &mut text)?;
    output::write_text(&String::from_utf8_lossy(&text))?;
    Ok(Verdict::Fine)
}

fn render_commands(command: &clap::Command, path: &str, text: &mut Vec<u8>) -> std::io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name());
        if sub.has_subcommands() {
            render_commands(sub, &path, text)?;
            continue;
        }
        let man = clap_mangen::Man::new(sub.clone());
        text.extend(format!(".SH \"{}\"\n", path.to_uppercase()).bytes());
        let mut body = Vec::new();
        man.render_synopsis_section(&mut body)?;
        man.render_description_section(&mut body)?;
        man.render_options_section(&mut body)?;
        man.render_extra_section(&mut body)?;
        text.extend(String::from_utf8_lossy(&body).replace(".SH ", ".SS ").bytes());
    }
    Ok(())
}
