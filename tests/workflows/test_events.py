"""The log of a run on a disk that fills: whole lines, or a fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FILLING = """
import resource, sys
from pathlib import Path
from unetpp_workflows.events import EventLog
log = EventLog(Path(sys.argv[1]))
log.write("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 30, resource.RLIM_INFINITY))
log.write("cut")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write("last")
print(log.path)
print(log.fault)
"""


def test_a_line_that_had_no_room_is_a_fault_and_spoils_no_other(tmp_path: Path) -> None:
    """The file may grow by 30 bytes only, so that the second event is cut within."""
    command = [sys.executable, "-c", FILLING, str(tmp_path)]
    path, fault = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert path in fault and "File too large" in fault
    first, cut, last = Path(path).read_text().splitlines()
    assert json.loads(first)["event"] == "first" and json.loads(last)["event"] == "last"
    assert cut.startswith('{"time": ') and len(cut) == 30
