//! Line charts as SVG. Numbers of services lie on a logarithmic axis; colours come from the page, so that one drawing
//! reads well in light and in dark.

use std::fmt::Write as _;

use super::table::number;

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// What is drawn.
    pub(super) title: &'static str,
    /// Unit, and which direction is good.
    pub(super) unit: &'static str,
    /// How values lie on their axis.
    pub(super) scale: Scale,
    /// The lines.
    pub(super) series: Vec<Series>,
}

/// How values lie on their axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero.
    Linear,
    /// By decades.
    Log,
}

/// A line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Name beside it.
    pub(super) name: &'static str,
    /// Whether it is there to compare with.
    pub(super) baseline: bool,
    /// Numbers of services, ascending, and values.
    pub(super) points: Vec<(u32, f64)>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Least distance of two names at the right.
const LINE: f64 = 15.0;
/// Values below this have no place on a logarithmic axis.
const LEAST: f64 = 0.001;

impl Chart {
    /// The drawing.
    pub(super) fn svg(&self) -> String {
        let axis = Axis::new(self);
        let mut svg = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}, {}\">",
            escape(self.title),
            escape(self.unit)
        );
        axis.draw(&mut svg);
        for series in &self.series {
            series.draw(&axis, &mut svg);
        }
        self.draw_names(&axis, &mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    /// The name and last value of every line, beside its end, moved apart where ends are close.
    fn draw_names(&self, axis: &Axis, svg: &mut String) {
        let ends: Vec<(&Series, u32, f64)> =
            self.series.iter().filter_map(|series| series.points.last().map(|&(x, y)| (series, x, y))).collect();
        let wanted: Vec<f64> = ends.iter().map(|&(_, _, value)| axis.y(value)).collect();
        for ((series, services, value), (wanted, y)) in ends.into_iter().zip(wanted.iter().zip(spread(&wanted))) {
            let (from, to) = (axis.x(services) + 6.0, WIDTH - RIGHT + 22.0);
            let _ = write!(
                svg,
                "<path class=\"leader\" d=\"M{from:.1} {wanted:.1}L{to:.1} {y:.1}\"/>\
                 <text class=\"name {class}\" x=\"{:.1}\" y=\"{:.1}\">{} <tspan class=\"value\">{}</tspan></text>",
                to + 4.0,
                y + 4.0,
                escape(series.name),
                number(value),
                class = series.name,
            );
        }
    }
}

impl Series {
    fn draw(&self, axis: &Axis, svg: &mut String) {
        let line: Vec<String> =
            self.points.iter().map(|&(x, y)| format!("{:.1} {:.1}", axis.x(x), axis.y(y))).collect();
        let class = format!("{}{}", self.name, if self.baseline { " baseline" } else { "" });
        let _ = write!(svg, "<g class=\"series {class}\"><path d=\"M{}\"/>", line.join("L"));
        for &(services, value) in &self.points {
            let (x, y) = (axis.x(services), axis.y(value));
            let _ = write!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{}: {} at {services} services</title></circle>",
                escape(self.name),
                number(value),
            );
        }
        svg.push_str("</g>");
    }
}

/// Where numbers lie.
struct Axis {
    sizes: Vec<u32>,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(chart: &Chart) -> Self {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let mut sizes: Vec<u32> = points().map(|&(services, _)| services).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let most = points().map(|&(_, value)| value).fold(LEAST, f64::max);
        let least = points().map(|&(_, value)| value.max(LEAST)).fold(most, f64::min);
        let ticks = match chart.scale {
            Scale::Linear => linear_ticks(most),
            Scale::Log => decades(least, most),
        };
        let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        Self { sizes, scale: chart.scale, low, high, ticks }
    }

