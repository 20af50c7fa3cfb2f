//! `lb pool`.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::Path,
};

use jiff::Timestamp;
use lb_agent::api::{AddressState, Pool, PoolAddress, PoolCounts, PoolDetail, PoolMove, PoolPlan, PoolReservation};

use crate::{
    cli::{PoolExplainArgs, PoolGetArgs, PoolListArgs, PoolPlanArgs},
    commands::service::{kinds, with_text},
    exit::{Failure, Outcome, Verdict},
    output::{self, Table, span},
};

/// Most bytes of manifests that are sent to the agent, which reads no more.
const MAX_MANIFESTS: u64 = 8 * 1024 * 1024;

pub(super) fn list(args: &PoolListArgs) -> Outcome {
    let client = args.ask.reach.client()?;
    let pools = client.pools()?;
    if pools.is_empty() {
        super::unready(&client).into_iter().for_each(|unready| output::say(format_args!("lb: {unready}")));
    }
    let table = |wide| list_table(&pools, seconds_since_1970(), wide);
    output::write_list(args.ask.output, &pools, |pool| pool.name.clone(), table)?;
    Ok(Verdict::Fine)
}

pub(super) fn get(args: &PoolGetArgs) -> Outcome {
    let detail = args.ask.reach.client()?.pool(&args.name)?;
    output::write(args.ask.output, &detail, || described(&detail, seconds_since_1970()))?;
    Ok(Verdict::Fine)
}

pub(super) fn explain(args: &PoolExplainArgs) -> Outcome {
    let address = args.ask.reach.client()?.explain_address(args.address)?;
    output::write(args.ask.output, &address, || explained(&address, seconds_since_1970()))?;
    Ok(if address.state == AddressState::Outside { Verdict::Absent } else { Verdict::Fine })
}

pub(super) fn plan(args: &PoolPlanArgs) -> Outcome {
    if args.file.is_none() && args.remove.is_empty() {
        let forms = "say which edit to try: `lb pool plan -f FILE` for manifests that would be added or changed (`-f -` \
                     reads standard input), `lb pool plan --remove NAME` for a pool that would go, or both together";
        return Err(Failure::Usage(forms.into()));
    }
    let (name, text) = match &args.file {
        Some(file) => (name_of(file), read(file)?),
        None => ("no file".into(), String::new()),
    };
    let client = args.ask.reach.client()?;
    let pools = client.pools()?;
    let plan = client.plan_pools(&name, &text, &args.remove)?;
    output::write(args.ask.output, &plan, || planned(&plan, &pools, seconds_since_1970()))?;
    Ok(if !plan.refused.is_empty() {
        Verdict::Failed
    } else if plan.moves.iter().any(PoolMove::is_loss) {
        Verdict::Different
    } else {
        Verdict::Fine
    })
}

/// As messages name it.
fn name_of(file: &Path) -> String {
    if is_standard_input(file) { "standard input".into() } else { file.display().to_string() }
}

fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

fn read(file: &Path) -> Result<String, Failure> {
    let source: io::Result<Box<dyn Read>> = if is_standard_input(file) {
        Ok(Box::new(io::stdin()))
    } else {
        File::open(file).map(|file| Box::new(file) as _)
    };
    let mut text = String::new();
    let read = source.and_then(|source| source.take(MAX_MANIFESTS + 1).read_to_string(&mut text));
    read.map_err(|error| Failure::Error(format!("reading {} failed: {error}", name_of(file))))?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Err(Failure::Error(format!("{} holds no manifests", name_of(file))));
    }
    if text.len() as u64 > MAX_MANIFESTS {
        let limit = format!("{} has more than {MAX_MANIFESTS} bytes, which the agent does not read", name_of(file));
        return Err(Failure::Error(limit));
    }
    Ok(text)
}

/// Cut to the width of the terminal, or with what pools consist of and whom they are for.
fn list_table(pools: &[Pool], now: u64, wide: bool) -> String {
    if pools.is_empty() || !wide {
        return table(pools, now);
    }
    let mut table = Table::new([
        "NAME",
        "DISABLED",
        "CONFLICTING",
        "IPS TOTAL",
        "IPS USED",
        "IPS AVAILABLE",
        "AGE",
        "BLOCKS",
        "SERVICES",
        "CONDITIONS",
    ]);
    for pool in pools {
        let conditions = with_text(&pool.conditions);
        let [name, disabled, conflicting, total, used, available, age, conditions] = row(pool, now, conditions);
        let selectors = if pool.selectors.is_empty() { "all".into() } else { pool.selectors.join("; or ") };
        let blocks = pool.blocks.join(",");
        table.row([name, disabled, conflicting, total, used, available, age, blocks, selectors, conditions]);
    }
    table.to_string()
}

fn table(pools: &[Pool], now: u64) -> String {
    let heading = ["NAME", "DISABLED", "CONFLICTING", "IPS TOTAL", "IPS USED", "IPS AVAILABLE", "AGE", "CONDITIONS"];
    let mut table = Table::new(heading).give_way(&[], &["AGE", "CONFLICTING", "IPS TOTAL", "DISABLED", "IPS USED"]);
    for pool in pools {
        table.row(row(pool, now, kinds(&pool.conditions)));
    }
    if table.is_empty() { "no pools\n".into() } else { table.fit(output::terminal_width()).to_string() }
}

