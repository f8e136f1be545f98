"""Runs one service for the demo and ends when the demo does, however that ends.

```
demo ── pipe ──> python -m examples.demo.child examples.auth [folder]
```

The service is loaded while PostgreSQL still starts; its settings then come through the pipe, where no list of
processes shows them. The end of the pipe is the end of the demo.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import threading

from reliakit import SYSTEM_CLOCK


def main(module: str, folder: str | None) -> None:
    importlib.import_module(f"{module}.app")
    received = b""
    while b"\n" not in received:
        more = os.read(0, 65536)
        if not more:
            remove(folder)
            return
        received += more
    os.environ.update(json.loads(received))
    threading.Thread(target=follow, args=(folder,), daemon=True).start()
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def follow(folder: str | None) -> None:
    """Wait for the end of the demo, then end this service as a terminal would, and by force if that is not enough."""
    # Not through sys.stdin, whose lock a daemon thread would still hold when Python ends.
    while os.read(0, 1):
        pass
    remove(folder)
    os.kill(os.getpid(), signal.SIGTERM)
    SYSTEM_CLOCK.sleep(8.0)
    os._exit(1)


def remove(folder: str | None) -> None:
    """The demo was killed before it could tidy up itself."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
