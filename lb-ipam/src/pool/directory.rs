//! Which pools a service has to ask.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::Arc,
    vec::Vec,
};

use crate::{
    Operator, Pool, Request, SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL, Selector,
    pool::{catalog::PoolIndex, selector::value_of},
};

/// Pools by a label that a service must have to be selected, so that of ten thousand pools for one team each a service
/// asks those of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    /// Pools that may select a service whatever its labels are.
    general: Arc<[PoolIndex]>,
    /// Label to value to pools.
    by_label: BTreeMap<String, BTreeMap<String, Vec<PoolIndex>>>,
}

/// Values of one label of which a service must have one.
type Required<'a> = (&'a str, Vec<&'a str>);

impl Directory {
    /// Most values of a label that a selector stands under. One with more than that is general, because the namespaces
    /// of a pool are part of every one of its selectors.
    const MAX_VALUES: usize = 64;

    /// Pools in the order in which they are asked.
    pub(crate) fn new<'a>(pools: impl Iterator<Item = (PoolIndex, &'a Pool)> + Clone) -> Self {
        let mut popular: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (key, values) in pools.clone().flat_map(|(_, pool)| &pool.selectors).flat_map(required) {
            values.into_iter().for_each(|value| *popular.entry((key, value)).or_default() += 1);
        }
        let mut directory = Self::default();
        let mut general = Vec::new();
        for (index, pool) in pools {
            match pool.selectors.iter().map(|selector| rarest(selector, &popular)).collect::<Option<Vec<_>>>() {
                Some(places) if !places.is_empty() => directory.enter(index, places),
                Some(_) | None => general.push(index),
            }
        }
        directory.general = general.into();
        directory
    }

    fn enter(&mut self, index: PoolIndex, places: Vec<Required<'_>>) {
        let places: BTreeSet<(&str, &str)> =
            places.into_iter().flat_map(|(key, values)| values.into_iter().map(move |value| (key, value))).collect();
        for (key, value) in places {
            self.by_label.entry(key.into()).or_default().entry(value.into()).or_default().push(index);
        }
    }

    /// The pools that may select the service, in the order in which they are asked. All others do not.
    pub(crate) fn candidates(&self, request: &Request) -> Arc<[PoolIndex]> {
        let own = [SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL];
        let keys = request.labels.keys().map(String::as_str).filter(|key| !own.contains(key)).chain(own);
        let found = |key: &str| {
            let values = self.by_label.get(key)?;
            values.get(value_of(key, &request.service, &request.labels)?)
        };
        let mut found = keys.filter_map(found).peekable();
        if self.by_label.is_empty() || found.peek().is_none() {
            return Arc::clone(&self.general);
        }
        let mut candidates: Vec<PoolIndex> = found.flatten().chain(&*self.general).copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        candidates.into()
    }
}

/// Labels that a service must have to be selected, each a condition of its own.
fn required(selector: &Selector) -> impl Iterator<Item = Required<'_>> {
    let labels = selector.match_labels.iter().map(|(key, value)| (key.as_str(), Vec::from([value.as_str()])));
    let is_list = |operator: &Operator| matches!(operator, Operator::In);
    let lists = selector
        .match_expressions
        .iter()
        .filter(move |expression| is_list(&expression.operator) && expression.values.len() <= Directory::MAX_VALUES);
    let lists = lists.map(|list| (list.key.as_str(), list.values.iter().map(String::as_str).collect()));
    labels.chain(lists)
}

/// Of what a selector requires, that which the fewest selectors do; `None` if it requires nothing.
fn rarest<'a>(selector: &'a Selector, popular: &BTreeMap<(&str, &str), usize>) -> Option<Required<'a>> {
    let popularity = |(key, values): &Required<'_>| -> usize {
        values.iter().map(|value| popular.get(&(*key, *value)).copied().unwrap_or(0)).sum()
    };
    required(selector).min_by_key(popularity)
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use proptest::{collection::vec as some, prelude::*, sample::select};

    use super::*;
    use crate::Expression;

    fn word() -> impl Strategy<Value = &'static str> {
        select(vec!["a", "b", "c"])
    }

    fn key() -> impl Strategy<Value = &'static str> {
        select(vec!["k", "l", SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL])
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let operators = select(vec![Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist]);
        let expression = (key(), operators, some(word(), 1..3)).prop_map(|(key, operator, values)| {
            let has_values = matches!(operator, Operator::In | Operator::NotIn);
            Expression::new(key, operator, if has_values { values } else { vec![] })
        });
        (some((key(), word()), 0..3), some(expression, 0..3)).prop_map(|(labels, match_expressions)| {
            let match_labels = labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            Selector { match_labels, match_expressions }
        })
    }

    proptest! {
        #[test]
        fn whoever_selects_is_a_candidate(
            selectors in some(some(selector(), 0..3), 0..12),
            (namespace, name) in (word(), word()),
            labels in some((key(), word()), 0..4),
        ) {
            let pools: Vec<Pool> =
                selectors.into_iter().map(|selectors| Pool { selectors, ..Pool::new("", &[]) }).collect();
            let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            let request = Request { labels, ..Request::new(namespace, name) };
            let candidates = Directory::new(pools.iter().enumerate()).candidates(&request);
            prop_assert!(candidates.windows(2).all(|pair| pair[0] < pair[1]));
            for (index, pool) in pools.iter().enumerate() {
                let selects = pool.selects(&request.service, &request.labels);
                prop_assert!(!selects || candidates.contains(&index), "{:?}", pool.selectors);
            }
        }
    }

    /// Pools are not looked up by a label that all of them have in common.
    #[test]
    fn a_service_asks_the_pools_of_its_own_team_only() {
        let selector = |team: usize| Selector {
            match_labels: [("app".into(), "web".into()), ("team".into(), format!("t{team}"))].into(),
            ..Selector::default()
        };
        let pools: Vec<Pool> =
            (0..1000).map(|team| Pool { selectors: vec![selector(team % 500)], ..Pool::new("", &[]) }).collect();
        let directory = Directory::new(pools.iter().enumerate());
        let request = Request { labels: selector(7).match_labels, ..Request::new("d", "a") };
        assert_eq!(*directory.candidates(&request), [7, 507]);
        assert_eq!(directory.candidates(&Request::new("d", "a")).len(), 0);
    }

    #[test]
    fn long_lists_of_values_are_not_spelled_out() {
        let list = |values: usize| Selector {
            match_expressions: vec![Expression::new("k", Operator::In, (0..values).map(|value| format!("v{value}")))],
            ..Selector::default()
        };
        for (values, is_general) in [(Directory::MAX_VALUES, false), (Directory::MAX_VALUES + 1, true)] {
            let pool = Pool { selectors: vec![list(values)], ..Pool::new("", &[]) };
            let directory = Directory::new([(0, &pool)].into_iter());
            assert_eq!(directory.general.len() == 1, is_general);
            assert_eq!(directory.by_label.is_empty(), is_general);
        }
    }
}
