//! Which services a command is about.

use clap::Args;

use crate::{completions, exit::Failure};

/// The namespace of services in a list.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NamespaceArgs {
    /// Only services of this namespace. A NAME without a namespace is in it [default: every namespace; for a NAME,
    /// `default`].
    #[arg(long, short, value_name = "NAMESPACE", value_parser = parse_namespace, add = completions::namespaces())]
    pub(crate) namespace: Option<String>,
}

/// The namespace of one service.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OwnNamespaceArgs {
    /// Namespace of the service, if its name does not say it [default: `default`].
    #[arg(long, short, value_name = "NAMESPACE", value_parser = parse_namespace, add = completions::namespaces())]
    pub(crate) namespace: Option<String>,
}

fn parse_namespace(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("a value is required: the name of a namespace"),
        _ if text.contains('/') => Err("a namespace has no `/`: write NAMESPACE alone, and the name as an argument"),
        _ => Ok(text.into()),
    }
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
            (Some(name), namespace) => Self::One(full_name(name, namespace.as_deref())?),
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

    /// The error if the selection names a service and it is not among `all`, whose `namespace/name` these are.
    pub(crate) fn check<'a>(&self, all: impl Iterator<Item = &'a str> + Clone) -> Result<(), Failure> {
        match self {
            Self::One(_) | Self::Name(_) if all.clone().any(|service| self.has(service)) => Ok(()),
            Self::All | Self::Namespace(_) => Ok(()),
            Self::One(name) => {
                let (_, bare) = name.split_once('/').unwrap_or_default();
                let same: Vec<&str> =
                    all.filter(|service| service.split_once('/').is_some_and(|it| it.1 == bare)).collect();
                let more = if same.len() > MAX_NAMED { ", …" } else { "" };
                let same = same.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
                let hint = if same.is_empty() {
                    String::new()
                } else {
                    format!("; there is {same}{more}: name a namespace with -n")
                };
                Err(Failure::NotFound(format!("there is no service {name}{hint}")))
            }
            Self::Name(name) => Err(Failure::NotFound(format!("there is no service {name} in any namespace"))),
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

/// Most services of the same name in other namespaces that an error names.
const MAX_NAMED: usize = 3;

/// `namespace/name` out of what a user wrote.
pub(crate) fn full_name(name: &str, namespace: Option<&str>) -> Result<String, Failure> {
    if name.split('/').any(str::is_empty) || name.split('/').count() > 2 {
        return Err(Failure::Usage(format!("`{name}` is no name of a service: write NAME or NAMESPACE/NAME")));
    }
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
        let none = std::iter::empty();
        assert!(Selection::Namespace("shop".into()).check(none.clone()).is_ok());
        let error = Selection::Name("web".into()).check(none.clone()).unwrap_err();
        assert!(matches!(error, Failure::NotFound(why) if why.ends_with("no service web in any namespace")));
        assert!(Selection::One("shop/web".into()).check(["shop/web"].into_iter()).is_ok());
        let error = Selection::One("default/web".into()).check(none).unwrap_err();
        assert!(matches!(error, Failure::NotFound(why) if why == "there is no service default/web"));
    }

    #[test]
    fn a_service_of_the_same_name_elsewhere_is_named() {
        let of = |services: &[&str]| match Selection::One("default/web".into()).check(services.iter().copied()) {
            Err(Failure::NotFound(why)) => why,
            other => panic!("{other:?}"),
        };
        let begin = "there is no service default/web; there is ";
        assert_eq!(of(&["shop/web", "shop/webs"]), format!("{begin}shop/web: name a namespace with -n"));
        let five = of(&["a/web", "b/web", "c/web", "d/web"]);
        assert_eq!(five, format!("{begin}a/web, b/web, c/web, …: name a namespace with -n"));
    }

    #[test]
    fn a_malformed_name_is_a_usage_error() {
        for name in ["web/", "/web", "a/b/c", "/", "a//b"] {
            let error = full_name(name, None).unwrap_err();
            assert!(matches!(error, Failure::Usage(why) if why.contains(name)), "{name}");
            assert!(
                matches!(Selection::new(Some(name), &NamespaceArgs::default(), true), Err(Failure::Usage(_))),
                "{name}"
            );
        }
        assert!(parse_namespace("other/web").is_err() && parse_namespace("").is_err());
        assert_eq!(parse_namespace("shop").unwrap(), "shop");
    }
}
