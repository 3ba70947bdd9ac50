"""Preinstalled packages: there without a word, warm where the imports say so, and they do what users want of them."""

from __future__ import annotations

import io
import urllib.request
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from belljar_client import Artifact, Client, Result
from tests.conftest import Server
from tests.integration.pools import run_warm, wait_until_full

pytestmark = pytest.mark.integration

Run = Callable[..., Result]
SIGNATURES = {
    "png": b"\x89PNG\r\n",
    "jpg": b"\xff\xd8\xff",
    "gif": b"GIF8",
    "bmp": b"BM",
    "tiff": b"II*\0",
    "webp": b"RIFF",
}


def body(artifact: Artifact) -> bytes:
    """Its content, from the signed URL."""
    with urllib.request.urlopen(artifact.download_url, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def only(result: Result) -> Artifact:
    """The one artifact of a successful run."""
    (artifact,) = result.check().artifacts
    return artifact


PHOTO = """\
from PIL import Image

def main(args):
    img = Image.open("/home/user/photo.png")
    img = img.resize((4, 2))
    img.save("/home/user/resized.jpg")
    return {"width": img.width}
"""


def test_pillow_example_makes_a_jpeg_of_an_input_file(run: Run) -> None:
    """What the documents of users show: open, resize, save under another type."""
    made = only(run("from PIL import Image\nImage.new('RGB', (8, 4), 'red').save('photo.png')"))
    result = run(PHOTO, input_files={"photo.png": body(made)})
    artifact = only(result)
    assert (artifact.name, artifact.content_type, result.value) == ("resized.jpg", "image/jpeg", {"width": 4})
    assert body(artifact).startswith(SIGNATURES["jpg"])


@pytest.mark.parametrize("kind", SIGNATURES)
def test_pillow_opens_and_saves_common_formats(run: Run, kind: str) -> None:
    """Each with the right bytes and the right type."""
    code = (
        f"from PIL import Image\nImage.new('RGB', (8, 8), 'red').save('a.{kind}')\n"
        f"image = Image.open('a.{kind}')\nimage.load()\nreturn image.size"
    )
    result = run(code)
    assert body(only(result)).startswith(SIGNATURES[kind])
    assert result.value == [8, 8]


def test_pandas_writes_a_workbook(run: Run) -> None:
    """An xlsx that is one, with its type."""
    artifact = only(run("import pandas as pd\npd.DataFrame({'a': [1, 2]}).to_excel('table.xlsx', index=False)"))
    assert artifact.content_type == "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    assert "xl/workbook.xml" in zipfile.ZipFile(io.BytesIO(body(artifact))).namelist()


@pytest.mark.parametrize("load", ["import matplotlib.pyplot as plt", "plt = __import__('matplotlib.pyplot').pyplot"])
def test_matplotlib_draws_without_a_display_and_leaves_only_the_plot(run: Run, load: str) -> None:
    """Also when nothing is loaded beforehand: its fonts are known, its settings are no artifacts, and it is silent."""
    result = run(f"{load}\nplt.plot([1, 2])\nplt.title('caf\u00e9')\nplt.savefig('plot.png')")
    assert body(only(result)).startswith(SIGNATURES["png"])
    assert (result.stdout, result.stderr) == (b"", b"")


IMPORTS = """\
import bs4, cryptography.fernet, dateutil.parser, docx, httpx, jinja2, lxml.etree, matplotlib, numpy, openpyxl, orjson
import pandas, PIL, pydantic, pytz, reportlab.pdfgen.canvas, requests, scipy.stats, socks, tabulate, xlsxwriter, yaml
import datetime, locale, os, zoneinfo
reportlab.pdfgen.canvas.Canvas("a.pdf").save()
noon = datetime.datetime(2024, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("UTC"))
return {
    "language": os.environ["LANG"],
    "encoding": locale.getencoding().lower(),
    "berlin": noon.astimezone(zoneinfo.ZoneInfo("Europe/Berlin")).isoformat(),
    "tokyo": noon.astimezone(pytz.timezone("Asia/Tokyo")).isoformat(),
    "p": round(scipy.stats.norm.cdf(0), 3),
    "yaml": yaml.safe_load("a: [1, 2]"),
}
"""


def test_every_python_package_imports_and_places_are_right(run: Run) -> None:
    """All of the list; time zones from both sources; UTF-8 without a word."""
    result = run(IMPORTS)
    assert only(result).content_type == "application/pdf"
    assert result.value == {
        "language": "C.UTF-8",
        "encoding": "utf-8",
        "berlin": "2024-07-01T14:00:00+02:00",
        "tokyo": "2024-07-01T21:00:00+09:00",
        "p": 0.5,
        "yaml": {"a": [1, 2]},
    }


NODE = """\
import axios from 'axios';
import * as cheerio from 'cheerio';
import { parse } from 'csv-parse/sync';
import dayjs from 'dayjs';
import ExcelJS from 'exceljs';
import _ from 'lodash';
import { nanoid } from 'nanoid';
import { PDFDocument } from 'pdf-lib';
import { z } from 'zod';
const book = new ExcelJS.Workbook();
book.addWorksheet('a').addRow([1]);
await book.xlsx.writeFile('book.xlsx');
return [
  typeof axios.get, cheerio.load('<p>x</p>')('p').text(), parse('a,b'), dayjs('2024-05-17').format('YYYY'),
  _.chunk([1, 2, 3], 2), nanoid().length, (await PDFDocument.create()).getPageCount(), z.number().parse(3),
];
"""


@pytest.mark.parametrize("runtime", ["javascript", "typescript"])
def test_node_packages_import_and_work(run: Run, runtime: str) -> None:
    """As modules, and a workbook comes out."""
    result = run(NODE, runtime=runtime)
    assert only(result).content_type == "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    assert result.value == ["function", "x", [["a", "b"]], "2024", [[1, 2], [3]], 21, 0, 3]


def test_node_packages_can_be_required(run: Run) -> None:
    """CommonJS finds the same ones."""
    assert run("const _ = require('lodash');\nreturn _.sum([1, 2]);", runtime="javascript").check().value == 3


def test_programs_that_code_starts_find_the_packages_too(run: Run) -> None:
    """`python3` in a subprocess has the same packages."""
    code = "import subprocess\nsubprocess.run(['python3', '-c', 'import numpy; print(1)'], check=True)\nreturn None"
    assert run(code).check().stdout == b"1\n"


def test_imports_choose_the_sandbox_that_has_them_loaded(client: Client, server: Server) -> None:
    """It is there before the code is; code without it gets a sandbox without it."""
    wait_until_full(server)
    loaded = "'pandas' in __import__('sys').modules"
    warm, with_import = run_warm(client, f"if False:\n    import pandas\nreturn {loaded}")
    assert (warm, with_import.result_json) == (True, "true")
    warm, without = run_warm(client, f"return {loaded}")
    assert (warm, without.result_json) == (True, "false")


@pytest.mark.parametrize("name", ["pandas.py", "six/__init__.py", "PIL.py"])
def test_a_source_with_the_name_of_a_package_wins(run: Run, name: str) -> None:
    """What is loaded beforehand never stands in for what the user has sent."""
    module = name.partition("/")[0].removesuffix(".py")
    result = run(f"import {module}\nimport numpy\nreturn {module}.mine", files={name: "mine = 1"})
    assert result.check().value == 1


def test_numpys_global_generator_differs_in_every_copy(run: Run) -> None:
    """A snapshot has its state; a copy must not."""
    drawn = {run("import numpy\nreturn numpy.random.random()").check().value for _ in range(6)}
    assert len(drawn) == 6


def test_runtimes_list_their_packages(client: Client) -> None:
    """With the versions that code sees."""
    packages: dict[str, Any] = {runtime.name: runtime.packages for runtime in client.runtimes()}
    assert {"numpy", "pandas", "pillow", "beautifulsoup4"} <= packages["python"].keys()
    assert {"lodash", "zod", "exceljs"} <= packages["typescript"].keys() & packages["javascript"].keys()
    version = client.execute("import pandas\nreturn pandas.__version__").check().value
    assert packages["python"]["pandas"] == version
