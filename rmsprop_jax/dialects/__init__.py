"""Every framework's and paper's RMSProp, under its own argument names and defaults.

"RMSProp" is at least six algorithms. You can paste a call from another framework, or a
setting from a paper, and get that algorithm. Each function selects a variant of one
rule: where ε is added, what the second moment is initialized to, whether the learning
rate is applied after the momentum buffer or inside it, and what weight decay does.

All of them have this in common:

- The learning rate, the decay rates, ε, the weight decay and the momentum may each be a
  number, a scalar array (traced or not), or a schedule: a function from the step count
  (starting at 0) to a number. (Exceptions: the momentum of `keras_legacy` can't be an
  array, and the decay rate of `optax` can't be a schedule with ``bias_correction``.)
- They return a gradient transformation whose state is an `RMSPropState`. Shapes, dtypes
  and errors are those of `rmsprop_jax.rmsprop`. With weight decay, ``update`` needs
  ``params``.
- Arguments of the original that act on the gradients or on the training loop are left
  out. The docstring names the optax transformation to add to the chain instead.
  Arguments that only select an implementation or a name (``use_locking``, ``name``) are
  left out too, except in `torch`, whose signature is complete.
- For parameter groups, use ``optax.partition`` with one dialect per group.
- A centered rule stores the variance itself, so nothing cancels, not even in float32.
  If a framework's own float32 arithmetic loses digits or gives NaN, these functions
  stay close to its float64 results.

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
