"""What the user can mend: one message that names the file or key and the fix."""


class UserError(ValueError):
    """Shown by the command line as one line without a traceback; exit status 1."""
