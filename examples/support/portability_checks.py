"""Does a saved folder work where only torch and transformers are? The checks, run in processes of their own.

`check_portability.py` runs them in a clean environment, tests/hub/test_portability.py in this one with the
package hidden. This file imports nothing of the package:

    python portability_checks.py GROUP ARGUMENTS.json [GROUP ARGUMENTS.json ...]

Its last line is RESULT and for each group {check: "pass" or what went wrong}.
"""

import hashlib
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK = "early-exit-classification"
TEXTS = [
    "a very good film",
    "never again",
    "the plot was dull and the cast was poor",
    "fine",
    "is it long ? it is very very long , and not always good",
    "not bad",
    "the cast is great , the film is great , the plot is fine and short",
    "bad",
]
POLICY = {"name": "entropy", "threshold": 0.75}  # where the config has none
REGRESSION_POLICY = {"name": "patience", "patience": 1, "tolerance": 0.1}
REPOSITORY = "user/name"
USERS_PIPELINE = """
from transformers import TextClassificationPipeline


class ShoutingPipeline(TextClassificationPipeline):
    def postprocess(self, model_outputs, **settings):
        return {"label": super().postprocess(model_outputs)["label"] + "!"}
"""
# Appended to the code of a folder: a version of the code that differs where it shows, in the logits and in
# the pipeline's results.
OTHER_VERSION = {
    "exit_heads.py": "\n_forward = ExitHead.forward\n"
    "ExitHead.forward = lambda self, *given: _forward(self, *given) + 1.0\n",
    "pipeline_romebert.py": "\nEarlyExitPipeline.of_version = 'other'\n",
}


# ---- the processes


def run_group(python: str, group: str, work: Path, timeout: int = 600, **arguments: Any) -> dict[str, str]:
    """Run a group of checks by the interpreter `python`, its caches in `work`, offline -> {check: "pass" or
    why not}.
    """
    return run_groups(python, work, (group, arguments), timeout=timeout)[0]


