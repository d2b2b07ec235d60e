"""``python -m shimctl``: the same as the ``shimctl`` executable."""

from shimctl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
