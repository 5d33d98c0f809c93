"""RMSProp once more, slow and plain: NumPy, float64, one real leaf, textbook form.

No recursion: the moments are weighted sums over all gradients so far, taken anew at
every step. What the accumulators start from is one more sample, a gradient of 0 of
weight α^t, which bias correction leaves out. So nothing here shares an idea with the
code under test but the definition itself, and nothing cancels.
"""

from typing import Any

import numpy as np


def trajectory(
    gradients,
    start,
    *,
    learning_rate: Any = lambda t: 0.01,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    centered=False,
    maximize=False,
    nesterov=False,
    eps_in_sqrt=False,
    initial_scale=0.0,
    bias_correction=False,
    decoupled_weight_decay=False,
    learning_rate_in_momentum=False,
):
    """Yield (p, nu, mu, grad_mean) after every step, for one real leaf.

    The rate, alpha, eps, the decay and the momentum may be functions of the step.
    """
    p = np.array(start, np.float64)
    b = np.zeros_like(p)
    gradients = np.asarray(gradients, np.float64)
    samples, alphas = np.zeros((len(gradients) + 1, *p.shape)), []
    scheduled: Any = (learning_rate, alpha, eps, weight_decay, momentum)
    for t, g in enumerate(gradients):
        rate, alpha, eps, weight_decay, momentum = (
            number(t) if callable(number) else number for number in scheduled
        )
        alphas.append(alpha)
        if maximize:
            g = -g
        if weight_decay and not decoupled_weight_decay:
            g = g + weight_decay * p
        samples[t + 1] = g
        so_far = samples[: t + 2]
        # A sample counts for 1 − α at its step, and for α of that at each step since.
        kept = np.cumprod([1.0, *alphas[::-1]])[::-1]
        weights = kept * (1 - np.array([0.0, *alphas]))
        weights[0] = 0.0 if bias_correction else kept[0]
        weights = (weights / weights.sum())[:, None]
        mean = (weights * so_far).sum(axis=0)
        about = mean if centered else 0.0
        nu = (weights * (so_far - about) ** 2).sum(axis=0)
        nu = nu + weights[0] * initial_scale
        divisor = np.sqrt(nu + eps) if eps_in_sqrt else np.sqrt(nu) + eps
        x = g / divisor
        if learning_rate_in_momentum:
            x = rate * x
        b = momentum * b + x
        out = momentum * b + x if nesterov else b
        if not learning_rate_in_momentum:
            out = rate * out
        if decoupled_weight_decay:
            out = out + rate * weight_decay * p
        p = p - out
        yield p, nu, b, mean
