"""Write the figures of README.md from the results files: what stands between `<!-- name -->` and `<!-- /name
-->`.

python examples/render_readme.py          # after examples/results/*.json changed
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import benchmark_layers
import benchmark_training
import check_families
import compare_objectives
import profile_scoring

from modeling_romebert.evaluation.provenance import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "results"


def sections() -> dict[str, str]:
    """Name -> Markdown, from the results files."""
    quickstart = read_json(RESULTS / "quickstart.json")
    return {
        "headline": headline(quickstart),
        "families": families(read_json(RESULTS / "families.json")),
        "objectives": objectives(read_json(RESULTS / "objectives.json")["runs"]),
        "objectives-fp32": objectives(read_json(RESULTS / "objectives-fp32.json")["runs"]),
        "layers": timing(benchmark_layers.table, read_json(RESULTS / "layers.json")),
        "layers-same-length": timing(benchmark_layers.table, read_json(RESULTS / "layers-same-length.json")),
        "layers-avx512": shares(read_json(RESULTS / "layers-avx512.json")),
        "layers-avx512-same-length": shares(read_json(RESULTS / "layers-avx512-same-length.json")),
        "benchmark": standing_benchmark(read_json(RESULTS / "benchmark.json")),
        "benchmark-avx512": standing_benchmark(read_json(RESULTS / "benchmark-avx512.json")),
        "benchmark-12": standing_benchmark(read_json(RESULTS / "benchmark-12-layers.json")),
        "profile-avx512": timing(profile_scoring.table, read_json(RESULTS / "profile-avx512.json")),
        "profile-12-layers": timing(profile_scoring.table, read_json(RESULTS / "profile-12-layers.json")),
        "training-cost": training_cost(read_json(RESULTS / "benchmark-training.json")),
    }


def headline(run: dict[str, Any]) -> str:
    full, early = run["full_depth"], run["early_exit"]
    return (
        f"On {run['rows']['test']} movie-review sentences it never saw, a 6-layer MiniLM trained this way for"
        f" {run['settings']['epochs']:g} epochs, with a threshold\nchosen on validation, runs"
        f" {100 * early['cost']:.0f} % of its layers and is right on {100 * early['accuracy']:.1f} % of"
        f" them, against {100 * full['accuracy']:.1f} % at full depth.\nTokenising included, that is"
        f" {run['speedup_time']:.2f} times as fast on the clock ({made_with(run)})."
    )


def families(run: dict[str, Any]) -> str:
    return f"{check_families.table(run)}\n\n{run['texts']} sentences, fp32; {made_with(run)}."


def objectives(runs: list[dict[str, Any]]) -> str:
    about = f"{len(runs)} runs of {runs[-1]['settings']['epochs']:g} epochs"
    return f"{compare_objectives.table(runs)}\n\n{about}; {made_with(runs[-1])}."


def timing(table: Callable[[dict[str, Any]], str], run: dict[str, Any]) -> str:
    about = f"{run['texts']} texts of {run['tokens_per_text']:.0f} tokens on average, medians of {run['rounds']} rounds"
    return f"{table(run)}\n\n{about}; {made_with(run)}."


def shares(run: dict[str, Any]) -> str:
    """One line per batch size: what the table of `timing` comes to over the policies."""
    lines = ["| batch | on the clock | on the clock by tokens |", "|---|---|---|"]
    for size in dict.fromkeys(row["batch_size"] for row in run["early_exit"]):
        rows = [row for row in run["early_exit"] if row["batch_size"] == size]
        spans = (
            [row[name] for row in rows] for name in ("saving_on_the_clock", "saving_on_the_clock_by_tokens")
        )
        lines.append(
            f"| {size} | " + " | ".join(f"{min(span):.0%} to {max(span):.0%}" for span in spans) + " |"
        )
    return "\n".join(lines)


def standing_benchmark(results: dict[str, Any]) -> str:
    rounds = len(results["throughput"][0]["seconds"])
    about = f"{results['texts']} texts, medians and quartiles of {rounds} rounds; {made_with(results)}."
    return "\n\n".join([*benchmark.tables(results), about])


def training_cost(results: dict[str, Any]) -> str:
    about = f"Batches of {results['batch_size']}, medians of {results['rounds']} rounds"
    return f"{benchmark_training.table(results)}\n\n{about}; {made_with(results)}."


def made_with(run: dict[str, Any]) -> str:
    """Where a figure comes from, in a few words."""
    machine = run["machine"]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    processor = " ".join(
        [machine["processor"], *filter(None, [machine.get("instructions")])]
    )  # older files do not say which
    where = machine["accelerator"] or f"{processor} CPU, {threads}"
    return f"{where}, torch {run['versions']['torch'].split('+')[0]}, transformers {run['versions']['transformers']}"


def render(text: str, parts: dict[str, str]) -> str:
    """README text -> the same with every section filled in anew.

    Raises:
        ValueError: a section has no place in the text.
    """
    for name, content in parts.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)",
            lambda m, c=content: m[1] + c + m[2],
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(
                f"README.md has {count} places for {name!r}; it needs one, between <!-- {name} --> and <!--"
                f" /{name} -->."
            )
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8"), sections()), encoding="utf-8")
