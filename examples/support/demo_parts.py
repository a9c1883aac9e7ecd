"""What the page of examples/demo.py shows, as HTML and SVG with labels for screen readers. No page here:
texts in, markup out.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from support.exit_trace import ExitSeen, Times

WIDTH, HEIGHT, MARGIN = 520, 220, 48  # of the curve, in units of its SVG


def exits_table(exits: Sequence[ExitSeen], layers: int) -> str:
    """The exits that were reached so far, as a table."""
    rows = []
    for one in exits:
        spoken = f"confidence {one.confidence:.0%}"
        bar = f'<meter min="0" max="1" value="{one.confidence:.3f}" aria-label="{spoken}"></meter>'
        style = ' style="opacity:0.55"' if one.state == "not run" else ""
        name = f"<strong>{one.state}</strong>" if one.state == "leaves" else one.state
        rows.append(
            f'<tr{style}><th scope="row">{one.layer} of {layers}</th><td>{escape(one.label)}</td>'
            f"<td>{bar} {one.confidence:.1%}</td><td>{name}</td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("layer", "label", "confidence", "the text"))
    caption = "What each exit says. Exits that are not run are shown for comparison."
    return (
        f'<table id="exits" style="width:100%"><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def answer(exits: Sequence[ExitSeen], layers: int, times: Times | None = None) -> str:
    """Where the text left and what it saved, as a line that screen readers speak."""
    left = next((one for one in exits if one.state == "leaves"), None)
    if left is None:
        words = f"Layer {exits[-1].layer} of {layers}: not sure yet." if exits else "Reading."
    else:
        saved = layers - left.layer
        words = (
            f"<strong>{escape(left.label)}</strong> ({left.confidence:.1%}), after layer {left.layer} of"
            f" {layers}: {saved} {'layer' if saved == 1 else 'layers'} saved."
        )
        if times is not None:
            words += f" {times.early:.1f} ms, and {times.full:.1f} ms at full depth."
    return said(words)


def said(words: str, name: str = "answer") -> str:
    """HTML that a screen reader speaks when it changes."""
    return f'<p id="{name}" role="status" aria-live="polite">{words}</p>'


def curve(evaluation: Mapping[str, Any] | None, threshold: float) -> str:
    """The metric over the share of layers run, with the point of a threshold marked, as SVG.

    Args:
        evaluation: of `evaluate_exits`, as a saved model keeps it; `None` where it has none.
        threshold: of the policy that was evaluated.
    """
    if not evaluation:
        return "<p>The model's folder holds no evaluation, so there is no curve: see evaluate_exits.</p>"
    points = sorted(evaluation["curve"], key=lambda point: point["cost"])
    here = min(points, key=lambda point: abs(point["threshold"] - threshold))
    low, high = min(point["metric"] for point in points), max(point["metric"] for point in points)
    span = high - low or 1.0

    def place(point: Mapping[str, float]) -> str:
        x = MARGIN + point["cost"] * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (point["metric"] - low) / span * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    x, y = place(here).split(",")
    metric = escape(evaluation["metric"])
    label = (
        f"At this threshold {here['cost']:.0%} of the layers are run and the {metric} is"
        f" {here['metric']:.1%}, on {evaluation['num_examples']:,} examples; at full depth it is"
        f" {points[-1]['metric']:.1%}."
    )
    line = " ".join(place(point) for point in points)
    texts = [
        (WIDTH / 2, HEIGHT - 8, "middle", "share of the layers that is run"),
        (MARGIN, HEIGHT - 26, "middle", "0%"),
        (WIDTH - MARGIN, HEIGHT - 26, "middle", "100%"),
        (MARGIN - 6, MARGIN + 4, "end", f"{high:.1%}"),
        (MARGIN - 6, HEIGHT - MARGIN + 4, "end", f"{low:.1%}"),
        (MARGIN - 6, MARGIN - 14, "start", metric),
    ]
    words = "".join(
        f'<text x="{left}" y="{top}" text-anchor="{anchor}" font-size="12" fill="currentColor">{text}</text>'
        for left, top, anchor, text in texts
    )
    return (
        f'<figure style="margin:0"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/>'
        f'<circle cx="{x}" cy="{y}" r="6" fill="#dc2626"/>{words}</svg>'
        f"<figcaption>{label}</figcaption></figure>"
    )
