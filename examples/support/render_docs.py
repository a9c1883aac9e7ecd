"""Writes the figures of README.md and docs/*.md from docs/results: what stands between `<!-- name -->` and
`<!-- /name -->`, and the README's picture.

    python examples/support/render_docs.py  # after docs/results/*.json changed
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # examples/
import support.installed  # noqa: F401

# isort: split

from benchmarks import (
    check_families,
    layers,
    onnx_agreement,
    profile_scoring,
    scale,
    serving,
    throughput,
    token_curves,
    token_exits,
    training_cost,
)
from study import cells, findings, wording

from modeling_romebert.evaluation.provenance import read_json
from support.results_picture import draw, made_with

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURE = RESULTS / "quickstart.svg"


def sections() -> dict[str, str]:
    """Name -> Markdown, from the results files."""

    def of(name: str) -> dict[str, Any]:
        return read_json(RESULTS / f"{name}.json")

    return {
        "headline": headline(of("quickstart")),
        "study": training_recipe(findings.load(cells.RESULTS)),
        "families": families(of("families")),
        "layers": timing(layers.table, of("layers")),
        "layers-same-length": timing(layers.table, of("layers-same-length")),
        "layers-avx512": shares(of("layers-avx512")),
        "layers-avx512-same-length": shares(of("layers-avx512-same-length")),
        "benchmark": throughput_and_latency(of("benchmark")),
        "benchmark-avx512": throughput_and_latency(of("benchmark-avx512")),
        "benchmark-12": throughput_and_latency(of("benchmark-12-layers")),
        "onnx-speed": onnx_speed(of("benchmark-avx512")),
        "onnx-agreement": agreement(of("onnx-agreement")),
        "token-curves": curves_of_tokens(of("token-curves")),
        "token-exits": timing(token_exits.table, of("token-exits")),
        "profile-avx512": timing(profile_scoring.table, of("profile-avx512")),
        "profile-12-layers": timing(profile_scoring.table, of("profile-12-layers")),
        "training-cost": training(of("benchmark-training")),
        "scale": many_rows(of("scale")),
        "million": many_rows(of("million")),
        "serving": under_load(of("serving")),
    }


def headline(run: dict[str, Any]) -> str:
    """One row: what full depth scores, what early exit scores, and what it saves."""
    full, early = run["full_depth"], run["early_exit"]
    names = ("sentences", "accuracy, every layer", "accuracy, early exit", "layers run", "time")
    values = (
        f"{run['rows']['test']:,}",
        f"{full['accuracy']:.1%}",
        f"{early['accuracy']:.1%}",
        f"{early['cost']:.0%}",
        f"{run['speedup_time']:.1f} times as fast",
    )
    rows = [names, ["---"] * len(names), values]
    about = (
        f"Movie reviews; MiniLM of {max(map(int, run['exits']))} layers, fine-tuned for"
        f" {run['settings']['epochs']:g} epochs; time with tokenising; {made_with(run)}."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", about])


def training_recipe(groups: findings.Groups) -> str:
    """What the study found of the recipe that it recommends, as the README tells it."""
    worth = findings.worth_of_default(groups)
    assert worth is not None, "the study's results have less than two tasks with more than one seed"
    two_stages, with_factor, last = map(
        wording.in_words, (worth.two_stages, worth.two_stages_heads, worth.last)
    )
    return (
        f"The trainer's defaults, on {worth.pairs} pairs of task and backbone, at least {worth.seeds} seeds"
        " each, in points of the metric averaged over all exits: against DeeBERT's two stages of as many"
        f" epochs, {two_stages}; against these with heads that learn as fast as ours, {with_factor}. The last"
        f" exit, against fine-tuning without exits: {last}. [docs/study.md](docs/study.md) has the rest, and"
        " what was no better."
    )


def families(run: dict[str, Any]) -> str:
    return f"{check_families.table(run)}\n\n{run['texts']} sentences, fp32; {made_with(run)}."


def timing(table: Callable[[dict[str, Any]], str], run: dict[str, Any]) -> str:
    texts = f"{run['texts']:,} texts of {run['tokens_per_text']:.0f} tokens on average"
    return f"{table(run)}\n\n{texts}, medians of {run['rounds']} rounds; {made_with(run)}."


def shares(run: dict[str, Any]) -> str:
    """One line per batch size: what the table of `timing` comes to over the policies."""
    lines = ["| batch | realised / ideal | by tokens |", "|---|---|---|"]
    for size in dict.fromkeys(row["batch_size"] for row in run["early_exit"]):
        rows = [row for row in run["early_exit"] if row["batch_size"] == size]
        spans = (
            [row[name] for row in rows] for name in ("saving_on_the_clock", "saving_on_the_clock_by_tokens")
        )
        lines.append(
            f"| {size} | " + " | ".join(f"{min(span):.0%} to {max(span):.0%}" for span in spans) + " |"
        )
    return "\n".join(lines)


def throughput_and_latency(results: dict[str, Any]) -> str:
    rounds = len(results["throughput"][0]["seconds"])
    about = f"{results['texts']} texts, medians and quartiles of {rounds} rounds; {made_with(results)}."
    return "\n\n".join([*throughput.tables(results), about])


def onnx_speed(results: dict[str, Any]) -> str:
    """Int8 with exits against one int8 graph at full depth: how many times as fast, and its latency."""
    latency = {row["side"]: row for row in results["latency"]}
    one_graph = latency[throughput.ONNX_SORTED.format("int8")]
    lines = [
        "| exits in int8 / one int8 graph | layers run | speed in bulk | one text, median | one text, 99 % |",
        "|---|---|---|---|---|",
    ]
    for row in results["throughput"]:
        family, _, name = row["side"].partition(", ")
        if family != "RomeBERT on ONNX Runtime" or not name.endswith(", int8"):
            continue
        times = (f"{latency[row['side']][of] / one_graph[of]:.2f} of the time" for of in ("median", "p99"))
        bulk = f"{row['speedup_sorted']['median']:.2f} times"
        lines.append(f"| {name.removesuffix(', int8')} | {row['cost']:.0%} | {bulk} | {' | '.join(times)} |")
    return "\n".join([*lines, "", f"{results['texts']} texts; {made_with(results)}."])


def agreement(results: dict[str, Any]) -> str:
    return f"{onnx_agreement.table(results)}\n\n{results['texts']:,} texts; {made_with(results)}."


def training(results: dict[str, Any]) -> str:
    about = f"Batches of {results['batch_size']}, medians of {results['rounds']} rounds"
    return f"{training_cost.table(results)}\n\n{about}; {made_with(results)}."


def many_rows(results: dict[str, Any]) -> str:
    about = (
        f"{results['rows']:,} rows of {results['texts']}, MiniLM of 6 layers in {results['dtype']};"
        f" {made_with(results)}."
    )
    if results["agree"] is not None:
        same = (
            "Every row has" if results["agree"] == 1 else f"{results['agree']:.2%} of the rows or more have"
        )
        about += f" {same} the label and the exit layer of `score`."
    return f"{scale.table(results)}\n\n{about}"


def under_load(results: dict[str, Any]) -> str:
    about = (
        f"Movie reviews, one per request, MiniLM of 6 layers; {results['seconds']:g} s each, client and"
        f" server on the same cores; {made_with(results)}."
    )
    return f"{serving.table(results)}\n\n{about}"


def curves_of_tokens(results: dict[str, Any]) -> str:
    first = results["runs"][0]
    about = (
        f"F1 in per cent on {first['texts']:,} sentences of the test set, trained on {first['samples']:,};"
        f" {first['start']}, {first['num_layers']} layers; {made_with(results)}."
    )
    return f"{token_curves.table(results)}\n\n{about}"


def render(pages: dict[str, str], parts: dict[str, str]) -> dict[str, str]:
    """Name -> text of each page, and the same with every section filled in anew.

    Raises:
        ValueError: a section has no place, or more than one; or a place has no section.
    """
    places = [name for text in pages.values() for name in re.findall(r"<!-- /([\w-]+) -->", text)]
    for name in parts.keys() | set(places):
        if places.count(name) != 1 or name not in parts:
            raise ValueError(
                f"the pages have {places.count(name)} places for {name!r}; each of {', '.join(parts)} needs"
                f" one, between <!-- {name} --> and <!-- /{name} -->."
            )

    def fill(text: str) -> str:
        return re.sub(
            r"(<!-- ([\w-]+) -->\n).*?(<!-- /\2 -->)",
            lambda place: f"{place[1]}{parts[place[2]]}\n{place[3]}",
            text,
            flags=re.DOTALL,
        )

    return {name: fill(text) for name, text in pages.items()}


def main() -> None:
    pages = {str(page): page.read_text(encoding="utf-8") for page in PAGES}
    for page, text in render(pages, sections()).items():
        Path(page).write_text(text, encoding="utf-8")
    PICTURE.write_text(draw(read_json(RESULTS / "quickstart.json")), encoding="utf-8")


if __name__ == "__main__":
    main()
