"""The real torch: a run goes through both without a seam, and so do its tensors.

In float64 to 1e-12, and in float32 within torch's own error, on real data.
"""

import collections
import copy
import datetime
import io
import itertools
import json
import pathlib
import warnings
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import digits
from support.comparisons import assert_near, assert_same
from support.state_dicts import GROUP
from support.untyped import from_torch, rmsprop, to_torch

from rmsprop_jax.checkpoints import read

pytestmark = pytest.mark.live
STEPS = 20


@pytest.fixture
def torch():
    """The real torch, where it is installed or required."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def schedule(count):
    return jnp.where(count % 3 == 0, 0.001, 0.003)


def rate(step):
    return 0.001 if step % 3 == 0 else 0.003


KINDS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "both": {"momentum": 0.9, "centered": True},
}
OPTIONS = {
    str(options): options
    for options in (
        {"weight_decay": decay, **more}
        for decay, more in itertools.product(
            (0, 0.01), ({"maximize": True}, {"schedule": True})
        )
    )
}


def torch_run(torch, options):
    """The network and its optimizer, and the arguments of torch_steps and from_torch.

    The schedule is no argument of torch's.
    """
    network = digits.torch_network(torch, "float64")
    options = dict(options)
    scheduled = options.pop("schedule", False)
    optimizer = torch.optim.RMSprop(network.named_parameters(), lr=0.003, **options)
    rates = (rate, schedule) if scheduled else (None, None)
    return network, optimizer, *rates


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_torch_to_jax_and_back_is_torch(torch, kind):
    """A run that moves to JAX and back ends at the weights of a pure torch run."""
    runs = {name: torch_run(torch, KINDS[kind] | OPTIONS[name]) for name in OPTIONS}
    txs, states, params = {}, {}, {}
    for name, (network, optimizer, rates, learning_rate) in runs.items():
        digits.torch_steps(torch, network, optimizer, STEPS, rates)
        txs[name], states[name] = from_torch(
            optimizer.state_dict(), digits.to_params, learning_rate=learning_rate
        )
        weights = digits.to_params(digits.weights_of(network))
        params[name] = jax.tree.map(jnp.array, weights)
    params, states = digits.jax_steps(txs, params, states, STEPS)
    for name, (network, optimizer, rates, _) in runs.items():
        handed_back = to_torch(
            states[name], digits.from_params, like=optimizer.state_dict()
        )
        digits.torch_steps(torch, network, optimizer, STEPS, rates, STEPS)
        weights = digits.from_params(params[name])
        assert_near({name: weights}, {name: digits.weights_of(network)}, 1e-12)

        resumed = digits.torch_network(torch, "float64")
        resumed.load_state_dict(
            {n: torch.tensor(np.array(w)) for n, w in weights.items()}
        )
        resumed_optimizer = torch.optim.RMSprop(resumed.named_parameters())
        resumed_optimizer.load_state_dict(handed_back)
        for net, opt in ((network, optimizer), (resumed, resumed_optimizer)):
            digits.torch_steps(torch, net, opt, STEPS, rates, 2 * STEPS)
        assert_near(
            {name: digits.weights_of(resumed)},
            {name: digits.weights_of(network)},
            1e-12,
        )
        one, other = resumed_optimizer.state_dict(), optimizer.state_dict()
        assert one["param_groups"] == other["param_groups"]
        for i, state in other["state"].items():
            assert one["state"][i].keys() == state.keys()
            assert one["state"][i]["step"] == state["step"] == 3 * STEPS
        assert_near({name: one["state"]}, {name: other["state"]}, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_no_worse_than_torch(torch, kind):
    """With the gradients of the float64 run, so that only the optimizers differ."""
    truth, theirs, gradients = {}, {}, [{} for _ in range(STEPS)]
    txs, states, params = {}, {}, {}
    for name in OPTIONS:
        options = KINDS[kind] | OPTIONS[name]
        network, optimizer, rates, learning_rate = torch_run(torch, options)
        twin = copy.deepcopy(network).float()
        settings = {k: v for k, v in options.items() if k != "schedule"}
        narrow = torch.optim.RMSprop(twin.named_parameters(), lr=0.003, **settings)
        for step in range(2 * STEPS):
            if step == STEPS:
                txs[name], states[name] = from_torch(
                    narrow.state_dict(), digits.to_params, learning_rate=learning_rate
                )
                weights = digits.to_params(digits.weights_of(twin))
                params[name] = jax.tree.map(jnp.array, weights)
            digits.torch_steps(torch, network, optimizer, 1, rates, step)
            if rates is not None:
                narrow.param_groups[0]["lr"] = rates(step)
            for p, q in zip(network.parameters(), twin.parameters(), strict=True):
                q.grad = p.grad.float()
            if step >= STEPS:
                of_step = {n: p.grad.numpy().copy() for n, p in twin.named_parameters()}
                gradients[step - STEPS][name] = digits.to_params(of_step)
            narrow.step()
        truth[name] = digits.weights_of(network)
        theirs[name] = digits.weights_of(twin)

    @jax.jit
    def update(gradients, states, params):
        moved, new_states = {}, {}
        for name, tx in txs.items():
            g, p = gradients[name], params[name]
            updates, new_states[name] = tx.update(g, states[name], p)
            moved[name] = optax.apply_updates(p, updates)
        return moved, new_states

    for g in gradients:
        params, states = update(g, states, params)

    def error(weights, name):
        far = [np.sum((weights[n] - w) ** 2) for n, w in truth[name].items()]
        return np.sqrt(sum(far))

    for name, p in params.items():
        ours = digits.from_params(p)
        assert error(ours, name) <= 1.1 * error(theirs[name], name), name


def stepped(torch, parameters, **settings):
    optimizer = torch.optim.RMSprop(parameters, **settings)
    for _ in range(3):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


def assert_same_as_torch(torch, a, b):
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for i, state in b["state"].items():
        for key, tensor in state.items():
            back = a["state"][i][key]
            assert (back.dtype, back.device) == (tensor.dtype, tensor.device)
            assert not back.requires_grad
            assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_tensors_there_and_back_bit_for_bit(torch, dtype, request):
    """Of every kind, through torch.save as well, and into a new optimizer."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    torch.manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(shape, dtype=getattr(torch, dtype)))
        for shape in ((3, 2), (5,), ())
    ]
    named = list(zip("abc", parameters, strict=True))
    optimizer = stepped(torch, named, momentum=0.9, capturable=False)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state_dict = torch.load(file)
    tx, state = from_torch(state_dict)
    expected = jax.eval_shape(tx.init, {n: jnp.zeros(p.shape, dtype) for n, p in named})
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )
    back = to_torch(state, like=state_dict)
    assert_same_as_torch(torch, back, optimizer.state_dict())
    new = torch.optim.RMSprop(named, momentum=0.9)
    new.load_state_dict(back)
    assert_same_as_torch(torch, new.state_dict(), optimizer.state_dict())


