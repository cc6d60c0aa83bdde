"""How fast ours is against the original, in the same run, with equal weights and equal answers.

    python benchmarks/speed.py generate           # sample paths
    python benchmarks/speed.py backtest           # historical_forecasts
    python benchmarks/speed.py train              # both stages
    python benchmarks/speed.py data               # windows, and how a step's time grows
    python benchmarks/speed.py memory             # what sample paths and backtests hold
    python benchmarks/speed.py generate --quick   # minutes: fewer cases, the original on a part

The original is `kronos-finance`. Both networks get the same random weights; before anything is
timed, greedy tokens (generate), bars (backtest) or losses (train) are compared, and a difference
ends the run without a time. Ours and the original are measured in turns. Where the original would
take more than ten minutes it is measured on a part and scaled, and the table says which. A time is
the median over repeats, the spread is largest less smallest over the median.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from timing import backtest, clock, data, generation, machine, memory, tables, training

COMMANDS = {
    "generate": generation.run,
    "backtest": backtest.run,
    "train": training.run,
    "data": data.run,
    "memory": memory.run,
}


def main() -> None:
    """Measure, print a table and, if asked to, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--quick", action="store_true", help="under five minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--limit",
        type=float,
        help="seconds above which the original is measured on a part (600; with --quick 20)",
    )
    parser.add_argument("--repeats", type=int, help="3; with --quick 1")
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    parser.add_argument(
        "--clock",
        choices=clock.CLOCKS,
        default="wall",
        help="cpu: seconds of the process itself, for a shared machine and one thread",
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("`--clock cpu` adds up the threads' seconds: use it with one thread")
    torch.set_num_threads(arguments.threads)
    clock.use(arguments.clock)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)

    plan = clock.Plan(
        quick=arguments.quick,
        repeats=arguments.repeats or (1 if arguments.quick else 3),
        limit=arguments.limit or (20.0 if arguments.quick else 600.0),
        only=arguments.only,
    )
    described = machine.describe(arguments.threads) | {"clock": arguments.clock}
    print(", ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    try:
        rows = COMMANDS[arguments.what](plan)
    except clock.WrongAnswer as wrong:
        sys.exit(f"No time is reported, because the answers differ. {wrong}")
    print(tables.table(rows))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"command": " ".join(sys.argv[1:]), "machine": described, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
