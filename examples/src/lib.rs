//! Short programs, one per use case of lb: see `examples/`.
//!
//! What they share: a lab of three nodes that runs the manifests of a use case, with one datapath on the first node.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use lb_core::{
    addr::Protocol,
    datapath::Datapath,
    model::{Change, Model, Settings},
    name::NodeName,
    runner::{Event, Runner},
    time::Instant,
};
use lb_k8s::{
    Snapshot,
    lab::{PlacedPod, endpoint_slices, pods},
};
use lb_testkit::lab::{Lab, Node, PodSpec};

/// Where the manifests of a use case are: those that `lb lab` embeds.
#[must_use]
pub fn directory(use_case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-cli/manifests").join(use_case)
}

/// A lab with the manifests of a use case in it.
pub struct Scene {
    /// The lab. Pods of a Deployment are `httpd-0`, `httpd-1`, …; the client is called as its manifest says.
    pub lab: Lab,
    /// The manifests.
    pub manifests: Snapshot,
    changes: Vec<Change>,
}

impl Scene {
    /// Builds a lab for the manifests in `lb-cli/manifests/USE_CASE`.
    ///
    /// # Errors
    /// Without root, or when the manifests cannot be read.
    pub fn new(use_case: &str) -> Result<Self, Box<dyn Error>> {
        let manifests = Snapshot::read(&[directory(use_case)])?;
        let pods = pods(manifests.workloads())?;
        let mut lab = Lab::builder().nodes(3);
        for (nth, pod) in pods.iter().enumerate() {
            let http = pod.template.ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.port);
            lab = lab.pod(PodSpec { http: http.collect(), ..PodSpec::new(pod.name.clone(), nth % 3) });
        }
        let lab = lab.build()?;
        let placed: Vec<_> = pods
            .into_iter()
            .zip(lab.pods())
            .map(|(pod, built)| PlacedPod { pod, node: NodeName::new(built.node().name()), ips: built.ips().into() })
            .collect();
        let services = manifests.services().cloned().map(Change::UpsertService);
        let slices = endpoint_slices(manifests.templates(), &placed).into_iter().map(Change::ReplaceEndpoints);
        let changes = services.chain(slices).collect();
        Ok(Self { lab, manifests, changes })
    }

    /// Opens a datapath on the first node and brings it to what the manifests want.
    ///
    /// # Errors
    /// When the datapath cannot be opened, observed or programmed.
    pub fn program<D: Datapath>(
        &self,
        open: impl FnOnce(Node<'_>) -> Result<D, Box<dyn Error + Send + Sync>> + Send,
    ) -> Result<D, Box<dyn Error + Send + Sync>> {
        self.program_with(&[], open)
    }

    /// The same, with changes besides.
    ///
    /// # Errors
    /// When the datapath cannot be opened, observed or programmed.
    pub fn program_with<D: Datapath>(
        &self,
        changes: &[Change],
        open: impl FnOnce(Node<'_>) -> Result<D, Box<dyn Error + Send + Sync>> + Send,
    ) -> Result<D, Box<dyn Error + Send + Sync>> {
        let node = self.lab.node(0);
        node.run(|| {
            let mut datapath = open(node)?;
            let model = Model::new(Settings::default(), datapath.capabilities());
            let mut runner = Runner::new(model, node.facts(), []);
            for change in self.changes.iter().chain(changes) {
                runner.handle_change(change.clone())?;
            }
            while let Some(event) = runner.step(&mut datapath, Instant::default()) {
                if let Event::NotPermitted(error) | Event::NotObserved { error, .. } = event {
                    return Err(error.into());
                }
            }
            if runner.reconciler().is_settled() {
                Ok(datapath)
            } else {
                Err("not every service was carried out".into())
            }
        })?
    }
}
