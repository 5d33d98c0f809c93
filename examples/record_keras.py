"""Record a run of Keras 3, to find out which optimizer made it.

    python record_keras.py
    rmsprop-jax identify recording.npz

Copy this file into your program. It needs Keras and NumPy, but not rmsprop_jax. It
works with the backends JAX, TensorFlow and PyTorch, compiled or not:

    from record_keras import Recorder

    model.fit(x, y, callbacks=[Recorder("recording.npz")])  # 60 updates or more

or, with a training loop of your own, before the first step:

    optimizer.build(model.trainable_variables)
    recorder = Recorder("recording.npz")
    recorder.attach(optimizer)
    train()
    recorder.save()

It keeps the gradients as the rule gets them (without a loss scale, and after they were
clipped), the parameters before and after each update, and the learning rate. An update
that a loss scale skips is left out. Keras compiles a step, so the recording is made in
variables of the optimizer, which are removed when it is saved.

Of a large model, 20,000 elements are kept, sampled once with a fixed seed from all
parameters by their size, together with the global norm of every whole gradient.
bfloat16, which NumPy does not have, is stored as its two bytes (dtype ``V2``).

Without arguments, this file trains a small network and records it.
"""

import argparse
import json
import os
import platform
from typing import Any

import numpy as np

try:
    import keras
except ImportError:
    print("This example needs Keras, and a backend: pip install keras")
    raise SystemExit(0) from None

ops: Any = keras.ops  # its functions take tensors of three frameworks

LEAST_STEPS = 4
LEAST_OF_EACH = 8  # elements: a bias may have other settings than a kernel


class Recorder(keras.callbacks.Callback):
    """Records an optimizer's updates, and writes them to a file.

    Args:
        path: The .npz file to write.
        steps: How many updates to record.
        elements: How many elements to keep of all parameters together.
        seed: Which elements.
    """

    def __init__(self, path, *, steps=60, elements=20_000, seed=0):
        super().__init__()
        check_folder(path)
        self.path, self.steps, self.elements, self.seed = path, steps, elements, seed
        self.optimizer: Any = None
        self.is_saved = False
        self.gradients: Any = None  # of the step that is being made

    def on_train_begin(self, logs=None):
        """Attach to the optimizer of the model, whose variables it takes."""
        model: Any = self.model
        optimizer = model.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        if not inner.built:
            inner.build(model.trainable_variables)
        self.attach(optimizer)
        # A function that was compiled before would not record.
        model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        """Write the file."""
        self.save()
        model: Any = self.model
        model.make_train_function(force=True)

    def attach(self, optimizer):
        """Record the updates of an optimizer that is built.

        Args:
            optimizer: Any of Keras's. If it has a loss scale, the one inside is taken.
        """
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not optimizer.built:
            raise ValueError(
                "optimizer must be built before it is recorded: call "
                "optimizer.build(model.trainable_variables)."
            )
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                "optimizer must not have gradient_accumulation_steps, because most "
                "steps then update nothing. Record a run without it."
            )
        self.optimizer = optimizer
        self.variables = [*optimizer._trainable_variables]
        self.names = [v.path for v in self.variables]
        self.indices = choose_elements(
            [tuple(v.shape) for v in self.variables], self.elements, self.seed
        )
        self.count = int(ops.convert_to_numpy(optimizer.iterations))
        size = sum(len(index) for index in self.indices)
        is_wide = any("float64" in str(v.dtype) for v in self.variables)
        dtype = "float64" if is_wide else "float32"  # bfloat16 is exact in it
        # Whatever comes after the last step goes into an extra row, which is not saved.
        rows = self.steps + 1

        def add(shape, dtype, name):
            return optimizer.add_variable(shape, dtype=dtype, name=name)

        self.stored: dict[str, Any] = {
            "params": add((rows + 1, size), dtype, "recorded_params"),
            "gradients": add((rows, size), dtype, "recorded_gradients"),
            "norms": add((rows,), dtype, "recorded_norms"),
            "rates": add((rows,), dtype, "recorded_rates"),
            "done": add((), "int32", "recorded_steps"),
        }
        self.write("params", 0, self.take([v.value for v in self.variables]))
        self.left_out = set()
        self.original = type(optimizer)
        optimizer.__class__ = make_recording_class(self.original, self)

    def save(self):
        """Write the file, and leave the optimizer as it was."""
        if self.optimizer is None:
            if not self.is_saved:
                print("record_keras: nothing is recorded; call attach(optimizer).")
            return
        self.is_saved = True
        stored = {k: ops.convert_to_numpy(v.value) for k, v in self.stored.items()}
        self.optimizer.__class__ = self.original
        for variable in self.stored.values():
            self.optimizer._untrack_variable(variable)
        self.optimizer = None
        steps = min(int(stored["done"]), self.steps)
        if steps < LEAST_STEPS:
            print(f"record_keras: {steps} steps are too few for rmsprop-jax identify.")
        if not steps:
            return
        arrays = {"learning_rate": stored["rates"][:steps].astype(np.float64)}
        sizes = [int(np.prod(v.shape)) for v in self.variables]
        if sum(len(index) for index in self.indices) < sum(sizes):
            arrays["gradient_norms"] = stored["norms"][:steps]
        ends = np.cumsum([len(index) for index in self.indices])[:-1]
        for part, rows in (("params", steps + 1), ("gradients", steps)):
            columns = np.split(stored[part][:rows], ends, axis=1)
            for v, name, index, x in zip(
                self.variables, self.names, self.indices, columns, strict=True
            ):
                if name not in self.left_out:
                    arrays[f"{part}/{name}"] = shape_like(v, index, x)
        if self.left_out:
            print(
                "record_keras: left out, because they had no gradient: "
                f"{sorted(self.left_out)[:8]}"
            )
        made_by = {
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "optimizer": self.original.__name__,
            "shapes": {v.path: [*v.shape] for v in self.variables},
        }
        save(self.path, arrays, self.count, made_by)

    # --- What is compiled into the step.

    def take(self, tensors):
        """Return the chosen elements of all, as one vector."""
        dtype = self.stored["params"].dtype
        return ops.concatenate(
            [
                ops.cast(ops.take(ops.reshape(x, (-1,)), index), dtype)
                for x, index in zip(tensors, self.indices, strict=True)
            ]
        )

    def norm(self, tensors):
        """Return the norm of all together."""
        dtype = self.stored["norms"].dtype
        squares = [ops.square(ops.cast(x, dtype)) for x in tensors]
        # The last axis is summed last, because XLA sums along it one by one.
        columns = [ops.sum(x, axis=tuple(range(len(x.shape) - 1))) for x in squares]
        return ops.sqrt(ops.sum(ops.stack([ops.sum(x) for x in columns])))

    def write(self, name, row, value):
        """Write a row of a variable of the recording."""
        stored = self.stored[name]
        start = (row, 0) if len(stored.shape) == 2 else (row,)
        value = ops.cast(ops.expand_dims(value, 0), stored.dtype)
        start = ops.stack([ops.cast(x, "int32") for x in start])
        stored.assign(ops.slice_update(stored.value, start, value))


