"""Every command of the tool, those of groups by both words."""

from collections.abc import Iterator

import click

from autotune.cli import COMMANDS, autotune


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        command = autotune.get_command(click.Context(autotune), name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())
        else:
            yield name, command
