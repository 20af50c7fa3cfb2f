//! The comparison as one picture, for a page that shows no more than that.

use plotters::{
    element::{Rectangle, Text},
    style::{
        Color, FontStyle,
        text_anchor::{HPos, VPos},
    },
};

use super::{
    chart::Chart,
    charts,
    drawing::{Canvas, Drawing, INFALLIBLE, text, wrap},
    palette::{DIM, Ink, PANEL, TEXT},
    result::Comparison,
    table::thousands,
};

const TITLE: &str = "The same services on every datapath";

/// Width in pixels: a README shows it without making it smaller.
const WIDTH: u32 = 880;
const MARGIN: i32 = 16;
/// Where the charts begin; their titles are above.
const TOP: i32 = 88;
/// Width and height of a chart.
const CHART: (u32, u32) = ((WIDTH - 2 * MARGIN as u32) / 2, 270);
const HEADING: f64 = 18.0;
const TEXT_SIZE: f64 = 12.0;
const LINE: usize = 18;

/// Latency and sync time by number of services, with what a reader needs to judge them.
pub(super) fn figure(comparison: &Comparison) -> Drawing {
    let caption = wrap(&caption(comparison), TEXT_SIZE, f64::from(WIDTH as i32 - 2 * MARGIN));
    let below = TOP + CHART.1 as i32 + 8;
    let height = below as u32 + (caption.len() * LINE) as u32 + 8;
    Drawing::new((WIDTH, height), format!("{TITLE}: latency and sync time"), |canvas| {
        let back = Rectangle::new([(0, 0), (WIDTH as i32, height as i32)], PANEL.light.filled());
        canvas.draw(&back).expect(INFALLIBLE);
        write(canvas, TITLE, (MARGIN, 14), HEADING, TEXT, FontStyle::Bold);
        let charts = [charts::latency(comparison), charts::sync(comparison)];
        let lefts = [MARGIN, MARGIN + CHART.0 as i32];
        let tooltips = charts.iter().zip(lefts).flat_map(|(chart, left)| draw(canvas, chart, left)).collect();
        for (line, y) in caption.iter().zip((below..).step_by(LINE)) {
            write(canvas, line, (MARGIN, y), TEXT_SIZE, DIM, FontStyle::Normal);
        }
        tooltips
    })
}

/// A chart under its title. Its tooltips.
fn draw(canvas: &Canvas<'_>, chart: &Chart, left: i32) -> Vec<String> {
    write(canvas, chart.title, (left, TOP - 40), TEXT_SIZE + 1.0, TEXT, FontStyle::Bold);
    write(canvas, chart.unit, (left, TOP - 22), TEXT_SIZE, DIM, FontStyle::Normal);
    chart.draw(&canvas.clone().shrink((left, TOP), CHART))
}

fn write(canvas: &Canvas<'_>, line: &str, at: (i32, i32), pixels: f64, ink: Ink, weight: FontStyle) {
    let style = text(pixels, ink, weight, (HPos::Left, VPos::Top));
    canvas.draw(&Text::new(line.to_owned(), at, style)).expect(INFALLIBLE);
}

fn caption(comparison: &Comparison) -> String {
    let n = &comparison.n;
    let connections = u64::from(n.rounds) * u64::from(n.connects);
    format!(
        "n = {} connections per path and number of services, in {} rounds; each ratio is taken within a round. Sync is the \
         median of up to {}. direct: the same way without load balancing; floor: one nftables rule. Linux {}, {} CPUs.",
        thousands(connections),
        n.rounds,
        n.syncs,
        comparison.kernel,
        comparison.cpus,
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::{drawing::tests::assert_labels_inside, result::tests::example},
        *,
    };

    #[test]
    fn the_figure_says_all_that_a_reader_needs() {
        let svg = figure(&example()).standalone();
        assert_labels_inside(&svg);
        for needed in [
            TITLE,
            "New connection: median against direct",
            "ratio; direct is 1, lower is better",
            "First sync of all services",
            "n = 4,000 connections",
            "prefers-color-scheme: dark",
            "\nebpf 1.00\n",
            "\niptables-nft 2.00\n",
            "\niptables-nft 100\n",
        ] {
            assert!(svg.contains(needed), "{needed}: {svg}");
        }
        // 880 pixels at most, and the name of the kernel cannot become markup.
        assert!(svg.contains("viewBox=\"0 0 880 ") && svg.contains("&lt;test&gt;"), "{svg}");
    }

    #[test]
    fn a_long_name_of_a_kernel_stays_inside() {
        let kernel = "6.12.0-123-generic-with-a-name-of-sixty-four-characters-as-uname".into();
        assert_labels_inside(&figure(&Comparison { kernel, ..example() }).standalone());
    }
}
