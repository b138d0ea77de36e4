"""Records of an input file, one at a time: JSON list, JSONL or Parquet.

A JSON list is decoded value by value from a sliding buffer: a list of any length needs the memory of one record.
A broken record costs that record: reading goes on at the next one that can be found.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qaray.schema import Pair, RejectReason
from qaray.storage import Location, StoreFailed

SUFFIXES = tuple(
    ending + packed for ending in (".json", ".jsonl", ".ndjson", ".parquet") for packed in ("", ".gz", ".zst", ".bz2")
)

CHUNK = 1 << 20  # bytes read at a time
LONGEST = 1 << 28  # characters: a record beyond this is given up as broken
_LOOKAHEAD = 16  # an error closer than this to the buffer's end may only mean that the buffer ends

_BLANK = re.compile(r"[\s\ufeff]*")
_SEPARATOR = re.compile(r"[\s,]*")
_NEXT_IN_LIST = re.compile(r"\}\s*,\s*(?=\{)")
_NEXT_LINE = re.compile(r"\n\s*(?=\{)")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Problem(Exception):
    """A record that cannot become a paper. ``args``: the reason and a sentence for the user."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Record:
    """What stands at one position of a file: a JSON value, or the problem met there."""

    position: int  # record number within the file, from 0
    value: Any = None
    problem: Problem | None = None


