"""The one error that a person caused and can mend.

Raised anywhere with one line that says what, the value, the rule and the way out; commands print it and exit with 2.
"""


class UserError(ValueError):
    """`pretrain.steps=0 must be at least 1; leave it out for the default` and the like. Never a traceback."""
