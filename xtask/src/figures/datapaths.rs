//! Figures of the datapaths, out of `lb lab compare`.

use super::{
    Figure, Goal,
    compare::{Comparison, Row, Speed},
};

const SMALL: u32 = 10;
const LARGE: u32 = 5_000;
const DATAPATHS: [&str; 4] = ["ebpf", "nftables", "iptables-nft", "iptables-legacy"];

pub(crate) fn measure() -> Result<Vec<Figure>, Box<dyn std::error::Error>> {
    let sizes = format!("{SMALL},{LARGE}");
    let comparison = Comparison::measure(&["--services", &sizes])?;
    let mut figures = vec![comparison.failures()];
    for datapath in DATAPATHS {
        let (small, large) = (comparison.row(datapath, SMALL)?, comparison.row(datapath, LARGE)?);
        figures.push(comparison.growth(small, large));
        for row in [small, large] {
            figures.extend(comparison.costs(row)?);
        }
    }
    for path in comparison.baselines.iter().filter(|path| path.name == "floor").chain(&comparison.extras) {
        let name = format!("{}, {} services", path.name, path.services);
        figures.extend(comparison.speed(&name, path.services, &path.speed)?);
    }
    Ok(figures)
}

impl Comparison {
    fn failures(&self) -> Figure {
        let rows = self.rows.iter().map(|row| &row.speed);
        let paths = self.baselines.iter().chain(&self.extras).map(|path| &path.speed);
        let (paths, failures) = rows.chain(paths).fold((0, 0), |(n, sum), speed| (n + 1, sum + speed.failures));
        let each = self.n.rounds * (self.n.connects + self.n.lanes * self.n.lane_connects);
        Figure::new(
            "failed connections, all paths",
            Some(Goal::AtMost(0.0)),
            failures as f64,
            "",
            "direct: counted with them",
            paths * each,
        )
    }

    /// eBPF and nftables must stay flat, iptables-nft has to be seen growing.
    fn growth(&self, small: &Row, large: &Row) -> Figure {
        let goal = match large.datapath.as_str() {
            "ebpf" | "nftables" => Some(Goal::AtMost(1.25)),
            "iptables-nft" => Some(Goal::AtLeast(1.5)),
            _ => None,
        };
        Figure::new(
            format!("{}: p50 of a connection, {LARGE} services against {SMALL}", large.datapath),
            goal,
            large.speed.connect_p50_ratio / small.speed.connect_p50_ratio,
            "ratio",
            format!("{SMALL} services: {:.2} x direct", small.speed.connect_p50_ratio),
            self.n.rounds * self.n.connects,
        )
    }

    fn costs(&self, row: &Row) -> Result<Vec<Figure>, String> {
        let name = format!("{}, {} services", row.datapath, row.services);
        let mut figures = self.speed(&name, row.services, &row.speed)?;
        let only = "none: only reported";
        let rules = row.rules as f64;
        figures.extend([
            Figure::new(format!("{name}: sync"), None, row.sync_ms, "ms", only, self.n.syncs),
            Figure::new(format!("{name}: one change"), None, row.change_ms, "ms", only, self.n.changes),
            Figure::new(format!("{name}: rules"), None, rules, "", "direct: 0", 1),
            Figure::new(format!("{name}: agent"), None, row.rss_mib, "MiB", only, 1),
            Figure::new(format!("{name}: kernel memory"), None, row.kernel_mib, "MiB", only, 1),
        ]);
        Ok(figures)
    }

    fn speed(&self, name: &str, services: u32, speed: &Speed) -> Result<Vec<Figure>, String> {
        let direct = self.path("direct", services)?.speed.connect_p50_us;
        let us = format!("direct: {direct:.1} us, here: {:.1} us", speed.connect_p50_us);
        let connects = self.n.rounds * self.n.connects;
        let (p50, cps) = (format!("{name}: p50 of a connection"), format!("{name}: connections/s"));
        Ok(vec![
            Figure::new(p50, None, speed.connect_p50_ratio, "x direct", us, connects),
            Figure::new(cps, None, speed.cps_ratio, "x direct", "direct: 1", self.n.rounds),
        ])
    }
}
