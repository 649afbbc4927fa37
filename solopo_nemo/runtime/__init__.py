"""What every command needs: paths, errors, exit codes, signals, logs, ranks, and work in processes of its own."""
