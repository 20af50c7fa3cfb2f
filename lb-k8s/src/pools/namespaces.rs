//! The namespaces that a pool is for.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::name::ServiceName;
use lb_ipam::{Expression, Operator, SERVICE_NAMESPACE_LABEL, Selector};

/// A namespace that there is, and its labels.
pub(crate) type DeclaredNamespace<'a> = (&'a str, &'a BTreeMap<String, String>);

/// Namespaces by name, and those that have certain labels.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceChoice {
    pub(crate) named: BTreeSet<String>,
    pub(crate) selected: Vec<Selector>,
}

impl NamespaceChoice {
    /// The condition that a service is in one of them, given the declared namespaces.
    pub(crate) fn among<'a>(&self, declared: impl IntoIterator<Item = DeclaredNamespace<'a>>) -> Expression {
        let mut names = self.named.clone();
        if !self.selected.is_empty() {
            let selected = declared.into_iter().filter(|(name, labels)| self.selects(name, labels));
            names.extend(selected.map(|(name, _)| name.to_owned()));
        }
        // Every service has the label: without a namespace, no service is meant.
        let operator = if names.is_empty() { Operator::DoesNotExist } else { Operator::In };
        Expression::new(SERVICE_NAMESPACE_LABEL, operator, names)
    }

    fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let namespace = ServiceName::new(name, "");
        self.selected.iter().any(|selector| selector.matches(&namespace, labels))
    }
}
