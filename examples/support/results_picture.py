"""Draws the results of the quickstart as one picture (SVG) that explains itself: any browser opens it.

Written by hand rather than plotted, so that the same results give the same bytes: a test holds the README's
picture against its results file.
"""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, MARGIN, GAP = 780, 30, 40
INK, GREY, BLUE, ORANGE = "#1f2328", "#656d76", "#2f6fb7", "#d9822b"


def draw(results: dict[str, Any]) -> str:
    """results.json of the quickstart -> SVG."""
    full, early, texts = results["full_depth"], results["early_exit"], results["rows"]["test"]
    layers = list(results["exits"])
    encoder = Path(results["settings"]["model"] or "MiniLM-L6").name
    shapes = [
        text(
            MARGIN,
            36,
            f"{results['speedup_time']:.1f} times as fast, {early['accuracy']:.1%} right instead of"
            f" {full['accuracy']:.1%}",
            size=21,
            bold=True,
        ),
        text(
            MARGIN,
            60,
            f"{encoder}, an exit after each of {layers[-1]} layers, on {texts:,} texts that it never saw.",
            GREY,
        ),
        text(MARGIN, 78, "A text stops at the first exit that is sure.", GREY),
    ]
    panels = [accuracy_panel(results["exits"], early["accuracy"])]
    if "stopped_after" in results:
        panels.append(stops_panel(results["stopped_after"]))
    panels.append(time_panel(full, early, texts))
    width = (WIDTH - 2 * MARGIN - GAP * (len(panels) - 1)) / len(panels)
    for number, panel in enumerate(panels):
        shapes += panel(MARGIN + number * (width + GAP), 100, width)
    bottom = 346
    for example in results.get("sentences", []):
        color = ORANGE if example["exit_layer"] < int(layers[-1]) else BLUE
        said = f"{example['label']}, {example['score']:.0%} sure"
        shapes += [
            text(MARGIN, bottom, f"after layer {example['exit_layer']}", color, bold=True),
            text(MARGIN + 100, bottom, said),
            text(
                MARGIN + 250,
                bottom,
                f"\N{LEFT DOUBLE QUOTATION MARK}{example['text']}\N{RIGHT DOUBLE QUOTATION MARK}",
            ),
        ]
        bottom += 22
    shapes.append(text(MARGIN, bottom + 4, f"{made_with(results)}.", GREY, size=11))
    height = bottom + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
            f' height="{height}" font-family="system-ui, sans-serif">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def accuracy_panel(exits: dict[str, float], early: float) -> Any:
    """A dot per exit: how many answers are right if every text stops there; a line where early exit is."""

    def panel(x: float, y: float, width: float) -> list[str]:
        low, high = min([*exits.values(), early]), max([*exits.values(), early])
        span = (high - low) or 0.01

        def height_of(value: float) -> float:
            return y + 150 - 100 * (value - low) / span

        step = width / len(exits)
        points = [(x + step * (i + 0.5), height_of(value)) for i, value in enumerate(exits.values())]
        shapes = [
            text(x, y + 12, "Right answers by exit", bold=True),
            text(x, y + 206, "if all texts stop after this layer", GREY, size=11),
            line(x, height_of(early), x + width, height_of(early), ORANGE, dashed=True),
            text(x + width, height_of(early) + 14, f"early exit {early:.1%}", ORANGE, anchor="end", size=11),
            f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" fill="none"'
            f' stroke="{BLUE}" stroke-width="2"/>',
        ]
        for (layer, value), (a, b) in zip(exits.items(), points, strict=True):
            shapes += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{BLUE}"/>',
                text(a, b - 9, f"{value:.0%}", BLUE, anchor="middle", size=11),
                text(a, y + 186, layer, GREY, anchor="middle", size=12),
            ]
        return shapes

    return panel


def stops_panel(stopped_after: dict[str, int]) -> Any:
    """A bar per exit: the share of texts that stop there."""

    def panel(x: float, y: float, width: float) -> list[str]:
        total, most = sum(stopped_after.values()), max(stopped_after.values())
        step = width / len(stopped_after)
        shapes = [
            text(x, y + 12, "Where texts stop", bold=True),
            text(x, y + 206, "after this layer", GREY, size=11),
        ]
        for i, (layer, count) in enumerate(stopped_after.items()):
            height, middle = 115 * count / most, x + step * (i + 0.5)
            shapes += [
                bar(x + step * (i + 0.15), y + 165 - height, 0.7 * step, height, ORANGE),
                text(middle, y + 160 - height, f"{count / total:.0%}", ORANGE, anchor="middle", size=11),
                text(middle, y + 186, layer, GREY, anchor="middle", size=12),
            ]
        return shapes

    return panel


def time_panel(full: dict[str, float], early: dict[str, float], texts: int) -> Any:
    """Two bars: seconds for all texts, at full depth and with early exit."""

    def panel(x: float, y: float, width: float) -> list[str]:
        shapes = [text(x, y + 12, f"Seconds for {texts:,} texts", bold=True)]
        sides = (("every layer", full, BLUE), ("early exit", early, ORANGE))
        for i, (name, side, color) in enumerate(sides):
            top = y + 44 + 72 * i
            of_all = side["seconds"] / max(full["seconds"], early["seconds"])
            shapes += [
                text(x, top, f"{name}: {side['cost']:.0%} of the layers", size=12),
                bar(x, top + 8, of_all * (width - 60), 26, color),
                text(x + of_all * (width - 60) + 6, top + 26, f"{side['seconds']:.1f} s", color, bold=True),
            ]
        return shapes

    return panel


def text(
    x: float, y: float, what: str, color: str = INK, size: int = 13, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    style = f'font-size="{size}" fill="{color}"{weight}{where}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(what)}</text>'


def bar(x: float, y: float, width: float, height: float, color: str) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{color}"/>'


def line(x1: float, y1: float, x2: float, y2: float, color: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashes}/>'


def made_with(run: dict[str, Any]) -> str:
    """Where a figure comes from, in a few words."""
    machine, versions = run["machine"], run["versions"]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    # older files do not say which instructions
    processor = " ".join([machine["processor"], *filter(None, [machine.get("instructions")])])
    where = machine["accelerator"] or f"{processor} CPU, {threads}"
    return f"{where}, torch {versions['torch'].split('+')[0]}, transformers {versions['transformers']}"
