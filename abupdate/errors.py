"""The project's errors: each carries the exit code of the CLI contract and a hint for the person who reads it."""


class AbupdateError(Exception):
    """Base of every error that abupdate raises on purpose.

    `message` is one line without a full stop; `hint` (may be empty) says what to do about it.
    `exit_code` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def line(self) -> str:
        """Message and hint, for a log."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Failed(AbupdateError):
    """The operation failed and may be retried (I/O error, a stream that ended early)."""

    exit_code = 1


class ConfigError(AbupdateError):
    """Usage or configuration is wrong; nothing was changed."""

    exit_code = 2


class StoreUnreadable(ConfigError):
    """The bootloader's store holds no valid state (every copy's checksum is wrong, or it cannot be read)."""


class Refused(AbupdateError):
    """Refused for good: signature, compatibility, downgrade, damaged bundle. Retrying does not help."""

    exit_code = 3


class NothingToDo(AbupdateError):
    """The device is already where the request would bring it."""

    exit_code = 4


class Busy(AbupdateError):
    """Another operation runs, a trial is pending, or a device is in use."""

    exit_code = 5


class Deferred(AbupdateError):
    """The fleet gave no update slot now."""

    exit_code = 6


class Interrupted(BaseException):
    """SIGINT or SIGTERM ended the operation; ends with 1.

    No AbupdateError, and no Exception: whoever copes with a failure, of a check or of one of several copies, must not take this for one
    and go on.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
