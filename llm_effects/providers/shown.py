"""How OpenAI's protocols are shown a picture or a document: inside a URL, or, where it is text, as text."""

from base64 import b64encode
from typing import Final

from llm_effects.messages import Document, Image, Part, Text

_ENDINGS: Final = {"application/pdf": ".pdf"}


def data_url(part: Image | Document) -> str:
    """Give its URL, or all of it inside of one.

    >>> data_url(Image(b"GIF89a"))
    'data:image/gif;base64,R0lGODlh'
    """
    return part.url or f"data:{part.media_type};base64,{b64encode(part.data or b'').decode()}"


def file_name(document: Document) -> str:
    """Name a document, with the ending by which its kind is known there.

    >>> file_name(Document(b"%PDF-1.7", title="Report"))
    'Report.pdf'
    """
    name, ending = document.title or "document", _ENDINGS.get(document.media_type or "", "")
    return name if name.lower().endswith(ending) else name + ending


def read_out(part: Part) -> Part:
    r"""Put the text of a plain document in its place, below its title; any other part stays as it is.

    >>> read_out(Document(b"disk: 97 %", "text/plain", title="df")).text
    'df:\n\ndisk: 97 %\n\n'
    """
    if not isinstance(part, Document) or not part.plain:
        return part
    return Text(f"{part.title or 'document'}:\n\n{part.text}\n\n")
