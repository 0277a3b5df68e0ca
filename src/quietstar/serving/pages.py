"""The web page at / and its files."""

from dataclasses import dataclass
from importlib import resources

from starlette.responses import Response

from quietstar.serving.faults import RequestError

KINDS = {".css": "text/css", ".js": "text/javascript"}
PAGE = "page.html"


@dataclass(slots=True)
class Pages:
    """Files of the page, read once: no path of a request is ever used as a path of a file."""

    page: bytes | None
    """None if the package does not include it"""
    files: dict[str, tuple[bytes, str]]
    """name -> content, media type"""

    @classmethod
    def load(cls) -> "Pages":
        """Load the files from the package."""
        folder = resources.files("quietstar") / "web"
        found = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()} if folder.is_dir() else {}
        files = {
            name: (content, kind)
            for name, content in found.items()
            for end, kind in KINDS.items()
            if name.endswith(end)
        }
        return cls(found.get(PAGE), files)

    def front(self) -> Response:
        """Return the page."""
        if self.page is None:
            return _file(b"quietstar serves /v1/completions and /v1/chat/completions here.\n", "text/plain")
        return _file(self.page, "text/html")

    def file(self, name: str) -> Response:
        """Return one of its files.

        Raises:
            RequestError: the file does not exist.
        """
        if name not in self.files:
            raise RequestError(404, "unknown file; see / for the page")
        return _file(*self.files[name])


def _file(content: bytes, kind: str) -> Response:
    return Response(content, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})
