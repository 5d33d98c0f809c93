"""RMSProp as agents of reinforcement learning used it.

As in `_papers`, a docstring says where every number comes from.
"""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._optimizer.options import Options
from rmsprop_jax._optimizer.transform import make_transformation
from rmsprop_jax.dialects._tensorflow_order import tensorflow


def nature_dqn(
    learning_rate: ScalarOrSchedule = 0.00025,
    squared_gradient_momentum: ScalarOrSchedule = 0.95,
    min_squared_gradient: ScalarOrSchedule = 0.01,
) -> GradientTransformationExtraArgs:
    """DQN of Mnih et al. 2015: centered, initialized to 0, an ε of 0.01 in the root.

    The paper's "gradient momentum" of 0.95 is the decay rate of the gradient mean, not
    heavy-ball momentum: the code multiplies its buffer by 0. Here one number is the
    decay rate of both moments. Clipping the error to ±1 belongs to the loss
    (``optax.huber_loss``).

    Args:
        learning_rate: The learning rate.
        squared_gradient_momentum: The decay rate of the second moment and of the
            gradient mean.
        min_squared_gradient: Added to the variance, inside the root.

    References:
        Mnih et al., *Human-level control through deep reinforcement learning*, Nature
        518, 2015, Extended Data Table 1. Unverified: we read 0.95, 0.01 and their
        places in copies of the released ``NeuralQLearner.lua``; the learning rate is
        from memory.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=squared_gradient_momentum,
            eps=min_squared_gradient,
            centered=True,
            eps_in_sqrt=True,
            names={"alpha": "squared_gradient_momentum", "eps": "min_squared_gradient"},
        )
    )


def dopamine(
    learning_rate: ScalarOrSchedule = 0.00025,
    decay: ScalarOrSchedule = 0.95,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 0.00001,
    centered: bool = True,
) -> GradientTransformationExtraArgs:
    """Dopamine's DQN: `tensorflow`, centered, with an ε of 1e-5.

    It differs from the paper that it follows: in `nature_dqn`, ε is 1000 times as
    large.

    References:
        Dopamine, ``dopamine/agents/dqn/configs/dqn_nature.gin`` at 31799e9, and the
        default of ``dqn_agent.py``. Read, not run.
    """
    return tensorflow(learning_rate, decay, momentum, epsilon, centered=centered)


def minatar(
    step_size: ScalarOrSchedule = 0.00025,
    squared_grad_momentum: ScalarOrSchedule = 0.95,
    min_squared_grad: ScalarOrSchedule = 0.01,
) -> GradientTransformationExtraArgs:
    """MinAtar's DQN: `torch`, centered, with an ε of 0.01 and no momentum.

    The hyperparameters are those of `nature_dqn`, but ε is added outside the root.
    Therefore a step is up to ten times as large if ν is far below ε².

    Args:
        step_size: The learning rate.
        squared_grad_momentum: The decay rate of the second moment and of the gradient
            mean.
        min_squared_grad: Added to the standard deviation.

    References:
        kenjyoung/MinAtar, ``examples/dqn.py`` at 4241f24. Read, not run. An older
        version of the file has a ``GRAD_MOMENTUM`` of 0.95, which it does not use.
        Young and Tian, *MinAtar*, arXiv:1903.03176, 2019.
    """
    return make_transformation(
        Options(
            learning_rate=step_size,
            alpha=squared_grad_momentum,
            eps=min_squared_grad,
            centered=True,
            names={
                "learning_rate": "step_size",
                "alpha": "squared_grad_momentum",
                "eps": "min_squared_grad",
            },
        )
    )


def impala(
    learning_rate: ScalarOrSchedule = 0.00048,
    decay: ScalarOrSchedule = 0.99,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 0.1,
) -> GradientTransformationExtraArgs:
    """IMPALA, DeepMind's scalable_agent: `tensorflow` with an ε of 0.1.

    IMPALA's learning rate falls linearly to 0: pass
    ``optax.linear_schedule(0.00048, 0.0, updates)``. The PyTorch port is `torchbeast`,
    which uses another rule.

    References:
        google-deepmind/scalable_agent, flags of ``experiment.py`` at 103308a. Read, not
        run.
        Espeholt et al., *IMPALA*, arXiv:1802.01561, 2018.
    """
    return tensorflow(learning_rate, decay, momentum, epsilon)


def torchbeast(
    learning_rate: ScalarOrSchedule = 0.00048,
    alpha: ScalarOrSchedule = 0.99,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 0.01,
) -> GradientTransformationExtraArgs:
    """TorchBeast's IMPALA: `torch` with an ε of 0.01.

    In TorchBeast, the learning rate falls linearly to 0, and gradients are clipped:
    ``optax.chain(optax.clip_by_global_norm(40.0), dialects.torchbeast(
    optax.linear_schedule(0.00048, 0.0, updates)))``.

    References:
        facebookresearch/torchbeast, flags of ``monobeast.py`` at 1c881b8. Read, not
        run.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=alpha,
            eps=epsilon,
            momentum=momentum,
            names={"eps": "epsilon"},
        )
    )


def a3c(
    learning_rate: ScalarOrSchedule = 0.0007,
    decay: ScalarOrSchedule = 0.99,
    epsilon: ScalarOrSchedule = 0.1,
) -> GradientTransformationExtraArgs:
    """A3C's shared RMSProp: initialized to 0, an ε of 0.1 in the root, no momentum.

    A3C's learning rate falls linearly to 0: pass
    ``optax.linear_schedule(0.0007, 0.0, updates)``. For its gradient clipping, add
    ``optax.clip_by_global_norm(40.0)`` to the chain.

    Args:
        learning_rate: The learning rate.
        decay: The decay rate of the second moment.
        epsilon: Added to the second moment, inside the root.

    References:
        Mnih et al., *Asynchronous Methods for Deep Reinforcement Learning*,
        arXiv:1602.01783, 2016. Unverified: the numbers are those that the async-rl
        project reports from its authors; the rest is from memory.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=epsilon,
            eps_in_sqrt=True,
            names={"alpha": "decay", "eps": "epsilon"},
        )
    )
