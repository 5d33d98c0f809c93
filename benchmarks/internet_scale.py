"""What a step with 7 and with 70 billion parameters holds and sends, by compiling it.

    pip install -e .
    python benchmarks/internet_scale.py

A decoder of the shapes of Llama 2, 7B and 70B, in FSDP over 8 and over 512 devices: its
weights are split over all of them, and with these their gradients, second moments and
momentum buffers, all float32. While a layer computes, its weights are gathered, in
bfloat16. Each device has one sequence of 2048 tokens. The training step is lowered for
an abstract mesh, then compiled for simulated devices: no array is ever made, and one
gigabyte of memory will do.

Prints, for each device, the bytes of parameters and state by their shardings, those of
the compiled step's arguments, less its tokens, and those that it updates in place; then
the collectives in its text (what is in a loop over layers stands there once), those of
the update alone, and the seconds that compiling the step took. Fails if the bytes are
not the same three times, or if the update communicates. Activations, gathered weights
and gradients come on top: how much they take depends on the real device's compiler.
"""

import argparse
import collections
import math
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

from rmsprop_jax import rmsprop
from rmsprop_jax.sharding import state_shardings

OPTIMIZER = rmsprop(1e-4, momentum=0.9)
HEAD = (
    "parameters",
    "devices",
    "parameters and state",
    "arguments",
    "in place",
    "collectives",
    "of the update",
    "compiled in",
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
SMALL = Shape(2, 256, 512, 4, 2, vocabulary=1024, length=64)


def make_params(shape, mesh):
    """Shapes and shardings; each leaf has the width, which 512 devices divide."""
    width, hidden, vocabulary = shape.width, shape.hidden, shape.vocabulary
    keys = width * shape.key_heads // shape.heads

    def leaf(*sizes):
        spec = P(*[None] * sizes.index(width), "data")
        sharding = NamedSharding(mesh, spec)
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

    def gathered(weights):
        """FSDP: whole, and in bfloat16, where and while they are needed."""
        whole = NamedSharding(mesh, P())
        return jax.tree.map(
            lambda w: lax.with_sharding_constraint(w.astype(jnp.bfloat16), whole),
            weights,
        )

    def layer(x, weights):
        w = gathered(weights)
        y = normalized(x, w["before_attention"])
        q, k, v = (
            (y @ w[name]).reshape(*y.shape[:2], -1, shape.width // shape.heads)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + y.reshape(x.shape) @ w["attended"]
        y = normalized(x, w["before_mlp"])
        return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], None

    x = gathered(params["embedding"])[tokens[:, :-1]]
    x, _ = lax.scan(jax.checkpoint(layer), x, params["layers"])
    x = normalized(x, gathered(params["last"])) @ gathered(params["logits"])
    return cross_entropy(x.astype(jnp.float32), tokens[:, 1:]).mean()


def update(params, state, gradients):
    """The optimizer's part of the step."""
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def compiled(function, mesh, *args):
    """Lowered without a device, compiled for simulated ones; updated in place."""
    shardings = jax.tree.map(lambda x: x.sharding, args[:2])
    step = jax.jit(function, donate_argnums=(0, 1), out_shardings=shardings)
    lowered = step.trace(*args).lower(lowering_platforms=("cpu",))
    return lowered.compile(device_assignment=tuple(jax.devices()[: mesh.size]))


def collectives(program):
    """How many of each kind stand in the program."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf" ({kinds})(?:-start)?\(", program.as_text())
    return collections.Counter(found)


def bytes_of(tree):
    """What each device holds of it."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def abstract_run(shape, devices):
    """Parameters and state, which are nowhere, on a mesh of nothing."""
    mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    params = make_params(shape, mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(OPTIMIZER.init, params),
        state_shardings(OPTIMIZER, params),
    )
    return mesh, params, state


def number_of(params):
    """With commas."""
    return f"{sum(math.prod(p.shape) for p in jax.tree.leaves(params)):,}"


def gigabytes(n):
    """For people."""
    return f"{n / 1e9:.3f} GB"


def row(shape, devices):
    """One line of the table."""
    mesh, params, state = abstract_run(shape, devices)
    tokens = jax.ShapeDtypeStruct(
        (devices, shape.length + 1), jnp.int32, sharding=NamedSharding(mesh, P("data"))
    )

    def step(params, state, tokens):
        gradients = jax.grad(loss_of)(params, tokens, shape, mesh)
        return update(params, state, gradients)

    start = time.perf_counter()
    whole = compiled(step, mesh, params, state, tokens)
    seconds = time.perf_counter() - start
    alone = compiled(update, mesh, params, state, params)
    memory: Any = whole.memory_analysis()
    held = [
        bytes_of((params, state)),
        memory.argument_size_in_bytes - bytes_of(tokens),
        memory.alias_size_in_bytes,
    ]
    sent, sent_by_update = collectives(whole), collectives(alone)
    if len(set(held)) > 1 or sent_by_update:
        raise SystemExit(f"bytes {held}, collectives of the update {sent_by_update}")
    return (
        number_of(params),
        devices,
        *map(gigabytes, held),
        ", ".join(f"{n} {kind}" for kind, n in sorted(sent.items())),
        sent_by_update.total(),
        f"{seconds:.0f} s",
    )


def main(argv=None):
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small model, 8 devices")
    args = parser.parse_args(argv)
    shapes, counts = ([SMALL], [8]) if args.quick else (MODELS, [8, 512])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts))
    for line in (HEAD, ["---"] * len(HEAD)):
        print("|", " | ".join(line), "|")
    for shape in shapes:
        for devices in counts:
            print("|", " | ".join(map(str, row(shape, devices))), "|", flush=True)


if __name__ == "__main__":
    main()
