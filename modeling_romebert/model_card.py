"""The model card: config, evaluation and training settings -> README.md, with metadata that the Hub reads
(card_metadata.py).

Every number comes from what is handed in; nothing is measured here.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transformers.utils import logging

from .card_metadata import (
    BEGIN,
    END,
    base_model,
    calibrated_figures,
    card_name,
    front_matter,
    merged,
    metadata,
)
from .card_tasks import one_line, usage, what_it_is
from .certificate import certificate_of, sentence
from .configuration_romebert import RomeBertConfig, loss_settings, plain

logger = logging.get_logger(__name__)

# In the card that transformers writes where there is none
TEMPLATE = "This model card has been automatically generated."
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
    return f"{front_matter(front.items())}\n{BEGIN}\n{body}\n{END}\n"


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
        replaced = merged(old, *_card(config, evaluation, training or {}))
        if replaced is None:
            logger.info(f"{path} was not written by modeling_romebert, so it stays as it is.")
            return path
        text = replaced
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
    base = base_model(config, training)
    parts = [
        f"# {card_name(config, training)}\n\n{what_it_is(config, base)}",
        f"## Use\n\n{usage(config, training)}",
        f"## Evaluation\n\n{_evaluation(config, evaluation)}",
        f"## Exit policy\n\n{_policy(config, evaluation)}",
        f"## Training\n\n{_training(config, training)}",
        f"## Versions\n\n{_versions(config, evaluation or {}, training)}",
        f"## Limits\n\n{LIMITS}",
        f"## Citation\n\n{CITATION}",
    ]
    return metadata(config, evaluation, training, base), "\n\n".join(parts)


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


# ---- the text


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


def _policy(config: RomeBertConfig, evaluation: dict[str, Any] | None) -> str:
    if not config.exit_policy:
        return (
            "The model has no calibrated exit policy, so every text runs every layer unless a call names a"
            " policy or threshold."
        )
    text = f"The pipeline uses `config.exit_policy`: `{one_line(plain(config.exit_policy))}`."
    if certificate := certificate_of(config):
        text = f"{text} {one_line(sentence(certificate))}{_certified_with(certificate)}"
    calibrated = calibrated_figures(config, evaluation)
    if evaluation is None or calibrated is None:
        return text if certificate else f"{text} What it costs has not been measured."
    metric = one_line(evaluation["metric"])
    return (
        f"{text} On the examples above it costs {calibrated['cost']:.3f} of the layers and reaches {metric}"
        f" {calibrated['metric']:.4f}, against {evaluation['exits'][-1]:.4f} at full depth."
    )


def _certified_with(certificate: dict[str, Any]) -> str:
    """Precision, device and versions of a certificate, as a sentence with a space before it."""
    parts = [certificate.get("precision"), certificate.get("device")]
    parts += [f"{name} {version}" for name, version in (certificate.get("versions") or {}).items()]
    known = ", ".join(one_line(part) for part in parts if part)
    return f" Measured with {known}." if known else ""


def _training(config: RomeBertConfig, training: dict[str, Any]) -> str:
    loss = {name: value for name, value in loss_settings(config).items() if value is not None}
    given = {
        name: value for name, value in public(training).items() if name not in ELSEWHERE and value is not None
    }
    if not given:
        settings = ", ".join(f"`{name}` {one_line(value)}" for name, value in loss.items())
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
    parts = [f"{name} {one_line(version)}" for name, version in found.items()]
    parts += [
        one_line(part)
        for part in (machine.get("accelerator") or machine.get("processor"), made.get("date"))
        if part
    ]
    return f"{', '.join(parts)}." if parts else "Not recorded."


def _cell(value: Any) -> str:
    """`one_line` within a cell of a table."""
    return one_line(value).replace("|", "\\|")
