"""What the early-exit pipelines take besides what the stock ones do: when a text leaves, and how texts are
scored in bulk.
"""

from collections.abc import Sequence
from typing import Any

from .exit_policies import ExitPolicy, as_policy, threshold_settings

# Settings that say at which exits a policy is asked.
ASKS = {"ask_every", "ask_exits"}


class ExitArguments:
    """Goes before the stock pipeline among the bases of an early-exit one, whose docstrings say what the
    arguments are.
    """

    model: Any
    _forward_params: dict[str, Any]

    def check_model_type(self, supported_models: Any) -> None:
        """As in `Pipeline`; a model of ours on another engine (modeling_romebert/onnx) is no class of the
        library.
        """
        if self.model.config.model_type != "romebert":
            super().check_model_type(supported_models)  # type: ignore[misc]

    def _sanitize_parameters(
        self,
        exit_policy: Any = None,
        exit_threshold: Any = None,
        ask_every: int | None = None,
        ask_exits: Sequence[int] | None = None,
        batch_tokens: int | None = None,
        window: int | None = None,
        on_error: str | None = None,
        progress: bool | None = None,
        rebatching: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)  # type: ignore[misc]
        bulk: dict[str, Any] = {"batch_tokens": batch_tokens, "window": window, "on_error": on_error}
        bulk.update(progress=progress, rebatching=rebatching)
        forward.update({name: value for name, value in bulk.items() if value is not None})
        exits = {
            "exit_policy": exit_policy,
            "exit_threshold": exit_threshold,
            "ask_every": ask_every,
            "ask_exits": ask_exits,
        }
        if exits := {name: value for name, value in exits.items() if value is not None}:
            forward["exit_policy"] = self._policy(exits)
        if not hasattr(self, "_exits_of_constructor"):  # which comes here before any call
            self._exits_of_constructor = exits
        return preprocess, forward, postprocess

    def _policy(self, given: dict[str, Any]) -> ExitPolicy | bool:
        """Arguments of the constructor, or of a call after it -> the policy that they and the config make, or
        False for none.
        """
        before = getattr(self, "_exits_of_constructor", {})
        policy: Any = given.get("exit_policy")
        if policy is None:
            # What the constructor's made.
            policy = self._forward_params.get("exit_policy") if before else None
            if policy is False and "exit_threshold" in given:  # which asks for exits
                policy = None
        if policy is False:
            return False
        if "exit_policy" in given:
            given = {**_that_still_hold(before, policy, given), **given}
        elif policy is None:
            policy = self.model.config.exit_policy or "entropy"
        policy = as_policy(policy, given.get("exit_threshold"))
        if ASKS.isdisjoint(given):
            return policy
        return policy.asking(given.get("ask_every"), given.get("ask_exits"))


def _that_still_hold(before: dict[str, Any], policy: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Of what the constructor was given, threshold and exits to ask, where neither the policy of a call says
    so nor the call.
    """
    if isinstance(policy, str):
        policy = {"name": policy}
    own = policy if isinstance(policy, dict) else getattr(policy, "to_dict", dict)()
    held = {name: value for name, value in before.items() if name == "exit_threshold" or name in ASKS}
    if not own.keys().isdisjoint(threshold_settings(own.get("name"))):
        held.pop("exit_threshold", None)
    if not ASKS.isdisjoint({*own, *given}):
        held = {name: value for name, value in held.items() if name not in ASKS}
    return held
