//! SVG drawings, by plotters.

use plotters::{
    backend::SVGBackend,
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea},
    style::{
        Color, FontDesc, FontFamily, FontStyle, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{html::escape, palette, palette::Ink};

/// What is drawn on.
pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Drawing into a string cannot fail, and neither can fonts: plotters has none here.
pub(super) const INFALLIBLE: &str = "a drawing in memory does not fail";

/// A finished drawing.
#[derive(Clone, Debug)]
pub(super) struct Drawing {
    size: (u32, u32),
    /// The text for a reader without the picture.
    label: String,
    elements: String,
}

impl Drawing {
    /// A drawing of `size` pixels. `draw` returns a tooltip for every circle that it draws, in their order.
    pub(super) fn new(
        size: (u32, u32),
        label: impl Into<String>,
        draw: impl FnOnce(&Canvas<'_>) -> Vec<String>,
    ) -> Self {
        let mut svg = String::new();
        let tooltips = {
            let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let tooltips = draw(&canvas);
            canvas.present().expect(INFALLIBLE);
            tooltips
        };
        // The element `svg` itself is written where it is known where the drawing goes.
        let elements = svg.split_once('>').map_or("", |(_, elements)| elements).trim().trim_end_matches("</svg>");
        Self { size, label: label.into(), elements: with_tooltips(elements, &tooltips) }
    }

    /// For a page that has the [style](palette::style) already.
    pub(super) fn inline(&self) -> String {
        format!("<svg {}>{}</svg>\n", self.attributes(), self.elements)
    }

    /// A file that needs nothing but itself.
    pub(super) fn standalone(&self) -> String {
        let ((width, height), style) = (self.size, palette::style());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" {}>\n<title>{}</title>\n\
             <style>\n{style}</style>{}</svg>\n",
            self.attributes(),
            escape(&self.label),
            self.elements
        )
    }

    fn attributes(&self) -> String {
        let (width, height) = self.size;
        format!("viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\"", escape(&self.label))
    }
}

/// Puts a title into every circle: plotters draws no tooltips.
fn with_tooltips(elements: &str, tooltips: &[String]) -> String {
    const CIRCLE: &str = "<circle ";
    let mut pieces = elements.split(CIRCLE);
    let mut titled = pieces.next().unwrap_or_default().to_owned();
    let mut tooltips = tooltips.iter();
    for piece in pieces {
        titled.push_str(CIRCLE);
        match (piece.split_once("/>"), tooltips.next()) {
            (Some((attributes, rest)), Some(tooltip)) => {
                titled.push_str(&format!("{attributes}><title>{}</title></circle>{rest}", escape(tooltip)));
            }
            _ => titled.push_str(piece),
        }
    }
    titled
}

/// Text of so many pixels.
pub(super) fn text(pixels: f64, ink: Ink, weight: FontStyle, anchor: (HPos, VPos)) -> TextStyle<'static> {
    let font = FontDesc::new(FontFamily::Name("system-ui, sans-serif"), pixels * PLOTTERS_SIZE, weight);
    TextStyle { font, color: ink.light.to_backend_color(), pos: Pos::new(anchor.0, anchor.1) }
}

/// The SVG backend divides the size of a font by this.
const PLOTTERS_SIZE: f64 = 1.24;

/// How much room a text may take, in pixels. The reader's machine chooses the font: DejaVu Sans Bold, the widest of the
/// common ones, stays below this.
pub(super) fn width(text: &str, pixels: f64) -> f64 {
    let share = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | 'J' | ' ' | '.' | ',' | ':' | ';' | '\'' | '|' | '-' | '(' | ')' | '/' => 0.46,
        'a'..='l' | 'n'..='v' | 'x'..='z' | '0'..='9' => 0.72,
        _ => 1.2,
    };
    text.chars().map(share).sum::<f64>() * pixels
}

