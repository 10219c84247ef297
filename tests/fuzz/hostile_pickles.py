"""Hostile pickles: what calls, claims, nests or repeats more than a checkpoint has any use for."""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import pickletools
import random
import struct
from pathlib import Path

from checkpoint_judge import Case, check
from checkpoint_writer import SIZES, archive_of, content_of, pickled, written
from fuzzing import Kind, Wrong
from made_checkpoints import random_state
from odd_tensors import operations_of


class HostilePickles(Kind):
    """Pickles that call, claim, nest or repeat more than a checkpoint has any use for."""

    def __init__(self, folder: Path):
        self.path, self.marker = folder / "case.pt", folder / "marker"
        size = SIZES["medium"]
        shape = (size["layers"], size["heads"], size["dim"])
        self.content = content_of(random_state(**size), *shape)
        self.operations = operations_of(pickled(self.content.top))
        register_extensions()

    def run(self, generator: random.Random) -> str:
        group = generator.choice([calls, calls, tricks, bombs, bombs, controls])
        self.doing = group.__name__
        snippet, must = group(self.marker, generator)
        data, place = self._with_snippet(snippet, generator)
        if group is controls:
            must = CONTROLS_MUST[place]
        elif must == "refuse" and place in ("dropped at once", "an entry"):
            # Beside the weights it is left alone, where the operation can be read at all.
            must = "either"
        case = Case(written(archive_of(self.content, data)), self.content.state, must)
        self.path.write_bytes(case.data)
        try:
            outcome = check(self.path, case)
        finally:
            if self.marker.exists():
                self.marker.unlink()
                raise Wrong("the payload was executed")
        return outcome

    def _with_snippet(self, snippet: bytes, generator: random.Random) -> tuple[bytes, str]:
        """The base's pickle with operations in it that leave one more value, and its place."""
        whole = b"".join(self.operations)
        place = generator.choice(list(CONTROLS_MUST))
        if place == "dropped at once":
            at = generator.randrange(1, len(self.operations))
            before, after = self.operations[:at], self.operations[at:]
            return b"".join([*before, snippet, b"0", *after]), place
        if place == "an entry":
            return whole[:-2] + unicode_op("extra") + snippet + whole[-2:], place
        if place == "a weight":
            model = pickled(self.content.model)
            rest = {key: value for key, value in self.content.top.items() if key != "model"}
            start = pickled(rest)[:-1]
            model = pickletools.optimize(model)[2:-1]
            model += unicode_op("extra") + snippet + b"s"
            return start + unicode_op("model") + model + b"s.", place
        return b"\x80\x02" + snippet + b".", place


# Where a snippet of a pickle is put, and what becomes of a harmless one there.
CONTROLS_MUST = {
    "dropped at once": "either",
    "an entry": "load",
    "a weight": "refuse",
    "everything": "refuse",
}


