"""Record a run of PyTorch, to find out which optimizer made it.

    python record_torch.py
    rmsprop-jax identify recording.npz

Copy this file into your program. It needs PyTorch and NumPy, and neither JAX nor
rmsprop_jax:

    from record_torch import Recorder

    with Recorder(optimizer, "recording.npz", model):
        train()  # calls optimizer.step() 60 times or more

It keeps what ``optimizer.step()`` gets and does: the gradients as they are then (after
a GradScaler has unscaled them and after they were clipped), the parameters before and
after, and the learning rate. A step that a GradScaler skips is left out. A closure is
evaluated as usual, and its gradients are recorded then.

The optimizer may be any that has PyTorch's step hooks, with several groups. Parameters
that are split over processes (FSDP's DTensor) are refused.

Of a large model, 20,000 elements are kept, sampled once with a fixed seed from all
parameters by their size, together with the global norm of every whole gradient. They
stay on their device until the end, so that no step waits for a copy. bfloat16, which
NumPy does not have, is stored as its two bytes (dtype ``V2``).

Without arguments, this file trains a small network and records it.
"""

import argparse
import json
import os
import platform

import numpy as np

try:
    import torch
except ImportError:
    print("This example needs PyTorch: pip install torch")
    raise SystemExit(0) from None

LEAST_STEPS = 4
LEAST_OF_EACH = 8  # elements: a bias may have other settings than a kernel
PROBED = 8  # elements of each


class Recorder:
    """Records an optimizer's steps, and writes them to a file.

    Args:
        optimizer: The optimizer, which may have a scheduler or a GradScaler.
        path: The .npz file to write.
        model: The model, for the names of its parameters. By default they are those of
            the optimizer, if it was made from ``named_parameters()``.
        steps: After how many steps to stop and write.
        elements: How many elements to keep of all parameters together.
        seed: Which elements.
    """

    def __init__(
        self, optimizer, path, model=None, *, steps=60, elements=20_000, seed=0
    ):
        check_folder(path)
        self.path, self.steps = path, steps
        self.optimizer = optimizer
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if any(hasattr(p, "placements") for p in params):
            raise ValueError(
                "optimizer must have whole parameters, but some are DTensors, of which "
                "each process has only a part. Record a run without FSDP."
            )
        names = find_names(optimizer, model)
        self.params = {n: p for n, p in zip(names, params, strict=True) if p.numel()}
        self.indices = choose_elements(
            {name: tuple(p.shape) for name, p in self.params.items()}, elements, seed
        )
        self.on_device = {
            name: index
            and tuple(torch.from_numpy(i).to(self.params[name].device) for i in index)
            for name, index in self.indices.items()
        }
        # A few elements show whether something else changes the parameters.
        self.probes = {
            name: index and tuple(i[:PROBED] for i in index)
            for name, index in self.on_device.items()
        }
        self.first, self.after, self.gradients = {}, [], []
        self.probed_before, self.probed_after = [], []
        self.norms, self.learning_rates = [], []
        self.without_gradient = set()
        self.count = None
        self.pending = None
        self.hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Stop, and write what was recorded."""
        for hook in self.hooks:
            hook.remove()
        if self.hooks and len(self.gradients) < LEAST_STEPS:
            print(
                f"record_torch: {len(self.gradients)} steps are too few for "
                "rmsprop-jax identify."
            )
        if self.hooks and self.gradients:
            self._write()
        self.hooks = []

    # --- The hooks.

    def _before_step(self, optimizer, args, kwargs):
        if self.count is None:
            self.count = find_count(optimizer)
        self.pending = None
        closure = kwargs.get("closure") or next(
            (x for x in args[1:] if callable(x)), None
        )
        if not self.gradients:
            self.first = self._take(self.params, self.on_device)
        self.probed_before.append(self._take(self.params, self.probes))
        if closure is None:
            self._take_gradients()
            return None

        def evaluate():
            loss = closure()
            self._take_gradients()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluate}
        return tuple(evaluate if x is closure else x for x in args), kwargs

    def _take_gradients(self):
        gradients = {n: p.grad for n, p in self.params.items() if p.grad is not None}
        scale, found = (
            getattr(self.optimizer, x, None) for x in ("grad_scale", "found_inf")
        )
        if found is not None and bool(found):
            return  # a fused optimizer skips the step itself
        if scale is not None:  # and it unscales the gradients itself
            gradients = {n: g / scale for n, g in gradients.items()}
        self.without_gradient |= self.params.keys() - gradients.keys()
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        norm = global_norm([*gradients.values()]) if gradients else None
        self.pending = self._take(gradients, self.on_device), norm, rates

    def _after_step(self, optimizer, args, kwargs):
        if self.pending is None or self.pending[1] is None:
            self.probed_before.pop()
            return
        gradients, norm, rates = self.pending
        self.pending = None
        self.gradients.append(gradients)
        self.after.append(self._take(self.params, self.on_device))
        self.probed_after.append(self._take(self.params, self.probes))
        self.norms.append(norm)
        self.learning_rates.append(rates)
        if len(self.gradients) == self.steps:
            self.close()

    @torch.no_grad()
    def _take(self, tensors, indices):
        """Return copies of the chosen elements, which stay on their devices."""
        return {
            name: x.detach().clone()
            if indices[name] is None
            else x.detach()[indices[name]]
            for name, x in tensors.items()
        }

    # --- The file.

    def _write(self):
        names = [n for n in self.params if n not in self.without_gradient]
        arrays = {}
        for name in names:
            ndim = self.params[name].ndim
            rows = [self.first[name], *(x[name] for x in self.after)]
            arrays[f"params/{name}"] = stack(rows, ndim)
            arrays[f"gradients/{name}"] = stack([x[name] for x in self.gradients], ndim)
        rates = np.array(self.learning_rates)
        if np.all(rates == rates[:, :1]):
            arrays["learning_rate"] = rates[:, 0]
        else:
            arrays["learning_rates_of_groups"] = rates
        if any(index is not None for index in self.indices.values()):
            arrays["gradient_norms"] = np.array([float(norm) for norm in self.norms])
        moved = find_moves_between(self.probed_before, self.probed_after)
        if moved:
            print(
                f"record_torch: {moved[0]} changed between two steps, not by the "
                "optimizer but by something else, such as an average of the weights."
            )
        if self.without_gradient:
            print(
                "record_torch: left out, because they had no gradient at some step: "
                f"{sorted(self.without_gradient)[:8]}"
            )
        made_by = {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "optimizer": type(self.optimizer).__name__,
            "shapes": {name: [*self.params[name].shape] for name in names},
            "groups": len(self.optimizer.param_groups),
        }
        save(self.path, arrays, self.count, made_by)


def find_names(optimizer, model):
    """Return a name for each parameter, in the optimizer's order."""
    known = {p: name for name, p in model.named_parameters()} if model else {}
    names = []
    for g, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [None] * len(group["params"])
        for i, (p, name) in enumerate(zip(group["params"], own, strict=True)):
            names.append(name or known.get(p) or f"group_{g}.{i}")
    return names


