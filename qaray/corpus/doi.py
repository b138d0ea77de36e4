"""The identity of a paper: spellings of one DOI are one id."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

_URL = re.compile(r"(?:https?://)?(?:www\.|dx\.|doi-org\.)?doi\.org/", re.IGNORECASE)
_LABEL = re.compile(r"(?:https?://)?info:doi/|urn:doi:|doi\s*[:=]\s*|doi\s*(?=10\.)", re.IGNORECASE)
_IS_DOI = re.compile(r"10\.\d{4,}(?:\.\d+)*/")
MAX_PREFIXES = 8  # resolver addresses and labels before an id
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


def doi_key(doi: str) -> str:
    """What is compared of an id: no case, blanks around it, ``doi:`` or resolver address; '' if nothing else is left.

    Blanks within a DOI (``10.…/…``) do not count either: DOIs have none, text from PDFs has. Any other id is opaque.
    """
    key = unicodedata.normalize("NFC", doi.translate(_INVISIBLE)).strip()
    for _ in range(MAX_PREFIXES):
        if match := _URL.match(key):
            key = unquote(key[match.end() :]).strip()
        elif match := _LABEL.match(key):
            key = key[match.end() :].strip()
        else:
            break
    if _IS_DOI.match(key):
        key = "".join(key.split())
    return key.casefold()
