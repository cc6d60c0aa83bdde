"""The commands, their options and their exit codes.

0: done. 1: a run was begun and failed, or was interrupted. 2: the command, its config or its data
cannot be used, and nothing was begun.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from darts_kronos.cli import backtest, forecast, init, inspect, tune
from darts_kronos.cli.config_file import ConfigFile, nearest_option
from darts_kronos.cli.console import speaking
from darts_kronos.cli.errors import CommandError, UsageError
from darts_kronos.cli.fit import fit
from darts_kronos.cli.keys import sections

OVERRIDES = (
    "Every key of the config can be set here too, as --SECTION.KEY VALUE, for example "
    "--data.lookback_window 128. `darts-kronos init --all` prints all keys with their meaning."
)


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and says which key an unknown option is nearest to."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print how the command is used and what is wrong, and exit with code 2."""
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        if unknown.startswith("--") and "." in unknown:
            option = unknown.split("=")[0]
            nearest = nearest_option(option)
            message = f"{option} is not a known option; did you mean {nearest}?"
            if nearest == option:
                message = f"{option} is a key of configs, and this command takes none."
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser = _Parser(
        prog="darts-kronos",
        description="Kronos: train on candles and forecast, from a config in YAML.",
        epilog="Exit codes: 0 done; 1 the run failed; 2 command, config or data cannot be used.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, with_config: bool = True
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=OVERRIDES if with_config else None,
            parents=[common],
        )
        one.set_defaults(run=run)
        if with_config:
            one.add_argument("config", help="the YAML file")
            for section, keys in sections().items():
                for key in keys.model_fields:
                    one.add_argument(
                        f"--{section}.{key}", dest=f"{section}.{key}", help=argparse.SUPPRESS
                    )
        return one

    init.options(command("init", init.run, "print a commented config for a file of candles", False))
    one = command("fit", _fit, "train the tokenizer, then the predictor, or go on with a run")
    one.add_argument("--force", action="store_true", help="write over a run that is there")
    forecast.options(
        command("forecast", lambda a: forecast.run(_file(a), a), "forecast the bars to come")
    )
    backtest.options(
        command("backtest", lambda a: backtest.run(_file(a), a), "measure forecasts of the past")
    )
    tune.options(
        command("tune", lambda a: tune.run(_file(a), a), "search the parameters left open")
    )
    inspect.options(
        command("inspect", inspect.run, "tell what a run, a model or a checkpoint is", False)
    )
    return parser


def _file(arguments: argparse.Namespace) -> ConfigFile:
    given = {k: v for k, v in vars(arguments).items() if "." in k and v is not None}
    return ConfigFile(arguments.config, given)


def _fit(arguments: argparse.Namespace) -> None:
    fit(_file(arguments), force=arguments.force)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Its words; None: those of the process.

    Returns
    -------
    int
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        with speaking():
            arguments.run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if arguments.debug:
            traceback.print_exc()
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    """Say what went wrong, in words, and give the exit code."""
    if isinstance(error, CommandError):
        text, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        text, code = "interrupted; the same command goes on where it was.", 1
    elif isinstance(error, BrokenPipeError):
        # Whoever read the output has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        text, code = f"{where}{str(error.strerror or error).rstrip('.')}.", 1
    else:
        text, code = f"{error} ({type(error).__name__}; --debug shows where)", 1
    print(f"darts-kronos: error: {text}", file=sys.stderr)
    return code


__all__ = ["UsageError", "main"]
