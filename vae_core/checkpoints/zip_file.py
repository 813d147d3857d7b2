"""The zip archives that torch writes: entries stored one after another, found through the directory at the end.

Other programs read a zip from its beginning, or more leniently, so that one file can be two archives. Here the two
descriptions that a zip has of each entry must agree, entries may not overlap, and nothing may be before
the first one or after the directory.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..regular_files import open_regular

_END = struct.Struct("<4s4H2LH")  # end of the directory
_LOCATOR = struct.Struct("<4sLQL")  # of zip64's end
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX16 = 0xFFFF
_MAX32 = 0xFFFFFFFF
MAX_ENTRIES = 100_000
MAX_NAME = 1_000  # bytes
MAX_DIRECTORY = 16 << 20  # bytes; a hundred thousand tensors take a half
_PIECE = 1 << 20
ENCRYPTED = 0x1 | 0x40 | 0x2000
STORED = 0


class ZipError(ValueError):
    """An archive that is damaged, or not as torch writes them."""


class Entry(NamedTuple):
    """An entry of an archive: `start` is the first byte of its data in the file."""

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int
    start: int

    @property
    def is_stored(self) -> bool:
        return self.method == STORED and self.packed == self.size


def list_entries(path: Path) -> dict[str, Entry]:
    """The entries of an archive by name.

    Raises:
        ZipError: the archive is damaged, is encrypted, or has more than one meaning.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        count, directory, length, end = _find_directory(file, size)
        if count > MAX_ENTRIES:
            raise ZipError(f"it has {count} entries")
        if directory + length != end:
            raise ZipError("its directory is not where it says, or something is between it and its end")
        if length > MAX_DIRECTORY:
            raise ZipError(f"its directory has {length} bytes")
        file.seek(directory)
        raw = file.read(length)
        entries: dict[str, Entry] = {}
        at = 0
        for _ in range(count):
            entry, at = _central_entry(raw, at)
            if entry.name in entries:
                raise ZipError(f"it has {entry.name[:80]!r} twice")
            entries[entry.name] = _with_start(file, entry, directory)
        if at != len(raw):
            raise ZipError("its directory is longer than its entries")
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < end or (end == 0 and entry.header != 0):
            raise ZipError(f"{entry.name[:80]!r} overlaps another entry, or something is before the first one")
        end = entry.start + entry.packed
    return entries


def check_entry(file: BinaryIO, entry: Entry) -> None:
    """Read a stored entry once, a piece at a time. Raises ZipError if its bytes are not those that were written."""
    file.seek(entry.start)
    left = entry.size
    crc = 0
    while left and (piece := file.read(min(left, _PIECE))):
        left = left - len(piece)
        crc = zlib.crc32(piece, crc)
    if left or (entry.crc and crc != entry.crc):  # torch can leave the sum out: 0
        raise ZipError(f"{entry.name[:80]!r} does not have the bytes that were written")


def read_entry(file: BinaryIO, entry: Entry) -> bytes:
    """The bytes of a small stored entry. Raises ZipError if they are not those that were written."""
    check_entry(file, entry)
    file.seek(entry.start)
    return file.read(entry.size)


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """(number of entries, first byte of the directory, its length, first byte after it)."""
    if size < _END.size:
        raise ZipError("it is too short")
    file.seek(size - _END.size)
    magic, disk, first_disk, here, count, length, start, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise ZipError("its last bytes are not the end of an archive without a comment")
    if disk or first_disk or here != count:
        raise ZipError("it is one of several parts")
    end = size - _END.size
    locator_at = end - _LOCATOR.size
    if locator_at >= 0:
        file.seek(locator_at)
        locator_magic, _, end64, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if locator_magic == b"PK\x06\x07":
            if end64 + _END64.size != locator_at:
                raise ZipError("its zip64 end is not where it says")
            file.seek(end64)
            fields = _END64.unpack(file.read(_END64.size))
            count64, length64, start64 = fields[7:]
            agree = count in (count64, _MAX16) and length in (length64, _MAX32) and start in (start64, _MAX32)
            if fields[0] != b"PK\x06\x06" or fields[6] != count64 or not agree:
                raise ZipError("its two ends do not agree")
            return count64, start64, length64, end64
    if count == _MAX16 or _MAX32 in (length, start):
        raise ZipError("its zip64 end is missing")
    return count, start, length, end


def _central_entry(raw: bytes, at: int) -> tuple[Entry, int]:
    """The entry that the directory lists at a byte, and where the next one is; `start` is not known yet."""
    if at + _CENTRAL.size > len(raw):
        raise ZipError("its directory ends too early")
    magic, _, _, flags, method, _, _, crc, packed, size, n, m, k, disk, _, _, header = _CENTRAL.unpack_from(raw, at)
    end = at + _CENTRAL.size + n + m + k
    if magic != b"PK\x01\x02" or end > len(raw) or n > MAX_NAME:
        raise ZipError("its directory is damaged")
    name = _name(raw[at + _CENTRAL.size : at + _CENTRAL.size + n])
    extra = raw[at + _CENTRAL.size + n : at + _CENTRAL.size + n + m]
    size, packed, header = _zip64(extra, size, packed, header)
    if flags & ENCRYPTED or disk:
        raise ZipError(f"{name[:80]!r} is encrypted or elsewhere")
    return Entry(name, method, flags, crc, packed, size, header, 0), end


def _zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers with those that are in the zip64 field instead, which has them in this order."""
    numbers = [size, packed, header]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            wanted = [i for i in range(3) if numbers[i] == _MAX32]
            if len(field) < 8 * len(wanted):
                raise ZipError("a zip64 field is too short")
            for place, i in enumerate(wanted):
                numbers[i] = struct.unpack_from("<Q", field, 8 * place)[0]
            break
        at += 4 + length
    if _MAX32 in numbers:
        raise ZipError("a size is missing")
    return numbers[0], numbers[1], numbers[2]


def _name(raw: bytes) -> str:
    """The name of an entry, which must be a path below the archive's own folder."""
    name = raw.decode("utf-8", errors="surrogateescape")
    outside = name.startswith("/") or name[1:2] == ":" or ".." in name.split("/")
    if not name or outside or "\\" in name or "\0" in name:
        raise ZipError(f"{name[:80]!r} is not the name of an entry that torch would write")
    return name


def _with_start(file: BinaryIO, entry: Entry, directory: int) -> Entry:
    """The entry with the place of its data, which its local header says; both descriptions must agree."""
    file.seek(entry.header)
    raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise ZipError(f"{entry.name[:80]!r} is not where the directory says")
    _, _, flags, method, _, _, _, _, _, n, m = _LOCAL.unpack(raw)
    name = file.read(n)
    if _name(name) != entry.name or method != entry.method or flags & ~8 != entry.flags & ~8:
        raise ZipError(f"{entry.name[:80]!r} is described in two ways")
    start = entry.header + _LOCAL.size + n + m
    if start + entry.packed > directory:
        raise ZipError(f"{entry.name[:80]!r} reaches into the directory")
    return entry._replace(start=start)
