"""Damage of bytes, and lies of the zip."""

from __future__ import annotations

import random
import struct
import zipfile
from dataclasses import replace

from checkpoint_judge import Base, Case
from checkpoint_writer import (
    CENTRAL,
    END,
    LOCAL,
    ROOT,
    Archive,
    Entry,
    bytes_of,
    fields_of,
    pickled,
    written,
)


def sound(base: Base, generator: random.Random) -> Case:
    return Case(base.data, base.state, "load")


def flipped_bits(base: Base, generator: random.Random) -> Case:
    data = bytearray(base.data)
    for _ in range(generator.choice([1, 1, 1, 2, 5, 50])):
        data[_place(data, generator)] ^= 1 << generator.randrange(8)
    return Case(bytes(data), base.state)


def other_bytes(base: Base, generator: random.Random) -> Case:
    data = bytearray(base.data)
    for _ in range(generator.choice([1, 1, 2, 5])):
        at, length = _place(data, generator), generator.choice([1, 2, 4, 8, 64, 1000])
        kind = generator.randrange(4)
        if kind == 0:
            new = generator.randbytes(length)
        elif kind == 1:
            new = generator.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
        elif kind == 2:
            source = generator.randrange(len(data))
            new = bytes(data[source : source + length])
        else:
            new = generator.choice([b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"])
        data[at : at + len(new)] = new
    return Case(bytes(data), base.state)


def cut_short(base: Base, generator: random.Random) -> Case:
    if generator.random() < 0.3:
        keep = len(base.data) - generator.randrange(1, 100)
    else:
        keep = generator.randrange(len(base.data))
    return Case(base.data[:keep], base.state, "refuse")


def lost_or_added_bytes(base: Base, generator: random.Random) -> Case:
    data, at = base.data, _place(base.data, generator)
    length = generator.choice([1, 1, 4, 64, 4096])
    if generator.random() < 0.5:
        return Case(data[:at] + data[at + length :], base.state)
    return Case(data[:at] + generator.randbytes(length) + data[at:], base.state)


def _place(data: bytes | bytearray, generator: random.Random) -> int:
    """Mostly in the pickle, the directory and the headers, where most can go wrong."""
    region = generator.randrange(4)
    if region == 0:
        return generator.randrange(len(data))
    if region == 1:
        return generator.randrange(min(len(data), 9000))
    if region == 2:
        return len(data) - 1 - generator.randrange(min(len(data), 6000))
    signature = generator.choice([b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"])
    starts = [0]
    while (found := data.find(signature, starts[-1] + 1)) >= 0:
        starts.append(found)
    return min(generator.choice(starts) + generator.randrange(46), len(data) - 1)


ODD_NUMBERS = [0, 1, 2, 63, 64, 255, 256, 0x7FFF, 0xFFFF]
ODD_LONG_NUMBERS = [*ODD_NUMBERS, 1 << 20, 1 << 30, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
ODD_HUGE_NUMBERS = [*ODD_LONG_NUMBERS, 1 << 33, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def lying_header(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    for _ in range(generator.choice([1, 1, 2])):
        where = generator.choice(["local", "central", "central", "end"])
        if where == "end":
            name = generator.choice(END)
            value = generator.choice(ODD_NUMBERS if END.index(name) < 4 else ODD_LONG_NUMBERS)
            archive = replace(archive, end={**archive.end, name: value})
            continue
        index = _any_entry(archive, generator)
        name = generator.choice(LOCAL if where == "local" else CENTRAL)
        long = name in ("crc", "packed", "size", "attributes", "offset")
        value = generator.choice(ODD_LONG_NUMBERS if long else ODD_NUMBERS)
        if name in ("packed", "size", "offset") and generator.random() < 0.5:
            value = max(0, len(archive.entries[index].data) + generator.choice([-4, -1, 1, 4, 64]))
        old = getattr(archive.entries[index], where)
        archive = archive.with_entry(index, **{where: {**old, name: value}})
    return Case(written(archive), base.state)


def _any_entry(archive: Archive, generator: random.Random) -> int:
    return 0 if generator.random() < 0.3 else generator.randrange(len(archive.entries))


ODD_NAMES = [
    b"", b"/", b"archive", b"archive/", b"/archive/data.pkl", b"archive//data.pkl", b"../data.pkl",
    b"archive/data.pkl\0", b"archive/data/0\0x", b"ARCHIVE/DATA.PKL", b"archive/DATA/0",
    b"Archive/data/0", b"archive/data/00", b"archive\\data.pkl", b"other/data.pkl",
    b"archive/data.pkl/", b"\xff\xfe", b"\xe0\xa4\xb9/data.pkl", b"a" * 60000,
    b"archive/constants.pkl", b"constants.pkl", b"archive/code/x.py", b"archive/byteorder",
    b"archive/.format_version", b"archive/\nx", b"\x1b[31m/data.pkl", b"archive/data/1",
]  # fmt: skip


def renamed_member(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    index = _any_entry(archive, generator)
    name = generator.choice(ODD_NAMES)
    where = generator.choice(["both", "local", "central"])
    if where == "both":
        archive = archive.with_entry(index, name=name)
    else:
        archive = archive.with_entry(index, **{where: {"name": name}})
    return Case(written(archive), base.state)


def extra_member(base: Base, generator: random.Random) -> Case:
    """One more member: a double, one of the same name in other letters, or a strange one."""
    archive, state = base.archive, base.state
    decoys = {
        "data.pkl": pickled(base.content.top | {"model": {}}),
        "data/0": bytes_of(base.state["embed.weight"] + 1),
        "byteorder": b"big",
        ".format_version": b"9" * 30,
        ".storage_alignment": generator.choice([b"1", b"-64", b"x", b"9" * 5000, b"0"]),
    }
    name, data = generator.choice(list(decoys.items()))
    full_name = (ROOT + name).encode()
    odd = generator.choice([full_name, full_name.upper(), full_name.title()] + ODD_NAMES[1:])
    entry = Entry(odd, data, shown=generator.random() < 0.9)
    at = generator.choice([0, 1, len(archive.entries)])
    entries = (*archive.entries[:at], entry, *archive.entries[at:])
    return Case(written(replace(archive, entries=entries)), state)


def swapped_decoy(base: Base, generator: random.Random) -> Case:
    """Members that another reader might take for the real ones, with other weights in them."""
    archive, content = base.archive, base.content
    size = content.model["embed.weight"].size
    names = [name for name, spec in content.model.items() if spec.size == size]
    one, two = generator.sample(names, 2)
    swapped = content.model | {one: content.model[two], two: content.model[one]}
    decoy = pickled(content.top | {"model": swapped})
    kind = generator.randrange(4)
    data_pkl = archive.index(ROOT + "data.pkl")
    if kind == 0:
        letters = "".join(generator.choice([c.upper(), c]) for c in "archive/data.pkl")
        entry = Entry(letters.encode(), decoy)
    elif kind == 1:
        key = content.model[one].storage.key
        letters = generator.choice([f"ARCHIVE/DATA/{key}", f"archive/Data/{key}"])
        entry = Entry(letters.encode(), content.storages[content.model[two].storage.key])
    elif kind == 2:
        entry = Entry(b"archive/data.pkl", decoy, shown=False)
    else:
        # The directory says where the first member is; what is read in order meets another.
        entry = Entry(b"archive/data.pkl", decoy, central={"name": b"archive/old"})
    at = generator.choice([data_pkl, data_pkl + 1, len(archive.entries)])
    entries = (*archive.entries[:at], entry, *archive.entries[at:])
    return Case(written(replace(archive, entries=entries)), base.state)


def shuffled_members(base: Base, generator: random.Random) -> Case:
    entries = list(base.archive.entries)
    generator.shuffle(entries)
    return Case(written(replace(base.archive, entries=tuple(entries))), base.state, "load")


def missing_member(base: Base, generator: random.Random) -> Case:
    entries = list(base.archive.entries)
    lost = entries.pop(_any_entry(base.archive, generator)).name.decode().removeprefix(ROOT)
    needed = lost == "data.pkl" or (lost.startswith("data/") and int(lost[5:]) < len(base.state))
    must = "refuse" if needed else "either"
    return Case(written(replace(base.archive, entries=tuple(entries))), base.state, must)


def around_the_zip(base: Base, generator: random.Random) -> Case:
    """Bytes before, behind and inside of the zip."""
    archive, kind = base.archive, generator.randrange(7)
    some = generator.choice([b"\0" * 64, b"#!/bin/sh\n", base.data, generator.randbytes(4096)])
    if kind == 0:
        archive = replace(archive, prefix=some)
    elif kind == 1:
        return Case(some + written(archive), base.state)
    elif kind == 2:
        archive = replace(archive, trailing=some)
    elif kind == 3:
        archive = replace(archive, comment=some[: generator.choice([1, 5, 4096, 60000])])
    elif kind == 4:
        archive = replace(archive, hidden_directory=some)
    elif kind == 5:
        inner = Entry(b"archive/inner.zip", base.data)
        archive = replace(archive, entries=(*archive.entries, inner))
    else:
        archive = replace(archive, comment=base.data[-60000:])
    return Case(written(archive), base.state)


def zip64_records(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    fields = ["count", "size", "offset", "locator"]
    lies = {generator.choice(fields): generator.choice(ODD_HUGE_NUMBERS)}
    archive = replace(archive, zip64=lies if generator.random() < 0.7 else {})
    if generator.random() < 0.7:
        full = {"directory_offset": 0xFFFFFFFF, "directory_size": 0xFFFFFFFF, "count": 0xFFFF}
        chosen = {name: value for name, value in full.items() if generator.random() < 0.6}
        archive = replace(archive, end=chosen)
    if generator.random() < 0.5:
        index = _any_entry(archive, generator)
        numbers = [generator.choice(ODD_HUGE_NUMBERS) for _ in range(generator.randrange(4))]
        extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
        extra = generator.choice([extra, extra[:-3], struct.pack("<2H", 1, 9999)])
        full = {name: 0xFFFFFFFF for name in ("size", "packed", "offset")}
        chosen = {name: value for name, value in full.items() if generator.random() < 0.6}
        archive = archive.with_entry(index, central={**chosen, "extra": extra})
    return Case(written(archive), base.state)


def compressed_member(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    index = _any_entry(archive, generator)
    archive = archive.with_entry(index, method=zipfile.ZIP_DEFLATED)
    if generator.random() < 0.5:
        archive = archive.with_entry(index, data=bytes(1 << 25))
    lies = generator.choice([{}, {"method": 0}, {"size": 100}, {"size": 0xFFFFFFFE}])
    archive = archive.with_entry(index, central=lies)
    must = "either" if "method" in lies else "refuse"
    return Case(written(archive), base.state, must)


def big_endian(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    order = generator.choice([b"big", b"BIG", b"little\n", b"", b"middle", b"l" * 100])
    archive = archive.with_entry(archive.index(ROOT + "byteorder"), data=order)
    return Case(written(archive), base.state, "refuse")


def overlapping_members(base: Base, generator: random.Random) -> Case:
    """Many members in the directory that are one in the file."""
    archive = base.archive
    first = next(i for i, entry in enumerate(archive.entries) if entry.name.endswith(b"data/0"))
    start = written(archive).index(archive.entries[first].name) - 30
    index = _any_entry(archive, generator)
    fields = fields_of(archive.entries[first])
    same = {"offset": start, **({} if generator.random() < 0.5 else fields)}
    archive = archive.with_entry(index, central=same)
    return Case(written(archive), base.state)