def unicode_op(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def value_ops(value: object) -> bytes:
    """Operations that push a plain value and touch no memo."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


EXTENSION = 241


def register_extensions() -> None:
    """So that an extension code of the file means a function that is known already."""
    with contextlib.suppress(ValueError):
        copyreg.add_extension("builtins", "open", EXTENSION)
        pickle.loads(pickle.dumps(open, protocol=2))


def payloads(marker: Path) -> list[tuple[str, str, tuple]]:
    """Calls that leave `marker` behind when they are executed."""
    path = str(marker)
    source = f"open({path!r}, 'w').close()"
    inner = pickle.dumps(_Call("builtins", "open", (path, "w")), protocol=2)
    return [
        ("os", "system", (f"touch {path}",)),
        ("posix", "system", (f"touch {path}",)),
        ("nt", "system", (f"touch {path}",)),
        ("os", "mkdir", (path,)),
        ("os", "popen", (f"touch {path}",)),
        ("subprocess", "check_output", (["touch", path],)),
        ("subprocess", "Popen", (["touch", path],)),
        ("builtins", "eval", (source,)),
        ("builtins", "exec", (source,)),
        ("__builtin__", "eval", (source,)),
        ("builtins", "open", (path, "w")),
        ("io", "open", (path, "w")),
        ("_io", "FileIO", (path, "w")),
        ("logging", "FileHandler", (path,)),
        ("zipfile", "ZipFile", (path, "w")),
        ("pathlib", "Path.touch", (path,)),
        ("shutil", "copyfile", ("/dev/null", path)),
        ("runpy", "_run_code", (source, {})),
        ("timeit", "timeit", (source,)),
        ("code", "interact", ()),
        ("pickle", "loads", (inner,)),
        ("_pickle", "loads", (inner,)),
        ("torch", "load", (path,)),
        ("torch.serialization", "load", (path,)),
        ("torch.storage", "_load_from_bytes", (inner,)),
        ("torch.hub", "load_state_dict_from_url", (f"file://{path}",)),
        ("torch._utils", "_rebuild_device_tensor_from_numpy", (1, 2, 3, 4)),
        ("torch._utils", "_rebuild_wrapper_subclass", (1, 2, 3, 4, 5, 6, 7)),
        ("torch._utils", "_rebuild_meta_tensor_no_storage", (1, (2,), (3,), False)),
        ("torch._tensor", "_rebuild_from_type_v2", (open, path, "w", ())),
        ("torch.jit", "load", (path,)),
        ("torch", "save", ({}, path)),
        ("numpy", "save", (path, [1])),
        ("numpy", "load", (path,)),
        ("functools", "partial", (open, path, "w")),
        ("operator", "attrgetter", ("x",)),
        ("builtins", "getattr", ("", "join")),
        ("builtins", "__import__", ("os",)),
        ("importlib", "import_module", ("os",)),
        ("ctypes", "CDLL", (path,)),
        ("_codecs", "encode", ("x", "latin1")),
        ("collections", "defaultdict", (list,)),
        ("collections", "Counter", ("abc",)),
        ("builtins", "set", ([1],)),
        ("builtins", "bytearray", (8,)),
        ("fractions", "Fraction", (1, 3)),
        ("types", "FunctionType", ()),
        ("__main__", "Settings", (1,)),
    ]  # fmt: skip


class _Call:
    """Pickles as a call of a function that is named and need not exist here."""

    def __init__(self, module: str, name: str, arguments: tuple):
        self.parts = module, name, arguments

    def __reduce__(self) -> tuple:
        module, name, arguments = self.parts
        return getattr(__import__(module), name), arguments


def calls(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """A call in any of the ways that a pickle can write it."""
    module, name, arguments = generator.choice(payloads(marker))
    return call_ops(module, name, arguments, generator), "refuse"


def call_ops(module: str, name: str, arguments: tuple, generator: random.Random) -> bytes:
    by_name = f"c{module}\n{name}\n".encode()
    short = b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in (module, name)) + b"\x93"
    from_memo = unicode_op(module) + b"r\x10\x27\x00\x000"
    from_memo += unicode_op(name) + b"r\x11\x27\x00\x000"
    from_memo += b"j\x10\x27\x00\x00j\x11\x27\x00\x00\x93"
    arguments_ops = value_ops(arguments)
    each = b"".join(map(value_ops, arguments))
    forms = [
        by_name + arguments_ops + b"R",
        short + arguments_ops + b"R",
        from_memo + arguments_ops + b"R",
        b"(" + by_name + each + b"o",
        b"(" + each + b"i" + f"{module}\n{name}\n".encode(),
        by_name + arguments_ops + b"}" + b"\x92",
        by_name + b"q\xf0" + b"0h\xf0" + arguments_ops + b"R",
        by_name + arguments_ops + b"R" + b"}b",
        b"\x82" + bytes([EXTENSION]) + arguments_ops + b"R",
        b"\x83" + struct.pack("<H", EXTENSION) + arguments_ops + b"R",
        b"\x84" + struct.pack("<I", EXTENSION) + arguments_ops + b"R",
        b"(" + b"\x82" + bytes([EXTENSION]) + each + b"o",
        b"(" + by_name + arguments_ops + b"R" + b"t",
        b"ccollections\nOrderedDict\n" + b"]" + by_name + arguments_ops + b"Ra\x85" + b"R",
        unicode_op("storage") + by_name + arguments_ops + b"R" + b"\x86Q",
    ]
    return generator.choice(forms)


def tricks(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """Objects that are made without a call, and then given a state that matters."""
    path = str(marker)
    state = value_ops({"__setstate__": 1, "x": path})
    slots = b"N" + state + b"\x86"
    storage = value_ops("storage") + b"ctorch\nFloatStorage\n" + value_ops("0") + value_ops("cpu")
    storage = b"(" + storage + b"K\x02tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    tensor += b"K\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)R"
    targets = [
        b"cos\nsystem\n", b"cbuiltins\nprint\n", b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n)R", tensor + b"tR",
        storage, b"}", b"]", b")", b"N", b"K\x05", b"c__main__\nSettings\n)\x81",
        b"c__main__\nSettings\n", b"ctorch.nn.parameter\nParameter\n)\x81",
        b"ctorch\nTensor\n)\x81",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n)R",
    ]  # fmt: skip
    states = [state, slots, b"}", b"N", b")", b"K\x01", storage]
    states += [value_ops((1, 2, 3, 4)), tensor + b"tR"]
    target, given = generator.choice(targets), generator.choice(states)
    made = [
        target + given + b"b",
        b"clogging\nFileHandler\n" + value_ops((path,)) + b"\x81" + given + b"b",
        b"c_io\nFileIO\n" + value_ops((path, "w")) + b"\x81",
        b"cos\n__dict__\n" + given + b"s",
        b"cposix\nenviron\n" + given + given + b"s",
        target + b"(" + given + given + b"u",
        target + given + b"a",
        target + b"(" + given + b"e",
        target + b"(" + given + b"\x90",
        tensor + given + b"tR",
        tensor + b"N" + given + b"tR",
        b"P" + path.encode() + b"\n",
        given + b"Q",
        b"(" + given + b"\x91",
        b"(" + given + given + b"d",
    ]
    return generator.choice(made), "either"


def bombs(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """A few bytes that ask for gigabytes or for hours."""
    n = generator.choice([22, 26, 28, 60, 300])
    twice = generator.choice([b"2\x86", b"q\xf0h\xf0\x86", b"q\xf0h\xf0\x86"])
    doubled = b")" + twice * n
    depth = generator.choice([1000, 30_000, 1_000_000])
    deep = b")" + b"\x85" * depth
    lengths = [1 << 20, 1 << 27, 1 << 28, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
    index = length4 = struct.pack("<I", generator.choice(lengths))
    length = struct.pack("<Q", generator.choice([*lengths, 1 << 33, 1 << 40, (1 << 63) - 1]))
    count = value_ops(generator.choice([1 << 20, 1 << 28, 1 << 31, 1 << 40, 1 << 62]))
    storage = b"(" + value_ops("storage") + b"ctorch\nFloatStorage\n"
    made = [
        doubled,
        b"}" + doubled + b"Ns",
        b"}(" + doubled + b"Nu",
        b"(" + doubled + b"Nd",
        b"\x8f(" + doubled + b"\x90",
        b"(" + doubled + b"\x91",
        b"ccollections\nOrderedDict\n]]" + doubled + b"aNaa\x85R",
        b"ctorch\ndevice\n" + doubled + b"\x85R",
        b"ctorch\nSize\n" + doubled + b"\x85R",
        storage + doubled + value_ops("cpu") + b"K\x02tQ",
        storage + value_ops("0") + doubled + b"K\x02tQ",
        storage + value_ops("0") + value_ops("cpu") + doubled + b"tQ",
        doubled + b"Q",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00" + doubled + doubled + b"\x89}tR",
        deep,
        b"}" + deep + b"Ns",
        b"]" * depth + b"a" * (depth - 1),
        b"}" * depth,
        b"(" * depth,
        b"(" * depth + b"t" * depth,
        b"N" * depth,
        b"Nr" + index,
        b"K\x01r" + index,
        b"\x8d" + length + b"abc",
        b"\x8e" + length + b"abc",
        b"\x96" + length + b"abc",
        b"\x95" + length + b"N",
        b"X" + length4 + b"abc",
        b"B" + length4 + b"abc",
        b"T" + length4 + b"abc",
        b"\x8b" + length4 + b"abc",
        b"\x8a\xff" + b"\x7f" * 255,
        b"I" + b"9" * 4000 + b"\n",
        b"L" + b"9" * 100_000 + b"L\n",
        b"F" + b"9" * 100_000 + b"\n",
        b"S'" + b"\\" * 100_001 + b"'\n",
        b"V" + b"\\u0041" * 10_000 + b"\n",
        b"\x80" + bytes([generator.randrange(256)]) + b"N",
        b"ctorch\nTensor\n" + count + b"\x85\x81",
        b"ctorch\nFloatTensor\n" + count + b"\x85\x81",
        b"ctorch.sparse\nFloatTensor\n)\x81",
        b"cbuiltins\nbytearray\n" + count + b"\x85\x81",
        b"ctorch.storage\nUntypedStorage\n" + count + b"\x85\x81",
        b"ctorch\nFloatStorage\n" + count + b"\x85\x81",
        b"ctorch.nn.parameter\nParameter\n" + count + b"\x85\x81",
        b"c" + b"a" * 1_000_000 + b"\nb\n",
        b"c\n\n",
        b"c\x1b[31m\n\xe2\x80\xae\n)R",
        b"ca\nb" + b"b" * 100_000 + b"\n)R",
        b"\x97",
        b"\x98",
        generator.randbytes(generator.randrange(1, 30)),
    ]
    return generator.choice(made), "either"


def controls(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """Harmless values: what is refused among these is refused for its place alone."""
    return value_ops(generator.choice([1, "x", None, 2.5, [1, 2], {"a": 1}, ()])), "either"
