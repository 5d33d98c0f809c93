"""RMSProp as the agents of reinforcement learning used it; see `_papers`."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._options import Options
from rmsprop_jax._transform import transformation
from rmsprop_jax.dialects._tensorflow_order import tensorflow


def nature_dqn(
    learning_rate: ScalarOrSchedule = 0.00025,
    squared_gradient_momentum: ScalarOrSchedule = 0.95,
    min_squared_gradient: ScalarOrSchedule = 0.01,
) -> GradientTransformationExtraArgs:
    """DQN of Mnih et al. 2015: centered, from 0, ε of 0.01 inside the root.

    Its "gradient momentum" of 0.95 is the decay of the gradient's mean, not a momentum
    of the step: the code multiplies its buffer by 0. Here the one number is the decay
    of both moments. The clip of the error to ±1 belongs to the loss
    (``optax.huber_loss``).

    Args:
        learning_rate: The rate, or a schedule.
        squared_gradient_momentum: How much of both moments a step keeps.
        min_squared_gradient: Added to the variance, inside the root.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Mnih et al., *Human-level control through deep reinforcement learning*, Nature
        518, 2015, Extended Data Table 1; unverified: 0.95, 0.01 and their places were
        read in copies of the released ``NeuralQLearner.lua``, the rate is from memory.
    """
    return transformation(
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
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 0.00001,
    centered: bool = True,
) -> GradientTransformationExtraArgs:
    """Dopamine's DQN: TensorFlow's centered rule. It begins at 1; ε is 1e-5, inside.

    Not that of the paper it follows (`nature_dqn`): there ε is 1000 times as large.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the moments a step keeps.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
        epsilon: Added to the variance, inside the root.
        centered: Whether to divide by the gradient's deviation from its mean.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Dopamine, ``dopamine/agents/dqn/configs/dqn_nature.gin`` at 31799e9, and the
        default of ``dqn_agent.py``; read.
    """
    return tensorflow(learning_rate, decay, momentum, epsilon, centered=centered)


def minatar(
    step_size: ScalarOrSchedule = 0.00025,
    squared_grad_momentum: ScalarOrSchedule = 0.95,
    min_squared_grad: ScalarOrSchedule = 0.01,
) -> GradientTransformationExtraArgs:
    """MinAtar's DQN: torch's centered rule, ε of 0.01 outside the root, no momentum.

    The numbers are those of `nature_dqn`, the rule is another: where the gradient is
    small, so that ν is far below ε², a step is up to ten times as large here.

    Args:
        step_size: The rate, or a schedule.
        squared_grad_momentum: How much of both moments a step keeps.
        min_squared_grad: Added to the root of the variance.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        kenjyoung/MinAtar, ``examples/dqn.py`` at 4241f24; read. Before, the file had a
        ``GRAD_MOMENTUM`` of 0.95, which it did not use.
        Young and Tian, *MinAtar*, arXiv:1903.03176, 2019.
    """
    return transformation(
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
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 0.1,
) -> GradientTransformationExtraArgs:
    """IMPALA, DeepMind's scalable_agent: TensorFlow's rule, ε of 0.1 inside the root.

    There the rate falls linearly to 0: pass ``optax.linear_schedule(0.00048, 0.0,
    updates)``. The port to torch is `torchbeast`, another rule.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the second moment a step keeps.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
        epsilon: Added to the second moment, inside the root.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        google-deepmind/scalable_agent, flags of ``experiment.py`` at 103308a; read.
        Espeholt et al., *IMPALA*, arXiv:1802.01561, 2018.
    """
    return tensorflow(learning_rate, decay, momentum, epsilon)


def torchbeast(
    learning_rate: ScalarOrSchedule = 0.00048,
    alpha: ScalarOrSchedule = 0.99,
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 0.01,
) -> GradientTransformationExtraArgs:
    """TorchBeast's IMPALA: torch's rule, ε of 0.01 outside the root.

    There the rate falls linearly to 0, and the gradient is clipped:
    ``optax.chain(optax.clip_by_global_norm(40.0), dialects.torchbeast(
    optax.linear_schedule(0.00048, 0.0, updates)))``.

    Args:
        learning_rate: The rate, or a schedule.
        alpha: How much of the second moment a step keeps.
        momentum: How much of the momentum buffer a step keeps.
        epsilon: Added to the root of the second moment.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        facebookresearch/torchbeast, flags of ``monobeast.py`` at 1c881b8; read.
    """
    return transformation(
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
    """A3C's shared RMSProp: from 0, ε of 0.1 inside the root, no momentum.

    There the rate falls linearly to 0: pass ``optax.linear_schedule(0.0007, 0.0,
    updates)``; the clip is ``optax.clip_by_global_norm(40.0)`` in front.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the second moment a step keeps.
        epsilon: Added to the second moment, inside the root.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Mnih et al., *Asynchronous Methods for Deep Reinforcement Learning*,
        arXiv:1602.01783, 2016; unverified: the numbers are those that the async-rl
        project reports from its authors, the rest is from memory.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=epsilon,
            eps_in_sqrt=True,
            names={"alpha": "decay", "eps": "epsilon"},
        )
    )
