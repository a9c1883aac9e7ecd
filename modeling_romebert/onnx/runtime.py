"""A bundle as a model: one session per graph (engine.py), and the early-exit loop (early_exit.py) over them.

With torch and transformers installed, an `OnnxRomeBertForSequenceClassification` goes where the torch model
goes: the pipeline, `score`, `evaluate_exits`, `calibrate`. Without them it has `classify`.
"""

import ctypes
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..arrays import Array, exp, is_tensor, log_sigmoid, log_softmax
from ..configuration_romebert import ProblemType, plain
from ..early_exit import ActiveBatch, all_exits, classify, run_to_the_end
from ..exit_policies import ExitPolicy, FullDepth, as_policy
from ..policy_base import check_unit
from ..text_items import not_unicode, refuse_one_text
from .bundle import Manifest, downloaded, warn_of_processor
from .engine import CPU, OnnxEncoder, batch_of, checked_providers, cores, default_options, open_sessions

BATCH_TOKENS = 2048  # of a full batch of `classify`, padding included


@dataclass
class OnnxOutput:
    """What a call returns where there is no torch: as `RomeBertClassifierOutput`, in numpy."""

    logits: np.ndarray  # (B, C)
    exit_layer: np.ndarray  # (B,)
    exit_logits: np.ndarray | None = None  # (B, E, C)


