//! Bytes over time of all transfers, as an SVG picture.

use std::time::Instant;

use crate::Moments;
use crate::transfer::{Kind, Outcome, Path};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;

/// Where the axes are: left, top, right, bottom.
const FRAME: (f64, f64, f64, f64) = (70.0, 56.0, 720.0, 480.0);

/// A scale from data to picture, both ways the same.
#[derive(Clone, Copy, Debug)]
struct Scale {
    seconds: f64,
    megabytes: f64,
}

impl Scale {
    fn x(self, seconds: f64) -> f64 {
        let (left, _, right, _) = FRAME;
        left + seconds / self.seconds * (right - left)
    }

    fn y(self, megabytes: f64) -> f64 {
        let (_, top, _, bottom) = FRAME;
        bottom - megabytes / self.megabytes * (bottom - top)
    }
}

/// Draws the transfers.
pub(crate) fn draw(outcomes: &[Outcome], moments: Moments) -> String {
    let curves: Vec<_> = outcomes
        .iter()
        .map(|outcome| (outcome, points(outcome, moments)))
        .collect();
    let all = || curves.iter().flat_map(|(_, points)| points);
    let scale = Scale {
        seconds: (moments.end - moments.start).as_secs_f64() * 1.02,
        megabytes: all().map(|point| point.1).fold(1.0, f64::max) * 1.06,
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(
        &mut svg,
        (FRAME.0, 24.0),
        "start",
        "What arrived while the network was cut and switched",
    );
    events(&mut svg, scale, moments);
    axes(&mut svg, scale);
    for (outcome, points) in &curves {
        curve(&mut svg, scale, outcome, points);
        if !outcome.is_intact() {
            silence(&mut svg, scale, (outcome, moments), points);
        }
    }
    // Above all curves, for those that end early lie below others.
    for (outcome, points) in &curves {
        ending(&mut svg, scale, outcome, points);
    }
    legend(&mut svg, outcomes);
    svg.push_str("</svg>\n");
    svg
}

/// Seconds since the start and megabytes, thinned to what can be seen.
fn points(outcome: &Outcome, moments: Moments) -> Vec<(f64, f64)> {
    let begun = (outcome.timeline.start() - moments.start).as_secs_f64();
    let mut points = vec![(begun, 0.0)];
    for (time, total) in outcome.timeline.points() {
        let seconds = begun + time.as_secs_f64();
        let last = points[points.len() - 1];
        if seconds - last.0 > 0.3 {
            // A silence is a level line, not a slope to the next byte.
            points.push((seconds, last.1));
        }
        if seconds - last.0 > 0.02 {
            points.push((seconds, megabytes(total)));
        }
    }
    if let Some(&(time, total)) = outcome.timeline.points().last() {
        points.push((begun + time.as_secs_f64(), megabytes(total)));
    }
    points
}

fn megabytes(bytes: u64) -> f64 {
    // A file of the demo has fewer bytes than a double has integers.
    #[expect(clippy::cast_precision_loss, reason = "a picture needs three digits")]
    let bytes = bytes as f64;
    bytes / 1e6
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Clone => "#d55e00",
        Kind::Download => "#0072b2",
        Kind::Upload => "#009e73",
    }
}

fn dashes(path: Path) -> &'static str {
    match path {
        Path::Direct => " stroke-dasharray=\"6 4\"",
        Path::Tund => "",
    }
}

fn events(svg: &mut String, scale: Scale, moments: Moments) {
    let (_, top, _, bottom) = FRAME;
    let x = |moment: Instant| scale.x((moment - moments.start).as_secs_f64());
    let (cut, healed, switched) = (x(moments.cut), x(moments.healed), x(moments.switched));
    let (width, height) = (healed - cut, bottom - top);
    put(
        svg,
        &format!(
            "<rect x=\"{cut:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" fill=\"#e8e8e8\"/>\n\
             <line x1=\"{switched:.1}\" x2=\"{switched:.1}\" y1=\"{top}\" y2=\"{bottom}\" \
             stroke=\"#888\" stroke-width=\"1.5\"/>"
        ),
    );
    let seconds = (moments.healed - moments.cut).as_secs_f64();
    let middle = f64::midpoint(cut, healed);
    let label = format!("silent cut, {seconds:.0} s; then forgotten");
    text(svg, (middle, top - 6.0), "middle", &label);
    text(
        svg,
        (switched + 4.0, top - 6.0),
        "start",
        "switch of access link",
    );
}

