//! Devices that come and go.

use std::{io, sync::mpsc::Sender, thread};

use crate::{engine::Event, host::netlink::LinkMonitor};

/// Devices cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("following devices by netlink failed")]
pub struct DeviceError(#[from] io::Error);

/// Sends [`Event::Devices`] whenever a device comes, goes or changes.
pub(crate) fn watch(events: Sender<Event>) -> Result<(), DeviceError> {
    let monitor = LinkMonitor::new()?;
    let follow = move || {
        loop {
            if let Err(error) = monitor.wait() {
                tracing::warn!(%error, "devices that appear or disappear are no longer noticed");
                return;
            }
            if events.send(Event::Devices).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("devices".into()).spawn(follow)?;
    Ok(())
}
