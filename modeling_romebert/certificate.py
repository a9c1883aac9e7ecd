"""What a calibration promised, as it travels in `config.calibration`: whether it is of the present policy, a
sentence for people, and a word when the model runs in another precision.

Calibrating is in evaluation/calibration.py; this file travels with the model.
"""

from typing import Any

import torch
from transformers.utils import logging

from .configuration_romebert import plain

logger = logging.get_logger(__name__)

MEANINGS = {
    "disagreement": "at most {:.3g} of the answers differ from full depth",
    "harm": "at most {:.3g} of the answers are wrong where full depth is right",
    "drop": "the share of right answers drops by at most {:.3g}",
}
# Of token classifiers, by what an answer is.
MEANINGS_PER = {
    "row": {
        "disagreement": "at most {:.3g} of the texts have a word whose label differs from full depth",
        "harm": "at most {:.3g} of the texts have a wrong word where full depth has none",
        "drop": "the share of texts whose every word is right drops by at most {:.3g}",
    },
    "token": {
        "disagreement": "of a text on average at most {:.3g} of the words differ from full depth",
        "harm": "of a text on average at most {:.3g} of the words are wrong where full depth is right",
        "drop": "the share of right words in a text drops by at most {:.3g} on average",
    },
}


def certificate_of(config: Any) -> dict[str, Any] | None:
    """The certificate in a config, where it is of the exit policy and of the exits that the config has now.

    Example:
        >>> from modeling_romebert import RomeBertConfig
        >>> policy = {"name": "entropy", "threshold": 0.2}
        >>> config = RomeBertConfig(exit_policy=policy, calibration={"policy": policy, "certified": True})
        >>> certificate_of(config)["certified"]
        True
        >>> config.exit_policy = {"name": "entropy", "threshold": 0.3}
        >>> certificate_of(config) is None
        True
    """
    calibration = getattr(config, "calibration", None)
    if not calibration or calibration.get("policy") != plain(config.exit_policy):
        return None
    certified, there = calibration.get("exit_layers"), getattr(config, "exit_layers", None)
    if certified is not None and there is not None and list(certified) != list(there):
        return None  # such as of the first layers alone
    return dict(calibration)


def forget_certificate(config: Any, because: str) -> None:
    """Take the certificate, if there is one, out of the config of a model that it is no longer of."""
    if getattr(config, "calibration", None):
        config.calibration = None
        logger.warning(
            f"The certificate of the exit policy is left out: {because}. The policy stays; calibrate again to"
            " know what it costs."
        )


def forget_if_of_other_weights(config: Any, weights: str | None) -> None:
    """Take the certificate out of a config where it is of other weights.

    Args:
        weights: digest of the present ones (`weights_digest`); `None` where their values are not at hand.
    """
    certified = (getattr(config, "calibration", None) or {}).get("weights")
    if certified not in (None, weights):
        forget_certificate(
            config,
            "it is of other weights than these, as after training, merging adapters, or rounding to another"
            " dtype",
        )


def sentence(calibration: dict[str, Any]) -> str:
    """A certificate -> what it promises, on what grounds, in plain words."""
    count, cost = f"{calibration['num_examples']:,}", f"{calibration['cost']:.3f}"
    if calibration.get("budget") is not None:
        low, high = calibration["drop_interval"]
        return (
            f"Chosen on {count} examples to run at most {calibration['budget']:g} of the layers (it ran"
            f" {cost}); nothing was promised. Cross-fitted, the drop in the share of right answers is"
            f" {100 * calibration['observed']:.2f} points"
            f" ({100 * low:.2f} to {100 * high:.2f} with {calibration['confidence']:.0%} confidence)."
        )
    if not calibration["certified"]:
        return f"No threshold could be certified, so every text runs every layer: {calibration['reason']}"
    meanings = MEANINGS_PER.get(str(calibration.get("per")), MEANINGS)
    promise = meanings[calibration["risk"]].format(calibration["max_drop"])
    return (
        f"Certified on {count} examples with {calibration['confidence']:.4g} confidence, for texts like"
        f" those: {promise} ({calibration['observed']:.4f} there), at a cost of {cost} of the layers."
    )


def precision_of(model: Any) -> str:
    """The type that a model computes in: that of an autocast around the call, or of its weights; of a bundle
    of ONNX what it was exported in.
    """
    if not isinstance(model, torch.nn.Module) and hasattr(model, "precision"):
        return model.precision
    if torch.is_autocast_enabled(model.device.type):
        return str(torch.get_autocast_dtype(model.device.type)).removeprefix("torch.")
    return str(model.dtype).removeprefix("torch.")


def say_if_precision_differs(model: Any) -> None:
    """Say once that a model runs in another precision than the one in which its policy was certified."""
    certificate = certificate_of(model.config)
    if certificate is None or not certificate.get("precision"):
        return
    if (now := precision_of(model)) != certificate["precision"]:
        logger.warning_once(
            f"The exit policy was certified in {certificate['precision']}, and the model runs in {now}, which"
            " moves some texts to other exits: the certificate is not of this. Calibrate in the precision"
            " that you use, or load the model with"
            f" dtype=torch.{certificate['precision']}. This is said once."
        )
