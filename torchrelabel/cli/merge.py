"""``torchrelabel merge``: several stores, or one of an older version, become one store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import click


@click.command(
    short_help="Make one store of several.", epilog="Example: torchrelabel merge part1.lmdb part2.lmdb -o maps.lmdb"
)
@click.argument("stores", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The new store.")
@click.option("--shards", type=click.IntRange(1), help="Its shards. [default: as many as the first store's]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def merge(stores: tuple[str, ...], output: str, shards: int | None, as_json: bool) -> None:
    """Copy the label maps of STORES into a new store, the numbers unchanged.

    The stores must be made with the same settings by the same annotator. A store of an older version of the format is
    brought up to date that way, and one to which maps were added many times becomes one file a shard. The same command
    continues after an interrupt.
    """
    from tqdm import tqdm

    from torchrelabel.store.merge import merge as run

    def progress(keys: Iterable[str]) -> Iterable[str]:
        return tqdm(keys, unit="maps", disable=None, leave=False)

    merged = run(stores, output, shards=shards, progress=progress)
    if as_json:
        click.echo(json.dumps(asdict(merged), indent=2))
        return
    words = f"{click.format_filename(output)}: {merged.records} label maps"
    words += f", {merged.failures} images that failed" if merged.failures else ""
    words += "" if merged.complete else ". It is not complete, since not all of the stores are"
    click.echo(f"{words}.")
