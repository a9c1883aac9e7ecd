"""A saved model -> a page: type a sentence and see what each exit says, where it leaves, and what that saves.

    python examples/demo.py --model runs/quickstart/model  # http://127.0.0.1:7860; needs the extra `demo`

1. One sentence: label and confidence of each exit as it is reached, layers and milliseconds beside full
   depth, a slider for the threshold with the curve of the model's evaluation and its certificate.
2. A file: CSV, JSON, JSONL or Parquet with texts -> a CSV with label, score, exit layer and error, to
   download; `--max_rows` bounds it. For more there is examples/score_file.py.

The page is served to this machine alone unless `--host` says otherwise. The model may be a bundle of ONNX.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import installed  # noqa: F401
from support.demo_parts import answer, curve, exits_table, said
from support.exit_trace import ExitSeen, times_of, trace
from support.json_cells import as_texts, cells
from support.labelling import Labeller, as_columns, chosen_policy
from support.row_source import open_rows
from support.shards import Tally

# isort: split
import pyarrow.csv as pa_csv
from transformers import HfArgumentParser

from modeling_romebert.certificate import certificate_of, sentence
from modeling_romebert.exit_policies import as_policy
from modeling_romebert.hub import read_record

EXAMPLES = ("A delight from start to finish.", "It is not without charm, yet I kept looking at my watch.")
FILE_ANSWER = "file-answer"  # id of the line about a file
SHOWN = 20  # rows of a file that the page shows


@dataclass
class DemoArguments:
    """What is shown, and to whom."""

    model: str = field(
        default="runs/quickstart/model", metadata={"help": "Folder of a saved model, or of a bundle of ONNX."}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; this machine alone when left out."}
    )
    port: int = field(default=7860, metadata={"help": "Port to listen on."})
    max_rows: int = field(default=10_000, metadata={"help": "Rows of a file that are classified at most."})
    max_characters: int = field(default=5_000, metadata={"help": "Of a sentence."})


class Demo:
    """The functions behind the page.

    Args:
        model: folder.
        max_rows: of a file.
    """

    def __init__(self, model: str, max_rows: int):
        self.labeller = Labeller(model)
        self.model, self.tokenizer = self.labeller.model, self.labeller.tokenizer
        self.config, self.max_rows = self.model.config, max_rows
        self.layers = self.model.exit_layers[-1]
        self.evaluation = read_record(model).get("evaluation")
        self.own = as_policy(self.config.exit_policy or "entropy", None if self.config.exit_policy else 0.2)
        self.grid = sorted(type(self.own).grid(len(self.model.exit_layers)))

    @property
    def threshold(self) -> float:
        """Of the model's own policy; the mean where it has one per exit."""
        settings = self.own.to_dict()
        value = next(settings[name] for name in self.own.threshold_names if name in settings)
        return sum(value) / len(value) if isinstance(value, list) else value

    @property
    def step(self) -> float:
        """Of the slider: 1 where thresholds are whole numbers."""
        return 1 if all(float(one).is_integer() for one in self.grid) else 0.005

    def policy(self, threshold: float) -> Any:
        """The model's own policy, as calibrated, or with another threshold."""
        return self.own if threshold == self.threshold else chosen_policy(self.config, threshold)

    def classify(self, text: str, threshold: float) -> Iterator[tuple[str, str]]:
        """A sentence -> the line and the table of the page, again at each exit that is reached."""
        if not text.strip():
            yield said("Type a sentence first."), ""
            return
        policy, exits = self.policy(threshold), list[ExitSeen]()
        try:
            for seen in trace(self.model, self.tokenizer, text, policy):
                exits.append(seen)
                yield answer(exits, self.layers), exits_table(exits, self.layers)
        except (TypeError, ValueError) as error:
            yield said(f"This cannot be classified: {error}"), ""
            return
        times = times_of(self.model, self.tokenizer, text, policy)
        yield answer(exits, self.layers, times), exits_table(exits, self.layers)

    def curve(self, threshold: float) -> str:
        """The model's evaluation, with the threshold marked."""
        of_this_policy = self.evaluation and self.evaluation["policy"]["name"] == self.own.name
        return curve(self.evaluation if of_this_policy else None, threshold)

    def promise(self, threshold: float) -> str:
        """What the certificate says of a threshold."""
        certificate = certificate_of(self.config)
        if certificate is None:
            return "The exit policy has no certificate: examples/calibrate.py makes one."
        if threshold != self.threshold:
            return f"Not certified at this threshold. At the calibrated one: {sentence(certificate)}"
        return sentence(certificate)

    def label_file(
        self, path: str | None, column: str, threshold: float
    ) -> tuple[str, list[list[Any]], str | None]:
        """A file -> a line about it, its first rows with labels, and the CSV to download."""
        if path is None:
            return said("Choose a file first.", FILE_ANSWER), [], None
        try:
            table = next(open_rows(path, [column]).tables(self.max_rows + 1), None)
        except SystemExit as error:  # its message says what to do
            return said(str(error).replace(f"--input {path}", Path(path).name), FILE_ANSWER), [], None
        if table is None:
            return said("The file has no rows.", FILE_ANSWER), [], None
        cut = len(table) > self.max_rows
        table = table.slice(0, self.max_rows)
        self.labeller.policy = self.policy(threshold)
        results = as_columns(self.labeller.results(cells(table, column)))
        labelled = results.add_column(0, column, as_texts(table)[column])
        target = Path(tempfile.mkdtemp(), f"{Path(path).name.split('.')[0]}-labels.csv")
        pa_csv.write_csv(labelled, target)
        tally = Tally()
        tally.add(results)
        words = f"{tally.rows:,} rows, {tally.errors} with an error"
        if tally.rows > tally.errors:
            words += f"; {tally.cost(self.layers):.0%} of the layers run."
        if cut:
            words += f" The file has more than {self.max_rows:,} rows; the others were left out."
        shown = [list(row.values()) for row in labelled.slice(0, SHOWN).to_pylist()]
        return said(words, FILE_ANSWER), shown, str(target)


