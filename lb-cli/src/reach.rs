//! Which agent a command is about: flags over environment over configuration file over defaults, as the agent itself.

use std::{fs, path::PathBuf};

use clap::Args;
use lb_agent::{
    api::Client,
    config::{DEFAULT_SOCKET, Settings},
};

use serde::Deserialize;

use crate::exit::Failure;

/// What a client needs of the agent's configuration file. A mistake elsewhere in the file matters to the agent alone.
#[derive(Default, Deserialize)]
struct SocketOnly {
    socket: Option<PathBuf>,
}

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

    /// The socket of the agent. A file that cannot be read matters only to who needs it, and so does a setting that the
    /// agent does not know.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let socket = match self.settings() {
            Ok(settings) => settings.socket,
            Err(strict) => self.lenient().ok_or(strict)?.socket,
        };
        match (socket, &self.config) {
            (Some(socket), Some(config)) if socket.as_os_str().is_empty() => {
                let why = format!("{}: the key `socket` is empty: give a path, or leave the key out", config.display());
                Err(Failure::Error(why))
            }
            (socket, _) => Ok(socket.unwrap_or_else(|| DEFAULT_SOCKET.into())),
        }
    }

    /// What the file says of the socket, if it can be read at all.
    fn lenient(&self) -> Option<SocketOnly> {
        let text = fs::read_to_string(self.config.as_deref()?).ok()?;
        serde_saphyr::from_str(&text).ok()
    }

    /// What the configuration file says; nothing without one.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let file = self.config.as_deref().map(Settings::read).transpose();
        Ok(file.map_err(|error| Failure::chain(&error))?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
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
        fs::write(directory.path().join("empty.yaml"), "socket: ''\n").unwrap();
        let empty = Reach { config: Some(directory.path().join("empty.yaml")), ..Reach::default() };
        assert!(matches!(empty.socket(), Err(Failure::Error(why)) if why.contains("the key `socket` is empty")));
        let missing = Reach { config: Some(directory.path().join("none.yaml")), ..Reach::default() };
        assert!(matches!(missing.socket(), Err(Failure::Error(why)) if why.contains("none.yaml")));
    }

    #[test]
    fn a_client_needs_the_socket_of_the_file_and_no_other_setting() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lb.yaml");
        let reach = Reach { socket: None, config: Some(file.clone()) };
        let socket = |text: &str| {
            fs::write(&file, text).unwrap();
            reach.socket()
        };
        assert_eq!(socket("bogus: 1\nsocket: /run/other.sock\n").unwrap(), PathBuf::from("/run/other.sock"));
        assert_eq!(socket("datapath: none-such\n").unwrap(), PathBuf::from(DEFAULT_SOCKET));
        for broken in ["socket: [\n", "bogus: 1\nsocket: [a]\n"] {
            assert!(matches!(socket(broken), Err(Failure::Error(why)) if why.contains("lb.yaml")), "{broken}");
        }
        // What removes things must not misread where they are.
        fs::write(&file, "bogus: 1\n").unwrap();
        assert!(reach.settings().is_err());
    }
}
