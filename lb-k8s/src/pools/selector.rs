//! Selectors of Kubernetes to selectors of the allocator.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use lb_ipam::{Expression, Operator, Selector};

use crate::{
    check::{self, At, Invalid},
    limits::{MAX_SELECTOR_TERMS, MAX_SELECTORS},
};

/// Reads the list of selectors at `field`.
pub(super) fn read_all(objects: &[LabelSelector], field: &str) -> Result<Vec<Selector>, Invalid> {
    if objects.len() > MAX_SELECTORS {
        return Err(Invalid::new(field, format!("more than {MAX_SELECTORS} selectors: make several pools")));
    }
    objects.iter().enumerate().map(|(index, object)| read(object, &format!("{field}[{index}]"))).collect()
}

/// Reads the selector at `field`.
pub(super) fn read(object: &LabelSelector, field: &str) -> Result<Selector, Invalid> {
    check_size(object).at(|| field.to_owned())?;
    let match_labels = object.match_labels.clone().unwrap_or_default();
    for (key, value) in &match_labels {
        check::label_key(key).at(|| format!("{field}.matchLabels"))?;
        check::label_value(value).at(|| format!("{field}.matchLabels[{key}]"))?;
    }
    let requirements = object.match_expressions.iter().flatten().enumerate();
    let expression = |(index, object): (usize, _)| expression(object, &format!("{field}.matchExpressions[{index}]"));
    let match_expressions = requirements.map(expression).collect::<Result<_, _>>()?;
    Ok(Selector { match_labels, match_expressions })
}

fn check_size(object: &LabelSelector) -> Result<(), String> {
    let expressions = object.match_expressions.iter().flatten();
    let values: usize = expressions.map(|object| 1 + object.values.as_ref().map_or(0, Vec::len)).sum();
    let terms = object.match_labels.as_ref().map_or(0, BTreeMap::len) + values;
    if terms > MAX_SELECTOR_TERMS {
        return Err(format!("more than {MAX_SELECTOR_TERMS} labels, expressions and values: make several pools"));
    }
    Ok(())
}

fn expression(object: &LabelSelectorRequirement, field: &str) -> Result<Expression, Invalid> {
    check::label_key(&object.key).at(|| format!("{field}.key"))?;
    let values = object.values.as_deref().unwrap_or_default();
    for (index, value) in values.iter().enumerate() {
        check::label_value(value).at(|| format!("{field}.values[{index}]"))?;
    }
    let expression = Expression::new(&object.key, Operator::parse(&object.operator), values);
    let part = if matches!(expression.operator, Operator::Unknown(_)) { "operator" } else { "values" };
    let alone = Selector { match_labels: BTreeMap::new(), match_expressions: vec![expression.clone()] };
    alone.check().map_err(|problem| crate::text::shown(&problem.to_string())).at(|| format!("{field}.{part}"))?;
    Ok(expression)
}

/// How much a selector compares.
pub(super) fn terms(selector: &Selector) -> usize {
    let expressions = selector.match_expressions.iter();
    1 + selector.match_labels.len() + expressions.map(|expression| 1 + expression.values.len()).sum::<usize>()
}
