"""The command ``torchrelabel``: a click group that imports a subcommand when it is asked for.

A subcommand is a module of this package that holds a click command under its own name: ``info.py`` has ``info``,
``import_.py`` has ``import_``, called ``import``, and ``timm_train.py`` has ``timm_train``, called ``timm-train``. Such
a module imports torch and timm inside its function, so that ``--help`` stays fast. Errors become one message and exit
status 1 here, and Ctrl-C exit status 130, once for all commands.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

import click

from torchrelabel._version import __version__
from torchrelabel.errors import TorchRelabelError

# The exit statuses of every command; click itself uses 2 for wrong use.
DONE, FAILED, WRONG_USE, DONE_WITH_LOSSES = 0, 1, 2, 3
STOPPED_BY_USER = 130


class CommandGroup(click.Group):
    """The modules of this package, as commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, sorted."""
        return sorted(_modules())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command of this name; None if there is none."""
        module_name = _modules().get(name)
        if module_name is None:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{module_name}"), module_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what the library raises on purpose becomes one message on stderr and exit status 1.

        Ctrl-C is exit status 130. A command that has more to say then raises ``KeyboardInterrupt`` with these words.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(" ".join(["Stopped.", *map(str, stop.args)]), err=True)
            ctx.exit(STOPPED_BY_USER)
        # A closed pipe (torchrelabel info | head) is not an error to report, and click deals with it.
        except BrokenPipeError:
            raise
        except (TorchRelabelError, ValueError, OSError, ImportError) as error:
            # For whoever needs to see where it came from.
            if os.environ.get("TORCHRELABEL_TRACEBACK"):
                raise
            raise click.ClickException(str(error) or type(error).__name__) from error


class Picture(click.Path):
    """A file that a picture can be written to, which is known before the work and not after it."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a name that matplotlib cannot write."""
        from torchrelabel.viz import require_picture

        path = os.fsdecode(super().convert(value, param, ctx))
        try:
            require_picture(path)
        except (ValueError, FileNotFoundError) as error:
            self.fail(str(error), param, ctx)
        return path


Command = TypeVar("Command", bound=Callable[..., Any])


def data_options(command: Command) -> Command:
    """The options of every command whose DATA may be more than a folder or a tar file."""
    for option in (
        click.option(
            "--split",
            default="train",
            show_default=True,
            help="Which part of --dataset; of shards also train-{000..146}.tar.",
        ),
        click.option(
            "--dataset",
            metavar="NAME",
            help="Read what timm reads by this name: folder, wds/..., hfds/...; kept in DATA.",
        ),
    ):
        command = option(command)
    return command


def _modules() -> dict[str, str]:
    """The modules of this package, by the names of their commands."""
    return {module.name.rstrip("_").replace("_", "-"): module.name for module in pkgutil.iter_modules(__path__)}


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="torchrelabel")
def main() -> None:
    """Label maps for image classification: soft labels for exactly what a random crop shows.

    Exit status: 0 done, 1 failed, 2 wrong use, 3 done with losses, 130 stopped by Ctrl-C. Set TORCHRELABEL_TRACEBACK=1
    to see where an error came from.
    """
