"""The wheel holds one top-level name and works where the repository is not."""

import json
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import modeling_romebert

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "modeling_romebert", "configuration"]
# The build backend itself, in a process of its own: no package index is asked.
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that the checkout stays clean."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tree / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def metadata(wheel, names):
    (path,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(zipfile.ZipFile(wheel).read(path).decode())


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel unpacked, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


UNINSTALLED = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    f"sys.path[:] = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
)


def run(code, site):
    """Run code away from the checkout, with the unpacked wheel in front of all that is installed."""
    clean = f"{UNINSTALLED}sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-W", "error::FutureWarning:modeling_romebert", "-c", clean + code]
    done = subprocess.run(command, cwd=site.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# ---- what is in it


def test_one_top_level_name(names):
    top = {name.split("/")[0] for name in names}
    assert top - {name for name in top if name.endswith(".dist-info")} == {"modeling_romebert"}


def test_every_module_is_in_it_and_nothing_else(names):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "modeling_romebert").rglob("*.py")}
    expected |= {
        f"modeling_romebert/configuration/{path.name}" for path in (ROOT / "configuration").glob("*.py")
    }
    expected |= {
        f"modeling_romebert/configuration/{path.relative_to(ROOT / 'configuration')}"
        for path in (ROOT / "configuration").rglob("recipes/**/*.yaml")
    }
    expected |= {"modeling_romebert/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_every_recipe_of_the_checkout_is_one_of_the_wheel(names):
    recipes = sorted(path.name for path in (ROOT / "configuration").rglob("*.y*ml"))
    assert sorted(Path(name).name for name in names if "/recipes/" in name) == recipes


def test_license_travels(wheel, names, metadata):
    (path,) = [name for name in names if name.endswith("/LICENSE")]
    assert ".dist-info/" in path
    assert zipfile.ZipFile(wheel).read(path) == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-File"] == "LICENSE"
    assert "Apache" in (metadata["License-Expression"] or metadata["License"])


def test_metadata(metadata):
    assert (metadata["Name"], metadata["Requires-Python"]) == ("romebert", ">=3.10")
    assert metadata["Version"] == modeling_romebert.__version__  # read from the source by setup.cfg
    assert set(metadata.get_all("Provides-Extra")) == {
        *("plot", "lora", "onnx", "benchmark", "alternatives"),
        *("distributed", "serve", "demo"),
        *("test", "scale", "browser", "dev"),
    }
    required = [line.replace(" ", "") for line in metadata.get_all("Requires-Dist")]
    of_use = [line for line in required if "extra==" not in line]
    assert not any(line.startswith(("pytest", "matplotlib", "ruff", "mypy", "hypothesis")) for line in of_use)
    assert any(line.startswith("matplotlib;") and "plot" in line for line in required)
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


# ---- away from the checkout, and in one that is not installed


OF_THE_WHEEL = """
import json, modeling_romebert, modeling_romebert.configuration
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY
sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
config = AutoConfig.for_model("romebert", **sizes)
model = AutoModelForSequenceClassification.from_config(config)
task = PIPELINE_REGISTRY.check_task("early-exit-classification")[1]["impl"]
assert all(hasattr(modeling_romebert, name) for name in modeling_romebert.__all__)
found = {"package": modeling_romebert.__file__, "configuration": modeling_romebert.configuration.__file__}
found["names"] = [type(config).__name__, type(model).__name__, task.__name__]
try:
    import configuration
except ModuleNotFoundError as error:
    found["absent"] = error.name
"""
# What comes later in the same process, as transformers takes seconds to import: the wheel is taken away.
OF_THE_CHECKOUT = f"""
sys.path[0] = {str(ROOT)!r}
for name in [name for name in sys.modules if name.startswith("modeling_romebert")]:
    del sys.modules[name]
try:
    import modeling_romebert
except ImportError as error:
    found["said"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(site):
    """What a process finds in the wheel, and what the checkout says to it then."""
    return json.loads(run(OF_THE_WHEEL + OF_THE_CHECKOUT, site)[-1])


def test_it_imports_and_registers_and_hides_no_configuration_of_the_user_s(site, found):
    assert Path(found["package"]) == site / "modeling_romebert" / "__init__.py"
    assert Path(found["configuration"]) == site / "modeling_romebert" / "configuration" / "__init__.py"
    assert found["names"] == ["RomeBertConfig", "RomeBertForSequenceClassification", "EarlyExitPipeline"]
    assert found["absent"] == "configuration"


def test_a_checkout_says_what_to_do(found):
    assert found["said"].startswith("modeling_romebert was found in a checkout")
    assert "`pip install -e .`" in found["said"] and "\n" not in found["said"]


@pytest.mark.parametrize(
    "script", ["support/installed.py", "quickstart.py", "train_glue.py", "benchmarks/layers.py"]
)
def test_an_example_asks_for_the_package_first(script):
    clean = f"{UNINSTALLED}sys.path.insert(0, {str((ROOT / 'examples' / script).parent)!r})\n"
    clean += f"import runpy; runpy.run_path({str(ROOT / 'examples' / script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", clean], capture_output=True, text=True)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and said.startswith("The examples need the installed package.")
    assert "`pip install -e .`" in said
