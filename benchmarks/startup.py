"""What `import neuropil` and `neuropil list` take: against a bare Python and what may be added to it."""

import subprocess
import sys
from collections.abc import Iterator

from rounds import Ratio, in_turns, main

COMMANDS = {
    "`import neuropil`": (["-c", "import neuropil"], 0.1),
    "`neuropil list`": (["-m", "neuropil", "list"], 0.3),
    "`neuropil data list`": (["-m", "neuropil", "data", "list"], 0.3),
}


def start(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def compare(quick: bool) -> Iterator[Ratio]:
    ways = {name: lambda own=own: start(own) for name, (own, _) in COMMANDS.items()}
    taken = in_turns(ways | {"python": lambda: start(["-c", "pass"])}, 3 if quick else 10)
    for name, (_, limit) in COMMANDS.items():
        yield Ratio(name, f"bare Python and {limit} s", taken[name], [bare + limit for bare in taken["python"]], at_least=1)


if __name__ == "__main__":
    main(compare)
