"""WebDataset shards as a pool: neighbouring members of a tar file that share a key are a sample."""

import gzip
import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundation.errors import CurationError, first_cause
from foundation.images import IMAGE_SUFFIXES, MOST_BYTES

MEMBERS = {"cls": "label", "txt": "text", "json": "json"}  # ending of a member -> column
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def _samples(shards: list[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """The samples of WebDataset shards: neighbouring members that share a key.

    ``shards`` carries size and time of change too, so that the cache notices a shard that was made again.
    """
    for name, _, _ in shards:
        try:
            with _stream(name) as stream, tarfile.open(fileobj=stream, mode="r|*") as shard:
                members = ((m, shard.extractfile(_checked(m))) for m in shard if m.isfile())
                parts = ((m.name, part.read()) for m, part in members if part is not None)
                for key, sample in itertools.groupby(parts, key=lambda part: _split_key(part[0])[0]):
                    yield _sample(key, sample)
                _check_end(shard)
                while stream.read(1 << 20):  # the checksum of a .gz comes at its end
                    pass
        except CurationError as error:
            raise CurationError(f"{name}: {error}") from error
        except Exception as error:  # of tarfile, and of gzip and its like below it
            raise CurationError(f"{name} is not a whole tar shard ({error}); get it again") from error


def _check_end(shard: tarfile.TarFile) -> None:
    """Refuse an archive with more than zeros after its last member: tarfile takes a broken header for the end.

    One that was cut between two members has no zeros there.
    """
    rest: Any = shard.fileobj
    block = rest.read(1 << 20)
    if not block:
        raise tarfile.ReadError("it ends without the zeros that end an archive")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError("a header in its middle is broken, or another archive follows")
        block = rest.read(1 << 20)


def _stream(name: str) -> Any:
    """The bytes of a shard; gzip expanded here, for tarfile compares no checksum."""
    with open(name, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(name, "rb") if packed else open(name, "rb")


def _checked(member: tarfile.TarInfo) -> tarfile.TarInfo:
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise CurationError(f"the name of member {member.name!r} is not UTF-8; rename it") from None
    if member.size > MOST_BYTES:
        raise CurationError(f"member {member.name} has {member.size / 1e9:.1f} GB, more than a picture or text needs")
    return member


def _split_key(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, end = base.partition(".")
    return folder + slash + stem, end.lower()


def _sample(key: str, parts: Iterator[tuple[str, bytes]]) -> dict[str, Any]:
    row: dict[str, Any] = {"key": key}
    for name, content in parts:
        end = _split_key(name)[1]
        column = "image" if f".{end}".endswith(IMAGE_SUFFIXES) else MEMBERS.get(end)
        if column is None:
            continue
        if column == "label" and not _is_utf8(content):  # two such labels would become one
            raise CurationError(f"sample {key} has a label that is not UTF-8 ({content[:40]!r}); convert it")
        if column in row:  # such as a mask beside its picture: the last one would win
            raise CurationError(f"sample {key} has two members for {column}, {name} is the second; leave one")
        row[column] = (
            {"bytes": content, "path": name} if column == "image" else content.decode(errors="replace").strip()
        )
    if WHOLE_NUMBER.fullmatch(row.get("label", "")):
        row["label"] = int(row["label"])
    return row


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rows(shards: list[tuple[str, int, int]], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Of all samples what the first one has.

    Raises:
        CurationError: a label of another type than that of the first, or a member that the first has no like of.
    """
    kind = first = None
    for sample in _samples(shards):
        first = first or sample["key"]
        label = sample.get("label")
        kind = type(label) if kind is None else kind
        if "label" in names and label is not None and type(label) is not kind:
            raise CurationError(f"sample {sample['key']} has the label {label!r}, the first one another type; mend it")
        new = sorted(sample.keys() - set(names))
        if new:  # the columns are those of the first: what it lacks would be dropped
            raise CurationError(
                f"sample {sample['key']} has a member for {new[0]}, the first ({first}) has none; add one"
            )
        yield {name: sample.get(name) for name in names}


def open_shards(files: list[Path]) -> Any:
    """The samples of whole shards as a `datasets.Dataset`, copied once to its cache; columns are those of the first.

    Raises:
        CurationError: no samples, a damaged shard, or samples that do not fit the first one.
    """
    from datasets import Dataset, Features, Image, Value

    shards = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    first = next(_samples(shards), None)
    if first is None:
        raise CurationError(f"{files[0]} holds no samples; a shard needs members such as 000001.jpg and 000001.cls")
    kinds = {str: Value("string"), int: Value("int64"), dict: Image()}
    features = Features({name: kinds[type(value)] for name, value in first.items()})

    try:
        return Dataset.from_generator(_rows, features=features, gen_kwargs={"shards": shards, "names": tuple(features)})
    except Exception as error:
        raise CurationError(first_cause(error)) from error
