"""The chosen layout: saved, applied to a training step, checked in CI, and written in other codebases' words."""
