"""What a shared library exports and needs, read from its file: ELF, Mach-O and PE, of whatever machine."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MACHINES = {
    "EM_X86_64": "x86_64", "EM_AARCH64": "aarch64",  # ELF
    0x01000007: "x86_64", 0x0100000C: "aarch64",  # Mach-O
    0x8664: "x86_64",  # PE
}  # fmt: skip


@dataclass(frozen=True)
class Binary:
    """A shared library. Symbols are as C has them, without Mach-O's underscore."""

    machine: str
    exports: frozenset[str]
    needed: frozenset[str]  # libraries, by the names that are looked for
    undefined: frozenset[str]  # functions and data that those must have
    oldest: str  # the oldest system that it runs on: glibc's version, macOS's; empty where it does not say
    signed: bool  # by a signature, ad hoc or not, whose hashes are right


def read(path: Path) -> Binary:
    """Read a library of any of the three kinds.

    Raises:
        ValueError: It is of none of them.
    """
    magic = path.read_bytes()[:4]
    if magic == b"\x7fELF":
        return _elf(path)
    if magic == b"\xcf\xfa\xed\xfe":
        return _macho(path)
    if magic[:2] == b"MZ":
        return _pe(path)
    raise ValueError(f"{path}: neither ELF nor 64-bit Mach-O nor PE")


# --- ELF ---


def _elf(path: Path) -> Binary:
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        elf = ELFFile(file)
        symbols = [s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]
        undefined = frozenset(s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF")
        needed = frozenset(t.needed for t in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED"))
        versions = elf.get_section_by_name(".gnu.version_r")
        names = [aux.name for _, group in versions.iter_versions() for aux in group] if versions else []
    glibc = [name.removeprefix("GLIBC_") for name in names if name.startswith("GLIBC_")]
    oldest = max(glibc, key=lambda v: [int(part) for part in v.split(".")], default="")
    exports = frozenset(s.name for s in symbols) - undefined
    return Binary(MACHINES.get(elf["e_machine"], "?"), exports, needed, undefined, oldest, False)


# --- Mach-O ---


def _macho(path: Path) -> Binary:
    from macholib.mach_o import (
        LC_BUILD_VERSION,
        LC_CODE_SIGNATURE,
        LC_DYLD_EXPORTS_TRIE,
        LC_DYLD_INFO_ONLY,
        LC_LOAD_DYLIB,
        N_EXT,
        N_TYPE,
        N_UNDF,
    )
    from macholib.MachO import MachO
    from macholib.SymbolTable import SymbolTable

    image, data = MachO(str(path)), path.read_bytes()
    (header,) = image.headers
    exports, needed, oldest, signed = frozenset[str](), set[str](), "", False
    for load, command, rest in header.commands:
        if load.cmd == LC_LOAD_DYLIB:
            needed.add(rest.rstrip(b"\0").decode())
        elif load.cmd == LC_BUILD_VERSION:
            oldest = f"{command.minos >> 16}.{command.minos >> 8 & 0xFF}"
        elif load.cmd == LC_DYLD_INFO_ONLY:
            exports = frozenset(_trie(data[command.export_off :][: command.export_size]))
        elif load.cmd == LC_DYLD_EXPORTS_TRIE:
            exports = frozenset(_trie(data[command.dataoff :][: command.datasize]))
        elif load.cmd == LC_CODE_SIGNATURE:
            signed = _signature_is_right(data, command.dataoff)
    undefined = frozenset(
        name.decode()
        for entry, name in SymbolTable(image, header).nlists
        if entry.n_type & N_EXT and entry.n_type & N_TYPE == N_UNDF
    )
    machine = MACHINES.get(header.header.cputype, "?")
    return Binary(machine, _plain(exports), frozenset(needed), _plain(undefined), oldest, signed)


def _plain(symbols: frozenset[str]) -> frozenset[str]:
    return frozenset(name.removeprefix("_") for name in symbols)


def _trie(data: bytes, offset: int = 0, prefix: str = "") -> Iterator[str]:
    """The symbols of an export trie: nodes with the symbol's size, then edges with a text and a node."""
    if not data:
        return
    size, at = _uleb(data, offset)
    if size:
        yield prefix
    at += size
    edges = data[at]
    at += 1
    for _ in range(edges):
        end = data.index(0, at)
        child, after = _uleb(data, end + 1)
        yield from _trie(data, child, prefix + data[at:end].decode())
        at = after


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of 7 bits a byte, least first, and the offset after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _signature_is_right(data: bytes, offset: int) -> bool:
    """Whether the code directory of a signature has the SHA-256 of every page before it, as Apple's own CPUs
    demand. Layouts: cs_blobs.h of the XNU kernel."""
    magic, _, count = struct.unpack_from(">III", data, offset)
    blobs = [struct.unpack_from(">II", data, offset + 12 + 8 * i)[1] for i in range(count)]
    directories = [offset + b for b in blobs if data[offset + b :][:4] == b"\xfa\xde\x0c\x02"]
    if magic != 0xFADE0CC0 or not directories:
        return False
    (at,) = directories
    hashes, _, _, pages, limit = struct.unpack_from(">IIIII", data, at + 16)
    size, kind, _, log = struct.unpack_from("BBBB", data, at + 36)
    page = 1 << log
    wanted = [hashlib.sha256(data[i : min(i + page, limit)]).digest() for i in range(0, limit, page)]
    found = [data[at + hashes + size * i :][:size] for i in range(pages)]
    return kind == 2 and limit == offset and found == wanted


# --- PE ---


def _pe(path: Path) -> Binary:
    import pefile

    with pefile.PE(str(path)) as image:
        imports = getattr(image, "DIRECTORY_ENTRY_IMPORT", [])
        needed = frozenset(entry.dll.decode().lower() for entry in imports)
        undefined = frozenset(s.name.decode() for entry in imports for s in entry.imports if s.name)
        exports = frozenset(s.name.decode() for s in image.DIRECTORY_ENTRY_EXPORT.symbols if s.name)
        machine = MACHINES.get(image.FILE_HEADER.Machine, "?")
    return Binary(machine, exports, needed, undefined, "", False)