def build_page(demo: Demo, max_characters: int) -> Any:
    """The page, as blocks of Gradio."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise SystemExit(f"The page needs gradio: pip install 'romebert[demo]' ({error}).") from None

    with gr.Blocks(title="RomeBERT") as page:
        gr.Markdown("# Where does a sentence leave?\nA text runs only as many layers as it takes to be sure.")
        threshold = gr.Slider(
            demo.grid[0],
            demo.grid[-1],
            value=demo.threshold,
            step=demo.step,
            label=f"Threshold of the exit policy ({demo.own.name})",
            info=f"Calibrated: {demo.threshold:g}.",
        )
        with gr.Row():
            picture = gr.HTML(demo.curve(demo.threshold))
            promise = gr.Markdown(demo.promise(demo.threshold))
        with gr.Tab("One sentence"):
            sentence_box = gr.Textbox(label="Sentence", lines=1, max_length=max_characters, autofocus=True)
            button = gr.Button("Classify", variant="primary")
            line, table = gr.HTML(said("")), gr.HTML()
            gr.Examples([[example] for example in EXAMPLES], sentence_box)
        with gr.Tab("A file"):
            file = gr.File(label="CSV, JSON, JSONL or Parquet file", type="filepath")
            column = gr.Textbox("text", label="Column of the texts")
            start = gr.Button("Classify the file", variant="primary")
            of_file = gr.HTML(said("", FILE_ANSWER))
            names = [column.value, "label", "score", "exit_layer", "error"]
            rows = gr.Dataframe(headers=names, label=f"First {SHOWN} rows", interactive=False)
            download = gr.File(label="All rows with labels", interactive=False)
        gr.on(
            [button.click, sentence_box.submit],
            demo.classify,
            [sentence_box, threshold],
            [line, table],
            trigger_mode="always_last",  # or what is typed while one runs would be dropped
        )
        start.click(demo.label_file, [file, column, threshold], [of_file, rows, download])
        threshold.change(
            lambda value: (demo.curve(value), demo.promise(value)), threshold, [picture, promise]
        )
    return page


def main(argv: list[str] | None = None) -> None:
    (arguments,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses(argv)
    page = build_page(Demo(arguments.model, arguments.max_rows), arguments.max_characters)
    page.queue(max_size=32).launch(server_name=arguments.host, server_port=arguments.port, share=False)


if __name__ == "__main__":
    main()
