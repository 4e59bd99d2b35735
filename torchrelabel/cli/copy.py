"""``torchrelabel copy``: a finished store to or from an object store."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command(
    short_help="Copy a store to or from an object store.",
    epilog="Example: torchrelabel copy s3://bucket/maps.lmdb /local/maps.lmdb",
)
@click.argument("source")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def copy(source: str, target: str, as_json: bool) -> None:
    """Copy the finished store SOURCE to TARGET; one of them may be a URL that fsspec or pyarrow knows (s3://, gs://).

    A store is verified before it is copied to a URL, and goes there with its checksums. A copy from there is compared
    with these; without any, every map is read. TARGET appears when all of it is there and sound. The same command
    continues after an interrupt.
    """
    from tqdm import tqdm

    from torchrelabel.store.copy import copy as run

    with tqdm(unit="B", unit_scale=True, disable=None, leave=False) as bar:
        copied = run(source, target, begin=bar.reset, advance=bar.update)
    if as_json:
        click.echo(json.dumps(asdict(copied), indent=2))
        return
    name = click.format_filename(target)
    if copied.checked == "sizes":
        click.echo(f"{name} is there already: {copied.files} files, {copied.bytes / 1e6:.1f} MB.")
        return
    how = "their checksums are right" if copied.checked == "checksums" else "every map was read"
    click.echo(
        f"{name}: {copied.files} files, {copied.bytes / 1e6:.1f} MB, of which {copied.fetched / 1e6:.1f} MB were "
        f"copied now; {how}."
    )
