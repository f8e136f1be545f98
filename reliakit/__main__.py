"""`python -m reliakit`: what the metrics' declarations make, and a service's verdicts on its objectives."""

from __future__ import annotations

import sys

from reliakit.metrics.commands import main

if __name__ == "__main__":
    sys.exit(main())
