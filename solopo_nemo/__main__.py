"""``python -m solopo_nemo NAME ...`` is ``solopo NAME ...``."""

from solopo_nemo.commands import main

if __name__ == "__main__":
    main()