def run_groups(
    python: str, work: Path, *jobs: tuple[str, dict[str, Any]], timeout: int = 600
) -> list[dict[str, str]]:
    """The same for several groups and their arguments, one after the other in one process."""
    command = [python, "-I", str(Path(__file__).resolve())]  # -I: neither this folder nor PYTHONPATH
    for number, (group, arguments) in enumerate(jobs):
        of_job = work if len(jobs) == 1 else work / str(number)
        of_job.mkdir(parents=True, exist_ok=True)
        given = of_job / f"{group}.json"
        given.write_text(json.dumps({**arguments, "work": str(of_job)}, default=str))
        command += [group, str(given)]
    ours = {"HF_HOME": str(work / "hf"), "HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_", "PYTHON"))
    }
    done = subprocess.run(
        command,
        cwd=work,
        env={**kept, **ours},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("RESULT "):
        why = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return [{f"the process of group {group!r} ends well": why} for group, _ in jobs]
    return json.loads(last.removeprefix("RESULT "))


def hide_package() -> None:
    """Make modeling_romebert as good as not installed in this process: no editable install, no checkout."""
    checkout = Path(__file__).resolve().parents[1]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    sys.path[:] = [
        entry
        for entry in sys.path
        if Path(entry or ".").resolve() != checkout and "__editable__" not in entry
    ]
    importlib.invalidate_caches()


def package_is_absent() -> None:
    try:
        import modeling_romebert
    except ModuleNotFoundError:
        return
    raise AssertionError(f"modeling_romebert is installed here, at {modeling_romebert.__file__}")


# ---- what a model says


def usual_policy(model: Any) -> dict[str, Any]:
    return REGRESSION_POLICY if model.config.num_labels == 1 else POLICY


def measure(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a loaded model makes of TEXTS, exactly: every exit at full depth, and exits by its policy."""
    import torch

    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        full = model(**inputs)
        early = model(**inputs, exit_policy=model.config.exit_policy or usual_policy(model))
    return {
        "exit_logits": full.exit_logits.tolist(),  # floats go through JSON exactly
        "logits": early.logits.tolist(),
        "exit_layer": early.exit_layer.tolist(),
    }


def expected_from(folder: str, **load: Any) -> dict[str, Any]:
    """The values that every other load must give again: those of this process."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder, **load)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder, **load).eval()(**inputs).last_hidden_state
    classify = pipeline(TASK, model=folder, **load)
    return {
        **measure(AutoModelForSequenceClassification.from_pretrained(folder, **load), tokenizer),
        "last_hidden_state": states.tolist(),
        "results": classify(TEXTS),
        "results_by_policy": classify(TEXTS, exit_policy=usual_policy(classify.model)),
        "threads": torch.get_num_threads(),  # the order of sums, and so the last bit, depends on it
    }


def same(found: Any, expected: Any, what: str) -> None:
    assert found == expected, f"{what} differ: {str(found)[:120]} instead of {str(expected)[:120]}"


def same_results(found: list[dict[str, Any]], expected: list[dict[str, Any]], what: str = "results") -> None:
    """Of many texts in one call: the last digit of a product of small matrices depends on where in memory
    they lie.
    """
    same([{**one, "score": 0} for one in found], [{**one, "score": 0} for one in expected], what)
    close([one["score"] for one in found], [one["score"] for one in expected], what, rtol=0, atol=1e-6)


def close(found: Any, expected: Any, what: str, rtol: float, atol: float) -> None:
    import torch

    pair = torch.tensor(found), torch.tensor(expected)
    torch.testing.assert_close(*pair, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def same_values(model: Any, tokenizer: Any, expected: dict[str, Any]) -> None:
    """Logits of every exit, and logits and layers of rows that leave, bit for bit."""
    for name, value in measure(model, tokenizer).items():
        same(value, expected[name], name)


def code_files(folder: str | Path) -> dict[str, str]:
    """name -> digest of the .py files of a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*.py"))
    }


# ---- folders to try


def make_other_version(folder: str | Path, other: Path) -> Path:
    """A copy of a saved model whose code is of another version -> the copy."""
    shutil.copytree(folder, other)
    for name, more in OTHER_VERSION.items():
        with open(other / name, "a", encoding="utf-8") as file:
            file.write(more)
    return other


def lay_out_as_hub_cache(folders: list[Path], hf_home: Path, repository: str = REPOSITORY) -> list[str]:
    """Folders as commits of one repository in a Hub cache, the last of them `main` -> the commits."""
    root = hf_home / "hub" / f"models--{repository.replace('/', '--')}"
    commits = []
    for number, folder in enumerate(folders):
        commits.append(hashlib.sha1(f"commit {number}".encode()).hexdigest())
        snapshot = root / "snapshots" / commits[-1]
        snapshot.mkdir(parents=True)
        (root / "blobs").mkdir(exist_ok=True)
        for path in (path for path in Path(folder).iterdir() if path.is_file()):
            blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commits[-1])
    return commits


# ---- the checks: each takes what the group was given, and raises when it fails


def without_package(given: Any) -> dict[str, Callable[[], None]]:
    """A process without the package loads `folder`, which must give `expected` and hold the code files
    `closure`.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        pipeline,
    )

    hide_package()
    folder, work, expected = given["folder"], Path(given["work"]), given["expected"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def load(source: Any = folder, **settings: Any) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True, **settings)

    def config() -> None:
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        same(loaded.model_type, "romebert", "model types")
        same(len(expected["exit_logits"][0]), len(loaded.exit_layers), "numbers of exits")

    def classifier() -> None:
        model = load()
        assert type(model).__module__.startswith("transformers_modules."), (
            f"the class comes from {type(model).__module__}"
        )
        same_values(model, tokenizer, expected)

    def encoder() -> None:
        with torch.no_grad():
            model = AutoModel.from_pretrained(folder, trust_remote_code=True)
            states = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state
        same(states.tolist(), expected["last_hidden_state"], "hidden states")

    def pipe() -> None:
        classify = pipeline(TASK, model=folder, trust_remote_code=True)
        same_results(classify(TEXTS), expected["results"])
        same_results(
            classify(TEXTS, exit_policy=usual_policy(classify.model)),
            expected["results_by_policy"],
            "results by a policy",
        )
        by_folder = pipeline(model=folder, trust_remote_code=True)
        same((type(by_folder), by_folder.task), (type(classify), TASK), "pipelines without a task")

    def packed() -> None:
        classify, shapes, said = pipeline(TASK, model=folder, trust_remote_code=True), [], []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("transformers").addHandler(handler)
        logging.getLogger("transformers_modules").addHandler(handler)
        classify.model.layers[0].register_forward_pre_hook(
            lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2]))
        )
        classify(TEXTS, exit_policy=usual_policy(classify.model))
        assert classify.model.encoder().packs, "this model's texts cannot be packed"
        assert len(shapes) == 1 and shapes[0][0] == 1, (
            f"texts were not packed in one batch: layer 1 saw {shapes}"
        )
        same(said, [], "warnings")

    def users_pipeline() -> None:
        shutil.copytree(folder, work / "users")
        (work / "users" / "shouting.py").write_text(USERS_PIPELINE)
        config = json.loads((work / "users" / "config.json").read_text())
        config["custom_pipelines"]["shout"] = {
            "impl": "shouting.ShoutingPipeline",
            "pt": ["AutoModelForSequenceClassification"],
        }
        (work / "users" / "config.json").write_text(json.dumps(config))
        load(work / "users").save_pretrained(work / "users_again")
        tokenizer.save_pretrained(work / "users_again")
        pipeline(TASK, model=str(work / "users_again"), trust_remote_code=True).save_pretrained(
            work / "users_third"
        )
        shout = pipeline("shout", model=str(work / "users_third"), trust_remote_code=True)
        assert shout(TEXTS[0])[0]["label"].endswith("!"), "it does not shout"
        shout.save_pretrained(work / "users_fourth")
        for name in ("users_again", "users_third", "users_fourth"):
            saved = json.loads((work / name / "config.json").read_text())
            same(saved["custom_pipelines"], config["custom_pipelines"], "pipelines")
            same(code_files(work / name), code_files(work / "users"), "code files")

    def saved_again() -> None:
        load().save_pretrained(work / "once")
        load(work / "once").save_pretrained(work / "twice")
        for again in ("once", "twice"):
            same(code_files(work / again), given["closure"], f"code files saved {again}")
            same_values(load(work / again), tokenizer, expected)

    def pipeline_saved_again() -> None:
        pipeline(TASK, model=folder, trust_remote_code=True).save_pretrained(work / "pipeline")
        same(code_files(work / "pipeline"), given["closure"], "code files")
        same_results(
            pipeline(TASK, model=str(work / "pipeline"), trust_remote_code=True)(TEXTS), expected["results"]
        )

    def bfloat16() -> None:
        model = load(dtype="bfloat16")
        same({parameter.dtype for parameter in model.parameters()}, {torch.bfloat16}, "dtypes")
        close(
            measure(model, tokenizer)["exit_logits"], expected["exit_logits"], "logits", rtol=0.1, atol=0.15
        )

    def device_map() -> None:
        model = load(device_map="auto")
        if not torch.cuda.is_available():
            same_values(model, tokenizer, expected)
        else:
            assert model.device.type == "cuda"

    def attention() -> None:
        import torch

        for name in ("eager", "sdpa"):
            model = load(attn_implementation=name)
            same(
                {config._attn_implementation for config in (model.config, model.backbone.config)},
                {name},
                "implementations",
            )
            atol = max(1e-4, 16 * torch.finfo(model.dtype).eps)
            found = measure(model, tokenizer)["exit_logits"]
            close(found, expected["exit_logits"], "logits", rtol=0, atol=atol)

    def shards() -> None:
        model = load()
        size = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
        model.save_pretrained(work / "shards", max_shard_size=size // 4)
        assert len(list((work / "shards").glob("model-*.safetensors"))) > 1, "it was not sharded"
        same_values(load(work / "shards"), tokenizer, expected)

    def other_labels() -> None:
        model, first = load(num_labels=7, ignore_mismatched_sizes=True), load()
        same(len(measure(model, tokenizer)["logits"][0]), 7, "numbers of labels")
        kept = {name: weight for name, weight in first.state_dict().items() if "classifier" not in name}
        assert all(torch.equal(model.state_dict()[name], weight) for name, weight in kept.items()), (
            "other weights changed"
        )

    def two_versions() -> None:
        other = make_other_version(folder, work / "other" / Path(folder).name)
        one, two = load(), load(other)
        same_values(one, tokenizer, expected)
        is_other(two, tokenizer, expected)
        first = pipeline(TASK, model=folder, trust_remote_code=True)
        second = pipeline(TASK, model=str(other), trust_remote_code=True)
        same(
            [getattr(each, "of_version", None) for each in (first, second)],
            [None, "other"],
            "versions of the pipelines",
        )
        same_results(first(TEXTS), expected["results"])
        same_values(load(), tokenizer, expected)
        two.save_pretrained(work / "other_again")
        same(code_files(work / "other_again"), code_files(other), "code files of the other version")

    return {
        "the package is not installed": package_is_absent,
        "AutoConfig loads the folder": config,
        "AutoModelForSequenceClassification: logits bit-equal, same exits": classifier,
        "AutoModel: hidden states bit-equal": encoder,
        "pipeline: same labels, scores and exits": pipe,
        "pipeline: lists are packed, and nothing is warned of": packed,
        "a user's own pipeline stays, with its file": users_pipeline,
        "save, load, save, load: bit-equal, all code files": saved_again,
        "Pipeline.save_pretrained: same results, all code files": pipeline_saved_again,
        'dtype="bfloat16"': bfloat16,
        'device_map="auto"': device_map,
        "attn_implementation eager and sdpa": attention,
        "sharded checkpoint: bit-equal": shards,
        "another num_labels with ignore_mismatched_sizes": other_labels,
        "two versions of the code do not mix": two_versions,
    }


def is_other(model: Any, tokenizer: Any, expected: dict[str, Any]) -> None:
    """The model is of the other version of the code: its logits are those of the first one plus 1, in the
    type of its weights.
    """
    import torch

    shifted = (torch.tensor(expected["exit_logits"], dtype=model.dtype) + 1.0).tolist()
    same(measure(model, tokenizer)["exit_logits"], shifted, "logits of the other version")


def from_hub_cache(given: Any) -> dict[str, Callable[[], None]]:
    """A process without the package loads REPOSITORY from the cache: `revision` gives `expected`, `main` has
    the other version.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    hide_package()
    work, expected, pinned = Path(given["work"]), given["expected"], {"revision": given["revision"]}
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY, trust_remote_code=True, **pinned)

    def load(source: Any = REPOSITORY, **settings: Any) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True, **settings)

    def classifier() -> None:
        same_values(load(**pinned), tokenizer, expected)

    def pipe() -> None:
        classify = pipeline(TASK, model=REPOSITORY, trust_remote_code=True, **pinned)
        same(getattr(classify, "of_version", None), None, "versions of the pipeline")
        same_results(classify(TEXTS), expected["results"])

    def main() -> None:
        is_other(load(), tokenizer, expected)
        same_values(load(**pinned), tokenizer, expected)
        same(
            pipeline(TASK, model=REPOSITORY, trust_remote_code=True).of_version,
            "other",
            "versions of the pipeline",
        )

    def saved_again() -> None:
        load(**pinned).save_pretrained(work / "from_cache")
        same(code_files(work / "from_cache"), given["closure"], "code files")
        same_values(load(work / "from_cache"), tokenizer, expected)

    return {
        "the package is not installed": package_is_absent,
        "Hub cache, pinned revision: logits bit-equal, same exits": classifier,
        "Hub cache, pinned revision: pipeline": pipe,
        "Hub cache: main has its own code beside the pinned one": main,
        "Hub cache: saved as a folder, bit-equal, all code files": saved_again,
    }


def with_package(given: Any) -> dict[str, Callable[[], None]]:
    """A process that has the package loads `folder`, of whose code files each would end the process: none is
    ever run.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        pipeline,
    )

    import modeling_romebert

    folder, expected = given["folder"], given["expected"]
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def is_installed(thing: Any, name: str) -> None:
        assert type(thing) is getattr(modeling_romebert, name), f"{type(thing)} is not the installed {name}"

    def loads(**trust: Any) -> Callable[[], None]:
        def check() -> None:
            is_installed(AutoConfig.from_pretrained(folder, **trust), "RomeBertConfig")
            is_installed(AutoModel.from_pretrained(folder, **trust), "RomeBertModel")
            model = AutoModelForSequenceClassification.from_pretrained(folder, **trust)
            is_installed(model, "RomeBertForSequenceClassification")
            same_values(model, tokenizer, expected)
            classify = pipeline(TASK, model=folder, **trust)
            is_installed(classify, "EarlyExitPipeline")
            same_results(classify(TEXTS), expected["results"])
            if trust.get("trust_remote_code") is not False:  # with that the library asks the Hub for the task
                is_installed(pipeline(model=folder, **trust), "EarlyExitPipeline")

        return check

    def own_classes() -> None:
        same_values(
            modeling_romebert.RomeBertForSequenceClassification.from_pretrained(folder), tokenizer, expected
        )

    return {
        "without trust_remote_code": loads(),
        "trust_remote_code=False": loads(trust_remote_code=False),
        "trust_remote_code=True": loads(trust_remote_code=True),
        "by the classes themselves": own_classes,
    }