class OnnxRomeBertForSequenceClassification:
    """A multi-exit classifier on ONNX Runtime; see `from_pretrained`.

    Example:
        >>> model = OnnxRomeBertForSequenceClassification.from_pretrained("runs/onnx")  # doctest: +SKIP
        >>> model.classify(["A delight.", "Dull."])  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.98, 'exit_layer': 2}, {'label': 'negative', ...}]
    """

    config_class = SimpleNamespace(model_type="romebert")  # by which `inner_model` knows ours
    main_input_name = "input_ids"
    training = False
    watches_exits = False
    hf_device_map = None
    active_batch = ActiveBatch

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        providers: Sequence[Any],
        options: Any = None,
        threads: int | None = None,
    ):
        self.folder, self.manifest = folder, manifest
        self._providers, self._options, self._threads = providers, options, threads or cores()
        self._opened: tuple[int, dict[int, dict[str, Any]]] = (-1, {})  # process, and sessions by workers
        self.exit_layers, self.num_labels = manifest.exit_layers, manifest.num_labels
        self.max_tokens, self.problem_type = manifest.max_tokens, manifest.problem_type
        self.precision = {"fp32": "float32"}.get(manifest.precision, manifest.precision)
        self.config = self._config()
        self.evaluation: dict[str, Any] | None = None
        self.training_settings = {"rows_seen": manifest.rows_seen}
        self._sessions()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        provider: str = CPU,
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
        num_threads: int | None = None,
        revision: str | None = None,
        token: Any = None,
    ) -> "OnnxRomeBertForSequenceClassification":
        """Open a bundle.

        Args:
            folder: that `export_onnx` wrote, or a repository on the Hub that holds one.
            provider: execution provider of ONNX Runtime.
            providers: several, the first that can comes first, with their options; in place of `provider`.
            session_options: `onnxruntime.SessionOptions`; left out, threads of a session do not spin when
                they wait, as chained sessions would take each other's time.
            num_threads: that a batch runs on, or batches side by side share; all cores when left out.
            revision, token: of a repository.

        Raises:
            OSError: there is no such folder, or a file of it is missing.
            ValueError: a file is another one than was exported, the manifest is of a newer format, or a
                provider is not there.
        """
        path = Path(folder)
        if not path.is_dir():
            path = downloaded(str(folder), revision, token)
        wanted = checked_providers(providers or [provider])
        manifest = Manifest.load(path)
        warn_of_processor(manifest)
        if session_options is not None and num_threads is not None:
            raise ValueError(
                f"num_threads={num_threads} and session_options are both given; set"
                " session_options.intra_op_num_threads."
            )
        return cls(path, manifest, wanted, session_options, num_threads)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the bundle into a folder, with the exit policy and the certificate that the config has now:
        what `calibrate` found on the bundle is kept so. The bundle's own folder will do.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.manifest.files:
            if (self.folder / name).resolve() != (folder / name).resolve():
                shutil.copyfile(self.folder / name, folder / name)
        self.manifest.exit_policy = plain(self.config.exit_policy)
        self.manifest.calibration = self.config.calibration
        self.manifest.save(folder)

    # ---- what bulk scoring and evaluation ask of a model

    @property
    def device(self) -> Any:
        """Where inputs are made: the host."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> Any:
        import torch

        return torch.float32

    def eval(self) -> "OnnxRomeBertForSequenceClassification":
        return self

    def to(self, *args: Any, **kwargs: Any) -> "OnnxRomeBertForSequenceClassification":
        """The providers were chosen when the bundle was opened."""
        return self

    def can_generate(self) -> bool:
        return False

    def state_dict(self) -> dict[str, str]:
        """Digests of the graphs: what evaluations and certificates are of."""
        return {name: self.manifest.files[name] for name in sorted(self.manifest.graphs)}

    def encoder(self, pad_token_id: int | None = None, for_tokens: int = 0) -> OnnxEncoder:
        """The graphs for one pass; over many tokens, several batches run at once (cpu.py)."""
        workers = 1
        if for_tokens and self._options is None and self._providers[0] == CPU:
            from ..cpu import workers_for

            workers = min(self._threads, workers_for(self.device, for_tokens))
        return OnnxEncoder(self.manifest, self._sessions(workers), workers)

    def forward(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        exit_policy: ExitPolicy | dict[str, Any] | None = None,
        **others: Any,
    ) -> Any:
        """Classify a batch, padded on the right, of tensors or arrays.

        Args:
            input_ids, attention_mask, token_type_ids: (B, T) each.
            exit_policy: rows then exit when it says so; `None` runs every layer.

        Returns:
            `RomeBertClassifierOutput` of tensors for tensors, else `OnnxOutput` of arrays: `logits` (B, C),
            `exit_layer` (B,) and, at full depth, `exit_logits` (B, E, C).

        Raises:
            ValueError: inputs that a bundle does not take, or that are padded on the left.
        """
        if given := sorted(name for name, value in others.items() if value is not None):
            raise ValueError(f"{', '.join(given)}: a bundle takes {', '.join(self.manifest.inputs)}.")
        batch = batch_of(self.manifest, input_ids, attention_mask, token_type_ids)
        encoder = self.encoder()
        exit_logits = None
        if not len(batch):
            logits, exit_layer = np.empty((0, self.num_labels), np.float32), np.empty(0, np.int64)
            exit_logits = np.empty((0, len(self.exit_layers), self.num_labels), np.float32)
        elif exit_policy is None:
            exit_logits = all_exits(encoder, batch)  # type: ignore[arg-type]
            logits, exit_layer = exit_logits[:, -1], np.full(len(batch), self.exit_layers[-1])
        else:
            logits, exit_layer = classify(encoder, batch, self._started(exit_policy))  # type: ignore[arg-type]
        if not is_tensor(input_ids):
            return OnnxOutput(logits, exit_layer, exit_logits)
        return _as_tensors(logits, exit_layer, exit_logits)

    __call__ = forward

    # ---- without torch and transformers

    def classify(
        self,
        texts: Iterable[Any],
        *,
        exit_policy: ExitPolicy | dict[str, Any] | bool | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[dict[str, Any]]:
        """Classify texts with the tokenizer of the bundle; needs neither torch nor transformers.

        Args:
            texts: strings, pairs of strings as tuples, or `{"text", "text_pair"}`. All are held in memory;
                for streams of texts there is `modeling_romebert.score`.
            exit_policy: that of the bundle when left out; `False` runs every layer.
            batch_tokens: tokens that a layer runs on at once, padding included.

        Returns:
            For each text `{"label", "score", "exit_layer"}`, in order.

        Raises:
            TypeError: a text that is not one.
            ValueError: a policy without meaning for the model.
        """
        refuse_one_text(texts)
        if exit_policy is None:
            exit_policy = self.config.exit_policy
        policy = self._started(exit_policy if exit_policy else FullDepth())
        encoded = self._tokenizer.encode_batch(
            [_as_encode_takes(item, row) for row, item in enumerate(texts)]
        )
        features = [{"input_ids": one.ids, "attention_mask": one.attention_mask} for one in encoded]
        if self.manifest.token_types:
            for of_text, one in zip(features, encoded, strict=True):
                of_text["token_type_ids"] = one.type_ids
        results: list[dict[str, Any]] = [{}] * len(features)
        encoder = self.encoder()
        longest_first = sorted(range(len(features)), key=lambda row: -len(features[row]["input_ids"]))
        while longest_first:
            count = max(1, batch_tokens // len(features[longest_first[0]]["input_ids"]))
            rows, longest_first = longest_first[:count], longest_first[count:]
            fresh = policy.start(len(self.exit_layers), self.problem_type, self.exit_layers)
            active = ActiveBatch(encoder, rows, None, fresh, texts=[features[row] for row in rows])  # type: ignore[arg-type]
            for exited in run_to_the_end(active):
                for row, (label, score) in zip(exited.rows, self._best(exited.logits), strict=True):
                    results[row] = {"label": label, "score": score, "exit_layer": exited.layer}
        return results

    def _best(self, logits: np.ndarray) -> list[tuple[str, float]]:
        """logits (k, C) -> the label with the highest score, and the score, of each row."""
        if self.problem_type == ProblemType.REGRESSION:
            scores = logits
        elif self.problem_type == ProblemType.MULTI_LABEL or self.num_labels == 1:
            scores = exp(log_sigmoid(logits))
        else:
            scores = exp(log_softmax(logits))
        best = scores.argmax(axis=-1)
        return [(self.manifest.id2label[int(i)], float(row[i])) for i, row in zip(best, scores, strict=True)]

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "classify needs the library that reads the bundle's tokenizer: pip install tokenizers",
                name=error.name,
            ) from error
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        if self.max_tokens is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(self.max_tokens, direction=self.manifest.truncation_side)
        return tokenizer

    # ---- inside

    def _started(self, policy: Any) -> ExitPolicy:
        policy = as_policy(policy)
        check_unit(policy, classifies_tokens=False)
        return policy.start(len(self.exit_layers), self.problem_type, self.exit_layers)

    def _sessions(self, workers: int = 1) -> dict[str, Any]:
        """Name of a graph -> its session and the names of its inputs and outputs, for batches that run side
        by side on a share of the threads each. Made anew after a fork, in which a session has lost its
        threads.
        """
        process, opened = self._opened
        if process != os.getpid():
            # Those of the parent are never freed here: freeing one waits for threads that this process lacks.
            for session, *_ in (one for sessions in opened.values() for one in sessions.values()):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
            opened = {}
            self._opened = os.getpid(), opened
        if workers not in opened:
            files = {name: self.folder / name for name in self.manifest.graphs}
            options = self._options or default_options(max(1, self._threads // workers))
            opened[workers] = open_sessions(files, options, self._providers)
        return opened[workers]

    def _config(self) -> Any:
        """The config of the model, where transformers is installed, with the policy of the bundle."""
        manifest = self.manifest
        try:
            from ..configuration.configuration_romebert import RomeBertConfig
        except ModuleNotFoundError:
            return SimpleNamespace(
                exit_policy=manifest.exit_policy,
                calibration=manifest.calibration,
                id2label=manifest.id2label,
                num_labels=manifest.num_labels,
            )
        config = RomeBertConfig.from_pretrained(self.folder)
        config.exit_policy, config.problem_type = manifest.exit_policy, manifest.problem_type
        config.calibration = manifest.calibration
        return config


def _as_tensors(logits: np.ndarray, exit_layer: np.ndarray, exit_logits: np.ndarray | None) -> Any:
    import torch

    from ..modeling_romebert import RomeBertClassifierOutput

    return RomeBertClassifierOutput(
        logits=torch.from_numpy(np.ascontiguousarray(logits)),
        exit_layer=torch.from_numpy(exit_layer),
        exit_logits=None if exit_logits is None else torch.from_numpy(exit_logits),
    )


def _as_encode_takes(item: Any, row: int) -> Any:
    """A text, or a pair -> what `Tokenizer.encode_batch` takes."""
    if isinstance(item, Mapping) and item.keys() <= {"text", "text_pair"}:
        item = (item.get("text"), item["text_pair"]) if item.get("text_pair") else item.get("text")
    if isinstance(item, str) or (
        isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
    ):
        if (flaw := not_unicode(*((item, None) if isinstance(item, str) else item))) is not None:
            raise TypeError(f"text {row}: {flaw}")
        return item
    raise TypeError(
        f"text {row} is {item!r} of type {type(item).__name__}: give a string, a pair of strings, or"
        ' {"text": ..., "text_pair": ...}.'
    )
