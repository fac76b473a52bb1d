"""`autotune store`: list, export and prune what was compiled and measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from autotune.commands.command import Group
from autotune.commands.options import json_option, store_option, writable
from autotune.commands.run import open_store, show
from autotune.commands.values import PATH, Number
from autotune.system.whole_file import descriptor_named
from autotune.tables import Column, FittedTable


@click.group(cls=Group)
def store() -> None:
    """List, export and prune what was compiled and measured."""


@store.command("list")
@store_option
@json_option
def list_entries(store: Path | None, as_json: bool) -> None:
    """Everything kept, oldest first."""
    entries = open_store(store).entries()
    if as_json:
        listed = [
            {"kind": one.kind, "created": one.created, "bytes": one.bytes, "path": str(one.path), "key": dict(one.key)}
            for one in entries
        ]
        click.echo(json.dumps(listed, indent=1))
        return
    columns = [
        Column(name="kept", priority=2),
        Column(name="kind"),
        Column(name="KiB", priority=3, align="right"),
        Column(name="target", heads=True),
        Column(name="layout or name", heads=True),
    ]
    rows = []
    for one in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created))
        target, layout, name = (_printable(one.key.get(word, "")) for word in ("target", "layout", "name"))
        rows.append([when, one.kind, f"{one.bytes / 1024:,.0f}", target, layout or ("" if target else name)])
    if rows:
        show(FittedTable(columns, rows))
    click.echo(f"{len(entries)} entries, {sum(one.bytes for one in entries) / 2**20:.1f} MiB")


def _printable(value: object) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


@store.command()
@click.argument("destination", type=PATH)
@store_option
def export(destination: Path, store: Path | None) -> None:
    """Write everything as JSON into DESTINATION, a .tar.gz."""
    writable(destination, "DESTINATION")
    kept = open_store(store)
    try:
        count = kept.export(destination)
    except OSError as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"{count} entries written to {destination}", err=descriptor_named(destination) is not None)


@store.command()
@click.option("--older-than-days", type=Number(0, 1e6), help="Delete what is older than this.")
@click.option("--keep-mib", type=Number(0, 1e12), help="Then delete the oldest until this much is left.")
@store_option
def prune(older_than_days: float | None, keep_mib: float | None, store: Path | None) -> None:
    """Delete old entries."""
    if older_than_days is None and keep_mib is None:
        raise click.UsageError("prune: give --older-than-days, --keep-mib or both")
    count, size = open_store(store).prune(
        older_than_seconds=None if older_than_days is None else 86400 * older_than_days,
        keep_bytes=None if keep_mib is None else int(keep_mib * 2**20),
    )
    click.echo(f"{count} entries deleted, {size / 2**20:.1f} MiB")
