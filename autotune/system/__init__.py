"""The process, the host and the files of this tool itself: nothing of JAX, models or layouts."""
