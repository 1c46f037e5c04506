"""`main`: choose the command, run it, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import gpuconv
from gpuconv.cli.options import Parser, UsageError
from gpuconv.cli.output import tidy_output
from gpuconv.errors import DeviceError, one_line, printable, unknown

COMMANDS = {
    "train": "train a network, by default the article's LeNet on MNIST, and test it",
    "evaluate": "test a checkpoint on a data set",
    "predict": "read pictures with a trained network: a probability for each class",
    "show": "look inside a network in the browser: draw, open any value, watch it learn",
    "explain": "show which pixels are evidence for a class: Grad-CAM, saliency, occlusion, ...",
    "patches": "show the image patches that activate each filter of a layer most",
    "filters": "draw a picture through the article's seven filters, or a network's own filters",
    "onnx": "write a checkpoint's network as an ONNX file, for other programs",
    "summary": "print a network's layers, shapes, parameters and multiply-adds",
    "steps": "run one image through the article's five training steps, printing the numbers",
    "demo": "show a convolution, pooling or ReLU on a small matrix, with every number",
    "bench": "time operations against the machine's measured ceilings",
    "check-kernels": "run a file's CUDA kernels without a GPU and say what is wrong and wasteful",
    "doctor": "say what this machine offers: NumPy, BLAS, Numba, GPU, data; and how to mend it",
    "warmup": "compile the kernels that a network needs, before its first run",
}
NOT_HERE = (DeviceError, NotImplementedError)  # what this device, or any, cannot do
BAD_INPUT, INTERRUPTED, TERMINATED, BROKEN_PIPE = 2, 130, 143, 141
TRACEBACK = "GPUCONV_TRACEBACK"
LONGEST = 600  # characters of an error message
DESCRIPTION = "Train, run and look inside convolutional networks."
EPILOG = """\
examples:
  gpuconv train                          train the article's LeNet on MNIST
  gpuconv predict runs/lenet-mnist/best.safetensors digit.png
  gpuconv COMMAND --help                 the options of a command, with examples

exit codes: 0; 2 for bad input, explained in one line (with its traceback where GPUCONV_TRACEBACK=1
is set); 130 and 143 after Ctrl-C and SIGTERM
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Not an Exception: only cleaning up stands between it and the end. And a
    KeyboardInterrupt, because Python drops all others while it compiles constant expressions.
    """

    exit_code = TERMINATED


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    argv: the arguments after the program's name; None for the process's own.
    0 is success. ValueError (so also DataError), OSError, MemoryError, FloatingPointError
    (training that diverged) DeviceError and NotImplementedError become one line on stderr and 2;
    Ctrl-C gives 130, SIGTERM 143. Any other exception is a bug and passes.

    >>> main(["demo", "relu", "--image", "-1 2"])  # doctest: +SKIP
    """
    with tidy_output():
        return _run_and_explain(list(sys.argv[1:] if argv is None else argv))


def _run_and_explain(argv: list[str]) -> int:
    try:
        with _signals_raise():
            return _run(argv)
    except KeyboardInterrupt as stop:
        return _say(str(stop) or "interrupted", getattr(stop, "exit_code", INTERRUPTED))
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        return _say("", BROKEN_PIPE)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "gpuconv" or os.environ.get(TRACEBACK) == "1":
            raise
        return _say(f"{one_line(error)}; see: gpuconv doctor", BAD_INPUT)
    except (ValueError, OSError, MemoryError, FloatingPointError, *NOT_HERE) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        return _say(one_line(error), BAD_INPUT)
    except Exception as error:
        own = sys.modules.get("gpuconv.models.own")  # a network's file, which the user named
        where = own.blame(error) if own else None
        if where is None or os.environ.get(TRACEBACK) == "1":
            raise
        return _say(f"{where}: {type(error).__name__}: {one_line(error)}", BAD_INPUT)


def parser(command: str) -> Parser:
    """The parser of all commands. Only the module of `command` is imported and adds its arguments:
    the general help answers at once.
    """
    top = Parser(prog="gpuconv", description=DESCRIPTION, epilog=EPILOG)
    top.add_argument("--version", action="store_true", help="print the version and stop")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        if name != command:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"gpuconv.cli.{name.replace('-', '_')}")
        epilog = "examples:\n" + module.EXAMPLES
        one = commands.add_parser(name, help=text, description=module.__doc__, epilog=epilog)
        module.add_arguments(one)
        one.set_defaults(run=module.run, parser=one)
    return top


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    top = parser(argv[0] if argv else "")
    try:
        args, extra = top.parse_known_args(argv)
    except SystemExit as finished:  # --help
        return int(finished.code or 0)
    if extra:
        raise UsageError(_unknown_option(extra[0], getattr(args, "parser", top)))
    if args.version:
        print(f"gpuconv {gpuconv.__version__}")
        return 0
    if args.command is None:
        top.print_help()
        return BAD_INPUT
    args.given = argv
    if args.command != "train":
        _require_alone(args.command)
    if getattr(args, "threads", None) is not None:
        gpuconv.set_thread_count(args.threads)
    code: int = args.run(args)
    sys.stdout.flush()  # a closed pipe is noticed here, not at exit
    return code


def _require_alone(command: str) -> None:
    """Refuse several ranks of a command that would do the same on each."""
    if any(name.endswith("_RANK") for name in os.environ):
        from gpuconv import distributed

        if distributed.started() > 1:
            raise UsageError(
                f"{command}: runs as one process, and {distributed.started()} ranks were started; "
                "leave the launcher out (gpuconv train runs on several)"
            )


def _unknown_option(given: str, used: Parser) -> str:
    name, command = given.partition("=")[0], used.prog.removeprefix("gpuconv ")
    if not name.startswith("-"):
        return f"{command}: unexpected argument {given!r}"
    return f"{command}: {unknown('option', name, used.options())}"


def _say(text: str, code: int) -> int:
    text = printable(text)
    if len(text) > LONGEST:  # names from a file may have any length
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if any(name.endswith("_RANK") for name in os.environ):  # it may be one of several ranks
        from gpuconv import distributed

        distributed.fail(text, code)
    with suppress(OSError):  # stderr is full; the code says it still
        if text:
            print(f"gpuconv: {text}", file=sys.stderr)
    return code


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile, so that files are closed and leftovers removed, and
    Ctrl-C KeyboardInterrupt, also where some library turns that into an error of its own, as NumPy
    does while it is imported, or calls back from C, as LLVM does, where nothing can be raised.
    """
    interrupted = False

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated("terminated")

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def lost(given: Any) -> None:
        if not issubclass(given.exc_type, KeyboardInterrupt):
            unraisable(given)
            return
        again = signal.SIGTERM if given.exc_type is Terminated else signal.SIGINT
        main_thread = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main_thread, again)).start()  # after the call

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    unraisable, sys.unraisablehook = sys.unraisablehook, lost
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = unraisable
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
