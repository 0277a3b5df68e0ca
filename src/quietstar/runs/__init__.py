"""A run of any command: its options, its folder, its inputs known by their contents, its processes."""
