//! Pools as manifests.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use lb_ipam::{Block, Expression, Operator, Pool, Selector};

use super::WriteError;
use crate::{
    check,
    limits::{MAX_REST_SECONDS, MAX_SELECTOR_TERMS, MAX_SELECTORS},
};

/// A pool as one document: the short form of lb, which says everything that a pool can say.
///
/// Reading it returns the same pool, except that its time of creation has whole seconds.
///
/// ```
/// use lb_ipam::Pool;
/// use lb_k8s::{Snapshot, write};
///
/// let pool = Pool::new("blue-pool", &["20.0.20.100-20.0.20.199"]);
/// let text = write::pool(&pool)?;
/// assert_eq!(Snapshot::parse("pool.yaml", &text)?.pools().next(), Some(pool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When its name is not a DNS name, or something is wrong with it that a manifest would be refused for.
pub fn pool(pool: &Pool) -> Result<String, WriteError> {
    let refuse = |message| WriteError { object: format!("pool {}", pool.name), message };
    check_pool(pool).map_err(refuse)?;
    let mut text = String::with_capacity(512);
    render(&mut text, pool).map_err(|fmt::Error| refuse("out of memory".to_owned()))?;
    Ok(text)
}

fn check_pool(pool: &Pool) -> Result<(), String> {
    check::subdomain(pool.name.as_str())?;
    if let Some(why) = &pool.refused {
        return Err(format!("it is refused: {why}"));
    }
    if pool.blocks.len().max(pool.avoid.len()) > Pool::MAX_BLOCKS {
        return Err(format!("it has more than {} blocks", Pool::MAX_BLOCKS));
    }
    for block in pool.blocks.iter().chain(&pool.avoid) {
        block.range().map_err(|problem| format!("block {block} {problem}"))?;
    }
    for (what, time) in [("quarantine", pool.quarantine), ("drain", pool.drain)] {
        if time.subsec_nanos() != 0 || time > Duration::from_secs(MAX_REST_SECONDS.into()) {
            return Err(format!("its {what} is {time:?}, expected whole seconds, up to {MAX_REST_SECONDS}"));
        }
    }
    if pool.namespace_quota.is_some_and(|quota| i64::try_from(quota).is_err()) {
        return Err("its quota is greater than a manifest can say".to_owned());
    }
    if pool.selectors.len() > MAX_SELECTORS {
        return Err(format!("it has more than {MAX_SELECTORS} selectors"));
    }
    pool.selectors.iter().try_for_each(check_selector)
}

fn check_selector(selector: &Selector) -> Result<(), String> {
    selector.check().map_err(|problem| problem.to_string())?;
    let expressions = &selector.match_expressions;
    let values: usize = expressions.iter().map(|expression| 1 + expression.values.len()).sum();
    if selector.match_labels.len() + values > MAX_SELECTOR_TERMS {
        return Err(format!("its selector has more than {MAX_SELECTOR_TERMS} terms"));
    }
    for (key, value) in &selector.match_labels {
        check::label_key(key).and(check::label_value(value))?;
    }
    for expression in expressions {
        check::label_key(&expression.key)?;
        expression.values.iter().try_for_each(|value| check::label_value(value).map(drop))?;
    }
    Ok(())
}

fn render(text: &mut String, pool: &Pool) -> fmt::Result {
    let default = Pool::new("", &[]);
    writeln!(text, "---\napiVersion: lb/v1\nkind: IPPool\nmetadata:\n  name: \"{}\"", pool.name)?;
    if pool.created != default.created {
        writeln!(text, "  creationTimestamp: \"{}\"", super::status::time(pool.created))?;
    }
    writeln!(text, "spec:")?;
    render_blocks(text, "blocks", &pool.blocks)?;
    if !pool.avoid.is_empty() {
        render_blocks(text, "avoid", &pool.avoid)?;
    }
    let fields = [
        ("avoidZeroAnd255", pool.avoid_zero_and_255.then(|| "true".to_owned())),
        ("allowFirstLastIPs", (!pool.allow_first_last).then(|| "\"No\"".to_owned())),
        ("disabled", pool.disabled.then(|| "true".to_owned())),
        ("autoAssign", (!pool.auto_assign).then(|| "false".to_owned())),
        ("priority", pool.priority.map(|priority| priority.to_string())),
        ("quarantineSeconds", (pool.quarantine != default.quarantine).then(|| pool.quarantine.as_secs().to_string())),
        ("drainSeconds", (pool.drain != default.drain).then(|| pool.drain.as_secs().to_string())),
        ("namespaceQuota", pool.namespace_quota.map(|quota| quota.to_string())),
    ];
    for (field, value) in fields {
        value.map_or(Ok(()), |value| writeln!(text, "  {field}: {value}"))?;
    }
    render_selectors(text, &pool.selectors)
}

fn render_blocks(text: &mut String, field: &str, blocks: &[Block]) -> fmt::Result {
    if blocks.is_empty() {
        return writeln!(text, "  {field}: []");
    }
    writeln!(text, "  {field}:")?;
    blocks.iter().try_for_each(|block| writeln!(text, "  - \"{block}\""))
}

fn render_selectors(text: &mut String, selectors: &[Selector]) -> fmt::Result {
    match selectors {
        [] => Ok(()),
        [one] => writeln!(text, "  serviceSelector: {}", Flow(one)),
        several => {
            writeln!(text, "  serviceSelectors:")?;
            several.iter().try_for_each(|selector| writeln!(text, "  - {}", Flow(selector)))
        }
    }
}

/// A selector in flow style.
struct Flow<'a>(&'a Selector);

impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.0.match_labels.iter().map(|(key, value)| format!("\"{key}\": \"{value}\""));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let expressions = self.0.match_expressions.iter().map(flow_expression).collect::<Vec<_>>().join(", ");
        match (labels.as_str(), expressions.as_str()) {
            ("", "") => f.write_str("{}"),
            (labels, "") => write!(f, "{{matchLabels: {{{labels}}}}}"),
            ("", expressions) => write!(f, "{{matchExpressions: [{expressions}]}}"),
            (labels, expressions) => write!(f, "{{matchLabels: {{{labels}}}, matchExpressions: [{expressions}]}}"),
        }
    }
}

fn flow_expression(Expression { key, operator, values }: &Expression) -> String {
    let operator = match operator {
        Operator::In => "In",
        Operator::NotIn => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
        Operator::Unknown(word) => word,
    };
    let values: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
    format!("{{key: \"{key}\", operator: {operator}, values: [{}]}}", values.join(", "))
}
