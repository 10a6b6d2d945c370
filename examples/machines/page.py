"""Asks the server for a week of every machine, and shows the errors on one page.

    python examples/machines/page.py machines http://localhost:8000 machines.html

`machines` is the folder that `train.py` wrote, and the server that of
`examples/tenants/app.py`. The page needs no other file and no network.
"""

import argparse
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import numpy as np

HOURS = 8  # Of a window, as in train.py.


def ask(server, name, windows):
    """Returns what the server's model makes of a machine's windows."""
    body = json.dumps({"inputs": windows.tolist()}).encode()
    url = f"{server}/tenants/{name}/predict"
    with urllib.request.urlopen(urllib.request.Request(url, body)) as response:
        return np.array(json.load(response)["outputs"])


def watch(server, name, week, fault, limit):
    """Returns a machine's errors, one for each hour, as the page shows them."""
    starts = range(1, len(week) - HOURS + 1)
    windows = np.stack([week[start : start + HOURS].ravel() for start in starts])
    errors = np.mean((ask(server, name, windows) - windows) ** 2, axis=1) / limit
    return {
        "name": name,
        "errors": errors,
        "most": errors.max(),
        "alarms": int((errors > 1).sum()),
        # A window's error is that of the hour that it ends with.
        "fault": np.maximum(fault - HOURS, 0),
    }


def main():
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="that train.py wrote")
    parser.add_argument("server", help="for example http://localhost:8000")
    parser.add_argument("page", type=Path, help="the HTML file to write")
    args = parser.parse_args()
    with np.load(args.folder / "week.npz") as kept:
        columns = [kept[key] for key in ("names", "week", "fault", "limit")]
    with ThreadPoolExecutor(8) as pool:
        servers = [args.server] * len(columns[0])
        machines = [*pool.map(watch, servers, *columns)]
    machines.sort(key=lambda machine: -machine["most"])
    broken = [machine["fault"][1] > 0 for machine in machines]
    template = Path(__file__).with_name("page.html.jinja").read_text()
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(template).render(
        machines=machines, broken=sum(broken), found=sum(broken[: sum(broken)])
    )
    args.page.write_text(page)
    print(f"{args.page}: {len(machines)} machines, worst {machines[0]['name']}")


if __name__ == "__main__":
    main()
