"""One logger for operations and everything outward of them, which writes to standard error; and text that is fit for a terminal."""

import logging
import os
import re
from collections.abc import Mapping

log = logging.getLogger("abupdate")
# Controls but line feed, what turns the direction of text or cannot be seen, line and paragraph separators, halves of surrogates.
_ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def plain(text: str) -> str:
    """The text with everything but line feeds that a terminal would act on, or that would deceive its reader, as an escape."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainFormatter(logging.Formatter):
    """One line a message, whatever is in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return plain(super().formatMessage(record)).replace("\n", "\\n")


class JournalFormatter(PlainFormatter):
    """As PlainFormatter, with the priority that systemd's journal takes from the start of a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return priority(record.levelno) + super().formatMessage(record)


def priority(level: int) -> str:
    """`<N>`, syslog's number for a level of logging."""
    return f"<{3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6 if level >= logging.INFO else 7}>"


def is_journal(fd: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor is systemd's journal: JOURNAL_STREAM names its device and inode. A child's pipe, which inherits it, is not."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
