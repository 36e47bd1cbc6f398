"""The `verifier` command: finds the command, runs it, turns errors into exit codes.

Exit codes, the same for every command: 0 answered, 2 bad input (one line says what), 1 internal
error or, where a command says so, a wrong result, 130 interrupted. Only the chosen command's module
is imported, so that starting costs milliseconds.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence

from verifier import __version__
from verifier.cli.parser import CommandParser
from verifier.errors import VerifierError

#: Moment the program started, for time limits that count start-up in.
STARTED = time.monotonic()

#: Full name printed by `verifier --name`.
NAME = "verifier"

#: command -> (module with `add_arguments(parser)` and `run(args) -> exit code`, one-line help)
COMMANDS: dict[str, tuple[str, str]] = {
    "verify": ("verifier.cli.verify", "decide one property of a network"),
    "attack": ("verifier.cli.attack", "search for a counterexample only"),
    "run": ("verifier.cli.run", "decide every instance of a CSV file"),
    "radius": ("verifier.cli.radius", "certify how far inputs of a data set can move"),
    "certify": ("verifier.cli.certify", "clean, attacked and certified accuracy on a data set"),
    "bounds": ("verifier.cli.bounds", "lower bounds by every relaxation method, side by side"),
    "range": ("verifier.cli.range", "certified range of every output over a set of inputs"),
    "info": ("verifier.cli.info", "describe a network, or what was built"),
    "replay": ("verifier.cli.replay", "check a counterexample in ONNX Runtime"),
    "check": ("verifier.cli.check", "check a proof with none of the code that found it"),
    "report": ("verifier.cli.report", "write results as one HTML page"),
    "poison": ("verifier.cli.poison", "poison a data set so that models trained on it fail"),
    "backdoor": ("verifier.cli.backdoor", "hide a trigger in a data set"),
    "federate": ("verifier.cli.federate", "simulate a federation under attack"),
    "scan": ("verifier.cli.scan", "look for a backdoor in a model; rule triggers out by proof"),
    "scan-data": ("verifier.cli.scan_data", "look for poisoned rows in a data set"),
    "repair": ("verifier.cli.repair", "make a backdoored model forget its trigger"),
    "certify-training": ("verifier.cli.certify_training", "certificates against poisoned training data"),
    "supports": ("verifier.cli.supports", "list capabilities as VNN-LIB 2.0 defines them"),
    "competition": ("verifier.cli.competition", "one instance, results to a file (VNN-COMP convention)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises for a user's mistake.

    Time limits count from the start of the program, or from this call where the caller gives `argv`
    and so is a program of its own.
    """
    started = STARTED if argv is None else time.monotonic()
    argv = list(sys.argv[1:] if argv is None else argv)
    # Before OpenMP starts: threads that spin while they wait slow small operations down many times on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in argv
    try:
        code = _dispatch(argv, started)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("verifier: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has what it wanted (`verifier ... | head -1`). Point stdout elsewhere so that
        # the interpreter's own flush at exit does not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except VerifierError as error:
        return _complain(str(error), 2, debug)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        return _complain(f"cannot read or write{where}: {error.strerror or error}", 2, debug)
    except MemoryError:
        return _complain("out of memory; try a smaller network, or a machine with more", 1, debug)
    except Exception as error:
        return _complain(
            f"internal error: {type(error).__name__}: {error}; this is a defect of the verifier: please report "
            f"it with the network, the specification and the output of the same command with --debug "
            f"(version {__version__}, Python {sys.version.split()[0]})",
            1, debug,
        )  # fmt: skip


def _dispatch(argv: list[str], started: float) -> int:
    if argv and argv[0] in COMMANDS:
        module_name, summary = COMMANDS[argv[0]]
        command = importlib.import_module(module_name)
        parser = CommandParser(prog=f"verifier {argv[0]}", description=command.__doc__ or summary)
        command.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        parser.set_defaults(started=started)
        return command.run(parser.parse_args(argv[1:]))
    parser = CommandParser(
        prog="verifier",
        description="Formal verification of neural networks.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<16} {summary}" for name, (_, summary) in COMMANDS.items())
        + "\n\n`verifier COMMAND --help` explains one command.",
    )
    parser.add_argument("--name", action="store_true", help="print the full name of the program")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show a traceback when something fails")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    args = parser.parse_args(argv)
    if args.name or args.version:
        print(NAME if args.name else __version__)
        return 0
    if args.command is not None:
        parser.error(f"unknown command '{args.command}'; expected one of {', '.join(COMMANDS)}")
    parser.print_help()
    return 0


def _complain(message: str, code: int, debug: bool) -> int:
    """Say what is wrong on one line of stderr; the traceback too when debugging."""
    if debug:
        import traceback

        traceback.print_exc()
    print(f"verifier: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
