//! Line charts over numbers of services, which lie on a logarithmic axis.

use plotters::{
    backend::SVGBackend,
    chart::{ChartBuilder, ChartContext},
    coord::{
        cartesian::Cartesian2d,
        combinators::{BindKeyPoints, IntoLogRange},
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    element::{Circle, PathElement, Text},
    series::{DashedLineSeries, LineSeries},
    style::{
        Color, FontStyle, ShapeStyle,
        text_anchor::{HPos, VPos},
    },
};

use super::{
    drawing::{Canvas, Drawing, INFALLIBLE, text, width},
    palette::{DIM, GRID, Ink},
    table::{number, thousands},
};

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

/// Width and height of a chart that stands alone, in pixels.
const SIZE: (u32, u32) = (560, 300);
/// Size of all texts, in pixels.
const FONT: f64 = 12.0;
/// Least distance of two names at the right.
const LINE: i32 = 16;
/// From the last point to its name.
const LEADER: i32 = 24;
/// From a tick's text to its axis, the mark included.
const TICK: i32 = 10;
const MARGIN: i32 = 10;
/// Room for numbers of services, and for the word.
const BELOW: i32 = 44;
/// Values below this have no place on a logarithmic axis.
const LEAST: f64 = 0.001;

impl Chart {
    /// The chart alone.
    pub(super) fn drawing(&self) -> Drawing {
        Drawing::new(SIZE, format!("{}, {}", self.title, self.unit), |canvas| self.draw(canvas))
    }

    /// Draws it on all of a canvas. A tooltip for each point, in the order of the points.
    pub(super) fn draw(&self, canvas: &Canvas<'_>) -> Vec<String> {
        let values = || self.series.iter().flat_map(|series| &series.points).map(|&(_, value)| value);
        let most = values().fold(LEAST, f64::max);
        match self.scale {
            Scale::Linear => {
                let widest = width("0.0000", FONT).max(width(&tick_text(&most), FONT));
                self.plot(canvas, 0.0..most * 1.05, widest)
            }
            Scale::Log => {
                let ticks = decades(values().map(|value| value.max(LEAST)).fold(most, f64::min), most);
                let range = ticks[0]..ticks[ticks.len() - 1];
                let widest = ticks.iter().map(|tick| width(&tick_text(tick), FONT)).fold(0.0, f64::max);
                self.plot(canvas, range.log_scale().with_key_points(ticks), widest)
            }
        }
        self.tooltips()
    }

    /// `ticks` is the room, in pixels, that the widest text of the axis of values takes.
    fn plot<Y>(&self, canvas: &Canvas<'_>, values: Y, ticks: f64)
    where
        Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        let sizes = self.sizes();
        // Room for the dots of the first and the last size.
        let (first, last) =
            (sizes.first().map_or(1.0, |size| size / 1.1), sizes.last().map_or(10.0, |size| size * 1.1));
        let services = (first..last).log_scale().with_key_points(sizes);
        let mut plot = ChartBuilder::on(canvas)
            .margin_top(MARGIN)
            .margin_right(self.names_width() + LEADER + MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(MARGIN + ticks.ceil() as i32 + TICK)
            .build_cartesian_2d(services, values)
            .expect(INFALLIBLE);
        plot.configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.light)
            .light_line_style(GRID.light.mix(0.0))
            .axis_style(GRID.light)
            .x_label_formatter(&|&size| thousands(size as u64))
            .y_label_formatter(&tick_text)
            .y_labels(6)
            .x_desc("services")
            .label_style(text(FONT, DIM, FontStyle::Normal, (HPos::Left, VPos::Top)))
            .draw()
            .expect(INFALLIBLE);
        for series in &self.series {
            series.draw(&mut plot);
        }
        self.draw_names(canvas, &plot);
    }

    /// Every number of services once, ascending.
    fn sizes(&self) -> Vec<f64> {
        let points = self.series.iter().flat_map(|series| &series.points);
        let mut sizes: Vec<u32> = points.map(|&(services, _)| services.max(1)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes.into_iter().map(f64::from).collect()
    }

    fn names_width(&self) -> i32 {
        let widths = self.series.iter().filter_map(Series::end).map(|(_, name)| width(&name, FONT));
        widths.fold(0.0, f64::max).ceil() as i32
    }

    /// The name and last value of every line, beside its end, moved apart where ends are close.
    fn draw_names<X, Y>(&self, canvas: &Canvas<'_>, plot: &ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>)
    where
        X: Ranged<ValueType = f64>,
        Y: Ranged<ValueType = f64>,
    {
        let (left, top) = canvas.get_base_pixel();
        let named: Vec<(&Series, String, (i32, i32))> = self
            .series
            .iter()
            .filter_map(|series| {
                let (point, name) = series.end()?;
                let (x, y) = plot.backend_coord(&point);
                Some((series, name, (x - left, y - top)))
            })
            .collect();
        let wanted: Vec<i32> = named.iter().map(|&(_, _, (_, y))| y).collect();
        let bottom = canvas.dim_in_pixel().1 as i32 - BELOW;
        for ((series, name, (x, y)), at) in named.into_iter().zip(spread(&wanted, MARGIN, bottom)) {
            let (from, to) = ((x + 6, y), (x + LEADER, at));
            let style = text(FONT, series.ink(), FontStyle::Bold, (HPos::Left, VPos::Center));
            canvas.draw(&PathElement::new([from, to], GRID.light)).expect(INFALLIBLE);
            canvas.draw(&Text::new(name, (to.0 + 4, at), style)).expect(INFALLIBLE);
        }
    }

    fn tooltips(&self) -> Vec<String> {
        let tooltip = |series: &Series, services, value| {
            format!("{}: {} at {} services", series.name, value_text(value), thousands(u64::from(services)))
        };
        self.series
            .iter()
            .flat_map(|series| series.points.iter().map(move |&(services, value)| tooltip(series, services, value)))
            .collect()
    }
}

impl Series {
    fn ink(&self) -> Ink {
        Ink::of_path(self.name)
    }

    /// The last point, and the text beside it.
    fn end(&self) -> Option<((f64, f64), String)> {
        let &(services, value) = self.points.last()?;
        Some((point(services, value), format!("{} {}", self.name, value_text(value))))
    }

    fn draw<X, Y>(&self, plot: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>)
    where
        X: Ranged<ValueType = f64>,
        Y: Ranged<ValueType = f64>,
    {
        let points: Vec<(f64, f64)> = self.points.iter().map(|&(services, value)| point(services, value)).collect();
        let line = ShapeStyle::from(self.ink().light).stroke_width(2);
        if self.baseline {
            plot.draw_series(DashedLineSeries::new(points.clone(), 5, 4, line)).expect(INFALLIBLE);
        } else {
            plot.draw_series(LineSeries::new(points.clone(), line)).expect(INFALLIBLE);
        }
        let dots = points.into_iter().map(|point| Circle::new(point, 4, self.ink().light.filled()));
        plot.draw_series(dots).expect(INFALLIBLE);
    }
}

/// Where a value lies. None lies below the least that has a place on a logarithmic axis.
fn point(services: u32, value: f64) -> (f64, f64) {
    (f64::from(services.max(1)), value.max(LEAST))
}

/// Powers of ten around both, two at least.
fn decades(least: f64, most: f64) -> Vec<f64> {
    let first = least.log10().floor() as i32;
    let last = (most.log10().ceil() as i32).max(first + 1);
    (first..=last).map(|power| 10f64.powi(power)).collect()
}

fn tick_text(tick: &f64) -> String {
    if *tick >= 1000.0 { thousands(tick.round() as u64) } else { format!("{}", (tick * 1e6).round() / 1e6) }
}

/// Three significant digits, and commas from a thousand.
fn value_text(value: f64) -> String {
    if value >= 999.5 { thousands(value.round() as u64) } else { number(value) }
}

/// Moves heights apart until each has a line of its own between `top` and `bottom`, as little as that takes.
fn spread(wanted: &[i32], top: i32, bottom: i32) -> Vec<i32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&index| wanted[index]);
    let mut blocks: Vec<Block> = Vec::new();
    for &index in &order {
        let mut block = Block { names: 1, middles: wanted[index] };
        while let Some(above) = blocks.pop_if(|above| above.bottom() > block.top()) {
            block = Block { names: above.names + block.names, middles: above.middles + block.middles };
        }
        blocks.push(block);
    }
    let lines = blocks.iter().flat_map(|block| (0..block.names).map(|line| block.top() + LINE / 2 + line * LINE));
    let mut placed = vec![0; wanted.len()];
    let mut above = top - LINE;
    for (&index, line) in order.iter().zip(lines) {
        placed[index] = line.max(above + LINE);
        above = placed[index];
    }
    let mut below = bottom + LINE;
    for &index in order.iter().rev() {
        placed[index] = placed[index].min(below - LINE);
        below = placed[index];
    }
    placed
}

/// Names that touch each other, around the middle of the heights that they want.
struct Block {
    names: i32,
    /// Sum of the heights that they want.
    middles: i32,
}

impl Block {
    fn top(&self) -> i32 {
        self.middles / self.names - self.names * LINE / 2
    }

    fn bottom(&self) -> i32 {
        self.top() + self.names * LINE
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawing::tests::assert_labels_inside, *};

    fn chart(scale: Scale, points: &[(u32, f64)]) -> Chart {
        let series = |name, baseline| Series { name, baseline, points: points.to_vec() };
        Chart {
            title: "a < b",
            unit: "ms",
            scale,
            series: vec![series("ebpf", false), series("iptables-legacy", false), series("floor", true)],
        }
    }

    #[test]
    fn decades_hold_both_ends() {
        assert_eq!(decades(2.0, 300.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(decades(1.0, 1.0), [1.0, 10.0]);
    }

    #[test]
    fn names_do_not_lie_on_each_other() {
        let placed = spread(&[100, 101, 99, 259, 260], 14, 260);
        let mut sorted = placed.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= LINE), "{placed:?}");
        assert!(sorted.iter().all(|y| (14..=260).contains(y)), "{placed:?}");
        assert!(placed[2] < placed[0] && placed[0] < placed[1], "order is kept: {placed:?}");
    }

    #[test]
    fn a_chart_stays_in_its_box_and_escapes() {
        for scale in [Scale::Linear, Scale::Log] {
            let svg = chart(scale, &[(10, 0.0), (100, 5.0), (5000, 70.0)]).drawing().inline();
            assert!(svg.contains("a &lt; b, ms") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.matches("<circle").count(), 9);
            assert_eq!(svg.matches("<title>").count(), 9);
            assert!(svg.contains("\n5,000\n") && svg.contains("\nebpf 70.0\n"), "{svg}");
            assert!(svg.contains("<title>floor: 70.0 at 5,000 services</title>"), "{svg}");
            assert_labels_inside(&svg);
        }
    }

    #[test]
    fn labels_of_large_and_small_values_are_not_cut_off() {
        for largest in [0.002, 0.93, 1_137.0, 11_956.0, 9_999_999.0] {
            for scale in [Scale::Linear, Scale::Log] {
                let svg = chart(scale, &[(10, largest / 9.0), (100_000, largest)]).drawing().inline();
                assert_labels_inside(&svg);
                assert!(svg.contains(&format!("\niptables-legacy {}\n", value_text(largest))), "{svg}");
            }
        }
    }

    #[test]
    fn one_size_and_no_size_are_drawn_too() {
        for svg in [chart(Scale::Log, &[(10, 2.0)]), chart(Scale::Linear, &[])].map(|chart| chart.drawing().inline()) {
            assert!(!svg.contains("NaN"), "{svg}");
            assert_labels_inside(&svg);
        }
    }

    #[test]
    fn values_keep_three_digits_and_have_commas() {
        assert_eq!([0.5, 999.4, 999.6, 11_956.2].map(value_text), ["0.50", "999", "1,000", "11,956"]);
    }
}
