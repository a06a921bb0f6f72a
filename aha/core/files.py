"""Files are written whole or not at all: into a temporary file beside the target, then renamed. Text is read in one way: UTF-8, with or
without a byte order mark, also gzipped; what cannot be read is one sentence."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aha.errors import UserError

LARGEST = 4 << 30  # bytes; the largest annotation file of all data sets is below 100 MB


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the target's folder (same suffix); rename it to `path` on success, delete it on failure. A link stays one:
    what it points to is replaced. Into a device or a pipe (/dev/null), which nothing may take the place of, the content is written.

    Raises UserError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    stream = is_stream(path)
    target = path if stream else Path(os.path.realpath(path))
    # the name is known before the file is there: whatever ends the command, it is taken away
    folder = Path(tempfile.gettempdir()) if stream else target.parent
    temporary = folder / f".{path.stem}.{secrets.token_hex(4)}{path.suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        if stream:
            with temporary.open("rb") as content, target.open("wb") as out:
                shutil.copyfileobj(content, out)
        else:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another output path or free the disk.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_stream(path: str | os.PathLike) -> bool:
    """Whether it is a device or a pipe, not a file."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def by_number(names: Iterable[str]) -> list[str]:
    """video_2 before video_10, which text order puts first."""
    return sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically. What UTF-8 cannot hold (file names in another coding, half an emoji) becomes "?"."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as JSON to `path` atomically. NaN or infinity raise ValueError: contracts write them as null."""
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


UNFINISHED = ".unfinished"  # lies in a result folder while it is being written


def check_output(folder: str | os.PathLike, overwrite: bool, flag: str = "give --overwrite") -> Path:
    """The result folder that `open_output` will make. Raises UserError where it holds anything and `overwrite` is off (flag: what to do
    then), but for what an earlier run left unfinished, and where it cannot be made."""
    folder = Path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output {folder} is a file; name a folder.")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite and not (folder / UNFINISHED).is_file():
            raise UserError(f"output folder {folder} exists and is not empty; choose another or {flag}.")
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made ({error.strerror}); choose another.") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"output folder {folder} cannot be made ({there} cannot be written); choose another.")
    return folder


def check_file(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()) -> None:
    """What `atomic_path` will say of an output file, said before the work. Raises UserError where it is a folder or cannot be written, and
    where it is one of the `inputs`, the files that the command reads: they would be lost."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"output {path} is a folder; name a file.")
    if is_stream(path):
        return
    for one in inputs:
        if os.path.isfile(path) and os.path.isfile(one) and os.path.samefile(path, one):
            raise UserError(f"output {path} is a file that this command reads ({one}), which would be lost; name another output.")
    check_output(Path(os.path.realpath(path)).parent, overwrite=True)


def open_output(folder: str | os.PathLike, overwrite: bool, flag: str = "give --overwrite") -> Path:
    """The result folder to write into, made where it is not there, and marked as unfinished until `finish_output`: one that an earlier run
    left so is taken up again. Raises UserError as `check_output`."""
    folder = check_output(folder, overwrite, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made ({error.strerror}); choose another.") from error
    return folder


def finish_output(folder: Path) -> None:
    """All is written."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def read_bytes(path: str | os.PathLike, what: str) -> bytes:
    """A file's bytes, unpacked where it is gzipped, without the byte order mark that spreadsheets put in front of UTF-8. `what` names it in
    errors. Raises UserError if it is missing, damaged, or more than LARGEST unpacked."""
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist; check the path (datasets/README.md says where data sets come from).") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{what} {path} cannot be read ({error}); check the file, it may be damaged or cut off.") from error
    if len(data) > LARGEST:
        raise UserError(f"{what} {path} unpacks to more than {LARGEST >> 30} GiB; it is no such file.")
    return data.removeprefix(codecs.BOM_UTF8)


def read_text(path: str | os.PathLike, what: str) -> str:
    """A file's text (UTF-8, with or without a byte order mark, also gzipped). Raises UserError."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} cannot be read as UTF-8 text ({error.reason}); {cure_of(path)}.") from error


def cure_of(path: str | os.PathLike) -> str:
    """What to do about a file that is no UTF-8 text, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "it is UTF-16, as some spreadsheets and PowerShell write; save it as UTF-8"
    packed = {
        b"\x1f\x8b": "gzipped",
        b"PK": "a zip archive",
        b"BZ": "packed by bzip2",
        b"\xfd7": "packed by xz",
        b"(\xb5": "packed by zstd",
    }
    return f"it is {packed[head[:2]]}; unpack it first" if head[:2] in packed else "check that this is the right file"


def read_json(path: str | os.PathLike, what: str, twice: Callable[[str], str] | None = None) -> Any:
    """Read a JSON file; `what` names it in the error (e.g. "dataset config"). Raises UserError if missing or malformed, and for an object
    that holds a name twice, of which JSON would take the last; twice: its sentence of the name."""
    where = f"{what} {path}"

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            name = next(name for name in names if names.count(name) > 1)
            raise UserError(twice(name) if twice else f"{where} holds {name[:80]!r} twice in one object; keep one of the two.")
        return found

    return parse_json(read_text(path, what), where, once)


def parse_json(text: str, where: str, of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. Raises UserError if it is malformed."""
    try:
        return json.loads(text, object_pairs_hook=of_pairs)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where} is not valid JSON ({place}: {error.msg}); repair or rewrite it.") from error
    except (RecursionError, ValueError) as error:  # nested a thousand deep, or a number of thousands of digits
        raise UserError(f"{where} is no usable JSON ({error}); repair or rewrite it.") from error


def read_csv(path: str | os.PathLike, columns: tuple[str, ...], what: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with a header that has at least `columns`. Raises UserError for a missing, empty or cut-off file."""
    csv.field_size_limit(1 << 24)  # a row holds the scores of a whole video
    reader = csv.DictReader(io.StringIO(read_text(path, what), newline=""), strict=True)
    try:
        if reader.fieldnames is None:
            raise UserError(f"{what} {path} is empty; download it again.")
        missing = [column for column in columns if column not in reader.fieldnames]
        if missing:
            between = next((f", and {name}s between them where commas belong" for mark, name in ((";", "semicolon"), ("\t", "tab"))
                            if mark in reader.fieldnames[0]), "")  # fmt: skip
            raise UserError(f"{what} {path} has no column {', '.join(missing)}{between}; its header must have {', '.join(columns)}.")
        if twice := [name for name in reader.fieldnames if reader.fieldnames.count(name) > 1]:
            raise UserError(f"{what} {path} has the column {twice[0]!r:.40} twice; remove one of the two.")
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{what} {path} cannot be read ({error}); it is damaged or no CSV, download it again.") from error
    for line, row in rows:
        if None in row.values() or None in row:
            raise UserError(f"{path}:{line}: the row has not as many columns as the header; it is cut off, download the file again.")
    return rows
