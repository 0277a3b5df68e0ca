"""The web page at / and its files."""

from importlib import resources
from pathlib import PurePath

from starlette.responses import Response

from quietstar.serving.faults import RequestError

KINDS = {".css": "text/css", ".js": "text/javascript"}


class Pages:
    """The page and its files, read once: no path of a request is ever used as a path of a file."""

    def __init__(self) -> None:
        folder = resources.files("quietstar") / "web"
        self.page = (folder / "page.html").read_bytes()
        self.files = {each.name: each.read_bytes() for each in folder.iterdir() if each.name.endswith(tuple(KINDS))}

    def front(self) -> Response:
        """Return the page."""
        return _response(self.page, "text/html")

    def file(self, name: str) -> Response:
        """Return one of its files.

        Raises:
            RequestError: the file does not exist.
        """
        if name not in self.files:
            raise RequestError(404, "unknown file; see / for the page")
        return _response(self.files[name], KINDS[PurePath(name).suffix])


def _response(content: bytes, kind: str) -> Response:
    return Response(content, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})
