"""The command line, ``rmsprop-jax``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rmsprop_jax._cli.converting import convert
from rmsprop_jax._cli.identifying import (
    check_plotting,
    draw,
    explain_missing_plot,
    identify_recording,
)
from rmsprop_jax._cli.inspecting import make_report
from rmsprop_jax._cli.report import print_report, to_json
from rmsprop_jax._cli.terminal import escape
from rmsprop_jax._cli.writing import WRITERS

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
PyTorch, timm, Stable-Baselines3, Keras, TensorFlow or Paddle, or a folder of FSDP.
Tensors are not read, only their headers.
"""
_INSPECT_EXAMPLES = """\
examples:
  rmsprop-jax inspect run.pt
  rmsprop-jax inspect run.keras --statistics       also NaN, and what is all 0
  rmsprop-jax inspect run/model.ckpt-100           TensorFlow: the common prefix
  rmsprop-jax inspect run.pt --json                for programs
"""
_CONVERT = """\
Write the optimizer's state of a checkpoint, as from_torch and the others make it, in
another form: opt_state/nu/NAME and so on, by the framework's names. Prints the lines of
Python that read it back.
"""
_CONVERT_EXAMPLES = """\
examples:
  rmsprop-jax convert run.pt state.npz --to npz
  rmsprop-jax convert run.keras run.safetensors --to safetensors --weights
  rmsprop-jax convert run.pt folder --to orbax --force        replaces what is there
"""
_IDENTIFY = """\
Find the RMSProp that made a recorded run, and its hyperparameters. The recording is an
.npz file of examples/record_torch.py or examples/record_keras.py, or one with arrays
params [T + 1, ...] and gradients [T, ...], or params/NAME and gradients/NAME.
"""
_IDENTIFY_EXAMPLES = """\
examples:
  rmsprop-jax identify recording.npz
  rmsprop-jax identify recording.npz --learning-rate 0.01 --plot match.png

exit codes:
  0  explained: this rule, up to rounding; also if it is Adam, SGD, ... and not RMSProp
  1  not explained: the nearest is printed
  2  the recording could not be read
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code.

    Args:
        argv: The arguments, by default those of the process.
    """
    parser = _make_parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help()
        return _FAILED
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        # The reader of the output has stopped, as `head` does. Without this, Python
        # would fail once more when it closes stdout.
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
    commands = parser.add_subparsers(title="commands")
    inspecting = commands.add_parser(
        "inspect",
        help="what is in a checkpoint, and the lines of Python that resume it",
        description=_INSPECT,
        epilog=_INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inspect_arguments(inspecting)
    converting = commands.add_parser(
        "convert",
        help="the state, and the weights, in a form that JAX's tools read",
        description=_CONVERT,
        epilog=_CONVERT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_convert_arguments(converting)
    identifying = commands.add_parser(
        "identify",
        help="which optimizer made a recorded run",
        description=_IDENTIFY,
        epilog=_IDENTIFY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_identify_arguments(identifying)
    return parser


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", help="a file or folder, or the common prefix of TensorFlow's files"
    )
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
        print(json.dumps(to_json(report), indent=2, allow_nan=False))
    else:
        print_report(report, sys.stdout, is_whole=arguments.all)
    return 0


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", help="a file or folder, or the common prefix of TensorFlow's files"
    )
    parser.add_argument("out", help="the file or folder to write")
    parser.add_argument("--to", required=True, choices=sorted(WRITERS))
    parser.add_argument(
        "--weights", action="store_true", help="write the weights too: weights/NAME"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace what is there: a file, or a folder that orbax wrote",
    )
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    lines = convert(
        arguments.file,
        arguments.out,
        arguments.to,
        has_weights=arguments.weights,
        is_forced=arguments.force,
    )
    print(
        f"# {escape(arguments.out)} is written. With tx and params of inspect's lines,"
    )
    print("# these read it:")
    print(lines)
    return 0


def _add_identify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", help="an .npz file")
    parser.add_argument(
        "--learning-rate",
        type=float,
        help="if it is known; it replaces the recorded one",
    )
    parser.add_argument(
        "--count", type=int, help="how many updates there were before the recording"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw explained against observed updates"
    )
    parser.set_defaults(run=_identify)


def _identify(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        check_plotting(arguments.plot)
    match, recording = identify_recording(
        arguments.recording, arguments.learning_rate, arguments.count
    )
    print("\n".join(map(escape, str(match).splitlines())))
    if arguments.plot:
        reason = explain_missing_plot(match, recording)
        if reason:
            print(f"rmsprop-jax: Nothing is drawn, because {reason}.", file=sys.stderr)
        else:
            draw(match, recording, arguments.plot)
    return 0 if match.is_explained else 1
