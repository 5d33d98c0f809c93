"""A checkpoint that the real PyTorch writes, and the lines that resume it."""

import warnings

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.live


def test_a_scheduler_and_no_names(run, tmp_path):
    """As Lightning saves it: the next update has the scheduler's learning rate."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)

    def step(gradients):
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g
        optimizer.step()
        scheduler.step()

    for _ in range(7):
        step([torch.randn_like(p) for p in model.parameters()])
    path = tmp_path / "last.ckpt"
    content = {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }
    torch.save(content, path)
    code, out, err = run("inspect", path)
    assert (code, err) == (0, "")
    assert "OneCycleLR in ['lr_schedulers'][0], after 7 steps" in " ".join(out.split())
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(out.partition("# Python\n")[2], made)
    given = [torch.randn_like(p) for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    step(given)
    gradients = dict(zip(names, (g.numpy() for g in given), strict=True))
    updates, _ = made["tx"].update(gradients, made["opt_state"], made["params"])
    assert jax.tree.structure(updates) == jax.tree.structure(made["params"])
    for name, p in model.named_parameters():
        observed = p.detach().numpy() - before[name]
        np.testing.assert_allclose(updates[name], observed, rtol=1e-4, atol=1e-6)