def reference(given: Any) -> dict[str, Callable[[], None]]:
    """Writes the values of `folder`, as this process without the package computes them, to expected.json."""
    hide_package()

    def write() -> None:
        expected = expected_from(given["folder"], trust_remote_code=True)
        Path(given["work"], "expected.json").write_text(json.dumps(expected))

    return {"the folder loads at all": write}


def measured(given: Any) -> dict[str, Callable[[], None]]:
    """Writes what the models of `folders` make of TEXTS without the package to measured.json, by folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    hide_package()
    found: dict[str, Any] = {}

    def write(folder: str) -> Callable[[], None]:
        def check() -> None:
            model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            found[folder] = measure(model, tokenizer)
            Path(given["work"], "measured.json").write_text(json.dumps(found))

        return check

    return {"the package is not installed": package_is_absent} | {
        folder: write(folder) for folder in given["folders"]
    }


GROUPS = {
    group.__name__: group for group in (without_package, from_hub_cache, with_package, reference, measured)
}


def results_of(group: str, given: dict[str, Any]) -> dict[str, str]:
    """Run a group in this process, or those of its checks that `given` names as `only` -> {check: "pass" or
    why not}.
    """
    checks = GROUPS[group](given)
    results = {}
    for name, check in ((name, checks[name]) for name in given.get("only", checks)):
        try:
            check()
        except (Exception, SystemExit) as error:
            results[name] = f"{type(error).__name__}: {error}"
        else:
            results[name] = "pass"
    return results


def main(*arguments: str) -> None:
    groups = arguments[::2]
    if unknown := set(groups) - GROUPS.keys():
        raise KeyError(*unknown)
    given = [json.loads(Path(path).read_text()) for path in arguments[1::2]]
    import torch

    threads = [one["expected"]["threads"] for one in given if one.get("expected", {}).get("threads")]
    torch.set_num_threads(threads[0] if threads else torch.get_num_threads())
    results = [results_of(group, one) for group, one in zip(groups, given, strict=True)]
    print("\nRESULT", json.dumps(results))  # on a line of its own, whatever was printed before


if __name__ == "__main__":
    main(*sys.argv[1:])
