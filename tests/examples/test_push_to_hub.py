"""examples/push_to_hub.py: what is sent is what was shown, nothing else, and nothing without --push."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import push_to_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from tiny import build, tiny_tokenizer

from modeling_romebert.model_card import write_model_card

pytestmark = pytest.mark.usefixtures("here")

TO = ["--model_dir", "model", "--repo_id", "ann/critic"]
STAYS = {
    "optimizer.pt": "training only",
    "optimizer-00001.safetensors": "training only",
    "scheduler.pt": "training only",
    "scaler.pt": "training only",
    "rng_state.pth": "training only",
    "rng_state_1.pth": "training only",
    "trainer_state.json": "training only",
    "training_args.bin": "training only",
    "pytorch_model.bin": "a pickle",
    "weights.PT": "a pickle",
    "head.pth": "a pickle",
    "cache.pkl": "a pickle",
    "sub/deep.pickle": "a pickle",
    "last.ckpt": "a pickle",
    ".env": "hidden",
    "sub/.token": "hidden",
    "old.pyc": "compiled code",
}
FOLDERS = {
    ".git/": "hidden",
    "__pycache__/": "compiled code",
    "checkpoint-5/": "a checkpoint",
    "checkpoint-best/": "a checkpoint",
    "global_step5/": "a checkpoint",
    "optimizer_0/": "training only",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = build()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_model_card(folder, model.config)
    return folder


@pytest.fixture
def model(saved, here) -> Path:
    """A saved model in the present folder, to change at will."""
    return Path(shutil.copytree(saved, "model"))


@pytest.fixture
def hub(monkeypatch) -> SimpleNamespace:
    """A Hub that notes what it is asked for; `sent` are the files that its own rules pick from the folder."""
    hub = SimpleNamespace(calls=[], sent=None, public=False)

    class FakeApi:
        def __init__(self, **kwargs):
            hub.calls.append(("HfApi", kwargs))

        def create_repo(self, repo_id, **kwargs):
            hub.calls.append(("create_repo", {"repo_id": repo_id, **kwargs}))
            return f"hub:{repo_id}"

        def model_info(self, repo_id):
            return SimpleNamespace(private=not hub.public)

        def create_branch(self, repo_id, **kwargs):
            hub.calls.append(("create_branch", {"repo_id": repo_id, **kwargs}))

        def upload_folder(self, *, folder_path, allow_patterns, **kwargs):
            hub.calls.append(("upload_folder", kwargs))
            there = [
                path.relative_to(folder_path).as_posix()
                for path in Path(folder_path).glob("**/*")
                if path.is_file()
            ]
            hub.sent = sorted(filter_repo_objects(there, allow_patterns=allow_patterns))

    monkeypatch.setattr(push_to_hub, "HfApi", FakeApi)
    return hub


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def shown(said: str) -> list[str]:
    """The names in the list of files that go."""
    return re.findall(r"^ *[\d.]+ [kMG]?B  (?!in \d+ files$)(.+)$", said, flags=re.MULTILINE)


def write(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def change_config(model: Path, **settings) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **settings}))


# ---- what goes


def test_dry_run_shows_every_file_and_asks_the_hub_nothing(model, hub, capsys):
    push_to_hub.main(TO)
    said = capsys.readouterr().out
    assert shown(said) == names(model) and hub.calls == []
    assert "Nothing was uploaded. --push uploads these files." in said and "ann/critic (private)" in said
    assert "left out" not in said and "warning" not in said


def test_sizes_and_their_sum_are_those_of_the_files(model, capsys):
    write(model / "notes.txt", "x" * 999)
    write(model / "more.txt", "x" * 1234)
    push_to_hub.main(TO)
    said = capsys.readouterr().out
    assert "999 B  notes.txt" in said and "1.2 kB  more.txt" in said
    total = sum(path.stat().st_size for path in model.rglob("*"))
    assert f"{total / 1000:.1f} kB  in {len(names(model))} files" in said


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2_340_000_000_000, "2340.0 GB")],
)
def test_readable_sizes(size, expected):
    assert push_to_hub.readable(size) == expected


def test_push_sends_what_was_shown_to_a_private_repository_in_one_commit(model, hub, capsys):
    push_to_hub.main([*TO, "--push"])
    assert hub.sent == names(model) == shown(capsys.readouterr().out)
    assert hub.calls == [
        ("HfApi", {"token": None}),
        ("create_repo", {"repo_id": "ann/critic", "private": True, "exist_ok": True}),
        (
            "upload_folder",
            {"repo_id": "ann/critic", "revision": None, "commit_message": "Upload RomeBERT model"},
        ),
    ]


def test_public_and_branch_and_token_are_handed_on_and_the_token_is_not_said(model, hub, capsys):
    hub.public = True
    push_to_hub.main([*TO, "--push", "--public", "--revision", "v2", "--token", "hf_secret"])
    assert hub.calls[0] == ("HfApi", {"token": "hf_secret"})
    assert hub.calls[1] == ("create_repo", {"repo_id": "ann/critic", "private": False, "exist_ok": True})
    assert hub.calls[2] == ("create_branch", {"repo_id": "ann/critic", "branch": "v2", "exist_ok": True})
    assert hub.calls[3][1]["revision"] == "v2"
    said = capsys.readouterr()
    assert "hf_secret" not in said.out + said.err and "ann/critic (public, v2)" in said.out


def test_names_are_no_patterns(model, hub):
    write(model / "notes[a].txt")
    write(model / "sub" / "*.txt")
    write(model / "sub" / "why?.txt")
    write(model / "weights.PT", "pickle")
    push_to_hub.main([*TO, "--push"])
    assert hub.sent == sorted({*names(model)} - {"weights.PT"})


# ---- what stays


def test_what_stays_here_is_not_sent_and_its_reason_is_said(model, hub, capsys):
    goes = names(model)
    for name in STAYS:
        write(model / name)
    for name in FOLDERS:
        write(model / name / "inside.json")
    torch.save({"state": torch.zeros(2)}, model / "optimizer.pt")
    push_to_hub.main([*TO, "--push"])
    said = capsys.readouterr().out
    assert hub.sent == shown(said) == goes
    reasons = dict(re.findall(r"^  (\S+): (.+)$", said, flags=re.MULTILINE))
    assert reasons.keys() == STAYS.keys() | FOLDERS.keys()
    assert all(why in reasons[name] for name, why in (STAYS | FOLDERS).items())


def test_names_that_only_look_alike_are_sent(model, hub):
    alike = [
        "optimizers_guide.md",
        "scheduler_config.json",
        "binary.json",
        "checkpoints.md",
        "ptx.txt",
        "sub/notes.txt",
    ]
    for name in alike:
        write(model / name)
    push_to_hub.main([*TO, "--push"])
    assert set(alike) <= set(hub.sent) and hub.sent == names(model)


def test_links_that_lead_elsewhere_are_refused(model, hub, capsys):
    goes = names(model)
    write(Path("outside/secret.txt"), "secret")
    write(Path("model-other/secret.txt"), "secret")  # a neighbour whose name begins alike
    write(model / "optimizer.pt")
    (model / "secret.txt").symlink_to(Path("outside/secret.txt").resolve())
    (model / "other.txt").symlink_to("../model-other/secret.txt")
    (model / "folder").symlink_to(Path("outside").resolve())
    (model / "state.json").symlink_to("optimizer.pt")
    (model / "nothing.json").symlink_to("nowhere.json")
    os.mkfifo(model / "pipe.json")
    push_to_hub.main([*TO, "--push"])
    said = capsys.readouterr().out
    assert hub.sent == goes
    for line in (
        "  secret.txt: a link that leads out of the folder",
        "  other.txt: a link that leads out of the folder",
        "  folder/: a link to a folder",
        "  state.json: a link to optimizer.pt: needed by the training only",
        "  nothing.json: a link to nothing",
        "  pipe.json: not a plain file",
    ):
        assert line in said.splitlines()


def test_links_within_the_folder_are_sent(model, hub):
    write(model / "sub" / "notes.txt")
    (model / "notes.txt").symlink_to("sub/notes.txt")
    push_to_hub.main([*TO, "--push"])
    assert {"notes.txt", "sub/notes.txt"} <= set(hub.sent)


def test_the_folder_itself_may_be_a_link(model, hub):
    Path("link").symlink_to("model")
    push_to_hub.main(["--model_dir", "link", "--repo_id", "ann/critic", "--push"])
    assert hub.sent == names(model)


# ---- refused


def refused(hub, match: str, *arguments: str) -> None:
    """With and without --push, before the Hub is asked for anything."""
    for more in ([], ["--push"]):
        with pytest.raises(SystemExit, match=match):
            push_to_hub.main([*(arguments or TO), *more])
    assert hub.calls == []


@pytest.mark.parametrize(
    "repo_id", ["a/b/c", "ann/", "ann/critic.git", "ann/cri--tic", "ann/cri tic", "/abs"]
)
def test_a_repository_that_cannot_be(model, hub, repo_id):
    refused(
        hub, rf"--repo_id {re.escape(repo_id)}: Repo|--repo_id {re.escape(repo_id)}: Cannot", *TO[:3], repo_id
    )


def test_a_folder_that_is_none(hub):
    write(Path("file"))
    for name in ("nowhere", "file"):
        refused(hub, f"--model_dir {name} is no folder", "--model_dir", name, "--repo_id", "ann/critic")


def test_a_folder_without_a_config(model, hub):
    (model / "config.json").unlink()
    refused(hub, "config.json is missing; give the folder that save_pretrained")


def test_a_config_that_is_a_link_out_of_the_folder(model, hub):
    (model / "config.json").rename("config.json")
    (model / "config.json").symlink_to("../config.json")
    refused(hub, r"config.json is left out \(a link that leads out of the folder\)")


@pytest.mark.parametrize(
    ("content", "match"),
    [("{", "config.json is not JSON"), ("[]", "config.json does not hold a JSON object")],
)
def test_a_config_that_is_none(model, hub, content, match):
    write(model / "config.json", content)
    refused(hub, match)


def test_a_model_of_another_kind(model, hub):
    change_config(model, model_type="bert")
    refused(hub, "model_type 'bert'; this sends models of 'romebert' only")


def test_weights_in_a_pickle_only(model, hub):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(hub, r"no \*.safetensors among the files to send; save the weights with model.save_pretrained")


def test_a_part_of_the_weights_that_is_missing(model, hub):
    weights = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    write(model / "model.safetensors.index.json", json.dumps({"weight_map": weights}))
    refused(hub, "model-00002-of-00002.safetensors is missing; model.safetensors.index.json names it")


def test_a_config_without_code(model, hub):
    change_config(model, auto_map={})
    refused(hub, "config.json has no auto_map")


@pytest.mark.parametrize(
    "name", ["configuration_romebert.py", "modeling_romebert.py", "pipeline_romebert.py", "losses.py"]
)
def test_code_that_is_missing(model, hub, name):
    """Named in the config, or imported by what is named there."""
    (model / name).unlink()
    refused(hub, f"{name} is missing; the model needs it to load elsewhere")


def test_code_files_are_all_that_were_saved(model):
    config = json.loads((model / "config.json").read_text())
    assert push_to_hub.code_files(model, config) == sorted(path.name for path in model.glob("*.py"))


def test_code_of_another_repository_and_of_a_tokenizer(model):
    config = json.loads((model / "config.json").read_text())
    ours = push_to_hub.code_files(model, config)
    config["auto_map"] |= {"AutoTokenizer": ["words.Slow", None], "AutoModel": "you/other--extra.Model"}
    assert push_to_hub.code_files(model, config) == sorted([*ours, "words.py"])


def test_a_repository_that_is_public_already(model, hub):
    hub.public = True
    with pytest.raises(
        SystemExit, match=r"ann/critic exists and is public. Nothing was uploaded; --public uploads to it"
    ):
        push_to_hub.main([*TO, "--push"])
    assert hub.sent is None


def test_a_hub_that_refuses(model, hub, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("you may not write here")

    monkeypatch.setattr(push_to_hub.HfApi, "upload_folder", refuse)
    with pytest.raises(
        SystemExit, match=r"The upload to ann/critic failed: PermissionError: you may not write here"
    ):
        push_to_hub.main([*TO, "--push"])


# ---- warned of


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda model: (model / "README.md").unlink(), "warning: there is no README.md"),
        (
            lambda model: [path.unlink() for path in model.glob("tokenizer*")],
            "warning: there is no tokenizer",
        ),
        (
            lambda model: change_config(
                model, backbone_config={"model_type": "bert", "_name_or_path": "/somewhere/encoder"}
            ),
            "warning: config.json names a folder of this machine, /somewhere/encoder",
        ),
    ],
    ids=["card", "tokenizer", "folder"],
)
def test_warnings_do_not_stop_it(model, hub, capsys, spoil, match):
    spoil(model)
    push_to_hub.main([*TO, "--push"])
    assert match in capsys.readouterr().out and hub.sent == names(model)
