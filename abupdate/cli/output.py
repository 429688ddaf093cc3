"""What a verb says in the end: one JSON document, or lines for a person."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping

from abupdate.log import plain


def say(options: Namespace, document: Mapping[str, object], text: str) -> None:
    """Print the document with --json, else the text (nothing with -q)."""
    if options.json:
        print(json.dumps(document))
    elif not options.quiet:
        print(plain(text))
