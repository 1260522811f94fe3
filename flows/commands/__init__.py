"""The subcommands of `gptloom`, a module for each kind of thing that they work on."""