    fn x(&self, services: u32) -> f64 {
        let log = |size: u32| f64::from(size.max(1)).ln();
        let width = WIDTH - LEFT - RIGHT;
        match (self.sizes.first(), self.sizes.last()) {
            (Some(&first), Some(&last)) if first < last => {
                LEFT + width * (log(services) - log(first)) / (log(last) - log(first))
            }
            _ => LEFT + width / 2.0,
        }
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low).ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
        };
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
    }

    fn draw(&self, svg: &mut String) {
        let (left, right, bottom) = (LEFT - 6.0, WIDTH - RIGHT + 6.0, HEIGHT - BOTTOM);
        for &tick in &self.ticks {
            let y = self.y(tick);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left - 4.0,
                y + 4.0,
                tick_text(tick),
            );
        }
        for &size in &self.sizes {
            let x = self.x(size);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {bottom}v5\"/>\
                 <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 18.0,
                thousands(u64::from(size)),
            );
        }
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        let _ = write!(
            svg,
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{:.1}\">services</text>",
            HEIGHT - 5.0
        );
    }
}

/// Zero, and steps of 1, 2 or 5 times a power of ten up to the first that holds `most`.
fn linear_ticks(most: f64) -> Vec<f64> {
    let rough = most / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let count = (most / step * 0.999).ceil().max(1.0) as u32;
    (0..=count).map(|n| f64::from(n) * step).collect()
}

/// Powers of ten around both, two at least.
fn decades(least: f64, most: f64) -> Vec<f64> {
    let first = least.log10().floor() as i32;
    let last = (most.log10().ceil() as i32).max(first + 1);
    (first..=last).map(|power| 10f64.powi(power)).collect()
}

fn tick_text(tick: f64) -> String {
    if tick >= 1000.0 { thousands(tick.round() as u64) } else { format!("{}", (tick * 1000.0).round() / 1000.0) }
}

/// With commas.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Moves heights apart until each has a line of its own, within the drawing.
fn spread(wanted: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut placed = wanted.to_vec();
    let mut above = TOP - LINE;
    for &index in &order {
        placed[index] = placed[index].max(above + LINE);
        above = placed[index];
    }
    let mut below = HEIGHT - BOTTOM + LINE;
    for &index in order.iter().rev() {
        placed[index] = placed[index].min(below - LINE);
        below = placed[index];
    }
    placed
}

/// As text of an HTML page or value of an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: &[(u32, f64)]) -> Chart {
        let series = |name, baseline| Series { name, baseline, points: points.to_vec() };
        Chart { title: "a < b", unit: "ms", scale, series: vec![series("ebpf", false), series("floor", true)] }
    }

    #[test]
    fn linear_ticks_hold_the_largest_value() {
        assert_eq!(linear_ticks(3.6), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(linear_ticks(1.0), [0.0, 0.5, 1.0]);
        assert_eq!(linear_ticks(4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert!(linear_ticks(0.93).last().is_some_and(|&last| last >= 0.93));
    }

    #[test]
    fn decades_hold_both_ends() {
        assert_eq!(decades(2.0, 300.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(decades(1.0, 1.0), [1.0, 10.0]);
    }

    #[test]
    fn names_do_not_lie_on_each_other() {
        let placed = spread(&[100.0, 101.0, 99.0, 259.0, 259.5]);
        let mut sorted = placed.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= LINE - 1e-9), "{placed:?}");
        assert!(sorted.iter().all(|&y| (TOP..=HEIGHT - BOTTOM).contains(&y)), "{placed:?}");
        assert!(placed[2] < placed[0] && placed[0] < placed[1], "order is kept: {placed:?}");
    }

    #[test]
    fn a_chart_stays_in_its_box_and_escapes() {
        for scale in [Scale::Linear, Scale::Log] {
            let svg = chart(scale, &[(10, 0.0), (100, 5.0), (5000, 70.0)]).svg();
            assert!(svg.contains("a &lt; b, ms") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.matches("<circle").count(), 6);
            assert!(svg.contains(">5,000<") && svg.contains(">70.0<"), "{svg}");
        }
    }

    #[test]
    fn one_size_and_no_size_are_drawn_too() {
        assert!(!chart(Scale::Log, &[(10, 2.0)]).svg().contains("NaN"));
        assert!(!chart(Scale::Linear, &[]).svg().contains("NaN"));
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">'&\u{7}"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\\u{7}");
    }
}
