"""SoLoPO over slic (paper section 2.3)."""

from solopo_nemo.training.launch import main

if __name__ == "__main__":
    main("solo_slic")
