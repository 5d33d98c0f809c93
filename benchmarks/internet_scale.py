"""Compile a step of 7 and 70 billion parameters to see what it stores and sends.

    pip install -e ".[devices]"
    python benchmarks/internet_scale.py

The model is a decoder with the shapes of Llama 2, 7B and 70B, in FSDP: its weights are
split over all devices, and so are their gradients, second moments and momentum buffers.
The weights of a layer are gathered in bfloat16 while it computes. Each device has one
sequence of 2048 tokens. XLA's compilers for TPU and GPU compile the training step. They
need no device, and no array is ever made.

For each device, the script prints the bytes of parameters and state, all of which are
updated in place, and of the step's temporaries: activations, gathered weights and
gradients. Then it prints the collectives of the step (those in a loop over layers count
once), those of the update alone, and the seconds that compiling the step took. It fails
if parameters and state do not have the sizes of their shardings, or if the update
communicates.
"""

import argparse
import math
import re
import time
from typing import Any, NamedTuple

import compilers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

from rmsprop_jax import rmsprop
from rmsprop_jax.sharding import offload, state_shardings

HEAD = (
    "parameters",
    "devices",
    "state dtype",
    "parameters and state",
    "temporaries",
    "collectives",
    "collectives of the update",
    "compile time",
)


class Shape(NamedTuple):
    """The sizes of a decoder, and of its sequences."""

    layers: int
    width: int
    hidden: int
    heads: int
    key_heads: int
    vocabulary: int = 32_000
    length: int = 2048


MODELS = (Shape(32, 4096, 11_008, 32, 32), Shape(80, 8192, 28_672, 64, 8))
MACHINES = {
    "8 TPU v5e": "v5e:2x4",
    "64 TPU v5e": "v5e:8x8",
    "256 TPU v5e": "v5e:16x16",
    "64 H100": "h100:8x8x1",
}
STATES = ("float32", "bfloat16")
ON_HOST = "float32, on the host"
ROWS = [
    (MODELS[0], "8 TPU v5e", ON_HOST),
    *((MODELS[0], machine, state) for machine in MACHINES for state in STATES),
    *((MODELS[1], machine, state) for machine in [*MACHINES][1:] for state in STATES),
]
SMALL = Shape(2, 256, 512, 4, 2, vocabulary=1024, length=64)


def split(mesh, width, sizes):
    """Split over all devices along the width, which every leaf has (FSDP)."""
    return NamedSharding(mesh, P(*[None] * sizes.index(width), "data"))


def make_params(shape, mesh):
    """Shapes and shardings; 512 devices divide the width."""
    width, hidden, vocabulary = shape.width, shape.hidden, shape.vocabulary
    keys = width * shape.key_heads // shape.heads

    def leaf(*sizes):
        sharding = split(mesh, width, sizes)
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)

    return {
        "embedding": leaf(vocabulary, width),
        "layers": {
            "before_attention": leaf(shape.layers, width),
            "query": leaf(shape.layers, width, width),
            "key": leaf(shape.layers, width, keys),
            "value": leaf(shape.layers, width, keys),
            "attended": leaf(shape.layers, width, width),
            "before_mlp": leaf(shape.layers, width),
            "gate": leaf(shape.layers, width, hidden),
            "up": leaf(shape.layers, width, hidden),
            "down": leaf(shape.layers, hidden, width),
        },
        "last": leaf(width),
        "logits": leaf(width, vocabulary),
    }


