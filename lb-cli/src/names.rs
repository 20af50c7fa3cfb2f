//! Which services a command is about.

use clap::{Args, builder::NonEmptyStringValueParser};

use crate::exit::Failure;

/// The namespace of services.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NamespaceArgs {
    /// Only services of this namespace. A NAME without a namespace is in it [default: every namespace; for a NAME,
    /// `default`].
    #[arg(long, short, value_name = "NAMESPACE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) namespace: Option<String>,
}

/// The services that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Every one.
    All,
    /// Those of a namespace.
    Namespace(String),
    /// The one with this `namespace/name`.
    One(String),
    /// Those of this name in whatever namespace.
    Name(String),
}

impl Selection {
    /// What flags and an argument say together.
    pub(crate) fn new(name: Option<&str>, namespace: &NamespaceArgs, all_namespaces: bool) -> Result<Self, Failure> {
        Ok(match (name, &namespace.namespace) {
            (Some(name), _) if all_namespaces && !name.contains('/') => Self::Name(name.into()),
            (Some(name), _) => Self::One(full_name(name, namespace)?),
            (None, Some(namespace)) => Self::Namespace(namespace.clone()),
            (None, None) => Self::All,
        })
    }

    /// Whether a service is meant, by its `namespace/name`.
    pub(crate) fn has(&self, service: &str) -> bool {
        let (namespace, name) = service.split_once('/').unwrap_or(("", service));
        match self {
            Self::All => true,
            Self::Namespace(wanted) => namespace == wanted,
            Self::One(wanted) => service == wanted,
            Self::Name(wanted) => name == wanted,
        }
    }

    /// The error if the selection names a service and there is none.
    pub(crate) fn check(&self, is_found: bool) -> Result<(), Failure> {
        match self {
            _ if is_found => Ok(()),
            Self::All | Self::Namespace(_) => Ok(()),
            Self::One(name) => Err(Failure::NotFound(format!("the agent knows no service {name}"))),
            Self::Name(name) => Err(Failure::NotFound(format!("the agent knows no service {name} in any namespace"))),
        }
    }

    /// A line for a table without a row.
    pub(crate) fn none(&self, things: &str) -> String {
        match self {
            Self::Namespace(namespace) => format!("no {things} in namespace {namespace}\n"),
            Self::All | Self::One(_) | Self::Name(_) => format!("no {things}\n"),
        }
    }
}

/// `namespace/name` out of what a user wrote.
pub(crate) fn full_name(name: &str, NamespaceArgs { namespace }: &NamespaceArgs) -> Result<String, Failure> {
    match (name.split_once('/'), namespace) {
        (Some((of, _)), Some(wanted)) if of != wanted => {
            Err(Failure::Usage(format!("{name} is in namespace {of}, but --namespace says {wanted}: leave out one")))
        }
        (Some(_), _) => Ok(name.into()),
        (None, Some(namespace)) => Ok(format!("{namespace}/{name}")),
        (None, None) => Ok(format!("default/{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(namespace: &str) -> NamespaceArgs {
        NamespaceArgs { namespace: Some(namespace.into()) }
    }

    fn selected(name: Option<&str>, namespace: &NamespaceArgs, all: bool) -> Vec<&'static str> {
        let selection = Selection::new(name, namespace, all).unwrap();
        ["default/web", "shop/web", "shop/db"].into_iter().filter(|service| selection.has(service)).collect()
    }

    #[test]
    fn a_name_is_in_its_own_namespace_that_of_the_flag_or_default() {
        let none = NamespaceArgs::default();
        assert_eq!(selected(None, &none, false), ["default/web", "shop/web", "shop/db"]);
        assert_eq!(selected(None, &none, true), ["default/web", "shop/web", "shop/db"]);
        assert_eq!(selected(None, &namespace("shop"), false), ["shop/web", "shop/db"]);
        assert_eq!(selected(Some("web"), &none, false), ["default/web"]);
        assert_eq!(selected(Some("web"), &namespace("shop"), false), ["shop/web"]);
        assert_eq!(selected(Some("shop/web"), &none, false), ["shop/web"]);
        assert_eq!(selected(Some("web"), &none, true), ["default/web", "shop/web"]);
    }

    #[test]
    fn two_namespaces_are_a_usage_error() {
        let error = Selection::new(Some("shop/web"), &namespace("default"), false).unwrap_err();
        assert!(matches!(error, Failure::Usage(why) if why.contains("shop") && why.contains("default")));
        assert!(Selection::new(Some("shop/web"), &namespace("shop"), false).is_ok());
    }

    #[test]
    fn only_a_service_that_is_named_must_be_there() {
        assert!(Selection::Namespace("shop".into()).check(false).is_ok());
        let error = Selection::Name("web".into()).check(false).unwrap_err();
        assert!(matches!(error, Failure::NotFound(why) if why.ends_with("no service web in any namespace")));
        assert!(Selection::One("shop/web".into()).check(true).is_ok());
    }
}
