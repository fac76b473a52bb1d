"""The closed form of a transformer that `autotune.meshes.transformer` describes."""
