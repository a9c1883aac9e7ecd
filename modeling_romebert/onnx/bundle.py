"""A bundle: the folder that `export_onnx` writes, and its manifest, which names every file with its digest.

Nothing is opened that the manifest does not name. Needs nothing but the standard library.
"""

import hashlib
import json
import platform
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest; a newer one is refused


@dataclass
class Segment:
    """The layers between one exit and the next, with the exit behind them.

    Args:
        files: graphs that run one after the other; a graph that is there several times runs so often.
        exit_file: the graph of the exit, where `files` do not hold it: of layers that are used again.
        precision: "fp32" or "int8".
    """

    files: list[str]
    exit_file: str | None = None
    precision: str = "fp32"


@dataclass
class Manifest:
    """What the runtime has to know of a bundle; `save` and `load` keep it as JSON."""

    exit_layers: list[int]
    num_layers: int
    num_labels: int
    hidden_size: int
    vocab_size: int
    max_tokens: int | None
    pad_token_id: int
    problem_type: str
    id2label: dict[int, str]
    inputs: list[str]  # that the first graph takes
    segments: list[Segment]
    truncation_side: str = "right"  # of texts beyond max_tokens
    token_types: bool = True  # whether the tokenizer tells them; else all are 0
    precision: str = "fp32"  # that was asked for
    exit_policy: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    rows_seen: dict[str, Any] | None = None  # a sample of hashes of the rows that the model was trained on
    processor: dict[str, Any] = field(default_factory=dict)  # that an int8 bundle was made for
    checked: dict[str, Any] | None = None  # int8 against fp32, on texts
    opset: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # name -> SHA-256
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write the manifest, with the digests of the files that are in the folder now."""
        names = self.files or [path.name for path in sorted(folder.iterdir()) if path.name != MANIFEST]
        self.files = {name: digest(folder / name) for name in names}
        unfinished = folder / f".{MANIFEST}"
        unfinished.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a manifest, and hold every file that it names against its digest.

        Raises:
            OSError: there is no manifest, or a file is missing.
            ValueError: the manifest is cut off, of a newer format, or names a file outside of the folder; a
                file is another one than was exported.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise OSError(
                f"{folder} has no {MANIFEST}: it is no bundle. modeling_romebert.export_onnx writes one."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is cut off or altered ({error}); export the model again.") from None
        if content.get("format", 0) > FORMAT:
            raise ValueError(
                f"{path} is of format {content['format']}, and this version of romebert reads formats up to"
                f" {FORMAT}: pip install --upgrade romebert."
            )
        try:
            segments = [Segment(**segment) for segment in content.pop("segments")]
            id2label = {int(index): label for index, label in content.pop("id2label").items()}
            manifest = cls(segments=segments, id2label=id2label, **content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is altered ({error}); export the model again.") from None
        manifest._check_files(folder)
        return manifest

    @property
    def graphs(self) -> set[str]:
        """The files that are run."""
        return {name for segment in self.segments for name in (*segment.files, segment.exit_file) if name}

    def _check_files(self, folder: Path) -> None:
        if unlisted := sorted(self.graphs - self.files.keys()):
            raise ValueError(
                f"{folder / MANIFEST} has no digest of {', '.join(unlisted)}; export the model again."
            )
        for name, expected in self.files.items():
            path = folder / name
            if Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(
                    f"{folder / MANIFEST} names {name!r}, which is no file of the folder itself; do not use"
                    " this bundle."
                )
            if not path.is_file():
                raise OSError(f"{path} is missing; copy the whole bundle, or export the model again.")
            if digest(path) != expected:
                raise ValueError(
                    f"{path} is cut off or altered: its SHA-256 is another one. Export it again."
                )


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )


def _digest(file: Any) -> str:  # Python 3.10
    found = hashlib.sha256()
    while block := file.read(2**20):
        found.update(block)
    return found.hexdigest()


def multiplies_int8() -> bool | None:
    """Whether this processor sums products of int8 in 32 bits (VNNI on x86, dot products on ARM); `None`:
    unknown.

    Where it does not, sums of two products saturate at 16 bits, and int8 weights have to leave a bit free.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return None
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace")
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def downloaded(name: str, revision: str | None, token: Any) -> Path:
    """A repository on the Hub -> the folder that it was downloaded to."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise OSError(
            f"{name} is no folder here; to look for it on the Hub: pip install huggingface-hub."
        ) from None
    return Path(snapshot_download(name, revision=revision, token=token))


def warn_of_processor(manifest: Manifest) -> None:
    """Say so when int8 graphs were made for another kind of processor."""
    made_for, here = manifest.processor.get("multiplies_int8"), multiplies_int8()
    if made_for is None or here is None or made_for == here:
        return
    if here:
        text = "without VNNI, and gives away a bit of every weight here"
    else:
        text = "with VNNI, and sums of its products may saturate here, which changes labels"
    warnings.warn(
        f"this bundle's int8 graphs were made for a processor {text}. Export it on a machine like this one.",
        stacklevel=3,
    )