def normalized(x, scale):
    """RMSNorm over the last dimension."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * lax.rsqrt(mean_square + 1e-5)).astype(x.dtype) * scale[None, None]


def rotated(x):
    """Rotary positions for (batch, time, heads, size)."""
    length, half = x.shape[1], x.shape[3] // 2
    rates = 10_000.0 ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None]
    angles = angles[None, :, None]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def loss_of(params, tokens, shape, mesh):
    """The mean loss of every next token of (batch, time + 1)."""

    def gathered(w):
        """Gather a weight in bfloat16 while it is needed (FSDP).

        Its derivative is a reduce-scatter. With sharding constraints alone, XLA for TPU
        may sum whole gradients, and then take parts of them.
        """
        axis = w.shape.index(shape.width // mesh.size)
        w = w.astype(jnp.bfloat16)
        return lax.all_gather(w, "data", axis=axis, tiled=True)

    def layer(x, weights):
        w = jax.tree.map(gathered, weights)
        y = normalized(x, w["before_attention"])
        q, k, v = (
            (y @ w[name]).reshape(*y.shape[:2], -1, shape.width // shape.heads)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + y.reshape(x.shape) @ w["attended"]
        y = normalized(x, w["before_mlp"])
        return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], None

    def on_each(params, tokens):
        x = gathered(params["embedding"])[tokens[:, :-1]]
        x, _ = lax.scan(jax.checkpoint(layer), x, params["layers"])
        x = normalized(x, gathered(params["last"])) @ gathered(params["logits"])
        loss = cross_entropy(x.astype(jnp.float32), tokens[:, 1:]).mean()
        return lax.pmean(loss, "data")

    specs = jax.tree.map(lambda p: split(mesh, shape.width, p.shape).spec, params)
    return jax.shard_map(
        on_each, mesh=mesh, in_specs=(specs, P("data")), out_specs=P()
    )(params, tokens)


def optimizer(kind):
    """The optimizer of a row."""
    dtype, _, on_host = kind.partition(", ")
    tx = rmsprop(1e-4, momentum=0.9, state_dtype=dtype)
    return offload(tx) if on_host else tx


def bytes_of(tree):
    """How many bytes of a tree each device holds in its own memory."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != "pinned_host"
    )


def abstract_run(shape, mesh, kind):
    """Abstract parameters and state, without arrays."""
    params = make_params(shape, mesh)
    tx = optimizer(kind)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(tx.init, params),
        state_shardings(tx, params),
    )
    return params, state


def number_of(params):
    """The number of parameters, with commas."""
    return f"{sum(math.prod(p.shape) for p in jax.tree.leaves(params)):,}"


def gigabytes(n):
    """A number of bytes, to read."""
    return f"{n / 1e9:.2f} GB"


def row(shape, machine, devices, kind):
    """One line of the table."""
    mesh = Mesh(np.array(devices), ("data",))
    params, state = abstract_run(shape, mesh, kind)
    tokens = jax.ShapeDtypeStruct(
        (mesh.size, shape.length + 1),
        jnp.int32,
        sharding=NamedSharding(mesh, P("data")),
    )

    def update(params, state, gradients):
        updates, state = optimizer(kind).update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, state, tokens):
        gradients = jax.grad(loss_of)(params, tokens, shape, mesh)
        return update(params, state, gradients)

    def compiled(function, *args) -> Any:
        there = jax.tree.map(lambda x: x.sharding, args[:2])
        jitted = jax.jit(function, donate_argnums=(0, 1), out_shardings=there)
        return jitted.lower(*args).compile()

    held = bytes_of((params, state))
    known = number_of(params), machine, kind, gigabytes(held)
    start = time.perf_counter()
    try:
        whole = compiled(step, params, state, tokens)
    except jax.errors.JaxRuntimeError as error:
        sizes = re.findall(r"\(([\d.]+)G\)", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or len(sizes) != 2:
            raise
        return (*known, "{} of {} GB: does not fit".format(*sizes), "", "", "")
    seconds = time.perf_counter() - start
    by_update = compilers.collectives(compiled(update, params, state, params))
    memory = whole.memory_analysis()
    # A device may round up the size of an array.
    arguments = memory.argument_size_in_bytes - bytes_of(tokens)
    if not held <= arguments < 1.001 * held + 1e5 or by_update:
        raise SystemExit(f"bytes {held}, {arguments}; of the update {by_update}")
    if memory.alias_size_in_bytes < held:
        raise SystemExit(f"only {memory.alias_size_in_bytes} of {held} in place")
    sent = compilers.collectives(whole)
    return (
        *known,
        gigabytes(memory.temp_size_in_bytes),
        ", ".join(f"{n} {kind}" for kind, n in sent.items()),
        len(by_update),
        f"{seconds:.0f} s",
    )


def main(argv=None):
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="a small model, on simulated devices"
    )
    args = parser.parse_args(argv)
    for line in (HEAD, ["---"] * len(HEAD)):
        print("|", " | ".join(line), "|")
    if args.quick:
        jax.config.update("jax_num_cpu_devices", 8)
        rows = [(SMALL, "8 CPUs", jax.devices(), "bfloat16")]
    else:
        rows = [
            (shape, machine, compilers.devices(MACHINES[machine]), kind)
            for shape, machine, kind in ROWS
        ]
    for each in rows:
        print("|", " | ".join(map(str, row(*each))), "|", flush=True)


if __name__ == "__main__":
    main()
