"""The dashboard page: built files read once into memory, with the headers that keep them safe and fresh.

Names below /assets/ contain a hash of their content, so they may be kept for ever; index.html names them and
must be asked for again each time. No path of a request ever reaches the file system.
"""

from __future__ import annotations

import gzip
import mimetypes
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

PAGE_FOLDER = Path(__file__).parent / "page"
COMPRESS_BYTES_MIN = 1_000
_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]]{1,255}\Z")
_ASSETS = "/assets/"

# Beside nosniff, which every answer has.
SECURITY_HEADERS = {
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

NOT_BUILT = b"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>coffee-rt</title></head>
<body>
<h1>The dashboard page is not built</h1>
<p>Everything else works. <code>scripts/up</code> builds the page; or, in the source tree:</p>
<pre>python hatch_build.py</pre>
<p>then start this process again. An installed wheel always contains the page.</p>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, ready to be sent."""

    body: bytes
    compressed: bytes | None
    kind: str
    tag: str
    is_immutable: bool

    @property
    def cache_control(self) -> str:
        return "public, max-age=31536000, immutable" if self.is_immutable else "no-cache"


def load_page(folder: Path = PAGE_FOLDER) -> dict[str, PageFile]:
    """Files by URL path; "/" is index.html, or a page that says how to build it."""
    files = {}
    if (folder / "index.html").is_file():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                name = "/" + path.relative_to(folder).as_posix()
                files[name] = _page_file(name, path.read_bytes())
    index = files.get("/index.html") or _page_file("/index.html", NOT_BUILT)
    return {**files, "/": index, "/index.html": index}


def content_security_policy(host: str) -> str:
    """Everything from this server and nothing inline. Older browsers take 'self' for http only, so the
    socket's address is named too."""
    sockets = f" ws://{host} wss://{host}" if _HOST.match(host) else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        f"manifest-src 'self'; connect-src 'self'{sockets}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _page_file(name: str, body: bytes) -> PageFile:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if kind.startswith("text/") or kind == "application/javascript":
        kind += "; charset=utf-8"
    is_text = kind.startswith("text/") or "xml" in kind or "json" in kind or "javascript" in kind
    compressed = (
        gzip.compress(body, mtime=0) if is_text and len(body) > COMPRESS_BYTES_MIN else None
    )
    tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    return PageFile(body, compressed, kind, tag, name.startswith(_ASSETS))