fn axes(svg: &mut String, scale: Scale) {
    let (left, top, right, bottom) = FRAME;
    put(
        svg,
        &format!(
            "<path d=\"M {left} {top} V {bottom} H {right}\" fill=\"none\" stroke=\"black\"/>"
        ),
    );
    for tick in ticks(scale.seconds) {
        let x = scale.x(tick);
        put(
            svg,
            &format!("<path d=\"M {x:.1} {bottom} v 5\" stroke=\"black\"/>"),
        );
        text(svg, (x, bottom + 20.0), "middle", &format!("{tick}"));
    }
    for tick in ticks(scale.megabytes) {
        let y = scale.y(tick);
        put(
            svg,
            &format!(
                "<path d=\"M {left} {y:.1} h -5\" stroke=\"black\"/>\
                 <path d=\"M {left} {y:.1} H {right}\" stroke=\"black\" stroke-opacity=\"0.08\"/>"
            ),
        );
        text(svg, (left - 9.0, y + 4.0), "end", &format!("{tick}"));
    }
    text(
        svg,
        (f64::midpoint(left, right), bottom + 42.0),
        "middle",
        "seconds",
    );
    text(svg, (left - 9.0, top - 6.0), "end", "MB");
}

/// Round numbers from 0 to `end`, five to ten of them.
fn ticks(end: f64) -> Vec<f64> {
    let power = 10_f64.powf((end / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| end / step <= 10.0)
        .unwrap_or(power * 10.0);
    std::iter::successors(Some(0.0), |tick| Some(tick + step))
        .take_while(|tick| *tick <= end)
        .collect()
}

fn curve(svg: &mut String, scale: Scale, outcome: &Outcome, points: &[(f64, f64)]) {
    let places: Vec<_> = points
        .iter()
        .map(|&(seconds, megabytes)| format!("{:.1},{:.1}", scale.x(seconds), scale.y(megabytes)))
        .collect();
    put(
        svg,
        &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>",
            places.join(" "),
            colour(outcome.kind),
            dashes(outcome.path)
        ),
    );
}

/// What a dead transfer goes on doing: nothing.
fn silence(
    svg: &mut String,
    scale: Scale,
    (outcome, moments): (&Outcome, Moments),
    points: &[(f64, f64)],
) {
    let Some(&(seconds, megabytes)) = points.last() else {
        return;
    };
    let (x, y, colour) = (scale.x(seconds), scale.y(megabytes), colour(outcome.kind));
    let end = scale.x((moments.end - moments.start).as_secs_f64());
    let line = format!(
        "<path d=\"M {x:.1} {y:.1} H {end:.1}\" stroke=\"{colour}\" stroke-dasharray=\"1 5\"/>"
    );
    put(svg, &line);
}

/// A dot for a transfer that arrived, a cross for one that died.
fn ending(svg: &mut String, scale: Scale, outcome: &Outcome, points: &[(f64, f64)]) {
    let Some(&(seconds, megabytes)) = points.last() else {
        return;
    };
    let (x, y, colour) = (scale.x(seconds), scale.y(megabytes), colour(outcome.kind));
    let mark = if outcome.is_intact() {
        format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/>")
    } else {
        format!(
            "<path d=\"M {x:.1} {y:.1} m -5 -5 l 10 10 m -10 0 l 10 -10\" stroke=\"{colour}\" \
             stroke-width=\"2.5\"/>"
        )
    };
    put(svg, &mark);
}

fn legend(svg: &mut String, outcomes: &[Outcome]) {
    let x = FRAME.2 + 20.0;
    let mut y = FRAME.1 + 12.0;
    for outcome in outcomes {
        put(
            svg,
            &format!(
                "<path d=\"M {x} {y} h 34\" stroke=\"{}\" stroke-width=\"2\"{}/>",
                colour(outcome.kind),
                dashes(outcome.path)
            ),
        );
        let label = format!("{}, {}", outcome.kind.label(), outcome.path.label());
        text(svg, (x + 42.0, y + 4.0), "start", &label);
        y += 22.0;
    }
    put(
        svg,
        &format!(
            "<circle cx=\"{}\" cy=\"{y}\" r=\"4.5\" fill=\"#555\"/>",
            x + 17.0
        ),
    );
    text(svg, (x + 42.0, y + 4.0), "start", "finished, intact");
    y += 22.0;
    put(
        svg,
        &format!(
            "<path d=\"M {} {y} m -5 -5 l 10 10 m -10 0 l 10 -10\" stroke=\"#555\" \
             stroke-width=\"2.5\"/>",
            x + 17.0
        ),
    );
    text(
        svg,
        (x + 42.0, y + 4.0),
        "start",
        "last byte, never finished",
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    put(
        svg,
        &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"),
    );
}

fn put(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}
