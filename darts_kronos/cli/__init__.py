"""The command line ``darts-kronos``: from a CSV to a forecast without writing Python."""

from darts_kronos.cli.main import main

__all__ = ["main"]
