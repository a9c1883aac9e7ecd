"""One fine-tuning, whatever is classified: train from the last checkpoint, evaluate every exit, save the
model, and last of all write the file that says that the run is finished.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from modeling_romebert import RomeBertTrainer
from modeling_romebert.evaluation.provenance import provenance, read_json, write_json

from .run_folder import finished, last_checkpoint

METRICS = "metrics.json"


def in_processes(run: Callable[..., None], *arguments: Any) -> None:
    """Call a function that may have started a group of processes, and end that."""
    try:
        run(*arguments)
    finally:
        # Gloo's threads may abort an interpreter that ends while they run
        PartialState().destroy_process_group()


def tell_finished(folder: Path, say: bool) -> bool:
    """Whether the run of a folder is finished; what it found is then printed. say: on this process."""
    if not finished(folder, METRICS):
        return False
    if say:
        print(f"{folder / METRICS} is from a finished run with these settings; nothing is done again.\n")
        print(exit_table(read_json(folder / METRICS)))
    return True


def fine_tune(
    trainer: RomeBertTrainer,
    evaluation: Mapping[str, Any],
    folder: Path,
    settings: dict[str, Any],
    judge: Callable[[], dict[str, Any] | None],
) -> None:
    """Train, evaluate and save.

    Args:
        trainer: with model, data and tokenizer.
        evaluation: sets by the prefix of their metrics.
        folder: of the run, open.
        settings: what makes it this run.
        judge: says what leaving early costs and saves, of the trained model, and what was chosen; on the main
            process.
    """
    training, model, is_main = trainer.args, trainer.model, trainer.args.process_index == 0

    # 1. Fine-tune, from the last checkpoint where there is one.
    checkpoint = training.resume_from_checkpoint or last_checkpoint(folder, say=is_main)
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        model.save_pretrained(folder / "model")  # which no fault of what follows shall cost

    # 2. Every exit on every evaluation set; all processes take part.
    metrics: dict[str, float] = {}
    for prefix, rows in evaluation.items():
        metrics |= trainer.evaluate(rows, metric_key_prefix=prefix)
    figures = {
        name: value for name, value in metrics.items() if not name.endswith(("_runtime", "_per_second"))
    }

    # 3. The policy, the model, and last of all the file that says that the run is finished.
    if trainer.is_world_process_zero():
        policy = judge()
        model.save_pretrained(folder / "model")
        trainer.processing_class.save_pretrained(folder / "model")
        results = {
            "settings": settings,
            "seed": training.seed,
            "world_size": training.world_size,
            "train": {
                "runtime": trained.metrics["train_runtime"],  # of this process, from the checkpoint on
                "resumed_from": None if checkpoint is None else Path(checkpoint).name,
                "steps": trained.global_step,
                "samples": len(trainer.train_dataset),
            },
            "exit_layers": model.config.exit_layers,
            "eval_samples": {prefix: len(rows) for prefix, rows in evaluation.items()},
            "metric": model.evaluation["metric"],
            "metrics": figures,
            "policy": policy,
            "provenance": provenance(),
        }
        write_json(folder / METRICS, results)
        print(
            f"\n{exit_table(results)}\n\nThe model is in {folder / 'model'}; results in {folder / METRICS}."
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # of what logs it


def exit_table(results: dict[str, Any]) -> str:
    """The metrics of every exit, and what the chosen policy does, as Markdown."""
    columns = [name.removesuffix("_mean") for name in results["metrics"] if name.endswith("_mean")]

    def row(title: Any, which: str) -> str:
        return (
            " | ".join([f"| {title}", *(f"{results['metrics'][column + which]:.4f}" for column in columns)])
            + " |"
        )

    lines = [f"| exit after layer | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [row(layer, f"_exit_{layer}") for layer in results["exit_layers"]]
    lines.append(row("mean", "_mean"))
    if (policy := results["policy"]) is not None:
        lines += ["", f"Chosen on {policy['held_out_samples']} rows held out of train: {policy['settings']}."]
        for prefix, point in policy["outcome"].items():
            metric = f"{results['metric']} {point['metric']:.4f} ({point['full_depth']:.4f} at full depth)"
            lines.append(f"{prefix}: {metric} at cost {point['cost']:.3f}.")
    return "\n".join(lines)
