"""`avd`: every command, and the one place where a user's mistake becomes a line and exit code 2."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from avd import __version__, ui
from avd.cli import data, distill, evaluate, export, generate, inspect, plan, recipes, train
from avd.cli.experiments import ablate, compare, demo
from avd.types import Stopped, UserError

app = typer.Typer(
    name="avd",
    help="Turn a slow video diffusion model into a fast one that keeps its colours and its motion.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"avd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


# Help shows the groups in the order in which they first appear here.
_USE, _DATA, _TRAIN, _JUDGE = "Use", "Data", "Train", "Judge"

app.command("demo", rich_help_panel=_USE)(demo.demo)
app.command("generate", rich_help_panel=_USE)(generate.generate)
app.command("export", rich_help_panel=_USE)(export.export)
app.command("prepare", rich_help_panel=_DATA)(data.prepare)
app.command("inspect", rich_help_panel=_DATA)(inspect.inspect)
app.add_typer(data.world_app, name="world", rich_help_panel=_DATA)
app.command("recipes", rich_help_panel=_TRAIN)(recipes.recipes)
app.command("methods", rich_help_panel=_TRAIN)(recipes.methods)
app.command("plan", rich_help_panel=_TRAIN)(plan.plan)
app.command("distill", rich_help_panel=_TRAIN)(distill.distill)
app.add_typer(train.train_app, name="train", rich_help_panel=_TRAIN)
app.command("evaluate", rich_help_panel=_JUDGE)(evaluate.evaluate)
app.command("compare", rich_help_panel=_JUDGE)(compare.compare)
app.command("ablate", rich_help_panel=_JUDGE)(ablate.ablate)
app.command("table", rich_help_panel=_JUDGE)(evaluate.table)


def main() -> None:
    """Run the command line. What a user can fix is a line on stderr and exit code 2; a run that stops itself has 3."""
    try:
        sys.exit(app(prog_name="avd", standalone_mode=False))
    except typer.TyperException as error:
        _explain_usage(error)
    except Stopped as error:
        _fail(str(error), error.code)
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written to
        _fail(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")


def _explain_usage(error: typer.TyperException) -> NoReturn:
    """What is wrong with the command line itself. A group called without a command has shown its help already."""
    if error.format_message():
        context = getattr(error, "ctx", None)
        command = "avd" if context is None else context.command_path
        _fail(f"{error.format_message().rstrip('.')}: see `{command} --help`")
    sys.exit(2)


def _fail(message: str, code: int = 2) -> NoReturn:
    ui.fail(message)
    sys.exit(code)
