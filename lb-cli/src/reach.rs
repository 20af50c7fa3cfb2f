//! Which agent a command is about: flags over environment over configuration file over defaults, as the agent itself.

use std::path::PathBuf;

use clap::Args;
use lb_agent::{
    api::Client,
    config::{DEFAULT_SOCKET, Settings},
};

use crate::exit::Failure;

/// How to reach the agent.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Reach {
    /// Unix socket of the agent [default: that of --config, or /run/lb/lb.sock].
    #[arg(long, value_name = "PATH", env = "LB_SOCKET", hide_env_values = true)]
    pub(crate) socket: Option<PathBuf>,
    /// Configuration file of the agent, which names its socket.
    #[arg(long, value_name = "FILE", env = "LB_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

impl Reach {
    /// A client of the agent.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(&self.socket()?))
    }

    /// The socket of the agent. A file that cannot be read matters only to who needs it.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        Ok(self.settings()?.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()))
    }

    /// What the configuration file says; nothing without one.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let file = self.config.as_deref().map(Settings::read).transpose();
        Ok(file.map_err(|error| Failure::chain(&error))?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lb.yaml");
        fs::write(&file, "datapath: memory\nsocket: /run/other.sock\n").unwrap();
        let reach = Reach { socket: None, config: Some(file) };
        assert_eq!(reach.socket().unwrap(), PathBuf::from("/run/other.sock"));
        let flag = Reach { socket: Some("/run/flag.sock".into()), ..reach };
        assert_eq!(flag.socket().unwrap(), PathBuf::from("/run/flag.sock"));
        assert_eq!(Reach::default().socket().unwrap(), PathBuf::from(DEFAULT_SOCKET));
        let missing = Reach { config: Some(directory.path().join("none.yaml")), ..Reach::default() };
        assert!(matches!(missing.socket(), Err(Failure::Error(why)) if why.contains("none.yaml")));
    }
}
