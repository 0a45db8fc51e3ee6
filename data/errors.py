class UserError(Exception):
    """An error that the user can fix: one line that says what is wrong and what would be right."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))

    def _render_traceback_(self):
        """The line alone, in a notebook too: IPython calls this instead of showing where the error was raised."""
        return [str(self)]
