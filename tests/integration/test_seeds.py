"""The code examples of the documents that users of code nodes have today: each runs as it stands, with its result."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import re
import urllib.request
from collections.abc import Callable

import pytest

from belljar_client import Artifact, Result

pytestmark = pytest.mark.integration

Run = Callable[..., Result]


def body(artifact: Artifact) -> bytes:
    """Its content, from the signed URL."""
    with urllib.request.urlopen(artifact.download_url, timeout=30) as answer:
        content: bytes = answer.read()
        return content


MINIMAL_FILE = """\
def main(args):
    file_path = "/home/user/sample_download_test.txt"

    with open(file_path, "w") as f:
        f.write("Hello! This is a sample file for testing download_url.")

    return {} # Note: no need to return anything
"""


def test_minimal_example_returns_its_result_and_its_file(run: Run) -> None:
    """`result` {}, exit code 0, no logs, no error, one file with a name and a URL."""
    result = run(MINIMAL_FILE).check()
    assert (result.result_json, result.exit_code, result.stdout, result.stderr, result.error) == (
        "{}",
        0,
        b"",
        b"",
        None,
    )
    (artifact,) = result.artifacts
    assert (artifact.name, artifact.content_type.partition(";")[0]) == ("sample_download_test.txt", "text/plain")
    assert body(artifact) == b"Hello! This is a sample file for testing download_url."


MULTIPLE_FILES = """\
import csv

