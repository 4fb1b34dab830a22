"""The few words of WebDAV (RFC 4918) that sccache needs. Pure."""

from email.utils import formatdate
from html import escape
from typing import Final

MEDIA_TYPE: Final = "application/xml; charset=utf-8"


def multistatus(href: str, *, size_bytes: int | None, modified_s: float) -> bytes:
    """What PROPFIND answers for one path; ``size_bytes`` None says that it is a collection."""
    kind = "<D:resourcetype><D:collection/></D:resourcetype>" if size_bytes is None else "<D:resourcetype/>"
    length = "" if size_bytes is None else f"<D:getcontentlength>{size_bytes}</D:getcontentlength>"
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<D:multistatus xmlns:D="DAV:"><D:response>'
        f"<D:href>{escape(href)}</D:href>"
        f"<D:propstat><D:prop>{kind}{length}"
        f"<D:getlastmodified>{http_date(modified_s)}</D:getlastmodified>"
        "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
        "</D:response></D:multistatus>"
    ).encode()


def http_date(instant_s: float) -> str:
    """An instant as HTTP writes it."""
    return formatdate(instant_s, usegmt=True)
