"""Use XLA's compilers for devices that this machine does not have.

    pip install -e ".[devices]"
    python benchmarks/compilers.py      which of them are installed

They run on any x86 machine. Their programs can't be run without the device, but they
can be read: kernels, temporaries, collectives, and the time that the compiler's own
model of the device expects. Import this module before JAX is used.
"""

import collections
import json
import math
import os
import re
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

NVCC = Path(sysconfig.get_path("purelib"), "nvidia", "cuda_nvcc")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing is run, so nothing is shared
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
if NVCC.exists():
    os.environ["PATH"] += f"{os.pathsep}{NVCC / 'bin'}"
    flags = f"--xla_gpu_cuda_data_dir={NVCC} --xla_gpu_autotune_level=0"
    flags += " --xla_gpu_collect_cost_model_stats=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

from jax.experimental import topologies  # noqa: E402

# From the H100's data sheet.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(name: str) -> list[Any]:
    """Devices to compile for.

    Args:
        name: ``"v5e:2x4"``, ``"v5p:2x2x2"`` or ``"v6e:2x4"`` and so on for a TPU,
            ``"h100:1x1x1"`` (hosts, GPUs of a host, 1) and so on for H100s.

    Raises:
        RuntimeError: If the compiler is not installed.
    """
    describe: Any = topologies.get_topology_desc
    if name.startswith("h100"):
        return describe(
            topology_name="h100",
            platform="cuda",
            target_config=H100,
            topology=name.partition(":")[2],
        ).devices
    return describe(platform="tpu", topology_name=name).devices


def collectives(program: Any) -> dict[str, int]:
    """Count the collectives in a compiled program by kind; a loop's count once."""
    text = program.as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    kinds += "|collective-broadcast"
    found = collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))
    # On a TPU a reduce-scatter is a fusion, with a sum in it.
    scattered = len(re.findall("calls=%all-reduce-scatter", text))
    found.update({"reduce-scatter": scattered, "all-reduce": -scattered})
    return {kind: number for kind, number in sorted(found.items()) if number}


class Estimate(NamedTuple):
    """What a compiler's cost model expects of all kernels, one after the other.

    It is not a measurement, and the launches of the kernels are not in it.

    Attributes:
        time: Microseconds on a GPU, cycles on a TPU.
        arithmetic: On a GPU, microseconds without memory traffic; otherwise NaN.
        memory: On a GPU, microseconds without arithmetic; otherwise NaN.
    """

    time: float
    arithmetic: float = math.nan
    memory: float = math.nan


def estimate(program: Any) -> Estimate:
    """Read from a compiled program how long its compiler expects it to take."""
    entry = entry_of(program)
    if cycles := re.findall(r'"estimated_cycles":"(\d+)"', entry):
        return Estimate(sum(map(int, cycles)))
    kernels: list[dict[str, Any]] = [
        cost
        for costs in re.findall(r'"reification_cost":(\[[^\]]*\])', entry)
        for cost in json.loads(costs)
        if not cost["name"]  # entries with a name are of other models
    ]
    keys = ("exec_time_us", "compute_time_us", "memory_access_time_us")
    return Estimate(*(sum(kernel[key] for kernel in kernels) for key in keys))


def hbm_bytes(program: Any) -> int:
    """Count the bytes that a TPU's program reads from HBM and writes to it.

    `cost_analysis` also counts what is read from VMEM, into which the compiler copies
    small arrays ahead of their use.
    """
    moved, results = 0, dict[str, str]()
    instruction = r"%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)"
    for name, result, kind, operands in re.findall(instruction, entry_of(program)):
        results[name] = result
        if kind in ("parameter", "constant", "tuple", "get-tuple-element", "copy-done"):
            continue
        # A copy-start returns the copy, the original and a flag.
        moved += sum(_hbm_sizes(result)[: 1 if kind == "copy-start" else None])
        for operand in re.findall(r"%([\w.-]+)", operands):
            moved += sum(_hbm_sizes(results[operand]))
    return moved


def _hbm_sizes(shapes: str) -> list[int]:
    """Return each array's bytes in HBM, the default memory, from the text of a type."""
    return [
        0
        if "S(" in layout
        else math.prod(map(int, axes.split(",") if axes else []))
        * (1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8)
        for kind, axes, layout in re.findall(
            r"(pred|[a-z]+\d+)\[([\d,]*)\](\S*)", shapes
        )
    ]


def entry_of(program: Any) -> str:
    """Return the text of a compiled program's main computation."""
    return program.as_text().partition("\nENTRY")[2]


def main() -> None:
    """Print for each kind of device whether its compiler is installed."""
    for name in ("v5e:2x4", "v5p:2x2x2", "v6e:2x4", "h100:1x1x1"):
        try:
            print(f"{name}: {devices(name)[0].device_kind}")
        except RuntimeError as error:
            print(f"{name}: no compiler ({error})")


if __name__ == "__main__":
    main()
