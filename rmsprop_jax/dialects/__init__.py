"""Every framework's and paper's RMSProp, under its own argument names and defaults.

"RMSProp" is at least six algorithms. A call that is pasted from another framework, or a
setting from a paper, is one here as it stands. Each function is a few lines over the
one rule; what sets it apart is where ε stands, where the second moment begins, whether
the rate is applied after the momentum or within its buffer, and what weight decay does.

True of them all:

- The rate, the decays, ε and the momentum may each be a number, a scalar array (also a
  traced one), or a schedule: a function from the count of updates (from 0) to a number.
- They return a gradient transformation whose state is an `RMSPropState`. Shapes, dtypes
  and what is raised are those of `rmsprop_jax.rmsprop`. Where there is weight decay,
  ``update`` needs ``params``.
- An argument of theirs that acts on the gradients or on the loop is not here: the
  docstring names the optax transformation to chain instead. One that only chooses an
  implementation or a name (``use_locking``, ``name``) has no counterpart, but for
  those of `torch`.
- Parameter groups are ``optax.multi_transform`` (``optax.partition``) with one dialect
  for each.
- The variance of a centered rule is kept as such and cannot cancel, in float32 too.
  Near where a framework's own rule is NaN, we are where float64 is.

Examples:
    >>> import jax.numpy as jnp
    >>> from rmsprop_jax import dialects
    >>> params, gradients = jnp.array([0.0]), jnp.array([3.0])
    >>> tx = dialects.torch(lr=0.5, alpha=0.75, eps=0.0)
    >>> tx.update(gradients, tx.init(params))[0]  # −0.5·3/√(0.25·9)
    Array([-1.], dtype=float32)
    >>> tx = dialects.tensorflow(learning_rate=0.5, decay=0.75, epsilon=1.0)
    >>> tx.update(gradients, tx.init(params))[0]  # −0.5·3/√(0.75·1 + 0.25·9 + 1)
    Array([-0.75], dtype=float32)
"""

from rmsprop_jax.dialects._jax import jax_example_libraries, optax
from rmsprop_jax.dialects._papers import efficientnet, graves, hinton, tf_slim
from rmsprop_jax.dialects._reinforcement_learning import (
    a3c,
    dopamine,
    impala,
    minatar,
    nature_dqn,
    torchbeast,
)
from rmsprop_jax.dialects._tensorflow_order import (
    keras,
    keras_legacy,
    paddle,
    sonnet,
    tensorflow,
)
from rmsprop_jax.dialects._timm import timm
from rmsprop_jax.dialects._torch_order import (
    burn,
    chainer,
    mlx,
    stable_baselines3,
    torch,
)

__all__ = [
    "a3c",
    "burn",
    "chainer",
    "dopamine",
    "efficientnet",
    "graves",
    "hinton",
    "impala",
    "jax_example_libraries",
    "keras",
    "keras_legacy",
    "minatar",
    "mlx",
    "nature_dqn",
    "optax",
    "paddle",
    "sonnet",
    "stable_baselines3",
    "tensorflow",
    "tf_slim",
    "timm",
    "torch",
    "torchbeast",
]
