"""The command line, ``rmsprop-jax``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rmsprop_jax._cli.inspecting import make_report
from rmsprop_jax._cli.report import print_report, to_json
from rmsprop_jax._cli.terminal import escape

_FAILED = 2
_DESCRIPTION = (
    "Look into a checkpoint, convert it, and find the rule of a recorded run."
)
_EXAMPLES = """\
examples:
  rmsprop-jax inspect run.pt
  rmsprop-jax convert run.pt state.safetensors --to safetensors --weights
  rmsprop-jax identify recording.npz
"""
_INSPECT = """\
Show what is in a checkpoint, and the lines of Python that resume it. The file is one of
PyTorch, timm, Stable-Baselines3, Keras, TensorFlow or Paddle. Tensors are not read,
only their headers.
"""
_INSPECT_EXAMPLES = """\
examples:
  rmsprop-jax inspect run.pt
  rmsprop-jax inspect run.keras --statistics       also NaN, and what is all 0
  rmsprop-jax inspect run/model.ckpt-100           TensorFlow: what its files begin with
  rmsprop-jax inspect run.pt --json                for programs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code.

    Args:
        argv: The arguments, by default those of the process.
    """
    arguments = _make_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        # Whoever reads the output has enough, as `head` does. Otherwise Python would
        # fail once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        print(f"rmsprop-jax: {_describe_error(error)}", file=sys.stderr)
        return _FAILED


def _describe_error(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "There is not enough memory for what the file holds."
    if isinstance(error, OSError) and error.filename is not None:
        name = escape(repr(os.fsdecode(error.filename)))
        if isinstance(error, FileNotFoundError):
            return f"There is no file {name}."
        return f"{name} can't be used: {error.strerror}."
    return escape(str(error))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmsprop-jax",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="what is in a checkpoint, and the lines of Python that resume it",
        description=_INSPECT,
        epilog=_INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inspect_arguments(inspect)
    return parser


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file, or what TensorFlow's files begin with")
    parser.add_argument("--all", action="store_true", help="a row for every parameter")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="read the moments: their root mean square, NaN, and what is all 0",
    )
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    report = make_report(arguments.file, has_statistics=arguments.statistics)
    if arguments.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        print_report(report, sys.stdout, is_whole=arguments.all)
    return 0
