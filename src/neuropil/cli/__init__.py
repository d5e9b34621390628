"""The command line. Commands are imported when they are called, so `neuropil list` never imports torch."""

import errno
import importlib
import os
import sys
from pathlib import Path

import click

from neuropil import __version__
from neuropil.errors import Refused, nearest

COMMANDS = {
    "list": ("catalogue", "All systems: which exist, which are planned, and what their claims came to."),
    "show": ("catalogue", "One system: what it is, its parts, claims and evidence."),
    "cite": ("catalogue", "How to cite a system."),
    "run": ("run", "Run a system's claims over several seeds and give the verdict."),
    "check": ("check", "Run many claims, in parallel, resumably, and keep the evidence."),
    "race": ("race", "All parts of one role on the same data at the same budget, ranked."),
    "tour": ("tour", "One quick claim of every wing, and a report."),
    "report": ("report", "Write the gallery of systems, claims and verdicts as static HTML."),
    "fit": ("fit", "Fit a field to your own photograph, clip, mesh or capture."),
    "render": ("render", "A film or picture of a fitted run."),
    "export": ("export", "A fitted shape or scene as a mesh or a point cloud."),
    "view": ("view", "A fitted run live in the browser, on this machine only."),
    "decode": ("decode", "Decode events from your own EEG, spike or fMRI file, with a control."),
    "data": ("data", "The real data that claims run on: list, get, path."),
}

# What only writing ends in: no room (of the disk, of the quota, of what a file may grow to), or a disk that is read only.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Commands that keep each finished part and, called again, do only the rest.
GO_ON = {"check", "race", "fit", "data"}
PACKAGE = Path(__file__).parents[1]


class Lazy(click.Group):
    """A group that knows its commands' names and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"neuropil.cli.{COMMANDS[name][0]}"), name.replace("-", "_") + "_")

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            raise Refused(f"command: unknown {args[0]!r}{nearest(args[0], COMMANDS)} (see `neuropil --help`)")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def neuropil() -> None:
    """Published neural mechanisms as PyTorch parts, each with its paper's claim as a program."""


def main() -> None:
    """Run the command line: bad input, a path that cannot be used, a full disk or Ctrl-C end in one clear line and exit code 2."""
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # a product's last bits then do not hang on where its memory lies
    try:
        code = neuropil.main(prog_name="neuropil", standalone_mode=False)
        sys.stdout.flush()
    except Refused as refused:
        _stop(str(refused))
    except click.exceptions.NoArgsIsHelpError as bare:
        click.echo(bare.format_message())
        code = 0
    except click.ClickException as error:
        _stop(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        goes_on = GO_ON.intersection(sys.argv[1:2])
        kept = "; everything finished so far is kept, run the same command again to go on"
        _stop(f"interrupted{kept if goes_on else ''}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            _stop(f"cannot write {error.filename or 'a file'}: {error.strerror}; nothing was half-written")
        if not isinstance(error.filename, str) or Path(error.filename).absolute().is_relative_to(PACKAGE):
            raise  # no file of the user's: a fault of ours
        _stop(f"cannot read or write {error.filename}: {error.strerror}")
    sys.exit(code if isinstance(code, int) else 0)


def _stop(line: str) -> None:
    click.echo("neuropil: " + " ".join(line.split()), err=True)
    sys.exit(2)