def test_tensors_that_numpy_does_not_take(torch):
    """Conjugated, negated lazily, not contiguous, requiring a gradient."""
    z = torch.complex(torch.rand(3, 4), -torch.rand(3, 4))  # no moment is negative
    conjugated, negated = z.conj(), torch._neg_view(z.imag)
    assert conjugated.is_conj()
    assert negated.is_neg()
    group = {**GROUP, "params": [0, 1, 2]}
    tensors = [conjugated, negated, torch.rand(4, 3, requires_grad=True).t()]
    state = {i: {"step": 1, "square_avg": t} for i, t in enumerate(tensors)}
    state_dict = {"state": state, "param_groups": [group]}
    _, ours = from_torch(state_dict, names=list("abc"))
    np.testing.assert_array_equal(ours.nu["a"], z.resolve_conj().numpy().conj())
    np.testing.assert_array_equal(ours.nu["b"], -z.imag.numpy())
    back = to_torch(ours, like=state_dict, names=list("abc"))["state"]
    for i, t in enumerate(tensors):
        assert torch.equal(back[i]["square_avg"], t)


def test_rates_and_steps_in_tensors(torch):
    """As with capturable=True, where the device keeps them."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = stepped(torch, [("a", p)], lr=torch.tensor(0.25))
    tx, state = from_torch(optimizer.state_dict())
    same, _ = from_torch(optimizer.state_dict(), learning_rate=0.25)
    gradients = {"a": jnp.ones(3)}
    assert_same(
        jax.jit(tx.update)(gradients, state), jax.jit(same.update)(gradients, state)
    )
    assert state.count == 3


def test_frozen_and_new_parameters_in_torch(torch):
    """A frozen one has no state; a new optimizer has none at all."""
    network = digits.torch_network(torch, "float32")
    network.fc2.requires_grad_(requires_grad=False)
    optimizer = stepped(torch, network.parameters(), momentum=0.9)
    weights = dict(network.named_parameters())
    _, state = from_torch(optimizer.state_dict(), digits.to_params, names=weights)
    assert not state.nu["fc2"]["kernel"].any()
    new = torch.optim.RMSprop(network.parameters(), momentum=0.9)
    back = to_torch(state, digits.from_params, like=new.state_dict(), names=weights)
    new.load_state_dict(back)
    assert_same_as_torch(torch, new.state_dict(), optimizer.state_dict())


def test_safetensors_of_torch(torch, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    pytest.importorskip("safetensors.torch")
    optimizer = stepped(torch, [("a", torch.nn.Parameter(torch.ones(3)))])
    nested = optimizer.state_dict()
    tensors = {
        f"state.{i}.{k}": v for i, of in nested["state"].items() for k, v in of.items()
    }
    path = tmp_path / "optimizer.safetensors"
    groups = {"param_groups": json.dumps(nested["param_groups"])}
    safetensors.torch.save_file(tensors, path, groups)
    with safetensors.safe_open(path, "pt") as file:
        loaded = {k: file.get_tensor(k) for k in file.keys()} | file.metadata()  # noqa: SIM118
    _, state = from_torch(loaded)
    assert_same(state, from_torch(nested)[1])
    back = to_torch(state, like=loaded)
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
)


@pytest.mark.parametrize("is_zip", [True, False])
def test_read_is_what_torch_loads(torch, tmp_path, is_zip):
    """Every dtype, and views that are transposed, sliced, scalar, empty or shared."""
    saved = {"settings": [0.5, None, True, "text", (1,)], "size": torch.Size([2])}
    for dtype in DTYPES:
        x = (torch.arange(12) % 2).to(getattr(torch, dtype)).reshape(3, 4)
        views = {"all": x, "t": x.t(), "cut": x[1:, ::2], "one": x[2, 1], "none": x[:0]}
        parameter = torch.nn.Parameter(x, requires_grad=False)
        saved[dtype] = {**views, "parameter": parameter}
    torch.save(saved, tmp_path / "x", _use_new_zipfile_serialization=is_zip)
    ours, theirs = read(tmp_path / "x"), torch.load(tmp_path / "x")
    for dtype in DTYPES:
        arrays = ours.pop(dtype)
        for name, tensor in theirs.pop(dtype).items():
            array = arrays[name]
            assert (str(array.dtype), array.shape) == (dtype, tuple(tensor.shape))
            assert array.tolist() == tensor.tolist()
        assert np.shares_memory(arrays["all"], arrays["t"])
    assert ours == theirs


@pytest.mark.usefixtures("x64")
def test_one_cycle_and_skipped_steps(torch):
    """The rate and the momentum go on; GradScaler has skipped two steps."""
    network = digits.torch_network(torch, "float64")
    optimizer = torch.optim.RMSprop(network.named_parameters(), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=60
    )
    rates, momenta = [], []

    def steps(first, last, skipped=()):
        for t in range(first, last):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
            if t not in skipped:
                digits.torch_steps(torch, network, optimizer, 1)
            scheduler.step()

    steps(0, 20, skipped=(5, 6))
    state_dict = copy.deepcopy(optimizer.state_dict())
    params = {"": jax.tree.map(jnp.array, digits.to_params(digits.weights_of(network)))}
    steps(20, 50)
    tx, state = from_torch(
        state_dict,
        digits.to_params,
        learning_rate=lambda count: jnp.asarray(rates)[count + 2],
        momentum=lambda count: jnp.asarray(momenta)[count + 2],
    )
    params, _ = digits.jax_steps({"": tx}, params, {"": state}, 30)
    assert_near(digits.from_params(params[""]), digits.weights_of(network), 1e-12)


def test_the_line_that_names_several_groups(torch):
    """That which from_torch gives; two norms have the same shapes."""
    model = torch.nn.Sequential(torch.nn.LayerNorm(3), torch.nn.LayerNorm(3))
    groups = [
        {"params": [model[1].weight, model[0].weight], "weight_decay": 0.1},
        {"params": [model[1].bias, model[0].bias]},
    ]
    optimizer = stepped(torch, groups)
    with pytest.raises(ValueError, match="names must be given") as caught:
        from_torch(optimizer.state_dict())
    line = str(caught.value).removesuffix(".").partition("such as ")[2]
    line, _, name_of = line.partition(", where name_of = ")
    scope = {"optimizer": optimizer, "model": model}
    scope["name_of"] = eval(name_of, scope)
    _, state = from_torch(optimizer.state_dict(), names=eval(line, scope))
    for group, suffix in (("group_0", "weight"), ("group_1", "bias")):
        nu = state.inner_states[group].inner_state.nu
        for i in (0, 1):
            theirs = optimizer.state[getattr(model[i], suffix)]["square_avg"]
            np.testing.assert_array_equal(nu[f"{i}.{suffix}"], theirs)


def test_flat_form_of_torch_s_checkpoints(torch):
    functions = import_module("torch.distributed.checkpoint.state_dict")
    options = functions.StateDictOptions(flatten_optimizer_state_dict=True)
    network = digits.torch_network(torch, "float32")
    parameters = [*network.parameters()]
    even, odd = parameters[::2], parameters[1::2]
    groups = [{"params": even, "momentum": 0.9}, {"params": odd}]
    optimizer = stepped(torch, groups)
    flat = functions.get_optimizer_state_dict(network, optimizer, options=options)
    name_of = {p: name for name, p in network.named_parameters()}
    names = [name_of[p] for group in groups for p in group["params"]]
    _, state = from_torch(flat)
    assert_same(state, from_torch(optimizer.state_dict(), names=names)[1])
    before = copy.deepcopy(optimizer.state_dict())
    back = to_torch(state, like=flat)
    functions.set_optimizer_state_dict(network, optimizer, back, options=options)
    assert_same_as_torch(torch, optimizer.state_dict(), before)


def test_distributed_and_empty_tensors(torch, tmp_path):
    """A tensor of which this process has a part is refused by name, and one of none."""
    functions = import_module("torch.distributed.checkpoint.state_dict")
    network = torch.nn.Linear(3, 2)
    options = functions.StateDictOptions(full_state_dict=True, cpu_offload=True)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(f"{tmp_path}/store", 1),
        rank=0,
        world_size=1,
    )
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        torch.distributed.fsdp.fully_shard(network, mesh=mesh)
        optimizer = torch.optim.RMSprop(network.parameters())
        weights = dict(network.named_parameters())
        zeros = {name: np.ones(np.shape(w), np.float32) for name, w in weights.items()}
        _, state = rmsprop(0.1).update(zeros, rmsprop(0.1).init(zeros))
        whole = "must be a whole tensor, but it was a DTensor.*full_state_dict=True"
        with pytest.raises(ValueError, match=f"'weight' in names {whole}"):
            to_torch(state, like=optimizer.state_dict(), names=weights)
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        parts = optimizer.state_dict()
        for options_of_parts in ({}, {"flatten_optimizer_state_dict": True}):
            of_parts = functions.StateDictOptions(**options_of_parts)
            saved = functions.get_optimizer_state_dict(
                network, optimizer, options=of_parts
            )
            with pytest.raises(ValueError, match=f"'square_avg' of .*'weight' {whole}"):
                from_torch(saved)
        full = functions.get_optimizer_state_dict(network, optimizer, options=options)
        _, state = from_torch(full)
        with pytest.raises(ValueError, match=f"like: 'square_avg' of .* {whole}"):
            to_torch(state, like=parts, names=[*weights])
        back = to_torch(state, like=full)
        functions.set_optimizer_state_dict(network, optimizer, back, options=options)
    finally:
        torch.distributed.destroy_process_group()
    with torch.device("meta"):
        network = torch.nn.Linear(3, 2)
        optimizer = torch.optim.RMSprop(network.named_parameters())
        network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"'weight' must be a whole .* on the meta"):
        from_torch(optimizer.state_dict())


class Call:
    """Pickled, it is a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def with_attribute(parameter):
    parameter.note = "kept by torch"
    return parameter


