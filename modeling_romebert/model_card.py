"""The model card: config, evaluation and training settings -> README.md, with metadata that the Hub reads.

Every number comes from what is handed in; nothing is measured here. Travels to the Hub with the model's code,
so it writes its YAML
by hand: scalars and flow collections of JSON are YAML.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transformers.utils import logging

from .certificate import certificate_of, sentence
from .configuration_romebert import ProblemType, RomeBertConfig, loss_settings

logger = logging.get_logger(__name__)

BEGIN = "<!-- romebert: written by modeling_romebert from here on; what you change is overwritten -->"
END = "<!-- romebert: yours again from here on -->"
# In the card that transformers writes where there is none
TEMPLATE = "This model card has been automatically generated."
TAGS = ["romebert", "early-exit", "text-classification", "custom_code"]
# Of an evaluation that may be gone: never kept from an older card. Other metadata is, where there is nothing
# new to say.
EVALUATED = ("metrics", "model-index")
NEEDED = ("metric", "num_examples", "num_layers", "exit_layers", "exits", "policy", "curve")
# Entries of `training` that have another place in the card.
ELSEWHERE = ("license", "datasets", "language", "base_model", "hub_model_id", "provenance", "rows_seen")
LIMITS = """\
- Early exits know what early layers know: texts that need the last layers exit late, or early and wrong.
- A threshold holds for texts like those it was chosen on. On other texts, evaluate and calibrate anew.
- Cost counts layers, not time: saved layers are saved time only where batches hold little padding.
- Texts longer than the encoder takes are cut off. What else was not evaluated above is not known."""
CITATION = """\
```bibtex
@article{geng2021romebert,
  title   = {RomeBERT: Robust Training of Multi-Exit BERT},
  author  = {Geng, Shijie and Gao, Peng and Fu, Zuohui and Zhang, Yongfeng},
  journal = {arXiv preprint arXiv:2101.09755},
  year    = {2021}
}
```"""


def model_card(
    config: RomeBertConfig, evaluation: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> str:
    """The text of README.md.

    Args:
        config: of the model that the card is about.
        evaluation: what `ExitReport.to_json` writes. May also hold `"dataset": {"name", "split"}` (and
            `"type"`, its id on the Hub), `"calibrated": {"cost", "metric"}`, what `config.exit_policy` gave
            on the same examples (with `"policy"`, what the
            policy of that name gave: left out when the config's is another one), and `"picture"`, the name of
            a file beside the card, or `True` for curve.png. `None`: the card says that the model has not been
            evaluated.
        training: settings to list, e.g. objective, learning rate, epochs, batch size, seed; tokens and
            folders are left out. `license`, `datasets`, `language`, `base_model` and `hub_model_id` go to the
            metadata, `provenance` to the versions.

    Raises:
        ValueError: the evaluation lacks an entry, or is one of a model with other exits.

    Example:
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
        >>> "This model has not been evaluated." in model_card(config)
        True
    """
    front, body = _card(config, evaluation, training or {})
    return f"{_front_matter(front.items())}\n{BEGIN}\n{body}\n{END}\n"


def write_model_card(
    folder: str | os.PathLike[str],
    config: RomeBertConfig,
    evaluation: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write README.md into a folder, in one step: a reader sees the old file or the new one.

    Of a README.md that was written here before, the part between the two marks and the metadata of the card
    are replaced; text around the marks and metadata of other names stay. `license`, `language`, `datasets`
    and `base_model` stay too where there is nothing new to say. A README.md without the marks is its
    author's: not a byte of it changes.

    Args:
        folder: made where it does not exist.
        config, evaluation, training: see `model_card`.

    Returns:
        The path of README.md.

    Raises:
        ValueError: see `model_card`.

    Example:
        >>> import tempfile
        >>> config = RomeBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
        >>> write_model_card(tempfile.mkdtemp(), config).name
        'README.md'
    """
    path = Path(folder) / "README.md"
    text = model_card(config, evaluation, training)
    if path.exists():
        # Not a byte of what stays may change.
        old = path.read_bytes().decode("utf-8", errors="surrogateescape")
        merged = _merged(old, *_card(config, evaluation, training or {}))
        if merged is None:
            logger.info(f"{path} was not written by modeling_romebert, so it stays as it is.")
            return path
        text = merged
    write_whole(path, text.encode("utf-8", errors="surrogateescape"))
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step, in a folder that is made where it does not exist: a reader sees the old file
    or the new one.
    """
    with unfinished(path) as there:
        there.write_bytes(content)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A place beside a file to write its new content to; when the `with` ends well, it takes the file's place
    in one step. For content that is too large for memory; else there is `write_whole`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "new.txt")
        >>> with unfinished(path) as there:
        ...     _ = there.write_text("all of it")
        ...     path.exists()
        False
        >>> path.read_text()
        'all of it'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield there
        os.replace(there, path)
    finally:
        there.unlink(missing_ok=True)


def _card(
    config: RomeBertConfig, evaluation: dict[str, Any] | None, training: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """-> metadata by name, and the text between the marks."""
    if evaluation is not None:
        _check(config, evaluation)
    base = _base_model(config, training)
    parts = [
        f"# {_name(config, training)}\n\n{_what_it_is(config, base)}",
        f"## Use\n\n{_usage(config, training)}",
        f"## Evaluation\n\n{_evaluation(config, evaluation)}",
        f"## Exit policy\n\n{_policy(config, evaluation)}",
        f"## Training\n\n{_training(config, training)}",
        f"## Versions\n\n{_versions(config, evaluation or {}, training)}",
        f"## Limits\n\n{LIMITS}",
        f"## Citation\n\n{CITATION}",
    ]
    return _metadata(config, evaluation, training, base), "\n\n".join(parts)


def _check(config: RomeBertConfig, evaluation: dict[str, Any]) -> None:
    if missing := [name for name in NEEDED if name not in evaluation]:
        raise ValueError(
            f"evaluation has no {', '.join(missing)}; give the content of the file that ExitReport.to_json"
            " writes."
        )
    if unknown := {"cost", "metric"} - (evaluation.get("calibrated") or {"cost": 1, "metric": 0}).keys():
        raise ValueError(
            f"evaluation['calibrated'] has no {', '.join(sorted(unknown))}; it needs cost and metric."
        )
    if (
        list(evaluation["exit_layers"]) != list(config.exit_layers)
        or evaluation["num_layers"] != config.num_hidden_layers
    ):
        raise ValueError(
            f"evaluation is of a model with exits after layers {evaluation['exit_layers']} of"
            f" {evaluation['num_layers']}, but the config says {config.exit_layers} of"
            f" {config.num_hidden_layers}; evaluate this model, or leave the evaluation out."
        )


# ---- metadata


def _metadata(
    config: RomeBertConfig, evaluation: dict[str, Any] | None, training: dict[str, Any], base: str | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": TAGS,
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
    if calibrated := _calibrated(config, evaluation):
        title = f"{metric} with the calibrated exit policy, cost {calibrated['cost']:.3f}"
        figures.append({"type": metric, "value": calibrated["metric"], "name": title})
    figures = [figure for figure in figures if math.isfinite(figure["value"])]
    result = {
        "task": {"type": "text-classification", "name": "Text classification"},
        "dataset": {"type": dataset.get("type", name), "name": name}
        | ({"split": dataset["split"]} if "split" in dataset else {}),
        "metrics": figures,
    }
    return [{"name": _name(config, training), "results": [result]}] if figures else None


def with_base(training: dict[str, Any], config: RomeBertConfig) -> dict[str, Any]:
    """Settings of a training with the encoder's id on the Hub, where it is known: a loaded config no longer
    tells it.
    """
    base = _base_model(config, training)
    return {"base_model": base, **training} if base else training


def _base_model(config: RomeBertConfig, training: dict[str, Any]) -> str | None:
    """The encoder's id on the Hub; `None` when what is known is a folder, or nothing."""
    name = training.get("base_model") or config.backbone_config._name_or_path or ""
    looks_like_an_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not os.path.isdir(name)
    return name if looks_like_an_id else None


def _name(config: RomeBertConfig, training: dict[str, Any]) -> str:
    if training.get("hub_model_id"):
        return training["hub_model_id"].split("/")[-1]
    return f"romebert-{(_base_model(config, training) or config.backbone_config.model_type).split('/')[-1]}"


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


def _front_matter(metadata: Any, kept: str = "") -> str:
    """(name, value) pairs and lines to keep as they are -> the block between `---` lines."""
    lines = "".join(f"{name}: {_yaml(value)}\n" for name, value in metadata)
    return f"---\n{lines}{kept}---\n"


# ---- what an older card leaves


def _merged(old: str, metadata: dict[str, Any], body: str) -> str | None:
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
        else f"{_front_matter(metadata.items(), kept)}{before}{BEGIN}\n{body}\n{END}{after}"
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


# ---- the text


def _what_it_is(config: RomeBertConfig, base: str | None) -> str:
    family, layers = config.backbone_config.model_type, config.num_hidden_layers
    encoder = f"`{base}`, a `{family}` encoder" if base else f"a `{family}` encoder"
    every = list(config.exit_layers) == list(range(1, layers + 1))
    where = (
        "every layer"
        if every
        else f"layer{'s' * (len(config.exit_layers) > 1)} {_listed(config.exit_layers)}"
    )
    if config.problem_type == ProblemType.REGRESSION or (not config.problem_type and config.num_labels == 1):
        says = "a number"
    else:
        kind = "any number of" if config.problem_type == ProblemType.MULTI_LABEL else "one of"
        names = ", ".join(f"`{_text(name)}`" for name in config.id2label.values())
        says = f"{kind} {config.num_labels} labels ({names})"
    return (
        f"A RomeBERT text classifier, which gives a text {says}: {encoder} of {layers} layers with an exit"
        f" after {where}, at which a text leaves as soon as the model is sure enough. Answers hold `label`,"
        " `score` and `exit_layer`, the number of layers that ran."
    )


def _usage(config: RomeBertConfig, training: dict[str, Any]) -> str:
    model = json.dumps(training["hub_model_id"]) if training.get("hub_model_id") else "ID"
    explained = (
        ""
        if training.get("hub_model_id")
        else "`ID` is the name of this repository, or the folder of the model. "
    )
    installed = [
        "import modeling_romebert  # registers the task",
        "from transformers import pipeline",
        f'classify = pipeline("early-exit-classification", model={model})',
    ]
    remote = [
        "from transformers import AutoModelForSequenceClassification, pipeline",
        f'classify = pipeline("early-exit-classification", model={model}, trust_remote_code=True)',
        f"model = AutoModelForSequenceClassification.from_pretrained({model}, trust_remote_code=True)",
    ]
    return "\n".join(
        [
            *(f"{explained}With the package `romebert` installed:", "", "```python", *installed, "```", ""),
            *("Without it, with the code that comes with the model:", "", "```python", *remote, "```"),
        ]
    )


def _evaluation(config: RomeBertConfig, evaluation: dict[str, Any] | None) -> str:
    """As `ExitReport.table`, with where the examples come from and the picture."""
    if evaluation is None:
        return "This model has not been evaluated."
    metric, dataset, layers = (
        _cell(evaluation["metric"]),
        evaluation.get("dataset") or {},
        evaluation["exit_layers"],
    )
    where = ", ".join(_cell(dataset[name]) for name in ("name", "split") if name in dataset)
    lines = [
        f"On {evaluation['num_examples']} examples{f' ({where})' if where else ''}, every text leaving at"
        " one exit:",
        "",
    ]
    lines += [f"| exit after layer | {metric} |", "|---|---|"]
    lines += [f"| {layer} | {value:.4f} |" for layer, value in zip(layers, evaluation["exits"], strict=True)]
    lines += [f"| mean | {sum(evaluation['exits']) / len(layers):.4f} |", ""]
    if picture := evaluation.get("picture"):
        lines += [f"![{metric} over cost]({quote(picture if isinstance(picture, str) else 'curve.png')})", ""]
    name = _cell(evaluation["policy"]["name"])
    lines += [f"Leaving by the `{name}` policy; cost is layers run / layers, averaged over texts:", ""]
    lines += [
        f"| {name} threshold | cost | speedup (layers) | {metric} | same as full depth |",
        "|---|---|---|---|---|",
    ]
    for point in evaluation["curve"]:
        threshold, cost = f"{point['threshold']:g}", point["cost"]
        lines.append(
            f"| {threshold} | {cost:.3f} | {1 / cost:.2f} | {point['metric']:.4f} |"
            f" {point['agreement']:.4f} |"
        )
    if "area" in evaluation:
        lines += ["", f"Area under the curve: {evaluation['area']:.4f}."]
    return "\n".join(lines)


def _calibrated(config: RomeBertConfig, evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the exit policy gave; `None` where there is no policy, or where it was another one."""
    calibrated = (evaluation or {}).get("calibrated")
    if not config.exit_policy or not calibrated:
        return None
    return calibrated if calibrated.get("policy") in (None, config.exit_policy) else None


def _policy(config: RomeBertConfig, evaluation: dict[str, Any] | None) -> str:
    if not config.exit_policy:
        return (
            "The model has no calibrated exit policy, so every text runs every layer unless a call names a"
            " policy or threshold."
        )
    text = f"The pipeline uses `config.exit_policy`: `{_text(config.exit_policy)}`."
    if certificate := certificate_of(config):
        text = f"{text} {_text(sentence(certificate))}{_certified_with(certificate)}"
    calibrated = _calibrated(config, evaluation)
    if evaluation is None or calibrated is None:
        return text if certificate else f"{text} What it costs has not been measured."
    metric = _text(evaluation["metric"])
    return (
        f"{text} On the examples above it costs {calibrated['cost']:.3f} of the layers and reaches {metric}"
        f" {calibrated['metric']:.4f}, against {evaluation['exits'][-1]:.4f} at full depth."
    )


def _certified_with(certificate: dict[str, Any]) -> str:
    """Precision, device and versions of a certificate, as a sentence with a space before it."""
    parts = [certificate.get("precision"), certificate.get("device")]
    parts += [f"{name} {version}" for name, version in (certificate.get("versions") or {}).items()]
    known = ", ".join(_text(part) for part in parts if part)
    return f" Measured with {known}." if known else ""


def _training(config: RomeBertConfig, training: dict[str, Any]) -> str:
    loss = {name: value for name, value in loss_settings(config).items() if value is not None}
    given = {
        name: value for name, value in public(training).items() if name not in ELSEWHERE and value is not None
    }
    if not given:
        settings = ", ".join(f"`{name}` {_text(value)}" for name, value in loss.items())
        return f"How the model was trained is not recorded. The loss that its config describes: {settings}."
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in ({**given, **loss, **given}).items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def public(training: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training without tokens and folders, which are nobody's business."""
    hidden = re.compile(r"token$|_dir$", flags=re.IGNORECASE)
    return {name: value for name, value in training.items() if not hidden.search(name)}


def _versions(config: RomeBertConfig, evaluation: dict[str, Any], training: dict[str, Any]) -> str:
    made = evaluation.get("provenance") or training.get("provenance") or {}
    found = dict(made.get("versions") or {})
    if "romebert" not in found and getattr(config, "romebert_version", None):
        found["romebert"] = config.romebert_version
    machine = made.get("machine") or {}
    parts = [f"{name} {_text(version)}" for name, version in found.items()]
    parts += [
        _text(part)
        for part in (machine.get("accelerator") or machine.get("processor"), made.get("date"))
        if part
    ]
    return f"{', '.join(parts)}." if parts else "Not recorded."


def _listed(items: Any) -> str:
    """[1, 2, 4] -> "1, 2 and 4"."""
    *some, last = map(str, items)
    return f"{', '.join(some)} and {last}" if some else last


def _text(value: Any) -> str:
    """A value on one line, with nothing that begins a comment or ends a code span."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return " ".join(text.split()).replace("<!--", "&lt;!--").replace("`", "'")


def _cell(value: Any) -> str:
    """`_text` within a cell of a table."""
    return _text(value).replace("|", "\\|")
