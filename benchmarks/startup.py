"""What `import neuropil` and `neuropil list` take beyond a bare Python: `python benchmarks/startup.py`. Best of ten, seconds."""

import json
import subprocess
import sys
import time

COMMANDS = {
    "python": ["-c", "pass"],
    "import neuropil": ["-c", "import neuropil"],
    "neuropil list": ["-m", "neuropil", "list"],
    "neuropil data list": ["-m", "neuropil", "data", "list"],
}
LIMITS = {"import neuropil": 0.1, "neuropil list": 0.3}


def best(arguments: list[str], times: int = 10) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    seconds = {name: best(arguments) for name, arguments in COMMANDS.items()}
    own = {name: seconds[name] - seconds["python"] for name in LIMITS}
    print(json.dumps({"seconds": seconds, "without python's own": own, "limits": LIMITS}, indent=1))
    sys.exit(any(own[name] > limit for name, limit in LIMITS.items()))
