"""`python -m densitywatch VERB` is `densitywatch VERB`."""

from __future__ import annotations

from densitywatch.cli import main

if __name__ == "__main__":
    main()