fn row(pool: &Pool, now: u64, conditions: String) -> [String; 8] {
    [
        pool.name.clone(),
        yes_or_no(pool.disabled),
        yes_or_no(pool.conflicting),
        pool.counts.total.to_string(),
        pool.counts.used.to_string(),
        pool.counts.available.to_string(),
        age(pool, now),
        conditions,
    ]
}

fn described(PoolDetail { pool, addresses, reserved }: &PoolDetail, now: u64) -> String {
    let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
    let facts = [
        ("Name", pool.name.clone()),
        ("Blocks", or(pool.blocks.join(", "), "none")),
        ("Services", or(pool.selectors.join("; or "), "all")),
        ("Disabled", yes_or_no(pool.disabled)),
        ("Auto-assign", yes_or_no(pool.auto_assign)),
        ("First and last", if pool.allow_first_last { "assigned".into() } else { "reserved".into() }),
        ("Priority", pool.priority.map_or_else(|| "none".into(), |priority| priority.to_string())),
        ("Quota", pool.namespace_quota.map_or_else(|| "none".into(), |quota| format!("{quota} for each namespace"))),
        ("Quarantine", format!("{} s", pool.quarantine_s)),
        ("IPv4", sum(&pool.ipv4)),
        ("IPv6", sum(&pool.ipv6)),
        ("Conditions", or(with_text(&pool.conditions), "none")),
    ];
    let mut text: String = facts.iter().map(|(name, fact)| format!("{name:<15} {fact}\n")).collect();
    if !addresses.is_empty() || !reserved.is_empty() {
        text.push('\n');
        text.push_str(&address_table(addresses, reserved, now));
    }
    text
}

fn sum(counts: &PoolCounts) -> String {
    let PoolCounts { total, used, free, quarantined, draining, conflict, reserved, .. } = counts;
    if *total == 0 && *reserved == 0 {
        return "none".into();
    }
    format!(
        "{total} = {used} used + {free} free + {quarantined} quarantined + {draining} draining + {conflict} in conflict; \
         beside that {reserved} reserved"
    )
}

/// Every address that is not simply free. Those that are somebody else's are a range if there are several.
fn address_table(addresses: &[PoolAddress], reserved: &[PoolReservation], now: u64) -> String {
    let why = |ip: IpAddr| reserved.iter().find(|it| it.first <= ip && ip <= it.last).map(|it| it.why.clone());
    let is_said = |it: &&PoolReservation| it.first == it.last && addresses.iter().any(|said| said.address == it.first);
    let state = |address: &PoolAddress| {
        let rest = rest(address, now).unwrap_or_default();
        // The words of the agent name what else keeps an address from services.
        let said = || (address.state == AddressState::Reserved).then(|| address.message.clone());
        let why = why(address.address).or_else(said).unwrap_or_default();
        let state = address.state.to_string();
        (address.address, [address.address.to_string(), state, address.services.join(","), rest, why])
    };
    let range = |it: &PoolReservation| {
        let range = if it.first == it.last { it.first.to_string() } else { format!("{}-{}", it.first, it.last) };
        (it.first, [range, AddressState::Reserved.to_string(), String::new(), String::new(), it.why.clone()])
    };
    let ranges = reserved.iter().filter(|it| !is_said(it)).map(range);
    let mut rows: Vec<_> = addresses.iter().map(state).chain(ranges).collect();
    rows.sort_by_key(|(first, _)| *first);
    let mut table = Table::new(["ADDRESS", "STATE", "SERVICES", "FOR", "WHY"]);
    for (_, row) in rows {
        table.row(row);
    }
    table.to_string()
}

fn explained(address: &PoolAddress, now: u64) -> String {
    let mut text = format!("{address}\n");
    if let Some(rest) = rest(address, now) {
        text.push_str(&format!("for another {rest}\n"));
    }
    text
}

fn planned(plan: &PoolPlan, now_there: &[Pool], now: u64) -> String {
    let mut text: String = plan.refused.iter().map(|refusal| format!("not accepted: {refusal}\n")).collect();
    text.extend(plan.unsupported.iter().map(|finding| format!("not supported: {finding}\n")));
    if plan.moves.is_empty() {
        text.push_str("no service would get another address\n");
    } else {
        let mut moves = Table::new(["SERVICE", "NOW", "THEN", "REFUSED"]);
        for planned in &plan.moves {
            moves.row([
                planned.service.clone(),
                joined(&planned.before),
                joined(&planned.after),
                planned.refused.join("; "),
            ]);
        }
        text.push_str(&moves.to_string());
    }
    let changed: Vec<Pool> = plan.pools.iter().filter(|pool| !now_there.contains(pool)).cloned().collect();
    if !changed.is_empty() {
        text.push('\n');
        text.push_str(&table(&changed, now));
    }
    text
}

fn joined(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() { "<none>".into() } else { addresses.join(",") }
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.into()
}

/// How much longer an address is what it is.
fn rest(address: &PoolAddress, now: u64) -> Option<String> {
    let until = address.until_ms? / 1000;
    Some(span(until.saturating_sub(now)))
}

fn age(pool: &Pool, now: u64) -> String {
    span(now.saturating_sub(pool.created_s))
}

fn seconds_since_1970() -> u64 {
    Timestamp::now().as_second().max(0).unsigned_abs()
}