/// Breaks a text where its lines would be wider than `limit` pixels.
pub(super) fn wrap(text: &str, pixels: f64, limit: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), pixels) <= limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every label lies inside of the view box, as wide as it is in DejaVu Sans Bold.
    pub(in super::super) fn assert_labels_inside(svg: &str) {
        let (left, rest) = svg.split_once("viewBox=\"0 0 ").expect("a view box");
        assert!(!left.contains("<text"), "{left}");
        let (view_box, _) = rest.split_once('"').expect("an end");
        let (box_width, box_height) = view_box.split_once(' ').expect("two numbers");
        let (box_width, box_height): (f64, f64) = (box_width.parse().unwrap(), box_height.parse().unwrap());
        let mut labels = 0;
        for element in svg.split("<text").skip(1) {
            let (attributes, rest) = element.split_once('>').expect("an end of the tag");
            let text = rest.split_once("</text>").expect("an end of the text").0.trim();
            let attribute = |name: &str| {
                let (_, value) =
                    attributes.split_once(&format!(" {name}=\"")).unwrap_or_else(|| panic!("{attributes}"));
                value.split_once('"').expect("an end").0.to_owned()
            };
            let number = |name: &str| attribute(name).parse::<f64>().unwrap();
            assert!(!attributes.contains("rotate"), "{attributes}");
            let (x, y, size) = (number("x"), number("y"), number("font-size"));
            let width = text.chars().map(advance).sum::<f64>() * size;
            let left = match attribute("text-anchor").as_str() {
                "start" => x,
                "middle" => x - width / 2.0,
                "end" => x - width,
                other => panic!("{other}"),
            };
            assert!(left >= 0.0 && left + width <= box_width, "`{text}`: {left}..{} in {box_width}", left + width);
            let below = match attribute("dy").as_str() {
                "0.76em" => 0.76,
                "0.5ex" => 0.27,
                "-0.5ex" => -0.27,
                other => panic!("{other}"),
            };
            let (top, bottom) = (y + (below - 0.93) * size, y + (below + 0.24) * size);
            assert!(top >= 0.0 && bottom <= box_height, "`{text}`: {top}..{bottom} in {box_height}");
            labels += 1;
        }
        assert!(labels > 0, "no labels: {svg}");
    }

    /// Width of a character in DejaVu Sans Bold, in shares of the size.
    fn advance(c: char) -> f64 {
        const FIRST: u32 = 0x20;
        #[rustfmt::skip]
        const THOUSANDTHS: [u16; 95] = [
            348, 456, 521, 838, 696, 1002, 872, 306, 457, 457, 523, 838, 380, 415, 380, 365, 696, 696, 696, 696, 696, 696,
            696, 696, 696, 696, 400, 400, 838, 838, 838, 580, 1000, 774, 762, 734, 830, 683, 683, 821, 837, 372, 372, 775,
            637, 995, 837, 850, 733, 850, 770, 720, 682, 812, 774, 1103, 771, 724, 725, 457, 365, 457, 838, 500, 500, 675,
            716, 593, 716, 678, 435, 716, 712, 343, 343, 665, 343, 1042, 712, 687, 716, 716, 493, 595, 478, 712, 652, 924,
            645, 652, 582, 712, 365, 712, 838,
        ];
        let index = u32::from(c).checked_sub(FIRST).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| THOUSANDTHS.get(index)).map_or(1.2, |&width| f64::from(width) / 1000.0)
    }

    #[test]
    fn the_estimate_is_never_below_a_wide_font() {
        for text in ["iptables-legacy  11,956", "0.001", "1,000,000", "services", "New connections, medians", "mmm WWW"]
        {
            let real = text.chars().map(advance).sum::<f64>() * 12.0;
            assert!(width(text, 12.0) >= real, "{text}: {} < {real}", width(text, 12.0));
        }
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("a b c", 10.0, 1000.0), ["a b c"]);
        assert_eq!(wrap("aaa bbb ccc", 10.0, 7.0 * 7.2), ["aaa bbb", "ccc"]);
        assert_eq!(wrap("aaaaaaaaaa b", 10.0, 20.0), ["aaaaaaaaaa", "b"]);
    }

    #[test]
    fn circles_have_tooltips_that_cannot_become_markup() {
        let titled = with_tooltips("<circle r=\"1\"/>\n<circle r=\"2\"/>", &["a < b".into(), "c".into()]);
        assert_eq!(
            titled,
            "<circle r=\"1\"><title>a &lt; b</title></circle>\n<circle r=\"2\"><title>c</title></circle>"
        );
    }
}
