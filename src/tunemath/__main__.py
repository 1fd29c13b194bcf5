"""``python -m tunemath``, the same as the command ``tunemath``."""

from __future__ import annotations

from tunemath.cli import main

if __name__ == "__main__":
    main()
