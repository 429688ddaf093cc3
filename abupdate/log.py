"""One logger for operations and everything outward of them; it writes to standard error."""

import logging

log = logging.getLogger("abupdate")
