class UserError(Exception):
    """What the user can mend: one line that says what is wrong and what would be right."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))
