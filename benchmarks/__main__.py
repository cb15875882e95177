"""The command line: `python -m benchmarks core [options]`."""

from benchmarks.core import main

main()
