"""The `gptloom` command: its subcommands (flows/commands/) and how all of them end.

In: arguments. Out: tables and text on stdout, progress and errors on stderr, exit code 2 for what the user can fix.
Heavy imports live inside the subcommands, so that `--help` is instant.
"""

import logging
import sys

from typer import Typer, echo

from flows.commands import models, recipes, services, shards, store, tokenizer
from gpt.errors import UserError

app = Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
            help="Build your own GPT: raw text in, chat model out, one cached DAG.")  # fmt: skip
COMMANDS = (
    *(recipes.run, recipes.refresh, recipes.train_toxicity, recipes.demo, recipes.show, recipes.presets, recipes.plan),
    *(models.lineage, models.promote, models.sample, models.chat),
    *(services.up, services.down, services.status, services.deploy, services.sync),
)
for command in COMMANDS:
    app.command()(command)
for name, group in {"shards": shards.app, "store": store.app, "tokenizer": tokenizer.app}.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command; what stages say goes to stderr with the time of day; a UserError is one line and exit code 2."""
    log, handler = logging.getLogger("gptloom"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        app()
    except UserError as error:
        echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
