"""The one place that opens HDF5 files. They come from strangers, and HDF5 can point anywhere: an external link, a virtual data set or
external raw storage takes bytes of another file of this machine, and 9 kB can announce billions of elements. None of it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aha.errors import UserError

LIMIT = 10_000_000  # elements of one field: 20 people's scores of five hours of video at 25 frames a second are 9 million
FIELDS_KEPT = 3000  # then the file is opened anew: the library keeps about 15 KB of every group it has seen


class H5File:
    """An open file; `what` names it in errors, `cure` says what to do about a bad one. Raises UserError from every method.

    Fields are named by group and name ("video_1/gtscore") and read one at a time.
    """

    def __init__(self, path: str | Path, what: str, cure: str = "it is cut off or damaged, download it again"):
        self.path, self.what, self.cure = Path(path), what, cure
        if not self.path.is_file():
            raise UserError(f"{what} {path} does not exist; datasets/README.md says where to get it.")
        self._open()

    def _open(self) -> None:
        with self.errors(f"{self.what} {self.path}"):
            self.file, self.seen = h5py.File(self.path, "r"), 0
        self.last_group: tuple[str, Any] = ("", self.file.id)  # path, open group

    def __enter__(self) -> H5File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @contextmanager
    def errors(self, where: str) -> Iterator[None]:
        """What the library raises on damaged files, as one sentence."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, MemoryError) as error:
            raise UserError(f"{where} cannot be read ({' '.join(str(error).split())}); {self.cure}.") from error

    def names(self) -> list[str]:
        """Names of what lies at the top, in the file's order."""
        with self.errors(f"{self.what} {self.path}"):
            return list(self.file)

    def numbers(self, name: str) -> np.ndarray | None:
        """A field of numbers as float64; None where there is none of this name."""
        if self.seen >= FIELDS_KEPT:
            self.file.close()
            self._open()
        self.seen += 1
        with self.errors(f"{self.path}: {name}"):
            field = self._field(name)
            return None if field is None else self._values(field, f"{self.path}: {name}", np.dtype(np.float64))

    def text(self, name: str) -> str | None:
        """A field of one text; None where there is none of this name."""
        with self.errors(f"{self.path}: {name}"):
            field = self._field(name)
            if field is None:
                return None
            self._check(field, f"{self.path}: {name}", 1 << 20)
            value = np.asarray(h5py.Dataset(field)[()]).ravel()[0]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def references(self, name: str) -> list[Any] | None:
        """A field of object references, as MATLAB's struct arrays and cells are; None where there is none of this name."""
        with self.errors(f"{self.path}: {name}"):
            field = self._field(name)
            return None if field is None else list(self._values(field, f"{self.path}: {name}", h5py.ref_dtype).ravel())

    def follow(self, reference: Any, where: str) -> np.ndarray:
        """The numbers (MATLAB: also the codes of characters) that an object reference points to, as float64."""
        with self.errors(where):
            field = h5py.h5r.dereference(reference, self.file.id)
            if not isinstance(field, h5py.h5d.DatasetID):
                raise UserError(f"{where} is no field of numbers; {self.cure}.")
            return self._values(field, where, np.dtype(np.float64))

    def _field(self, name: str) -> Any:
        """The data set of a path, or None. Raises UserError where a part of the path is a link and not the thing itself."""
        folder, _, last = name.rpartition("/")
        if folder != self.last_group[0]:  # fields of one group are asked for one after the other
            self.last_group = (folder, self._child(self.file.id, folder) if folder else self.file.id)
        field = self._child(self.last_group[1], last)
        return field if isinstance(field, h5py.h5d.DatasetID) else None

    def _child(self, parent: Any, name: str) -> Any:
        if not isinstance(parent, h5py.h5g.GroupID) or not parent.links.exists(name.encode()):
            return None
        if parent.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise UserError(f"{self.path}: {name} is a link, maybe into another file, which is not followed; {self.cure}.")
        return h5py.h5o.open(parent, name.encode())

    def _values(self, field: Any, where: str, kind: np.dtype) -> np.ndarray:
        self._check(field, where)
        values = np.empty(field.shape, dtype=kind)
        field.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values

    def _check(self, field: Any, where: str, largest_bytes: int = 16 * LIMIT) -> None:
        plan = field.get_create_plist()
        if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
            raise UserError(f"{where} takes its values from other files, which are not opened; {self.cure}.")
        if not 0 < math.prod(field.shape) <= LIMIT or math.prod(field.shape) * field.get_type().get_size() > largest_bytes:
            raise UserError(f"{where} has the shape {field.shape}, where 1 to {LIMIT:,} values are expected; {self.cure}.")
