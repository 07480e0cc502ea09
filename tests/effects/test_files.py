"""Reading images and documents from files."""

from typing import Any

import pytest

from llm_effects import run, scripted_env
from llm_effects.effects.files import read_document, read_image

GIF = b"GIF89a" + bytes((3, 0, 4, 0))


@pytest.mark.anyio
async def test_files_are_read_as_images_and_documents(tmp_path: Any) -> None:
    env = scripted_env()
    (tmp_path / "a.bin").write_bytes(GIF)
    (tmp_path / "notes.md").write_text("# Disks")
    (tmp_path / "odd.pdf").write_bytes(b"BM")
    image = (await run(read_image(tmp_path / "a.bin"), env)).unwrap()
    assert image.media_type == "image/gif"
    notes = (await run(read_document(tmp_path / "notes.md"), env)).unwrap()
    assert (notes.title, notes.media_type, notes.text) == ("notes.md", "text/markdown", "# Disks")
    for broken in (read_image(tmp_path), read_image(tmp_path / "notes"), read_image("\0")):
        assert (await run(broken, env)).failure().tag == "InvalidRequest"
