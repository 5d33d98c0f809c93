"""Runs of the frameworks whose files we read: their models, optimizers and savers.

A run is stepped with given gradients, by name, so that nothing but the optimizer and
the file are compared. Each framework is imported when a run of it is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from recorded.frameworks import with_timm

# A linear layer, a norm and a linear layer, by torch's names and in its layout.
SHAPES = {
    "dense.weight": (3, 4),
    "dense.bias": (3,),
    "norm.weight": (3,),
    "norm.bias": (3,),
    "head.weight": (2, 3),
    "head.bias": (2,),
}
BEFORE, AFTER = 5, 10
RATE = 1 / 64
Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """A run in its framework.

    Attributes:
        step: Makes a step of these gradients, at this rate.
        weights: Copies of the weights, by name.
        save: Writes a checkpoint, as the framework's users do.
        load: Goes on from such weights and such a state of the optimizer.
        optimizer: The framework's own.
        names: The names of the weights in the optimizer's order.
    """

    step: Callable[[Mapping[str, np.ndarray], float], None]
    weights: Callable[[], Arrays]
    save: Callable[..., None]
    load: Callable[[Mapping[str, np.ndarray], dict[str, Any]], None]
    optimizer: Any
    names: list[str]


def start(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Arrays:
    """The weights before the first step."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def gradients(
    steps: int = BEFORE + AFTER, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> list[Arrays]:
    """One dictionary for each step."""
    rng = np.random.default_rng(1)
    return [
        {name: rng.normal(0.3, size=shape) for name, shape in shapes.items()}
        for _ in range(steps)
    ]


def rate(step: int, *, scheduled: bool) -> float:
    """The rate of a step. All numbers are exact in float32, as Paddle keeps them."""
    return RATE / 2 ** (step % 3) if scheduled else RATE


def torch_model(dtype: str) -> Any:
    """The layers, with the weights of `start`."""
    torch = import_module("torch")
    model = torch.nn.Module()
    model.dense, model.norm = torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)
    model.head = torch.nn.Linear(3, 2)
    model.load_state_dict({n: torch.tensor(w) for n, w in start().items()})
    return model.to(getattr(torch, dtype))


def torch_run(model: Any, optimizer: Any) -> Run:
    """A run of any optimizer of torch's kind."""
    torch = import_module("torch")

    def step(gradients: Mapping[str, np.ndarray], rate: float) -> None:
        for name, p in model.named_parameters():
            p.grad = torch.tensor(gradients[name], dtype=p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def weights() -> Arrays:
        return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}

    def load(weights: Mapping[str, np.ndarray], state_dict: dict[str, Any]) -> None:
        tensors = {n: torch.tensor(np.array(w)) for n, w in weights.items()}
        model.load_state_dict(tensors)
        optimizer.load_state_dict(state_dict)

    def save(path: Path, **format: bool) -> None:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**parts, "epoch": 3}, path, **format)

    name_of = {p: name for name, p in model.named_parameters()}
    names = [name_of[p] for group in optimizer.param_groups for p in group["params"]]
    return Run(step, weights, save, load, optimizer, names)


def torch(dtype: str, **settings: Any) -> Run:
    """``torch.optim.RMSprop``, in one group; it knows the names."""
    model = torch_model(dtype)
    make = import_module("torch").optim.RMSprop
    return torch_run(model, make(model.named_parameters(), lr=RATE, **settings))


def torch_groups(dtype: str) -> Run:
    """In two groups, which know no names, and in torch's file format before 1.6."""
    torch = import_module("torch")
    model = torch_model(dtype)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.RMSprop(
        [
            {"params": matrices, "momentum": 0.875, "centered": True},
            {"params": vectors, "alpha": 0.875, "weight_decay": 1 / 64},
        ],
        lr=RATE,
        eps=1 / 1024,
    )

    run = torch_run(model, optimizer)
    return run._replace(save=partial(run.save, _use_new_zipfile_serialization=False))


def timm(dtype: str, *, weight_decay: float = 0.0, **settings: Any) -> Run:
    """timm's factory, its averages and its saver; two groups if there is decay."""
    optim, utils = with_timm("timm.optim"), with_timm("timm.utils")
    model = torch_model(dtype)
    optimizer = optim.create_optimizer_v2(
        model, "rmsproptf", lr=RATE, weight_decay=weight_decay, **settings
    )
    averages = utils.ModelEmaV3(model, decay=0.5)
    run = torch_run(model, optimizer)

    def step(gradients: Mapping[str, np.ndarray], rate: float) -> None:
        run.step(gradients, rate)
        averages.update(model)

    def save(path: Path) -> None:
        arguments = import_module("argparse").Namespace(model="layers", lr=RATE)
        with TemporaryDirectory() as folder:
            utils.CheckpointSaver(
                model, optimizer, arguments, averages, checkpoint_dir=folder
            ).save_checkpoint(epoch=3)
            shutil.copyfile(f"{folder}/last.pth.tar", path)

    return run._replace(step=step, save=save)


def stable_baselines3(
    dtype: str, *, like_tensorflow: bool = True, **settings: Any
) -> Run:
    """The optimizer of an agent, RMSpropTFLike or torch's, and the agent's file."""
    module = "stable_baselines3.common.sb2_compat.rmsprop_tf_like"
    optimizer = (
        import_module(module).RMSpropTFLike
        if like_tensorflow
        else import_module("torch").optim.RMSprop
    )
    policy = {"net_arch": [3], "optimizer_class": optimizer}
    agent = import_module("stable_baselines3").A2C(
        "MlpPolicy",
        "CartPole-v1",
        device="cpu",
        seed=0,
        policy_kwargs={**policy, "optimizer_kwargs": settings},
    )
    agent.policy.to(getattr(import_module("torch"), dtype))
    return torch_run(agent.policy, agent.policy.optimizer)._replace(save=agent.save)


def paddle(dtype: str, **settings: Any) -> Run:
    """``paddle.optimizer.RMSProp``, and the files of both state_dicts."""
    paddle = import_module("paddle")
    paddle.set_device("cpu")
    paddle.set_default_dtype(dtype)
    paddle.utils.unique_name.switch()  # it numbers the layers of a process
    model = paddle.nn.Sequential(
        ("dense", paddle.nn.Linear(4, 3)),
        ("norm", paddle.nn.LayerNorm(3)),
        ("head", paddle.nn.Linear(3, 2)),
    )

    def laid_out(name: str, array: np.ndarray) -> Any:
        """Paddle's kernels are (in, out)."""
        return paddle.to_tensor(array.T.astype(dtype))

    for name, p in model.named_parameters():
        p.set_value(laid_out(name, start()[name]))
    optimizer = paddle.optimizer.RMSProp(
        RATE, parameters=model.parameters(), **settings
    )

    def step(gradients: Mapping[str, np.ndarray], rate: float) -> None:
        optimizer.set_lr(rate)
        for name, p in model.named_parameters():
            p.grad = laid_out(name, gradients[name])
        optimizer.step()

    def weights() -> Arrays:
        return {n: p.numpy().T.copy() for n, p in model.named_parameters()}

    def save(path: Path) -> None:
        paddle.save(optimizer.state_dict(), str(path))
        paddle.save(model.state_dict(), str(path.with_suffix(".pdparams")))

    def load(weights: Mapping[str, np.ndarray], state_dict: dict[str, Any]) -> None:
        raise NotImplementedError

    return Run(step, weights, save, load, optimizer, list(SHAPES))