def find_count(optimizer):
    """Return how many steps the optimizer has made already."""
    steps = [state.get("step", 0) for state in optimizer.state.values()]
    return max((int(step) for step in steps), default=0)


def choose_elements(shapes, elements, seed):
    """Return the indices of the elements to keep, or None for a whole parameter.

    They are sampled by size, and some of each parameter in any case.
    """
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    total = sum(sizes.values())
    if total <= elements:
        return dict.fromkeys(shapes)
    rng = np.random.default_rng(seed)
    indices = {}
    for name, size in sizes.items():
        kept = min(size, max(elements * size // total, LEAST_OF_EACH))
        flat = np.sort(rng.choice(size, kept, replace=False, shuffle=False))
        # With an index along each axis, any layout is sampled without copying all of
        # it.
        indices[name] = np.unravel_index(flat, shapes[name]) if shapes[name] else None
    return indices


def global_norm(gradients):
    """Return the norm of all gradients together, on the first one's device."""
    norms = [
        torch.linalg.vector_norm(
            g.detach(), dtype=torch.promote_types(g.dtype, torch.float32)
        )
        for g in gradients
    ]
    return torch.linalg.vector_norm(torch.stack([x.to(norms[0]) for x in norms]))


def stack(rows, ndim):
    """Return [T, …] in NumPy. A sample has as many axes, of one element each."""
    x = torch.stack([row.cpu() for row in rows])
    array = (
        x.view(torch.int16).numpy().view("V2")
        if x.dtype == torch.bfloat16
        else x.numpy()
    )
    return array.reshape(*array.shape, *[1] * (ndim + 1 - array.ndim))


def find_moves_between(before, after):
    """Return the parameters that something other than the optimizer changed."""
    pairs = [*zip(before[1:], after, strict=False)]
    return [
        name
        for name in (before[0] if before else ())
        if any(not torch.equal(x[name], y[name]) for x, y in pairs)
    ]


def check_folder(path):
    """Raise if there is no folder for the file, before the run is made."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"There is no folder {folder!r} to write the recording to.")


def save(path, arrays, count, made_by):
    """Write the file, whole or not at all."""
    partial = f"{path}.partial"
    with open(partial, "wb") as file:
        np.savez(file, **arrays, count=count, made_by=json.dumps(made_by))
    os.replace(partial, path)


def main(argv=None):
    """Train a small network, and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="recording.npz", help="the recording")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)
    )
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=3e-3, alpha=0.9, momentum=0.5
    )
    inputs = torch.randn(512, 16)
    targets = torch.randn(16, 4)
    with Recorder(optimizer, args.out, model, steps=args.steps):
        for _ in range(args.steps):
            x = inputs[torch.randint(len(inputs), (32,))]
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), x @ targets)
            loss.backward()
            optimizer.step()
    size = os.path.getsize(args.out) / 1e6
    print(f"{args.steps} steps are recorded, {size:.1f} MB. What made them?")
    print(f"rmsprop-jax identify {args.out}")


if __name__ == "__main__":
    main()
