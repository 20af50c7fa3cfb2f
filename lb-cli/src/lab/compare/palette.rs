//! The colours of a report, once for light and once for dark screens.
//!
//! A drawing names the light colours in its elements, so that it is complete without a style sheet. [`style`] replaces
//! each of them by a variable of CSS, which follows the reader's theme.

use std::fmt::Write as _;

use plotters::style::RGBColor;

/// A colour with its two shades.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ink {
    variable: &'static str,
    /// On a light background; also the colour that elements of a drawing name.
    pub(super) light: RGBColor,
    dark: RGBColor,
}

const fn ink(variable: &'static str, light: u32, dark: u32) -> Ink {
    Ink { variable, light: rgb(light), dark: rgb(dark) }
}

const fn rgb(hex: u32) -> RGBColor {
    let [_, red, green, blue] = hex.to_be_bytes();
    RGBColor(red, green, blue)
}

pub(super) const BACK: Ink = ink("back", 0xff_ffff, 0x14_171c);
pub(super) const PANEL: Ink = ink("panel", 0xf6_f7f9, 0x1d_2128);
pub(super) const TEXT: Ink = ink("text", 0x1c_2128, 0xe8_ebef);
pub(super) const DIM: Ink = ink("dim", 0x5b_6470, 0xa3_acb8);
pub(super) const GRID: Ink = ink("grid", 0xd9_dde3, 0x38_3f49);
const EBPF: Ink = ink("ebpf", 0x16_68c7, 0x6c_b0ff);
const NFTABLES: Ink = ink("nftables", 0x0f_8a6d, 0x4f_d1ae);
const IPTABLES_NFT: Ink = ink("iptables-nft", 0xc2_500a, 0xff_9a57);
const IPTABLES_LEGACY: Ink = ink("iptables-legacy", 0x8a_3fb8, 0xcf_9bf2);
/// Datapaths that this program does not know by name.
const OTHER: Ink = ink("other", 0xb0_2a6f, 0xff_8fc4);
const BASE: Ink = ink("base", 0x6b_7380, 0x98_a2b0);

const INKS: [Ink; 11] = [BACK, PANEL, TEXT, DIM, GRID, EBPF, NFTABLES, IPTABLES_NFT, IPTABLES_LEGACY, OTHER, BASE];

impl Ink {
    /// The colour of a path: a datapath, a second way through it, or a baseline.
    pub(super) fn of_path(name: &str) -> Self {
        match name {
            "ebpf" | "ebpf-tcx" => EBPF,
            "nftables" => NFTABLES,
            "iptables-nft" => IPTABLES_NFT,
            "iptables-legacy" => IPTABLES_LEGACY,
            "direct" | "floor" => BASE,
            _ => OTHER,
        }
    }
}

/// The rules of CSS that define every colour for both themes and make drawings follow them.
pub(super) fn style() -> String {
    let variables = |shade: fn(&Ink) -> RGBColor| {
        let one = |ink: &Ink| format!("--{}: {};", ink.variable, hex(shade(ink)));
        format!(":root {{ {} }}", INKS.iter().map(one).collect::<Vec<_>>().join(" "))
    };
    let mut css = format!(
        "{}\n@media (prefers-color-scheme: dark) {{ {} }}\n",
        variables(|ink| ink.light),
        variables(|ink| ink.dark)
    );
    for Ink { variable, light, .. } in INKS {
        let light = hex(light);
        // Writing to a string cannot fail.
        let _ = writeln!(css, "[fill=\"{light}\"] {{ fill: var(--{variable}); }}");
        let _ = writeln!(css, "[stroke=\"{light}\"] {{ stroke: var(--{variable}); }}");
    }
    css
}

/// As plotters writes it: selectors of attributes compare letter by letter.
fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_light_colour_names_one_ink() {
        let light: BTreeSet<String> = INKS.iter().map(|ink| hex(ink.light)).collect();
        assert_eq!(light.len(), INKS.len(), "{light:?}");
    }

    #[test]
    fn text_and_lines_stand_out_in_both_themes() {
        for ink in [TEXT, DIM, EBPF, NFTABLES, IPTABLES_NFT, IPTABLES_LEGACY, OTHER, BASE] {
            for (ink_shade, panel) in [(ink.light, PANEL.light), (ink.dark, PANEL.dark)] {
                let contrast = contrast(ink_shade, panel);
                // 3:1 is what WCAG 2.2 (1.4.11) asks for lines.
                assert!(contrast >= 3.0, "{}: {contrast:.2} on {}", ink.variable, hex(panel));
            }
        }
    }

    /// Contrast as WCAG 2.2 defines it, from 1 to 21.
    fn contrast(one: RGBColor, other: RGBColor) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    fn luminance(RGBColor(red, green, blue): RGBColor) -> f64 {
        let channel = |byte: u8| {
            let share = f64::from(byte) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue)
    }
}
