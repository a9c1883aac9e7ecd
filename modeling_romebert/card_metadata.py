"""The metadata of a model card, which the Hub reads, as YAML; what an older card leaves to a new one.

Travels with the model's code, so it writes its YAML by hand: scalars and flow collections of JSON are YAML.
"""

import json
import math
import os
import re
from typing import Any

from .card_tasks import task_of
from .configuration_romebert import RomeBertConfig, plain

BEGIN = "<!-- romebert: written by modeling_romebert from here on; what you change is overwritten -->"
END = "<!-- romebert: yours again from here on -->"
# Of an evaluation that may be gone: never kept from an older card. Other metadata is, where there is nothing
# new to say.
EVALUATED = ("metrics", "model-index")


def metadata(
    config: RomeBertConfig, evaluation: dict[str, Any] | None, training: dict[str, Any], base: str | None
) -> dict[str, Any]:
    """Metadata of the card by name; see `model_card`."""
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task_of(config).tag,
        "tags": ["romebert", "early-exit", task_of(config).tag, "custom_code"],
    }
    known = {"base_model": base, **{name: training.get(name) for name in ("license", "language", "datasets")}}
    metadata.update({name: value for name, value in known.items() if value})
    if evaluation is not None:
        metadata["metrics"] = [evaluation["metric"]]
        if index := _model_index(config, evaluation, training):
            metadata["model-index"] = index
    return metadata


def _model_index(
    config: RomeBertConfig, evaluation: dict[str, Any], training: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """The figures in the form that the Hub shows beside the card; `None` where none of them is a number."""
    metric, dataset = evaluation["metric"], evaluation.get("dataset") or {}
    name = dataset.get("name", "unknown")
    figures = [{"type": metric, "value": evaluation["exits"][-1], "name": f"{metric} at full depth"}]
    if calibrated := calibrated_figures(config, evaluation):
        title = f"{metric} with the calibrated exit policy, cost {calibrated['cost']:.3f}"
        figures.append({"type": metric, "value": calibrated["metric"], "name": title})
    figures = [figure for figure in figures if math.isfinite(figure["value"])]
    result = {
        "task": {"type": task_of(config).tag, "name": task_of(config).title},
        "dataset": {"type": dataset.get("type", name), "name": name}
        | ({"split": dataset["split"]} if "split" in dataset else {}),
        "metrics": figures,
    }
    return [{"name": card_name(config, training), "results": [result]}] if figures else None


def with_base(training: dict[str, Any], config: RomeBertConfig) -> dict[str, Any]:
    """Settings of a training with the encoder's id on the Hub, where it is known: a loaded config no longer
    tells it.
    """
    base = base_model(config, training)
    return {"base_model": base, **training} if base else training


def base_model(config: RomeBertConfig, training: dict[str, Any]) -> str | None:
    """The encoder's id on the Hub; `None` when what is known is a folder, or nothing."""
    name = training.get("base_model") or config.backbone_config._name_or_path or ""
    looks_like_an_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not os.path.isdir(name)
    return name if looks_like_an_id else None


def card_name(config: RomeBertConfig, training: dict[str, Any]) -> str:
    """The model's name on the Hub, or one made of its encoder's."""
    if training.get("hub_model_id"):
        return training["hub_model_id"].split("/")[-1]
    return f"romebert-{(base_model(config, training) or config.backbone_config.model_type).split('/')[-1]}"


def _yaml(value: Any) -> str:
    """A value of JSON -> YAML on one line.

    Example:
        >>> print(_yaml({"value": 1e-05, "names": ["a", None]}))
        {"value": 1.0e-05, "names": ["a", null]}
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(str(name))}: {_yaml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", text)  # 1e-05 is a string to YAML
    # YAML takes printable ones only.
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def front_matter(metadata: Any, kept: str = "") -> str:
    """(name, value) pairs and lines to keep as they are -> the block between `---` lines."""
    lines = "".join(f"{name}: {_yaml(value)}\n" for name, value in metadata)
    return f"---\n{lines}{kept}---\n"


# ---- what an older card leaves


def merged(old: str, metadata: dict[str, Any], body: str) -> str | None:
    """An older README.md with new metadata and a new text between the marks; `None` when it is not one of
    ours.
    """
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        return None
    before, after = old[: old.index(BEGIN)], old[old.index(END) + len(END) :]
    front = re.match(r"\s*---[ \t]*\r?\n(.*?\n)??---[ \t]*(?:\r?\n|\Z)", before, flags=re.DOTALL)
    kept: str | None = ""
    if front:
        kept, before = _other_metadata(front[1] or "", {*metadata, *EVALUATED}), before[front.end() :]
    elif not before.startswith("\n"):
        before = f"\n{before}"
    return (
        None
        if kept is None
        else f"{front_matter(metadata.items(), kept)}{before}{BEGIN}\n{body}\n{END}{after}"
    )


def _other_metadata(block: str, names: set[str]) -> str | None:
    """The lines of a YAML block that belong to other names than these; `None` where the block is not lines of
    `name: value`.
    """
    kept, keep = "", True
    for line in block.splitlines(keepends=True):
        if found := re.match(r"""(["']?)([^\s"'#\[\]{}:-][^"':]*)\1\s*:(?:\s|$)""", line):
            keep = found[2] not in names
        elif not re.match(r"[\s#-]", line):
            return None
        kept += line if keep or line.startswith("#") else ""  # cards have no comments of their own
    return kept


def calibrated_figures(config: RomeBertConfig, evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the exit policy gave; `None` where there is no policy, or where it was another one."""
    calibrated = (evaluation or {}).get("calibrated")
    if not config.exit_policy or not calibrated:
        return None
    measured = plain(calibrated.get("policy"))
    return calibrated if measured is None or measured == plain(config.exit_policy) else None
