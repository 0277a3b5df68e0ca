"""What the runs of all commands share: options, output folders, digests of inputs, processes."""
