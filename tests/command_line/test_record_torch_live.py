"""Recorded in PyTorch by the recorder, and found here by the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def torch():
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def record(monkeypatch):
    """The recorder's module, which is imported as users import it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import record_torch

    return record_torch


def make_model(torch, dtype=None):
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    )
    return model.to(dtype) if dtype else model


def train(torch, model, optimizer, steps=60, clip=None, scheduler=None):
    rng = np.random.default_rng(0)
    weight = next(model.parameters())
    for _ in range(steps):
        x = torch.tensor(rng.normal(size=(16, 6)), dtype=weight.dtype)
        optimizer.zero_grad()
        (model(x) ** 2 - x[:, :3]).square().mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()


def load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


def test_several_groups_a_schedule_and_a_clip(torch, record, run, tmp_path):
    """A group without decay, learning rates of their own, and the run goes on."""
    path = tmp_path / "recording.npz"
    model = make_model(torch)
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.RMSprop(
        groups, lr=4e-3, alpha=0.9, momentum=0.8, weight_decay=0.05, eps=1e-4
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 25, 0.25)
    with record.Recorder(optimizer, path, model):
        train(torch, model, optimizer, 70, clip=1.0, scheduler=scheduler)
    found = load(path)
    assert [*found] == [
        *(f"{part}/{i}.{x}" for i in (0, 2) for x in ("weight",) for part in PARTS),
        *(f"{part}/{i}.{x}" for i in (0, 2) for x in ("bias",) for part in PARTS),
        "learning_rate",
        "count",
        "made_by",
    ]
    assert found["params/0.weight"].shape == (61, 8, 6)
    assert found["gradients/2.bias"].shape == (60, 3)
    np.testing.assert_array_equal(
        found["learning_rate"][[0, 24, 25]], [4e-3, 4e-3, 1e-3]
    )
    made_by = json.loads(str(found["made_by"]))
    assert made_by["torch"] == torch.__version__
    assert (made_by["optimizer"], made_by["groups"]) == ("RMSprop", 2)
    norms = sum(
        np.square(x).reshape(60, -1).sum(1)
        for k, x in found.items()
        if "gradients" in k
    )
    assert np.sqrt(norms).max() <= 1.0001
    code, out, _ = run("identify", path)
    assert code == 0
    text = " ".join(out.split())
    assert "dialects.torch(" in text
    assert "alpha=0.9, eps=0.0001, weight_decay=0.05, momentum=0.8" in text


PARTS = ("params", "gradients")


def test_bfloat16_and_a_sample(torch, record, run, tmp_path):
    """In the precision of the run; the norms are those of the whole gradients."""
    path = tmp_path / "recording.npz"
    model = make_model(torch, torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    norms = []
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(sum(p.grad.float().square().sum() for p in model.parameters()) ** 0.5)
        )
    )
    kept = {"before": [p.detach().float().clone() for p in model.parameters()]}
    with record.Recorder(optimizer, path, model, elements=40):
        train(torch, model, optimizer)
    found = load(path)
    assert found["params/0.weight"].dtype == np.dtype("V2")
    assert found["params/0.weight"].shape == (61, 23, 1)
    assert found["params/2.bias"].shape == (61, 3)
    assert found["gradients/0.bias"].shape == (60, 8)
    np.testing.assert_allclose(found["gradient_norms"], norms, rtol=1e-2)
    (index,) = (record.choose_elements({"x": (8, 6)}, 8, 0)["x"],)
    assert [len(x) for x in index] == [8, 8]
    bits = np.ascontiguousarray(found["params/2.bias"][0]).view(np.uint16)
    first = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(first, kept["before"][3])
    assert run("identify", path)[0] in (0, 1)


def test_steps_that_a_grad_scaler_skips(torch, record, run, tmp_path):
    path = tmp_path / "recording.npz"
    model = make_model(torch)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3, alpha=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    rng = np.random.default_rng(0)
    skipped = 0
    with record.Recorder(optimizer, path, model, steps=40):
        for i in range(50):
            x = torch.tensor(rng.normal(size=(16, 6)), dtype=torch.float32)
            optimizer.zero_grad()
            loss = (model(x) ** 2 - x[:, :3]).square().mean()
            scaler.scale(loss * (float("inf") if i % 7 == 3 else 1.0)).backward()
            scaler.step(optimizer)
            skipped += i % 7 == 3
            scaler.update()
    found = load(path)
    assert skipped == 7
    assert len(found["gradients/0.weight"]) == 40
    assert all(np.isfinite(x).all() for k, x in found.items() if "gradients" in k)
    code, out, _ = run("identify", path)
    assert code == 0
    assert "dialects.torch(0.003, alpha=0.9" in out


def test_a_closure_a_count_and_unused_parameters(torch, record, tmp_path, capsys):
    path = tmp_path / "recording.npz"
    model = make_model(torch)
    model.unused = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.RMSprop(model.named_parameters(), lr=1e-3)
    train(torch, model, optimizer, 5)
    recorder = record.Recorder(optimizer, path, steps=6)
    seen = []
    for _ in range(6):
        x = torch.randn(4, 6)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            seen.append(model[0].bias.grad.clone())
            return loss

        assert optimizer.step(closure) is not None
    assert not recorder.hooks
    found = load(path)
    assert found["count"] == 5
    np.testing.assert_array_equal(found["gradients/0.bias"], torch.stack(seen))
    assert "params/unused" not in found
    assert "left out, because they had no gradient" in capsys.readouterr().out


def test_what_else_changes_the_parameters_is_said(torch, record, tmp_path, capsys):
    path = tmp_path / "recording.npz"
    model = make_model(torch)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    with record.Recorder(optimizer, path, model), torch.no_grad():
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            model[0].weight.clamp_(-0.1, 0.1)
    assert "0.weight changed between two steps" in capsys.readouterr().out


def test_timm_s_optimizer_is_told_from_torch_s(torch, record, run, tmp_path):
    from recorded.frameworks import with_timm

    path = tmp_path / "recording.npz"
    model = make_model(torch)
    kind = with_timm("timm.optim").RMSpropTF
    optimizer = kind(model.parameters(), lr=1e-3, alpha=0.9, momentum=0.9, eps=1e-3)
    with record.Recorder(optimizer, path, model):
        train(torch, model, optimizer)
    code, out, _ = run("identify", path)
    assert code == 0
    assert "dialects.timm(0.001, " in out


def test_runs_without_jax(tmp_path):
    """A program that has neither JAX nor this package."""
    program = (
        "import sys; sys.modules['jax'] = sys.modules['rmsprop_jax'] = None; "
        f"sys.path.insert(0, {str(EXAMPLES)!r}); import record_torch; "
        "record_torch.main(['--out', 'x.npz', '--steps', '5'])"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert len(load(tmp_path / "x.npz")["params/0.weight"]) == 6