def main(args):
    for region in ["us", "eu", "apac"]:
        with open(f"/home/user/sales_{region}.csv", "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["product", "units"])
            writer.writerow(["widget", 42])

    return {"generated": 3}
"""


def test_multiple_files_come_in_the_order_they_were_written(run: Run) -> None:
    """us, eu, apac: neither the alphabet nor the directory decides."""
    result = run(MULTIPLE_FILES).check()
    assert result.value == {"generated": 3}
    assert [artifact.name for artifact in result.artifacts] == ["sales_us.csv", "sales_eu.csv", "sales_apac.csv"]
    for artifact in result.artifacts:
        assert artifact.content_type.partition(";")[0] == "text/csv"
        assert list(csv.reader(io.StringIO(body(artifact).decode()))) == [["product", "units"], ["widget", "42"]]


@pytest.mark.parametrize(
    "code",
    [
        'result_variable = [1, "two"]\nreturn {"Result":result_variable}',
        'import json\nresult_variable = {"Result": [1, "two"]}\nreturn json.dumps(result_variable)',
        'import json\ndef main(args):\n    return json.dumps({"Result": [1, "two"]})',
    ],
)
def test_both_ways_to_format_the_output_give_the_same(run: Run, code: str) -> None:
    """A dict, or the text of one."""
    assert run(code).check().value == {"Result": [1, "two"]}


def test_capital_return_of_the_document_gets_a_hint(run: Run) -> None:
    """`Return` is the document's typo; who copies it learns what is meant."""
    error = run('result_variable = 1\nReturn {"Result":result_variable}').error
    assert error is not None
    assert (error.kind, error.line) == ("SYNTAX_ERROR", 2)
    assert "return" in error.hint


@pytest.mark.parametrize("runtime", ["typescript", "javascript"])
def test_typescript_files_work_the_same_way(run: Run, runtime: str) -> None:
    """`fs.writeFileSync` and the same capture, with either way to get at fs."""
    writes = (
        "function main(args) {\n  fs.writeFileSync('/home/user/output.csv', 'a,b\\n1,2\\n');\n  return { rows: 1 };\n}"
    )
    for code in (f"import * as fs from 'fs';\n{writes}", f"const fs = require('fs');\n{writes}"):
        result = run(code, runtime=runtime).check()
        assert (result.value, [artifact.name for artifact in result.artifacts]) == ({"rows": 1}, ["output.csv"])
        assert body(result.artifacts[0]) == b"a,b\n1,2\n"


BASIC_PYTHON = """\
# Python Code node -- basic structure
def main(input_var_1: str, input_var_2: int) -> dict:
    # Process inputs
    result = input_var_1.upper()
    count = input_var_2 * 2
\x20
    # Return a dict -- keys become output variables
    return {
        "processed_text": result,
        "doubled_count": count,
    }
"""
BASIC_JAVASCRIPT = """\
// JavaScript Code node -- same structure
async function main({ input_var_1, input_var_2 }) {
    const result = input_var_1.toUpperCase();
    const count = input_var_2 * 2;
\x20
    return {
        processed_text: result,
        doubled_count: count,
    };
}
"""


@pytest.mark.parametrize(
    ("runtime", "code"),
    [("python", BASIC_PYTHON), ("javascript", BASIC_JAVASCRIPT), ("typescript", BASIC_JAVASCRIPT)],
)
def test_basic_structure_takes_inputs_by_name(run: Run, runtime: str, code: str) -> None:
    """The same in every language; the keys of the result keep their order."""
    result = run(code, runtime=runtime, inputs={"input_var_1": "abc", "input_var_2": 21}).check()
    assert result.value == {"processed_text": "ABC", "doubled_count": 42}
    assert list(result.value) == ["processed_text", "doubled_count"]


def test_wrong_mapping_of_inputs_is_told_and_not_silent(run: Run) -> None:
    """The pitfall that the document warns of: here it names what is missing."""
    error = run(BASIC_PYTHON, inputs={"input_var_1": "abc", "other": 1}).error
    assert error is not None
    assert error.kind == "ENTRY_NOT_FOUND"
    assert "missing input_var_2" in error.message
    assert "unexpected other" in error.message


PARSE = """\
import json, re
\x20
def main(llm_output: str) -> dict:
    # Try direct JSON parse first
    try:
        data = json.loads(llm_output)
        return {"name": data.get("name", ""), "score": data.get("score", 0)}
    except json.JSONDecodeError:
        pass
\x20
    # Fallback: extract with regex
    name_match = re.search(r'Name:\\s*(.+)', llm_output)
    score_match = re.search(r'Score:\\s*(\\d+)', llm_output)
    return {
        "name":  name_match.group(1).strip() if name_match else "",
        "score": int(score_match.group(1)) if score_match else 0,
    }
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "Ada", "score": 7}', {"name": "Ada", "score": 7}),
        ("Name: Grace \nScore: 12", {"name": "Grace", "score": 12}),
        ("nothing", {"name": "", "score": 0}),
    ],
)
def test_parsing_example_takes_text_as_text(run: Run, text: str, expected: object) -> None:
    """An input that is a string stays one, also when it holds JSON."""
    assert run(PARSE, inputs={"llm_output": text}).check().value == expected


SIGN = """\
import hashlib, hmac, time
\x20
def main(api_key: str, api_secret: str, payload: str) -> dict:
    # Compute HMAC signature (e.g. for Stripe-style webhook verification)
    timestamp = str(int(time.time()))
    message = f"{timestamp}.{payload}"
    sig = hmac.new(
        api_secret.encode(), message.encode(), hashlib.sha256
    ).hexdigest()
\x20
    return {
        "auth_header": f"t={timestamp},v1={sig}",
        "timestamp": timestamp,
    }
"""


def test_signing_example_gives_a_header_that_verifies(run: Run) -> None:
    """The clock in the sandbox is right, and the timestamp stays text."""
    value = run(SIGN, inputs={"api_key": "k", "api_secret": "s", "payload": "p"}).check().value
    match = re.fullmatch(r"t=(\d{10}),v1=([0-9a-f]{64})", value["auth_header"])
    assert match
    assert match[1] == value["timestamp"]
    assert match[2] == hmac.new(b"s", f"{match[1]}.p".encode(), hashlib.sha256).hexdigest()


TRANSFORM = """\
def main(raw_items: list) -> dict:
    # Clean, deduplicate, and format a list for downstream processing
    seen = set()
    cleaned = []
    for item in raw_items:
        key = item.get("id", "").strip().lower()
        if key and key not in seen:
            seen.add(key)
            cleaned.append({
                "id": key,
                "label": item.get("name", "").title(),
                "value": float(item.get("value", 0)),
            })
    return {"items": cleaned, "count": len(cleaned)}
"""


def test_list_example_cleans_and_deduplicates(run: Run) -> None:
    """A float that is whole stays a float in the JSON text."""
    items = [{"id": " A ", "name": "first one", "value": "3"}, {"id": "a"}, {"id": ""}, {"id": "b", "value": 2}]
    result = run(TRANSFORM, inputs={"raw_items": items}).check()
    assert result.value == {
        "items": [{"id": "a", "label": "First One", "value": 3.0}, {"id": "b", "label": "", "value": 2.0}],
        "count": 2,
    }
    assert result.result_json is not None
    assert "3.0" in result.result_json


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=20)"),
        ("javascript", "await fetch('http://192.0.2.1/')"),
    ],
)
def test_no_network_fails_at_once_with_a_hint(run: Run, runtime: str, code: str) -> None:
    """Not by a time-out, and the hint says that there is none."""
    result = run(code, runtime=runtime)
    assert result.error is not None
    assert result.error.kind == "EXCEPTION"
    assert "no network" in result.error.hint
    assert result.usage.run_time < 10


def test_named_packages_are_there(run: Run) -> None:
    """All that the document lists."""
    names = ["json", "re", "math", "datetime", "hashlib", "hmac", "base64", "urllib"]
    code = "\n".join([*(f"import {name}" for name in names), "return sorted(set(dir()) & set(names))"])
    assert run(code, inputs={"names": names}).check().value == sorted(names)
