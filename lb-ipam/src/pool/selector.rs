//! Selectors: which services a pool is for.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use lb_core::name::ServiceName;

/// The label that every service has with its own name as value, whatever its labels say.
pub const SERVICE_NAME_LABEL: &str = "io.kubernetes.service.name";
/// The label that every service has with its own namespace as value, whatever its labels say.
pub const SERVICE_NAMESPACE_LABEL: &str = "io.kubernetes.service.namespace";

/// Selects services by label. Everything in it has to match; an empty one matches every service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Labels that a service must have with this value.
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions.
    pub match_expressions: Vec<Expression>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// The condition.
    pub operator: Operator,
    /// Values, for [`Operator::In`] and [`Operator::NotIn`] only. Cheap to clone, because the namespaces of a pool are
    /// part of every one of its selectors.
    pub values: Arc<BTreeSet<String>>,
}

/// The condition of an [`Expression`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is there with one of the values.
    In,
    /// It is not there, or with none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// A word that is no operator; puts the pool out of service.
    Unknown(String),
}

impl Operator {
    /// Reads an operator as Kubernetes writes it; every other word is [`Operator::Unknown`].
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            other => Self::Unknown(other.to_string()),
        }
    }
}

impl Selector {
    /// Selects services with this label.
    #[must_use]
    pub fn label(key: &str, value: &str) -> Self {
        Self { match_labels: [(key.to_string(), value.to_string())].into(), match_expressions: Vec::new() }
    }

    /// Whether every condition can be understood.
    ///
    /// # Errors
    /// When one cannot; such a selector matches nothing.
    pub fn check(&self) -> Result<(), SelectorProblem> {
        self.match_expressions.iter().try_for_each(Expression::check)
    }

    /// Whether `service` with `labels` is selected.
    #[must_use]
    pub fn matches(&self, service: &ServiceName, labels: &BTreeMap<String, String>) -> bool {
        let value = |key: &str| value_of(key, service, labels);
        let labels_match = self.match_labels.iter().all(|(key, wanted)| value(key) == Some(wanted));
        labels_match && self.match_expressions.iter().all(|expression| expression.holds(value(&expression.key)))
    }
}

/// The value of a label of a service, of those that nobody can forge as well.
pub(crate) fn value_of<'a>(
    key: &str,
    service: &'a ServiceName,
    labels: &'a BTreeMap<String, String>,
) -> Option<&'a str> {
    match key {
        SERVICE_NAME_LABEL => Some(service.name()),
        SERVICE_NAMESPACE_LABEL => Some(service.namespace()),
        _ => labels.get(key).map(String::as_str),
    }
}

impl Expression {
    /// Asks `operator` of the label `key`.
    ///
    /// ```
    /// use lb_ipam::{Expression, Operator, Selector, ServiceName};
    /// let colour = Expression::new("colour", Operator::In, ["red", "blue"]);
    /// let selector = Selector { match_expressions: vec![colour], ..Selector::default() };
    /// assert!(selector.matches(&ServiceName::new("shop", "web"), &[("colour".into(), "red".into())].into()));
    /// ```
    #[must_use]
    pub fn new<V: Into<String>>(key: &str, operator: Operator, values: impl IntoIterator<Item = V>) -> Self {
        let values = Arc::new(values.into_iter().map(Into::into).collect());
        Self { key: key.to_string(), operator, values }
    }

    fn check(&self) -> Result<(), SelectorProblem> {
        let key = || self.key.clone();
        match (&self.operator, self.values.is_empty()) {
            (Operator::Unknown(operator), _) => {
                Err(SelectorProblem::UnknownOperator { key: key(), operator: operator.clone() })
            }
            (Operator::In | Operator::NotIn, true) => Err(SelectorProblem::NoValues { key: key() }),
            (Operator::Exists | Operator::DoesNotExist, false) => Err(SelectorProblem::NeedlessValues { key: key() }),
            (Operator::In | Operator::NotIn, false) | (Operator::Exists | Operator::DoesNotExist, true) => Ok(()),
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Unknown(_) => false,
        }
    }
}

/// The error of a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorProblem {
    /// There is no such operator.
    #[error("operator `{operator}` on label `{key}` is unknown; use In, NotIn, Exists or DoesNotExist")]
    UnknownOperator {
        /// The label.
        key: String,
        /// The word.
        operator: String,
    },
    /// `In` and `NotIn` need values.
    #[error("label `{key}` is compared with no value; list at least one")]
    NoValues {
        /// The label.
        key: String,
    },
    /// `Exists` and `DoesNotExist` have no values.
    #[error("label `{key}` is only looked for, but has values; remove them, or use In")]
    NeedlessValues {
        /// The label.
        key: String,
    },
}