def make_recording_class(kind, recorder):
    """Return a class of optimizers that record, and do what the class does."""

    class Recording(kind):
        def apply(self, grads, trainable_variables=None):
            """Record the gradients, and the parameters after."""
            variables = recorder.variables
            given = variables if trainable_variables is None else trainable_variables
            pairs = zip(given, grads, strict=True)
            kept = {id(v): g for v, g in pairs if g is not None}
            done = recorder.stored["done"]
            row = ops.minimum(done.value, recorder.steps)
            recorder.gradients = [*kept.values()]
            recorder.write("rates", row, self.learning_rate)
            result = super().apply(grads, trainable_variables)
            # The clipped gradients, if they were clipped.
            kept = dict(zip(kept, recorder.gradients, strict=True))
            recorder.gradients = None
            recorder.left_out |= {v.path for v in variables if id(v) not in kept}
            recorder.write("norms", row, recorder.norm([*kept.values()]))
            recorder.write(
                "gradients",
                row,
                recorder.take(
                    [kept.get(id(v), ops.zeros_like(v.value)) for v in variables]
                ),
            )
            after = recorder.take([v.value for v in variables])
            recorder.write("params", row + 1, after)
            done.assign(ops.minimum(done.value + 1, recorder.steps))
            return result

        def _clip_gradients(self, grads):
            recorder.gradients = super()._clip_gradients(grads)
            return recorder.gradients

    Recording.__name__ = kind.__name__
    return Recording


def choose_elements(shapes, elements, seed):
    """Return the flat indices of the elements to keep of each parameter.

    They are sampled by size, and some of each parameter in any case.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    total = sum(sizes)
    if total <= elements:
        return [np.arange(size) for size in sizes]
    rng = np.random.default_rng(seed)
    kept = [min(n, max(elements * n // total, LEAST_OF_EACH)) for n in sizes]
    return [
        np.sort(rng.choice(n, k, replace=False, shuffle=False))
        for n, k in zip(sizes, kept, strict=True)
    ]


def shape_like(variable, index, x):
    """Return [T, …] in the variable's precision; a sample has axes of one element."""
    shape = tuple(variable.shape)
    is_whole = len(index) == int(np.prod(shape))
    axes = shape if is_whole else (len(index), *[1] * (len(shape) - 1))
    x = x.reshape(len(x), *axes)
    if "bfloat16" in str(variable.dtype):
        # The upper half of a float32, which represents it exactly.
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16).view("V2")
    return x.astype(str(variable.dtype))


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
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(32, "tanh"), keras.layers.Dense(4)]
    )
    optimizer = keras.optimizers.RMSprop(3e-3, rho=0.9, momentum=0.5)
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32 * args.steps, 16)).astype("float32")
    targets = inputs @ rng.normal(size=(16, 4)).astype("float32")
    recorder = Recorder(args.out, steps=args.steps)
    train: Any = model.fit
    train(inputs, targets, batch_size=32, verbose=0, callbacks=[recorder])
    size = os.path.getsize(args.out) / 1e6
    print(f"{args.steps} steps are recorded, {size:.1f} MB. What made them?")
    print(f"rmsprop-jax identify {args.out}")


if __name__ == "__main__":
    main()
