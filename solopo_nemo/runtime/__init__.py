"""What every command uses: paths, errors, exit codes, signals, logs, the device and worker processes."""
