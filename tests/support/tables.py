"""The two tables of docs/dialects.md, generated from the dialects themselves.

    python tests/support/tables.py

writes them there, between the lines that mark them.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from rmsprop_jax import dialects
from rmsprop_jax._optimizer.options import Config
from rmsprop_jax._optimizer.transform import get_config

PAGE = Path(__file__).parents[2] / "docs/dialects.md"

# What is theirs; the rest of a row is read from ours.
FRAMEWORKS = {
    "torch": "`torch.optim.RMSprop`",
    "keras": "`keras.optimizers.RMSprop` (Keras 3, tf.keras from 2.11)",
    "keras_legacy": "`tf.keras.optimizers.legacy.RMSprop` (tf.keras to 2.10)",
    "tensorflow": "`tf.compat.v1.train.RMSPropOptimizer`",
    "timm": "`timm.optim.RMSpropTF`",
    "stable_baselines3": "Stable-Baselines3 `RMSpropTFLike`",
    "optax": "`optax.rmsprop`",
    "jax_example_libraries": "`jax.example_libraries.optimizers.rmsprop`",
    "mlx": "`mlx.optimizers.RMSprop`",
    "paddle": "`paddle.optimizer.RMSProp`",
    "sonnet": "`sonnet.optimizers.RMSProp` (Sonnet 2)",
    "chainer": "`chainer.optimizers.RMSprop`",
    "burn": "Burn `RmsPropConfig`",
}
PAPERS = {
    "hinton": "Hinton 2012, lecture 6e",
    "graves": "Graves 2013",
    "nature_dqn": "DQN (Nature 2015)",
    "dopamine": "Dopamine's DQN",
    "minatar": "MinAtar's DQN",
    "impala": "IMPALA, DeepMind's scalable_agent",
    "torchbeast": "IMPALA, TorchBeast",
    "a3c": "A3C 2016",
    "efficientnet": "EfficientNet 2019",
    "tf_slim": "TF-Slim: Inception, MobileNet",
}


def _number(value: Any) -> str:
    return re.sub(r"e-0(\d)", r"e-\1", f"{value}")


def _arguments(name: str) -> str:
    """Return the arguments that must be given, and those that are on by default."""
    words = []
    for p in inspect.signature(getattr(dialects, name)).parameters.values():
        if p.default is p.empty:
            words.append(p.name)
        elif p.default is not None and p.default is not False:
            words.append(f"{p.name}={_number(p.default)}")
    return f"`{', '.join(words)}`"


def _config(name: str, **arguments: Any) -> Config:
    dialect = getattr(dialects, name)
    parameters = inspect.signature(dialect).parameters
    known = {key: value for key, value in arguments.items() if key in parameters}
    rate, *_ = parameters
    return get_config(dialect(**{rate: 1.0} | known))


def _eps(name: str) -> str:
    without, with_ = (_config(name, momentum=m).rule.eps_in_sqrt for m in (0.0, 0.9))
    flags = {"eps_in_sqrt", "eps_inside_sqrt"}
    flags &= inspect.signature(getattr(dialects, name)).parameters.keys()
    word = "√(ν + ε)" if without else "√ν + ε"
    if without != with_:
        return f"{word}, or √(ν + ε) with momentum"
    return f"{word} (`{flags.pop()}`)" if flags else word


def _learning_rate(name: str) -> str:
    if "momentum" not in inspect.signature(getattr(dialects, name)).parameters:
        return "no momentum"
    return f"{_order(_config(name, momentum=0.9))} momentum"


def _order(config: Config) -> str:
    return "inside" if config.rule.learning_rate_in_momentum else "after"


def _decay(name: str) -> str:
    parameters = inspect.signature(getattr(dialects, name)).parameters
    if "weight_decay" not in parameters:
        return "none"
    rule = _config(name, weight_decay=0.1).rule
    kind = "decoupled" if rule.decoupled_weight_decay else "coupled"
    return f"{kind} (`decoupled_decay`)" if "decoupled_decay" in parameters else kind


def frameworks() -> str:
    """Return the dialects of frameworks, and what sets each apart."""
    lines = [
        "| write | instead of | arguments | divisor | ν at first | learning rate "
        "| weight decay |",
        "|---|---|---|---|--:|---|---|",
    ]
    for name, title in FRAMEWORKS.items():
        cells = [f"`dialects.{name}`", title, _arguments(name), _eps(name)]
        cells += [f"{_config(name).initial_scale:g}", _learning_rate(name)]
        lines.append(f"| {' | '.join([*cells, _decay(name)])} |")
    return "\n".join(lines)


def papers() -> str:
    """Return the dialects of papers, and which rule each is."""
    lines = [
        "| write | source | arguments | rule | source read |",
        "|---|---|---|---|---|",
    ]
    for name, title in PAPERS.items():
        config = _config(name)
        has_eps = config.hyperparams.eps != 0.0
        words = [
            "centered" if config.rule.centered else "not centered",
            "√(ν + ε)" if config.rule.eps_in_sqrt else "√ν + ε" if has_eps else "√ν",
            f"ν is {config.initial_scale:g} at first",
        ]
        if config.rule.has_momentum:
            words.append(f"learning rate {_order(config)} momentum")
        doc = inspect.getdoc(getattr(dialects, name)) or ""
        read = "in part" if "unverified" in doc.lower() else "yes"
        cells = [f"`dialects.{name}`", title, _arguments(name), ", ".join(words), read]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"frameworks": frameworks, "papers": papers}


def in_page(name: str, text: str) -> re.Match[str] | None:
    """Find what the page has between the lines that mark a table."""
    return re.search(rf"(?<=<!-- table: {name} -->\n).*?(?=\n<!-- end -->)", text, re.S)


def main() -> None:
    """Write the tables into the page."""
    text = PAGE.read_text()
    for name, table in TABLES.items():
        found = in_page(name, text)
        if found is None:
            raise SystemExit(f"{PAGE} has no <!-- table: {name} --> … <!-- end -->")
        text = text[: found.start()] + table() + text[found.end() :]
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