def read_records(file: Location, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The file's records in order. Nothing is raised for bad content: it becomes a Record with a problem.

    ``columns``: what is read of a Parquet file; None: the fields of a paper with pairs.
    """
    name = file.path.lower()
    if ".parquet" in name.rsplit("/", 1)[-1]:
        return _parquet(file, FIELDS if columns is None else columns)
    if any(ending in name.rsplit("/", 1)[-1] for ending in (".jsonl", ".ndjson")):
        return _lines(file)
    return _values(file)


def _lines(file: Location) -> Iterator[Record]:
    """JSON Lines: each line stands alone, blank lines do not count."""
    position = 0
    for number, line in enumerate(_raw_lines(file), start=1):
        if isinstance(line, Problem):
            yield Record(position, problem=line)
            return
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            yield Record(position, value=json.loads(text))
        except UnicodeDecodeError as error:
            yield Record(position, problem=Problem(RejectReason.UNDECODABLE, f"line {number} is not UTF-8: {error}"))
        except (ValueError, RecursionError) as error:
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, f"line {number}: {error}"))
        position += 1
    if position == 0:
        yield Record(0, problem=Problem(RejectReason.NOT_JSON, "the file is empty"))


def _raw_lines(file: Location) -> Iterator[bytes | Problem]:
    rest: list[bytes] = []
    for chunk in _chunks(file):
        if isinstance(chunk, Problem):
            yield chunk
            return
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            yield b"".join((*rest, line))
            rest = []
        rest.append(tail)
    yield b"".join(rest)


def _chunks(file: Location) -> Iterator[bytes | Problem]:
    """The file's bytes, decompressed; a damaged archive ends in a Problem. Raises StoreFailed."""
    try:
        with file.open() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except StoreFailed:
        raise
    except OSError as error:
        yield Problem(RejectReason.UNDECODABLE, f"the file cannot be read: {error}")


class _Buffer:
    """A window on a file's text that slides forward. Bytes that are no UTF-8 become lone surrogates."""

    def __init__(self, file: Location) -> None:
        self.text, self.at, self.ended = "", 0, False
        self.problem: Problem | None = None
        self._chunks = _chunks(file)
        self._decoder: codecs.IncrementalDecoder | None = None

    def more(self) -> bool:
        """Reads on: at least as much again as is unread, so that a long record is decoded O(log n) times."""
        if self.ended:
            return False
        wanted = max(CHUNK, len(self.text) - self.at)
        parts = [self.text[self.at :]]
        while wanted > 0 and not self.ended:
            chunk = next(self._chunks, None)
            if chunk is None or isinstance(chunk, Problem):
                self.problem, self.ended = chunk, True
                parts.append(self._decoder.decode(b"", final=True) if self._decoder else "")
            else:
                self._decoder = self._decoder or _decoder(chunk)
                parts.append(self._decoder.decode(chunk))
                wanted -= len(chunk)
        self.text, self.at = "".join(parts), 0
        return True

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Passes over what matches; the next character, '' at the end of the file."""
        while True:
            match = pattern.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


def _decoder(head: bytes) -> codecs.IncrementalDecoder:
    encoding = json.detect_encoding(head)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    return codecs.getincrementaldecoder(encoding)(errors=errors)


def _values(file: Location) -> Iterator[Record]:
    """A JSON list, or JSON objects one after another, as a stream of values."""
    buffer, decoder, position = _Buffer(file), json.JSONDecoder(), 0
    lost = False  # the end of the file was reached in search of a record after a broken one
    first = buffer.skip(_BLANK)
    in_list = first == "["
    if in_list:
        buffer.at += 1
    while True:
        head = buffer.skip(_SEPARATOR)
        if head == "" or (in_list and head == "]"):
            break
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except json.JSONDecodeError as error:
            unread = len(buffer.text) - buffer.at
            may_go_on = error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text) - _LOOKAHEAD
            if may_go_on and unread < LONGEST and buffer.more():
                continue
            detail = f"record {position}: {error.msg}"
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, detail))
            position += 1
            lost = not _resume(buffer, max(error.pos, buffer.at + 1), _NEXT_IN_LIST if in_list else _NEXT_LINE)
            continue
        except (
            ValueError,
            RecursionError,
        ) as error:  # integers of thousands of digits, nesting of thousands of levels
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, f"record {position}: {error}"))
            position += 1
            lost = not _resume(buffer, buffer.at + 1, _NEXT_IN_LIST if in_list else _NEXT_LINE)
            continue
        if end == len(buffer.text) and buffer.more():
            continue  # a number may go on in the next chunk
        buffer.at = end
        yield Record(position, value=value)
        position += 1
    if buffer.problem:
        yield Record(position, problem=buffer.problem)
    elif first == "":
        yield Record(0, problem=Problem(RejectReason.NOT_JSON, "the file is empty"))
    elif in_list and head != "]" and not lost:
        yield Record(position, problem=Problem(RejectReason.NOT_JSON, "the list has no end: the file is cut off"))
    elif in_list:
        buffer.at += 1
        if buffer.skip(_BLANK):
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, "text after the end of the list"))


def _resume(buffer: _Buffer, start: int, pattern: re.Pattern[str]) -> bool:
    """Moves to the next record after a broken one; False if there is none: then to the end of the file."""
    buffer.at = start
    while not (match := pattern.search(buffer.text, buffer.at)):
        buffer.at = max(buffer.at, len(buffer.text) - 256)  # a separator may straddle the buffer's end
        if not buffer.more():
            buffer.at = len(buffer.text)
            return False
    buffer.at = match.end()
    return True


def _parquet(file: Location, fields: Sequence[str]) -> Iterator[Record]:
    position = 0
    try:
        with file.open_raw() as stream:
            parquet = pq.ParquetFile(stream)
            columns = [name for name in fields if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(batch_size=64, columns=columns):
                for row in range(batch.num_rows):
                    yield _parquet_row(batch, row, position)
                    position += 1
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError) as error:
        detail = f"the Parquet file cannot be read: {error}"
        yield Record(position, problem=Problem(RejectReason.UNDECODABLE, detail))


def _parquet_row(batch: pa.RecordBatch, row: int, position: int) -> Record:
    try:
        return Record(position, value=batch.slice(row, 1).to_pylist()[0])
    except (UnicodeDecodeError, pa.ArrowException) as error:
        return Record(position, problem=Problem(RejectReason.UNDECODABLE, f"row {position} is not text: {error}"))


PAIRS_KEY = "Q&A"
REQUIRED = ("doi", "txt", "keywords")
FIELDS = ("doi", "txt", "keywords", "abstract", "title", "source", PAIRS_KEY)


def paper_fields(value: Any) -> dict[str, Any]:
    """The schema's fields of one record: doi, txt, keywords as a list, abstract, title, source or None.

    Raises Problem with the reason and a sentence that names the field and what stands there.
    """
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"a record must be an object, got {type_name(value)}")
    for key in REQUIRED:
        if value.get(key) is None:
            raise Problem(RejectReason.MISSING_KEY, f"{key} is missing" if key not in value else f"{key} is null")
    fields: dict[str, Any] = {"keywords": _keywords(value["keywords"])}
    for key in ("doi", "txt", "abstract", "title", "source"):
        text = value.get(key)
        if text is not None and not isinstance(text, str):
            raise Problem(RejectReason.WRONG_TYPE, f"{key} must be a string, got {type_name(text)}: {str(text)[:80]}")
        fields[key] = text
    if not fields["doi"].strip():
        raise Problem(RejectReason.MISSING_KEY, "doi is empty")
    for key, text in fields.items():
        for part in text if isinstance(text, list) else [text or ""]:
            if bad := _SURROGATE.search(part):
                where = f"character {bad.start()} of {key}"
                raise Problem(RejectReason.UNDECODABLE, f"{where} is not valid Unicode ({bad[0]!a})")
    if not any(c.isprintable() and not c.isspace() for c in fields["txt"]):
        raise Problem(RejectReason.EMPTY_TEXT, f"txt has no visible character ({len(fields['txt'])} in all)")
    return fields


def paired_fields(value: Any) -> dict[str, Any]:
    """The same of a record of processed output, whose keywords may be missing, and its pairs with their digest.

    An absent, null or NaN question or answer is an empty one. Raises Problem.
    """
    fields = paper_fields({**value, "keywords": value.get("keywords") or []} if isinstance(value, dict) else value)
    if value.get(PAIRS_KEY) is None:
        raise Problem(RejectReason.MISSING_KEY, f"{PAIRS_KEY} is missing")
    if not isinstance(value[PAIRS_KEY], list):
        raise Problem(RejectReason.WRONG_TYPE, f"{PAIRS_KEY} must be a list, got {type_name(value[PAIRS_KEY])}")
    pairs = [_pair(pair, i) for i, pair in enumerate(value[PAIRS_KEY])]
    return {**fields, "pairs": pairs, "digest": digest(pairs, fields["txt"])}


def _pair(value: Any, number: int) -> Pair:
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"pair {number} must be an object, got {type_name(value)}")
    texts = {}
    for key in ("Q", "A"):
        text = value.get(key)
        text = "" if text is None or text != text else text
        if not isinstance(text, str):
            raise Problem(RejectReason.WRONG_TYPE, f"{key} of pair {number} must be a string, got {type_name(text)}")
        if not encodable(text):
            raise Problem(RejectReason.UNDECODABLE, f"{key} of pair {number} is not valid Unicode")
        texts[key] = text
    return Pair(Q=texts["Q"], A=texts["A"])


def digest(pairs: list[Pair], txt: str = "") -> str:
    """Identifies what the scores of a paper depend on."""
    text = json.dumps([[pair["Q"], pair["A"]] for pair in pairs] + [txt])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def doi_of(value: Any) -> str | None:
    """The id of a bad record, as far as it has one."""
    doi = value.get("doi") if isinstance(value, dict) else None
    return doi.encode("utf-8", "replace").decode() if isinstance(doi, str) else None


def _keywords(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        raise Problem(RejectReason.WRONG_TYPE, f"keywords must be a list or a string, got {type_name(value)}")
    for keyword in value:
        if not isinstance(keyword, str):
            raise Problem(
                RejectReason.WRONG_TYPE,
                f"keywords must be strings, got {type_name(keyword)}: {str(keyword)[:80]}",
            )
    return [keyword.strip() for keyword in value if keyword.strip()]


def type_name(value: Any) -> str:
    """A JSON value's type in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number")


def encodable(text: str) -> bool:
    """Whether a text has no lone surrogate: it can be written as UTF-8."""
    return _SURROGATE.search(text) is None