TENSORS: dict[str, Any] = {
    "expanded": lambda torch: torch.arange(3.0).expand(4, 3),
    "overlapping": lambda torch: torch.arange(5.0).as_strided((3, 3), (1, 1)),
    "transposed": lambda torch: torch.arange(6.0).reshape(2, 3).t(),
    "part": lambda torch: torch.arange(12.0).reshape(3, 4)[:, 1:3],
    "conjugated": lambda torch: torch.tensor([1 + 2j]).conj(),
    "negated": lambda torch: torch.tensor([1 + 2j]).conj().imag,
    "bfloat16": lambda torch: torch.ones(2, dtype=torch.bfloat16),
    "empty": lambda torch: torch.zeros(0, 3),
    "number": lambda torch: torch.tensor(3.0),
    "uint16": lambda torch: torch.tensor([1, 2], dtype=torch.uint16),
    "parameter": lambda torch: with_attribute(torch.nn.Parameter(torch.ones(2))),
}
# What a tensor of torch_xla and one of a subclass are pickled as.
CALLS: dict[str, Any] = {
    "of torch_xla": lambda torch: Call(
        torch._utils._rebuild_device_tensor_from_numpy,
        np.ones(2, np.float32),
        torch.float32,
        "xla:0",
        *[False],
    ),
    "of a subclass": lambda torch: Call(
        torch._tensor._rebuild_from_type_v2,
        torch._utils._rebuild_parameter,
        torch.nn.Parameter,
        (torch.ones(2), False, collections.OrderedDict()),
        {},
    ),
}
VALUES: dict[str, Any] = {
    "array": np.arange(3.0),
    "NumPy number": np.float64(3),
    "complex": 1 + 2j,
    "set": {1, 2},
    "large": -(2**80),
    "bytes": b"abc",
    "counter": collections.Counter({10: 1, 20: 2}),
    "default": collections.defaultdict(list, {1: [2]}),
    "ordered": collections.OrderedDict(a=1),
}
OPAQUE = {
    "path": pathlib.Path("x"),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "class": pathlib.Path,
    "text": np.array(["a"]),
}


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol, is_legacy, torch, tmp_path):
    """All that torch's own safe reader takes, and what commonly lies beside it."""
    tensors = {name: make(torch) for name, make in TENSORS.items()}
    calls = {name: make(torch) for name, make in CALLS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        odd = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    path = tmp_path / "file.pt"
    torch.save(
        {
            "odd": odd,
            "all": tensors,
            "calls": calls,
            "values": VALUES,
            "bytearray": bytearray(b"abc"),
            "other": OPAQUE,
        },
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not is_legacy,
    )
    if protocol == 0:
        with pytest.raises(AssertionError, match="saved_id must be a tuple"):
            torch.load(path, weights_only=False)
        with pytest.raises(ValueError, match="whose tensors torch itself can't read"):
            read(path)
        return
    found = read(path)
    for name, tensor in tensors.items():
        whole = tensor.detach().resolve_conj().resolve_neg()
        theirs = (whole.float() if name == "bfloat16" else whole).numpy()
        np.testing.assert_array_equal(found["all"][name], theirs)
        assert str(found["all"][name].dtype) == str(tensor.dtype).partition(".")[2]
    for name in calls:
        np.testing.assert_array_equal(found["calls"][name], np.ones(2, np.float32))
    assert found["bytearray"] == b"abc"
    for name, value in VALUES.items():
        np.testing.assert_array_equal(found["values"][name], value)
    for value in (found["odd"], *found["other"].values()):
        with pytest.raises(ValueError, match="was not read"):
            np.asarray(value)
