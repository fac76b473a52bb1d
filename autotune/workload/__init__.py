"""The train step to be laid out: ours from a preset, or the user's own."""
