//! One file that changes.

use lb_core::{
    datapath::Capabilities,
    model::{Change, Model, Settings},
    name::SourceName,
};
use lb_k8s::{Manifests, Snapshot, write};

/// Byte that ends one version of the file: it is in no UTF-8.
const END: u8 = 0xff;

/// Reads the versions of a file, which `0xff` separates, one after the other.
///
/// A version that is rejected changes nothing; the first listing begins once and ends once; a model that follows the
/// changes has the services that the source says.
///
/// # Panics
/// When one of this does not hold.
pub fn history(data: &[u8]) {
    let mut manifests = Manifests::new(SourceName("manifests".into()));
    let mut model = Model::new(Settings::default(), Capabilities::all("fuzz"));
    let (mut starts, mut ends) = (0, 0);
    for version in data.split(|&byte| byte == END).take(8) {
        let Ok(text) = std::str::from_utf8(version) else { continue };
        let snapshot = Snapshot::parse("x.yaml", text);
        let is_rejected = snapshot.is_err();
        let batch = manifests.update(snapshot);
        assert_eq!(batch.report.rejected.is_some(), is_rejected);
        for change in batch.changes {
            match &change {
                Change::InitStart(_) => starts += 1,
                Change::InitDone(_) => ends += 1,
                _ => assert!(!is_rejected, "{change:?} although nothing was read"),
            }
            // Services may claim what another one has: the model refuses them and keeps its own order.
            let _ = model.apply(change);
        }
        assert!(starts == 1 && ends <= 1, "{starts} starts, {ends} ends");
        if model.refused().next().is_none() {
            // As manifests, which leave out what the source says of itself.
            let said: Vec<_> = manifests.services().filter_map(|service| write::service(service).ok()).collect();
            let has: Vec<_> = model.services().filter_map(|service| write::service(service).ok()).collect();
            assert_eq!(said, has, "the model has other services than the source says");
        }
    }
}
